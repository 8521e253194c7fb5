"""The simulator: exact truth, drift as asked for, reproducible, and files that read back."""

import h5py
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates
from typer.testing import CliRunner

from txmcorrect import errors
from txmcorrect.cli import app
from txmcorrect.formats import open_references, open_scan
from txmcorrect.simulate import simulate_scan, stream
from txmcorrect.simulate.beam import DRIFTS
from txmcorrect.simulate.draws import draw_pairs
from txmcorrect.simulate.samples import dense
from txmcorrect.simulate.scans import FLATS, PIXEL_UM, READ_NOISE

KINDS = ["mosaic-sparse", "mosaic-dense", "tomo", "film"]
SMALL = {"shape": (48, 64), "frames": 6, "grid": (2, 3), "bank": 2}
ARRAYS = ["counts", "dark", "transmission", "background", "direct", "lit", "current_ma", "bank"]


@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize("family", ["train", "benchmark"])
def test_drift_is_what_was_asked_for(drift, family):
    for seed in range(3):
        scan = simulate_scan("film", drift, seed=seed, family=family, **SMALL)
        change = np.log(scan.background[-1] / scan.background[0])[scan.lit]
        assert change.std() == pytest.approx(DRIFTS[drift], rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_counts_scatter_around_the_truth_as_photons_do(kind):
    scan = simulate_scan(kind, counts=5000, seed=4, **SMALL)
    light = scan.background * scan.transmission
    before = np.concatenate([light[:1], light[:-1]])
    a = scan.direct + 0.002 * before  # direct beam and afterglow do not scale with T
    expected = scan.dark.mean(0) + light + a
    spread = np.sqrt(light + a + READ_NOISE**2 * (1 + 1 / FLATS))
    error = ((scan.counts - expected) / spread)[:, scan.lit]
    assert error.mean() == pytest.approx(0, abs=0.03)
    assert error.std() == pytest.approx(1, abs=0.03)
    halves = error[:, ::2], error[:, 1::2]  # neighbours scatter independently
    size = min(h.shape[1] for h in halves)
    assert np.corrcoef(*(h[:, :size].ravel() for h in halves))[0, 1] == pytest.approx(0, abs=0.03)


def test_scans_of_one_instrument_share_its_pattern_and_differ_in_all_else():
    """Beam and detector are the instrument's; drift, sample and noise are the scan's."""
    one, two = (simulate_scan("film", "slow", seed=s, instrument=7, **SMALL) for s in (1, 2))
    other = simulate_scan("film", "slow", seed=1, instrument=8, **SMALL)
    assert np.array_equal(one.lit, two.lit)
    assert np.array_equal(one.direct, two.direct)
    assert not np.array_equal(one.transmission, two.transmission)
    assert not np.array_equal(one.background, two.background)
    lit = one.lit & other.lit

    def fine(scan):
        log = np.log(scan.background[0])
        return (log - gaussian_filter(log, 2))[lit]

    assert np.corrcoef(fine(one), fine(two))[0, 1] > 0.9
    assert np.corrcoef(fine(one), fine(other))[0, 1] < 0.5


def test_an_empty_lit_pixel_has_the_counts_asked_for():
    for counts in (50, 20000):
        scan = simulate_scan("film", "slow", counts, seed=1, **SMALL)
        assert scan.background[0][scan.lit].mean() == pytest.approx(counts, rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_scan(kind):
    first, again, other = (simulate_scan(kind, seed=seed, **SMALL) for seed in (3, 3, 4))
    for name in ARRAYS:
        assert np.array_equal(getattr(first, name), getattr(again, name)), name
    assert not np.array_equal(first.counts, other.counts)
    assert not np.array_equal(first.transmission, other.transmission)


def test_training_validation_and_kept_scans_never_meet():
    first = [stream(name, 7).random(4).tolist() for name in ("train", "validate", "scan")]
    assert len({tuple(numbers) for numbers in first}) == 3
    assert stream("train", 7).random(4).tolist() == first[0]
    trained, validated = (draw_pairs(7, 0, 2, 32, purpose=p) for p in ("train", "validate"))
    assert not np.array_equal(trained.frames, validated.frames)


def test_the_benchmark_family_is_another_world():
    """Other generators of texture and other shapes; no scan is drawn by both families."""
    train, benchmark = (
        simulate_scan("mosaic-sparse", seed=3, family=family, **SMALL)
        for family in ("train", "benchmark")
    )
    for name in ("transmission", "background", "current_ma"):
        assert not np.array_equal(getattr(train, name), getattr(benchmark, name))


def test_dense_tissue_leaves_nothing_empty():
    for seed in range(5):
        thickness = dense(np.random.default_rng(seed), (64, 64), 64, "train")
        assert thickness.min() > 0.1 * thickness.max() / 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 64), (33, 50)])
