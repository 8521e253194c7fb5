"""Worlds: drifts are what their docstrings say, families share nothing, files say what was recorded."""

from dataclasses import fields

import h5py
import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from typer.testing import CliRunner

from txmcorrect.cli import app
from txmcorrect.config import UsageError
from txmcorrect.formats import open_references, open_scan
from txmcorrect.simulate import beam, draw_world, light, modes, processes, samples
from txmcorrect.simulate.choices import Streams
from txmcorrect.simulate.drifts import AMOUNTS, DRIFT_KINDS, draw_levels, draw_motion
from txmcorrect.simulate.light import draw_light
from txmcorrect.simulate.records import CURRENTS
from txmcorrect.simulate.references import AFTER_BURST, REFERENCE_KINDS
from txmcorrect.simulate.scans import PIXEL_UM, READ_NOISE
from txmcorrect.simulate.specimens import SPECIMENS, grid_of
from txmcorrect.simulate.worlds import world_of
from txmcorrect.synthesize import START, write_bank, write_scan

FAMILIES = ["train", "develop", "benchmark"]
SMALL = {"shape": (40, 48), "frames": 6, "counts": 2000.0}
PLAIN = {**SMALL, "drift": "still", "detector": "none", "sample": "empty", "bank": 0}


def states(kind, family, times, shape=(48, 48), amount=0.02, seed=0, **instrument):
    """An instrument, its motion at `times`, and the log backgrounds without level and current."""
    rng = np.random.default_rng([seed, FAMILIES.index(family)])
    jitter = (3, amount) if kind in ("white", "mixed") else None
    stripes = amount if kind == "stripes" else 0.0
    made = draw_light(rng, shape, family, "mottle", "pattern", jitter, stripes, **instrument)
    motion = draw_motion(rng, kind, made, np.asarray(times, float), family, amount)
    return made, motion, made.log_background(motion)


def rms_of_ratios(logs, lit):
    """Root mean square over neighbours in the stack of their log ratio, means removed."""
    change = np.diff(logs, axis=0)[:, lit]
    return float(np.sqrt(change.var(1).mean()))


# --- processes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_walk_is_stationary_and_forgets(family):
    memory = 0.5
    times = np.array([-200.0, 0.0, 0.02, 0.5, 20.0, 20.01])
    found = processes.PROCESSES[family](np.random.default_rng(1), times, memory, 4000)
    assert found.mean(1) == pytest.approx(np.zeros(6), abs=0.08)
    assert found.std(1) == pytest.approx(np.ones(6), abs=0.06)
    related = np.corrcoef(found)
    assert related[1, 2] > 0.9  # soon after
    assert related[4, 5] > 0.9
    assert related[1, 3] < 0.55  # once forgotten
    assert abs(related[1, 4]) < 0.07


@pytest.mark.parametrize("family", FAMILIES)
def test_jitter_has_unit_variance_and_no_memory(family):
    found = processes.JITTERS[family](np.random.default_rng(2), (4000, 2))
    assert found.std(0) == pytest.approx([1, 1], abs=0.06)
    for scores in found.T:
        assert abs(np.corrcoef(scores[1:], scores[:-1])[0, 1]) < 0.06
    assert abs(np.corrcoef(found.T)[0, 1]) < 0.06