def test_odd_shapes(kind, shape):
    scan = simulate_scan(kind, **{**SMALL, "shape": shape})
    assert scan.counts.shape == scan.transmission.shape == (6, *shape)
    assert np.isfinite(scan.background).all()
    assert scan.lit.mean() > 0.2


def test_flats_before_and_after_show_the_beam_as_it_was():
    scan = simulate_scan("film", "fast", references="before-after", seed=2, **SMALL)
    assert scan.flats_before.tolist() == [0] * FLATS + [6] * FLATS
    flats = scan.flats.astype(float) - scan.dark.mean(0) - scan.direct
    for flat, frame in ((flats[:FLATS], 0), (flats[FLATS:], -1)):
        expected = scan.background[frame] * 200 / scan.current_ma[frame]
        error = (flat.mean(0) - expected) / np.sqrt(expected / FLATS + 1)
        assert abs(error[scan.lit].mean()) < 0.1
        assert error[scan.lit].std() == pytest.approx(1, abs=0.15)


def test_a_stale_flat_differs_and_a_fresh_one_does_not():
    def apart(references):
        scan = simulate_scan("film", "fast", 20000, references=references, seed=2, **SMALL)
        flat = scan.flats[:FLATS].mean(0) - scan.dark.mean(0) - scan.direct
        change = np.log(np.maximum(flat, 1) / scan.background[0])[scan.lit]
        return change.std(), np.log(scan.background[-1] / scan.background[0])[scan.lit].std()

    stale, fresh = apart("stale"), apart("fresh")
    assert stale[0] == pytest.approx(0.7 * stale[1], rel=0.3)
    assert fresh[0] < 0.02
    assert fresh[1] < 1e-5


def test_without_a_bank():
    scan = simulate_scan("film", **{**SMALL, "bank": 0})
    assert scan.bank.shape == (0, 48, 64)


def test_a_jump_is_where_it_is_said_to_be():
    scan = simulate_scan("film", "fast", seed=5, jump=True, **{**SMALL, "frames": 12})
    steps = np.diff(np.log(scan.background[:, scan.lit]), axis=0).std(1)
    assert scan.jumps == (int(steps.argmax()) + 1,)