def test_jitters_of_families_have_other_tails():
    fourth = {
        family: (processes.JITTERS[family](np.random.default_rng(3), (20000, 1)) ** 4).mean()
        for family in FAMILIES
    }
    assert fourth["train"] == pytest.approx(3, abs=0.2)
    assert fourth["develop"] > 4.5
    assert fourth["benchmark"] == pytest.approx(1.8, abs=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_heat_lags_behind_the_current(family):
    times = np.linspace(0, 1, 400, endpoint=False)
    current = processes.sawtooth(times, family, 0.2, 1.0, 0.0)
    assert np.ptp(current) == pytest.approx(0.2, rel=0.02)
    assert (np.diff(current) < 0).all()  # it falls until it is topped up
    warmth = processes.heat(times, family, 1.0, 0.0, 0.2)
    assert np.ptp(warmth) == pytest.approx(1, abs=0.02)
    lags = [np.corrcoef(np.roll(current, k), warmth)[0, 1] for k in range(0, 200, 10)]
    assert int(np.argmax(lags)) > 0
    assert max(lags) > 0.8


# --- drifts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_white_drift_has_the_measured_rank_and_no_memory(family):
    made, _, logs = states("white", family, np.linspace(0, 1, 300))
    values = (logs - logs.mean(0))[:, made.beam.lit]
    values = values - values.mean(1, keepdims=True)
    u, s, _ = np.linalg.svd(values, full_matrices=False)
    shares = s**2 / (s**2).sum()
    assert 0.88 < shares[0] < 0.97
    assert 0.98 < shares[:3].sum() < 0.998
    assert abs(np.corrcoef(u[1:, 0], u[:-1, 0])[0, 1]) < 0.15


@pytest.mark.parametrize("family", FAMILIES)
def test_white_drift_has_the_measured_scales(family):
    """Band by band, over several instruments: rms of the log ratio of two exposures."""
    side, found = 256, []
    window = np.outer(np.hanning(side), np.hanning(side))
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None]
    f = np.hypot(fy, fx) * side
    edges = [(1.5, 8)] + [(low, high) for high, low, _ in modes.BANDS]
    for seed in range(4):
        lit = np.ones((side, side), bool)
        images = modes.measured_modes(
            np.random.default_rng(seed), (side, side), lit, family, 3, 0.02
        )
        whole = np.sqrt(2 * (images**2).sum(0).mean())
        assert whole == pytest.approx(0.02, rel=0.35)
        power = (np.abs(np.fft.fft2(images * window)) ** 2).sum(0) * 2 / (window**2).mean()
        found.append([power[(f > a) & (f <= b)].sum() / side**4 for a, b in edges])
    rms = np.sqrt(np.mean(found, 0))
    assert rms[1:4] == pytest.approx([0.01, 0.005, 0.002], rel=0.5)
    assert rms[4] < 0.0016


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_components_hold_the_shares_said(rank):
    shares = modes.shares_of_variance(np.random.default_rng(rank), rank)
    assert shares.sum() == pytest.approx(1)
    assert shares[:rank].sum() == pytest.approx(0.99)
    assert (np.diff(shares[:rank]) < 0).all()
    assert rank == 1 or 0.92 <= shares[0] <= 0.95


@pytest.mark.parametrize("family", FAMILIES)
def test_a_walk_moves_by_its_amount(family):
    """States of other days are independent; a moment later the beam is nearly where it was."""
    days = np.linspace(-300, -5, 40)
    made, _, logs = states("walk", family, days)
    assert rms_of_ratios(logs, made.beam.lit) == pytest.approx(0.02, rel=0.5)
    made, _, logs = states("walk", family, np.linspace(0, 1e-3, 5))
    assert rms_of_ratios(logs, made.beam.lit) < 0.005


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trend_leads_from_the_first_to_the_last_frame(family):
    made, _, logs = states("trend", family, np.linspace(0, 1, 9), amount=0.05)
    ends = (logs[-1] - logs[0])[made.beam.lit]
    assert ends.std() == pytest.approx(0.05, rel=0.15)
    assert rms_of_ratios(logs, made.beam.lit) < 0.03


@pytest.mark.parametrize("family", FAMILIES)
def test_a_jump_is_sudden(family):
    for seed in range(3):
        made, _, logs = states("jump", family, np.linspace(0.001, 0.999, 60), seed=seed)
        steps = np.diff(logs, axis=0)[:, made.beam.lit].std(1)
        assert 0.008 < steps.max() < 0.2
        assert np.median(steps) < 0.05 * steps.max()


def test_jumps_are_where_they_are_said_to_be():
    given = {**PLAIN, "drift": "jump", "frames": 24, "texture": "mottle", "amount": 0.05}
    found = set()
    for seed in range(6):
        scan = draw_world(seed, order="time", **given)
        steps = np.diff(np.log(scan.background[:, scan.lit]), axis=0).std(1)
        assert set((np.flatnonzero(steps > 1e-5) + 1).tolist()) == set(scan.jumps)
        found.add(len(scan.jumps))
    assert found == {1, 2}
    assert draw_world(1, order="time", **{**given, "drift": "walk"}).jumps == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_stripes_move_by_parts_of_a_pixel(family):
    made, motion, logs = states("stripes", family, np.linspace(-100, 1, 50), amount=0.03)
    change = logs - logs[:1]
    assert np.abs(change - change[:, :, :1]).max() < 1e-5  # the same along rows
    assert 0 < motion.stripes.std() < 2
    assert made.stripes.std() == pytest.approx(0.03, rel=0.01)
    assert 1e-4 < change[1:].std() < 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_zoom_magnifies_the_illumination_about_the_middle(family):
    made, motion, logs = states("zoom", family, np.linspace(-30, 1, 80), amount=0.01)
    assert motion.zoom.std() == pytest.approx(0.01, rel=0.35)
    h, w = made.beam.shape
    still = made.log_background(light.Motion.still(1, made.size))[0] - made.beam.fixed
    at = int(np.argmax(np.abs(motion.zoom)))
    y, x = np.mgrid[8 : h - 8, 8 : w - 8]
    nearer = np.exp(-motion.zoom[at])
    places = [(v - (s - 1) / 2) * nearer + (s - 1) / 2 for v, s in ((y, h), (x, w))]
    expected = map_coordinates(still, places, order=3)
    seen = (logs[at] - made.beam.fixed)[8:-8, 8:-8]
    assert np.abs(seen - expected).max() < 0.15 * np.abs(expected - still[8:-8, 8:-8]).max() + 2e-4


def test_optics_cool_while_the_current_decays():
    made, motion, logs = states("decay", "train", np.linspace(0, 4, 200), amount=0.2)
    assert np.ptp(motion.current) == pytest.approx(0.2, rel=0.1)
    ups = (np.diff(motion.current) > 0.05).sum()
    assert 1 <= ups <= 14
    one = np.linalg.svd((logs - logs.mean(0))[:, made.beam.lit], compute_uv=False)
    assert one[0] ** 2 / (one**2).sum() > 0.999  # one shape mode


def test_all_but_still_have_a_level_of_their_own():
    times = np.linspace(-300, 1, 300)
    for kind in DRIFT_KINDS:
        _, motion, logs = states(kind, "train", times, (16, 16), amount=AMOUNTS[kind][0])
        if kind == "still":
            assert not motion.level.any()
            assert np.array_equal(logs, np.broadcast_to(logs[:1], logs.shape))
        else:
            assert 0.006 < motion.level.std() < 0.02
            assert np.ptp(logs) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_levels_jitter_and_wander(family):
    levels = np.stack(
        [
            draw_levels(np.random.default_rng(s), np.array([0, 0.05, 100]), family)
            for s in range(300)
        ]
    )
    assert levels.std(0) == pytest.approx([0.011] * 3, rel=0.25)
    soon, late = (levels[:, 0] - levels[:, k] for k in (1, 2))
    assert 0.001 < soon.std() < 0.75 * late.std()


def test_mixed_drift_has_both_memory_and_jitter():
    _, motion, _ = states("mixed", "train", np.linspace(0, 1e-3, 60))
    assert np.ptp(motion.shift, axis=0).max() < 0.3  # the walk hardly moves
    assert motion.scores[:, beam.MODES].std() == pytest.approx(1, abs=0.3)


# --- families -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "generators",
    [
        processes.PROCESSES,
        processes.JITTERS,
        processes.TRENDS,
        processes.TEETH,
        modes.BROAD_SHAPES,
        light.SPECKLES,
        light.STRIPES,
    ],
)
def test_families_share_no_generator(generators):
    assert sorted(generators) == sorted(FAMILIES)
    assert len({id(g) for g in generators.values()}) == 3


def test_families_share_no_envelope():
    sets = [set(light.WORLD_ENVELOPES[f]) for f in FAMILIES]
    assert all(sets)
    assert sum(map(len, sets)) == len(set.union(*sets))


@pytest.mark.parametrize("sample", ["sparse", "dense", "film", "wide"])
def test_the_same_numbers_make_other_shapes_in_each_family(sample):
    """From one random stream, so that what differs is the generator."""
    drawn = [
        samples.Spheres(np.random.default_rng(5), (40, 40), family).project(0.3)
        if sample == "wide"
        else samples.SAMPLES[sample](np.random.default_rng(5), (40, 40), 40.0, family)
        for family in FAMILIES
    ]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not np.allclose(drawn[one], drawn[other])


def test_seeds_families_purposes_and_indices_never_meet():
    keys = [
        (seed, family, purpose, index)
        for seed in (0, 1)
        for family in FAMILIES
        for purpose in ("train", "validate", "scan")
        for index in (0, 1)
    ]
    first = {key: Streams(*key)("instrument").random() for key in keys}
    assert len(set(first.values())) == len(keys)
    assert Streams(0, "train", "scan", 0)("specimen").random() not in first.values()