def test_the_current_decays_and_is_in_the_background():
    scan = simulate_scan("film", "slow", references="fresh", seed=3, **SMALL)
    assert scan.current_ma[0] == 200
    per_current = scan.background / scan.current_ma[:, None, None]
    assert np.allclose(per_current, per_current[:1], rtol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_volume_projects_to_the_transmission(axis):
    """At 0 degrees along y, at 90 degrees along x; voxels are sampled at their centres."""
    scan = simulate_scan("tomo", seed=3, **{**SMALL, "shape": (64, 64), "frames": 2})
    assert scan.theta.tolist() == [0, np.pi / 2]
    projected = scan.volume.sum(1 + axis) * PIXEL_UM
    error = projected + np.log(scan.transmission[axis])
    assert np.sqrt((error**2).mean()) < 0.06 * projected.max()
    mirrored = projected[:, ::-1] + np.log(scan.transmission[axis])
    assert (error**2).mean() < 0.3 * (mirrored**2).mean()


def test_tiles_are_cut_from_one_world_from_the_bottom_left():
    scan = simulate_scan("mosaic-dense", seed=3, **SMALL)
    tiles, (h, w) = scan.position_px.reshape(2, 3, 2), SMALL["shape"]
    assert (tiles[0, :, 0] > tiles[1, :, 0] + 0.8 * h).all()
    assert (np.diff(tiles[..., 1], axis=1) > 0.8 * w).all()
    for corner, seen in zip(scan.position_px, scan.transmission, strict=True):
        y, x = np.mgrid[4 : h - 4, 4 : w - 4]
        expected = map_coordinates(np.log(scan.world), [y + corner[0], x + corner[1]], order=3)
        assert np.abs(np.log(seen[4:-4, 4:-4]) - expected).max() < 2e-3


# --- training draws -----------------------------------------------------------------------------


def test_a_batch_is_a_function_of_seed_and_index():
    first, again, other, next_ = (
        draw_pairs(s, i, 3, 32) for s, i in ((1, 2), (1, 2), (2, 2), (1, 3))
    )
    assert np.array_equal(first.frames, again.frames)
    assert np.array_equal(first.background, again.background)
    for different in (other, next_):
        assert different.frames.shape != first.frames.shape or not np.array_equal(
            different.frames, first.frames
        )


def test_drawn_pairs_are_counts_under_their_background():
    shapes = set()
    for index in range(12):
        drawn = draw_pairs(5, index, 4, 32, counts=(100, 1000), brightness=0, contrast_spread=0)
        assert drawn.frames.shape == (4, 2, *drawn.background.shape[1:])
        shapes.add(drawn.background.shape[1:])
        assert set(drawn.photons.tolist()) <= {1, 4, 16}
        for background, lit, frames, photons in zip(
            drawn.background, drawn.lit, drawn.frames, drawn.photons, strict=True
        ):
            assert 99 < background[lit].mean() < 1001
            whole = frames * photons
            assert np.allclose(whole, np.rint(whole), atol=1e-2)
            assert np.median(frames[:, lit] / background[lit]) < 1.6
    assert len(shapes) > 1  # not only squares
    assert max(max(shape) for shape in shapes) == 32


# --- the command --------------------------------------------------------------------------------


def simulate(out, *arguments):
    small = ["--size", "48", "--height", "32", "--bank", "3", "--seed", "6"]
    return CliRunner().invoke(app, ["simulate", str(out), *small, *arguments])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A tomogram and a mosaic with references before and after."""
    folder = tmp_path_factory.mktemp("simulated")
    tomo = simulate(
        folder / "tomo.h5", "--kind", "tomo", "--frames", "5", "--references", "before-after"
    )
    mosaic = simulate(folder / "mosaic.h5", "--grid", "2x3", "--drift", "fast")
    assert tomo.exit_code == mosaic.exit_code == 0, tomo.output + mosaic.output
    return folder


def test_the_truth_file_holds_what_the_contract_names(written):
    with h5py.File(written / "tomo.truth.h5") as file:
        truth = file["truth"]
        assert truth["transmission"].shape == truth["background"].shape == (5, 32, 48)
        assert truth["lit"].shape == (32, 48)
        assert truth["volume"].shape == (32, 48, 48)
        assert truth["volume"].attrs["units"] == "1/um"
        assert "world" not in truth
    with h5py.File(written / "mosaic.truth.h5") as file:
        truth = file["truth"]
        assert truth["position_px"].shape == (6, 2)
        assert truth["world"].ndim == 2
        assert "volume" not in truth


def test_the_files_say_what_was_simulated(written):
    expected = simulate_scan(
        "tomo", shape=(32, 48), frames=5, references="before-after", bank=3, seed=6
    )
    scan = open_scan(written / "tomo.h5")
    assert np.array_equal(scan.projections.read(0, 5), expected.counts)
    assert np.array_equal(scan.darks.read(0, FLATS), expected.dark)
    assert np.allclose(scan.theta, expected.theta)
    assert np.allclose(scan.current_ma, expected.current_ma)
    assert (scan.exposure_s == 1).all()
    assert np.allclose(np.diff(scan.time_s), 2)
    (flats,) = scan.flats
    assert np.array_equal(flats.frames.read(0, 2 * FLATS), expected.flats)
    assert np.array_equal(flats.before, expected.flats_before)
    assert np.allclose(flats.current_ma, expected.flats_current_ma)
    assert scan.optics.pixel_size_nm == pytest.approx(1000 * PIXEL_UM)
    assert scan.optics.energy_ev == pytest.approx(8000)


def test_the_bank_reads_as_references(written):
    expected = simulate_scan("mosaic-sparse", "fast", shape=(32, 48), grid=(2, 3), bank=3, seed=6)
    (bank,) = open_references(written / "mosaic.refs.h5")
    assert np.allclose(bank.frames.read(0, 3), expected.bank)
    assert np.allclose(bank.current_ma, expected.bank_current_ma)
    assert bank.darks.shape == (FLATS, 32, 48)
    assert (np.diff(bank.time_s) > 0).all()
    assert bank.time_s[-1] < open_scan(written / "mosaic.h5").time_s[0]


def test_stage_positions_are_those_of_the_tiles_to_a_pixel(written):
    scan = open_scan(written / "mosaic.h5")
    assert scan.mosaic_shape == (2, 3)
    with h5py.File(written / "mosaic.truth.h5") as file:
        true = file["truth/position_px"][:]
    assert np.abs(scan.position_um / PIXEL_UM - true).max() <= 0.5 + 1e-6


def test_all_three_files_or_none(tmp_path):
    (tmp_path / "scan.refs.h5").write_text("mine")
    result = simulate(tmp_path / "scan.h5", "--kind", "film", "--frames", "2")
    assert isinstance(result.exception, errors.OutputError)
    assert "scan.refs.h5 exists" in str(result.exception)
    assert [p.name for p in tmp_path.iterdir()] == ["scan.refs.h5"]
    assert (
        simulate(tmp_path / "scan", "--kind", "film", "--frames", "2", "--overwrite").exit_code == 0
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "scan.h5",
        "scan.refs.h5",
        "scan.truth.h5",
    ]