# --- whole worlds -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_gives_the_same_world(family):
    first, again, other = (draw_world(s, family, shape=(40, 48)) for s in (3, 3, 4))
    for field in fields(first):
        if field.name not in ("records", "choices"):
            assert np.array_equal(getattr(first, field.name), getattr(again, field.name))
    assert first.choices == again.choices
    assert not np.array_equal(first.counts, other.counts)


def test_everything_is_drawn_sooner_or_later():
    drawn = [draw_world(s, shape=(16, 16), frames=4).choices for s in range(120)]
    for name, all_of_them in (
        ("drift", DRIFT_KINDS),
        ("records", CURRENTS),
        ("sample", SPECIMENS),
        ("references", REFERENCE_KINDS),
        ("order", ("time", "shuffled")),
        ("detector", ("pattern", "none")),
        ("texture", ("mottle", "speckle", "none")),
        ("rank", (1, 2, 3)),
    ):
        assert {choices[name] for choices in drawn} == set(all_of_them), name
    counts = [choices["counts"] for choices in drawn]
    assert min(counts) < 200
    assert 10000 < max(counts) <= 20000


def test_a_choice_that_is_fixed_changes_nothing_else():
    given = {**SMALL, "drift": "walk", "order": "time", "sample": "sparse"}
    one, two = (draw_world(1, **{**given, "sample": s}) for s in ("sparse", "opaque"))
    assert np.array_equal(one.background, two.background)
    other = draw_world(1, **{**given, "drift": "white"})
    assert np.array_equal(one.transmission, other.transmission)
    with pytest.raises(TypeError, match="speed"):
        draw_world(1, speed=3)


@pytest.mark.parametrize("sample", ["tomo", "dense"])
def test_shuffled_frames_are_the_same_frames(sample):
    given = {**SMALL, "drift": "trend", "sample": sample, "references": "before-after"}
    straight, mixed = (draw_world(2, order=o, **given) for o in ("time", "shuffled"))
    order = np.argsort(mixed.time)
    assert not np.array_equal(order, np.arange(6))
    names = ["counts", "background", "transmission", "level", "current_ma", "time"]
    names.append("theta" if sample == "tomo" else "position_px")
    for name in names:
        assert np.array_equal(getattr(mixed, name)[order], getattr(straight, name)), name
    assert np.array_equal(mixed.flats, straight.flats)


def test_counts_scatter_around_the_truth_as_photons_do():
    scan = draw_world(5, drift="white", sample="dense", order="time", records="full", **SMALL)
    seen = scan.background * scan.transmission
    glow = 0.002 * np.concatenate([seen[:1], seen[:-1]])
    error = scan.counts - scan.dark.mean(0) - seen - scan.direct - glow
    error = (error / np.sqrt(seen + READ_NOISE**2 * 1.1 + scan.direct))[:, scan.lit]
    assert error.mean() == pytest.approx(0, abs=0.03)
    assert error.std() == pytest.approx(1, abs=0.03)
    assert scan.background[0][scan.lit].mean() == pytest.approx(2000, rel=0.02)


def test_the_background_includes_the_level():
    given = {**PLAIN, "references": "fresh", "flats_exposure": 2.0, "records": "full"}
    scan = draw_world(6, order="time", texture="none", **given)
    plain = scan.background * np.exp(-scan.level)[:, None, None]
    assert np.allclose(plain, plain[:1], rtol=1e-5)
    flats = scan.flats.mean(0) - scan.dark.mean(0)
    currents = scan.flats_current_ma.mean() / scan.current_ma[0]
    ratio = flats[scan.lit].sum() / scan.background[0][scan.lit].sum()
    assert ratio == pytest.approx(2 * currents, rel=0.01)


@pytest.mark.parametrize("kind", REFERENCE_KINDS)
def test_references_were_taken_when_they_say(kind):
    scan = draw_world(7, references=kind, drift="white", sample="empty", **SMALL)
    times = scan.flats_time
    where = {
        "before-after": ((times < 0) | (times > 1)).all() and (times > 1).any(),
        "within": ((times > -0.2) & (times < 1.2)).all() and len(np.unique(scan.flats_before)) > 2,
        "none": len(times) == 0,
        "bank": len(times) == 0 and len(scan.bank) >= 12,
    }
    assert where.get(kind, len(times) >= 4 and bool((times < 0).all()))
    assert (scan.flats_before == [(np.sort(scan.time) < t).sum() for t in times]).all()
    assert ((scan.bank_time > -300) & (scan.bank_time < -5)).all()


def test_references_jitter_as_frames_do():
    given = {"shape": (40, 48), "amount": 0.05, "counts": 20000.0, "drift": "white"}
    given |= {"sample": "empty", "frames": 40, "detector": "none", "records": "none"}
    scan = draw_world(8, references="before-after", bank=40, **given)
    dark = scan.dark.mean(0)

    def jitter(frames):
        logs = np.log(np.maximum(frames - dark, 1))[:, scan.lit]
        return (logs - logs.mean(0)).std(1).mean()

    assert jitter(scan.flats) == pytest.approx(jitter(scan.counts), rel=0.4)
    assert jitter(scan.bank) == pytest.approx(jitter(scan.counts), rel=0.4)
    assert jitter(scan.counts) > 0.015


def test_after_a_burst_the_beam_changes():
    world = world_of(Streams(9, "train", "scan", 0), "train", {**PLAIN, "references": "burst"})
    frames, flats, _ = (world.exposures.background[p] for p in world.exposures.parts)
    lit = world.light.beam.lit
    assert np.log(frames[0] / flats[-1])[lit].std() == pytest.approx(AFTER_BURST, rel=0.1)
    assert np.log(flats[0] / flats[-1])[lit].std() < 1e-5
    assert np.log(frames[0] / frames[-1])[lit].std() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_are_what_they_are_called(family):
    seen = {
        kind: draw_world(4, family, sample=kind, strength=0.3, **SMALL).transmission
        for kind in SPECIMENS
    }
    assert (seen["empty"] == 1).all()
    assert seen["opaque"].mean() == pytest.approx(0.06, abs=0.015)
    assert np.log(seen["opaque"]).std() > 0.1
    assert (seen["tomo"].max((0, 1)) == 1).any()  # columns that nothing reaches
    assert seen["wide"].max() < 1
    for kind in ("sparse", "dense", "film", "tomo", "wide"):
        strong = np.quantile(np.abs(np.log(seen[kind])), 0.999)
        assert strong == pytest.approx(-np.log(0.7), rel=0.2), kind


@pytest.mark.parametrize("strength", [0.01, 0.1, 0.9])
def test_dense_samples_leave_no_empty_cell_at_any_contrast(strength):
    for seed in range(3):
        scan = draw_world(seed, sample="dense", strength=strength, **SMALL)
        cells = np.abs(np.log(scan.transmission)).reshape(6, 5, 8, 6, 8).mean((2, 4))
        assert cells.min() > 0.005 * -np.log(1 - strength)


def test_a_detector_without_pattern_shows_photon_noise_only():
    scan = draw_world(3, references="fresh", texture="none", **PLAIN)
    flats = scan.flats - 100.0
    mean = flats.mean(0)
    rough = (mean - map_coordinates(mean, np.mgrid[:40, 1:49], order=1, mode="nearest"))[:, :-1]
    expected = np.sqrt(2 * (mean[:, :-1] + READ_NOISE**2) / len(flats))
    assert (rough / expected).std() == pytest.approx(1, abs=0.1)
    assert scan.lit.dtype == bool


def test_speckle_goes_with_the_beam():
    given = {**SMALL, "drift": "zoom", "detector": "none", "sample": "empty"}
    rough = {}
    for texture in ("speckle", "none"):
        logs = np.log(draw_world(2, texture=texture, **given).background[0])
        rough[texture] = np.diff(logs, 2, axis=0).std()
    assert rough["speckle"] > 2 * rough["none"]


def test_grids_are_as_square_as_they_come():
    assert [grid_of(n) for n in (16, 12, 7, 2)] == [(4, 4), (3, 4), (1, 7), (1, 2)]


# --- files --------------------------------------------------------------------------------------


def written(tmp_path, **choices):
    scan = draw_world(11, bank=12, **{**SMALL, "sample": "tomo", **choices})
    write_scan(tmp_path / "scan.h5", scan)
    write_bank(tmp_path / "refs.h5", scan)
    (bank,) = open_references(tmp_path / "refs.h5")
    return scan, open_scan(tmp_path / "scan.h5"), bank


def agree(read, true):
    return read is None if true is None else np.allclose(read, true)


@pytest.mark.parametrize("kind", CURRENTS)
@pytest.mark.parametrize("order", ["time", "shuffled"])
def test_files_say_what_is_recorded_and_nothing_else(tmp_path, kind, order):
    scan, read, bank = written(
        tmp_path, records=kind, order=order, references="before", drift="decay", amount=0.3
    )
    (flats,) = read.flats
    says = scan.records
    assert agree(read.exposure_s, says.exposure_s)
    assert agree(read.current_ma, says.current_ma)
    assert agree(flats.exposure_s, says.flats_exposure_s)
    assert agree(flats.current_ma, says.flats_current_ma)
    assert agree(bank.exposure_s, says.bank_exposure_s)
    assert agree(bank.current_ma, says.bank_current_ma)
    assert agree(read.time_s, None if kind == "none" else START + 3600 * scan.time)
    assert agree(flats.time_s, None if kind == "none" else START + 3600 * scan.flats_time)
    assert agree(bank.time_s, None if kind == "none" else START + 3600 * scan.bank_time)
    assert np.array_equal(flats.before, scan.flats_before)
    assert np.array_equal(read.projections.read(0, 6), scan.counts)
    assert np.allclose(read.theta, scan.theta)
    assert np.ptp(scan.current_ma) > 1  # and this is what it was
    known = {
        "full": lambda: np.allclose(read.current_ma, scan.current_ma),
        "none": lambda: read.current_ma is None and read.exposure_s is None,
        "partial": lambda: read.current_ma is None and read.exposure_s is not None,
        "wrong": lambda: np.ptp(read.current_ma) == 0,
        "quantised": lambda: np.allclose(read.current_ma % 8, 0),
    }
    assert known[kind]()


def test_another_exposure_of_references_is_recorded(tmp_path):
    scan, read, _ = written(tmp_path, records="full", references="fresh", flats_exposure=1.7)
    assert np.allclose(read.flats[0].exposure_s, 1.7)
    assert np.allclose(read.exposure_s, 1)
    assert scan.flats.mean() > 1.3 * scan.counts.mean()


def simulate(out, *arguments):
    small = ["--size", "48", "--height", "32", "--bank", "3", "--seed", "6"]
    return CliRunner().invoke(app, ["simulate", str(out), *small, *arguments])


def test_the_command_writes_worlds(tmp_path):
    result = simulate(
        tmp_path / "a.h5",
        *("--drift-kind", "white", "--order", "shuffled", "--records", "partial"),
        *("--references", "within", "--sample", "wide", "--frames", "8", "--family", "develop"),
    )
    assert result.exit_code == 0, result.output
    assert "8 frames of 32x48, wide, medium white drift" in result.output
    scan = open_scan(tmp_path / "a.h5")
    assert scan.shape == (8, 32, 48)
    assert scan.current_ma is None
    assert len(np.unique(scan.flats[0].before)) > 2
    assert open_references(tmp_path / "a.refs.h5")[0].frames.shape == (3, 32, 48)
    with h5py.File(tmp_path / "a.truth.h5") as file:
        truth = file["truth"]
        assert truth["level"].shape == truth["time"].shape == (8,)
        assert np.allclose(np.diff(np.sort(truth["time"][:])), 1 / 8)
        assert "volume" not in truth


def test_frames_of_a_mosaic_make_its_grid(tmp_path):
    for extra in ([], ["--drift-kind", "walk"]):
        out = tmp_path / f"a{len(extra)}.h5"
        result = simulate(out, "--frames", "6", *extra)
        assert result.exit_code == 0, result.output
        scan = open_scan(out)
        assert scan.mosaic_shape == (2, 3)
        assert len(scan.position_um) == 6
    result = simulate(tmp_path / "b.h5", "--frames", "6", "--grid", "4x4")
    assert isinstance(result.exception, UsageError)
    assert "expected the 16 tiles of --grid 4x4, got 6" in str(result.exception)
    assert not list(tmp_path.glob("b*"))


def test_a_world_s_volume_projects_to_its_transmission():
    scan = draw_world(3, sample="tomo", volume=True, order="time", shape=(64, 64), frames=2)
    for axis in (0, 1):
        projected = scan.volume.sum(1 + axis) * PIXEL_UM
        error = projected + np.log(scan.transmission[axis])
        assert np.sqrt((error**2).mean()) < 0.06 * projected.max()
