"""Every check catches a deliberately bad method and lets the oracle pass."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import txmcorrect
from txmcorrect.baselines import (
    BAD,
    PEERS,
    Estimate,
    Flats,
    NotApplicableError,
    gain_error,
    oracle,
    over_smoothed,
    too_sure,
)
from txmcorrect.baselines.frames import pair_mean
from txmcorrect.judge import checks, implants, scenes
from txmcorrect.judge import tomogram as tomography
from txmcorrect.judge.failures import FAILURES, failure_places, plant_failures
from txmcorrect.judge.trial import log_error, start_trial
from txmcorrect.judge.verdict import CHECKS, CRITICAL, judge, trusted
from txmcorrect.simulate import stream

SMALL = (64, 64)


@pytest.fixture(scope="module")
def scene():
    """A sparse mosaic with a bank, small."""
    return scenes.simulated_scene(scenes.Setting("mosaic-sparse", shape=SMALL), 1)


@pytest.fixture(scope="module")
def fresh():
    return scenes.simulated_scene(scenes.Setting("film", references="fresh", shape=SMALL), 0)


def knowing(scene, make=oracle):
    return make(scene.truth.log_background, scene.truth.additive)


def finding(name, method, scene):
    return CHECKS[name](start_trial(method, scene))


def test_the_oracle_passes_every_critical_check(scene):
    found = judge(knowing(scene), scene, CRITICAL)
    assert trusted(found)
    assert all(f.passed for f in found.values())


def test_a_fresh_reference_passes_every_critical_check(fresh):
    found = judge(PEERS["stale"], fresh, CRITICAL)
    assert all(f.passed for f in found.values()), found


@pytest.mark.parametrize(
    ("check", "method"),
    [
        ("preservation", BAD["bad:blur-division"]),
        ("preservation", BAD["bad:erase-all"]),
        ("preservation", PEERS["pair-mean"]),
        ("null", BAD["bad:identity"]),
        ("null", BAD["bad:erase-all"]),
        ("null", PEERS["pair-mean"]),
        ("neighbours", PEERS["pair-mean"]),
        ("neighbours", PEERS["stack-mean"]),
        ("neighbours", lambda problem: pair_mean(problem, interval=2)),
        ("neighbours", lambda problem: pair_mean(problem, interval=3)),
        ("neighbours", BAD["bad:neighbours"]),
        ("wrong-bank", BAD["bad:any-bank"]),
        ("wrong-bank", PEERS["robust-eigen-flats"]),
        ("flags", BAD["bad:erase-all"]),
        ("flags", PEERS["stale"]),
    ],
)
def test_a_bad_method_is_caught(check, method, scene):
    assert finding(check, method, scene).passed is False


@pytest.mark.parametrize(
    ("check", "make"),
    [
        ("gain", gain_error),
        ("null", over_smoothed),
        ("preservation", over_smoothed),
        ("calibration", too_sure),
    ],
)
def test_a_bad_method_that_knows_the_truth_is_caught(check, make, scene):
    assert finding(check, knowing(scene, make), scene).passed is False


def test_a_gain_error_of_one_per_cent_is_measured_as_such(scene):
    figures = finding("gain", knowing(scene, gain_error), scene).figures
    assert figures["absolute_gain"] == pytest.approx(np.log(1.01), abs=1e-5)


def test_a_relative_scale_is_not_blamed_for_its_level(scene):
    def half(problem):
        return Estimate(scene.truth.log_background - 0.7, "relative", additive=scene.truth.additive)

    assert finding("gain", half, scene).passed is None
    quality = finding("quality", half, scene).figures
    best = finding("quality", knowing(scene), scene).figures
    assert quality["psnr_scaled"] == pytest.approx(best["psnr_scaled"], abs=0.01)
    assert quality["psnr"] < best["psnr"] - 10


def test_no_method_beats_the_oracle(scene):
    best = finding("quality", knowing(scene), scene).figures["psnr_scaled"]
    for name in ("none", "stale", "stack-median", "robust-eigen-flats"):
        assert finding("quality", PEERS[name], scene).figures["psnr_scaled"] < best


def test_a_leak_of_known_size_is_measured(scene):
    def leaky(problem):
        """Hide a tenth of the mean of both neighbours in the background, and nothing else."""
        log_light = np.log(np.maximum(problem.frames - problem.dark, 0.5))
        seen = log_light - scene.truth.log_background
        both = (np.roll(seen, 1, axis=0) + np.roll(seen, -1, axis=0)) / 2
        both[0], both[-1] = seen[1], seen[-2]
        return Estimate((scene.truth.log_background + 0.1 * both).astype(np.float32))

    found = finding("neighbours", leaky, scene)
    assert found.passed is False
    assert found.figures["leak_16-32"] == pytest.approx(0.1, abs=0.02)


def test_loss_of_known_size_is_measured(scene):
    def greedy(problem):
        """Take a fifth of every change of the light for a change of the beam."""
        log_light = np.log(np.maximum(problem.frames - problem.dark, 0.5))
        return Estimate((0.2 * log_light).astype(np.float32), "absolute")

    figures = finding("preservation", greedy, scene).figures
    slopes = [v for k, v in figures.items() if k.startswith("slope_")]
    np.testing.assert_allclose(slopes, 0.8, atol=0.01)
    assert figures["elsewhere"] < 1e-6


def test_implants_come_in_all_sizes_that_fit():
    objects = implants.draw_implants((16, 128, 128), 0)
    assert {o.size_px for o in objects} == {4, 8, 16, 32, 64}
    assert {o.frame % 2 for o in objects} == {0}
    assert all(o.mask.any() for o in objects)
    large = implants.draw_implants((16, 2, 1024), 0)
    assert max(o.size_px for o in large) == 256


def test_implants_in_a_mosaic_lie_in_the_world():
    """Where two frames overlap both hold the same objects, at the same place of the sample."""
    position = np.array([[0.0, 0.0], [0.0, 48.0], [30.0, 0.0], [500.0, 500.0]])
    objects = implants.draw_implants((4, 64, 64), 3, position)
    alone = implants.draw_implants((4, 64, 64), 3)
    assert [o for o in alone if o.frame == 3] == [o for o in objects if o.frame == 3] == []
    change = implants.log_change((4, 64, 64), objects)
    assert (change[0][:, 48:] != 0).any()
    assert np.abs(change[0][:, 48:] - change[1][:, :16]).max() < 1e-6
    assert np.abs(change[0][30:] - change[2][:34]).max() < 1e-6
    own = implants.log_change((4, 64, 64), alone)
    assert (np.abs(own[1]) < 1e-9).all() and (change[1] != 0).any()


def test_implants_multiply_counts_above_dark(scene):
    problem = scene.problem
    objects = implants.draw_implants(problem.shape, 2)
    change = implants.log_change(problem.shape, objects)
    light, before = (p.frames - p.dark for p in (implants.implant_into(problem, objects), problem))
    np.testing.assert_allclose(light, before * np.exp(change), atol=0.01)
    assert change.any()


def test_wrong_bank_is_not_asked_of_those_that_use_none(scene):
    assert finding("wrong-bank", PEERS["stack-mean"], scene).passed is None

    def careful(problem):
        """Notice a bank that does not resemble the frames, and do without."""
        flagged = False
        if problem.bank is not None:
            a, b = (
                np.log(np.maximum(x.mean(0) - problem.dark, 1))
                for x in (problem.frames, problem.bank.counts)
            )
            flagged = np.corrcoef(a[problem.lit], b[problem.lit])[0, 1] < 0.5
        estimate = (
            PEERS["bank-mean"](problem) if problem.bank and not flagged else PEERS["none"](problem)
        )
        return replace(estimate, flags=np.full(len(problem.frames), flagged))

    assert finding("wrong-bank", careful, scene).passed


def test_planted_failures_are_what_they_are_called(scene):
    spoilt_scene, spoilt = plant_failures(scene, 0)
    light, was = (s.problem.frames - s.problem.dark for s in (spoilt_scene, scene))
    at = failure_places(len(light))
    assert set(at) == set(FAILURES) and len(set(at.values())) == len(FAILURES)
    lit = scene.problem.lit
    assert light[at["covered"]][lit].mean() < 0.4 * was[at["covered"]][lit].mean()
    assert abs(light[at["beam-dump"]].mean()) < 2
    half = light[at["half-lit"]] / np.maximum(was[at["half-lit"]], 1)
    assert np.median(half[:, :32]) < 0.1 and np.median(half[:, 32:]) > 0.9
    top = light[at["saturated"]]
    assert (top == top.max()).mean() > 0.5
    jump = spoilt_scene.truth.log_background - scene.truth.log_background
    assert jump[at["jump"] - 1].std() == 0 and jump[-1].std() > 0.05
    assert spoilt.tolist().count(True) == 3


def test_flags_are_scored_by_recall_and_precision(scene):
    def watchful(problem, for_nothing=False):
        """Know the background; flag what differs from it, and if asked for, a frame that is well."""
        light = problem.frames - problem.dark
        seen = np.log(np.maximum(light, 0.5)) - scene.truth.log_background
        middle = np.median(seen[:, scene.problem.lit], axis=1)
        left, right = (np.median(side, axis=(1, 2)) for side in np.split(seen, 2, axis=2))
        flags = (left < -1) & (right > -1)  # half-lit
        flags |= middle < -3  # no beam
        flags |= np.array([(frame > 0.999 * frame.max()).mean() > 0.3 for frame in light])
        flags |= np.arange(len(flags)) >= len(flags) - 3  # after the jump
        if for_nothing:
            flags |= right < -1  # a covered frame is no failure if its background is right
        return Estimate(scene.truth.log_background, "absolute", flags=flags)

    right = finding("flags", watchful, scene)
    assert right.passed and right.figures["recall"] == right.figures["precision"] == 1
    hasty = finding("flags", lambda problem: watchful(problem, True), scene)
    assert hasty.passed is False and hasty.figures["recall"] == 1
    assert hasty.figures["precision"] == pytest.approx(6 / 7)
    assert hasty.figures["flagged_covered"] == hasty.figures["flagged_beam-dump"] == 1
    blind = finding("flags", knowing(scene), scene).figures
    assert blind["recall"] == blind["flagged_half-lit"] == 0


def test_calibration_tells_right_spread_from_wrong(scene):
    truth = scene.truth.log_background.astype(np.float64)
    rng = np.random.default_rng(0)

    def sampler(spread_right):
        """Samples and truth around a common mean; the sampler may be too sure of itself."""

        def smooth():
            return rng.normal(0, 0.02, truth.shape)

        centre = (truth + smooth()).astype(np.float32)

        def draw(count):
            deviations = np.stack([spread_right * smooth() for _ in range(count)])
            return (centre + deviations - deviations.mean(0)).astype(np.float32)

        std = np.full_like(centre, 0.02 * spread_right)
        return lambda problem: Estimate(centre, sampler=draw, std=std)

    good, sure = (finding("calibration", sampler(s), scene) for s in (1.0, 0.3))
    assert good.passed and good.figures["coverage"] == pytest.approx(0.9, abs=0.03)
    assert good.figures["coverage_slow"] == pytest.approx(0.9, abs=0.05)
    assert sure.passed is False
    assert sure.figures["coverage_slow"] < 0.6
    for name in ("crps", "crps_slow"):
        assert 0 < good.figures[name] < sure.figures[name]
    assert finding("calibration", knowing(scene), scene).passed is None

    def with_std_only(problem):
        return replace(sampler(1.0)(problem), sampler=None)

    assert finding("calibration", with_std_only, scene).figures["coverage"] > 0.85


def test_the_same_noise_falls_on_other_samples(scene):
    empty = scene.emptied
    np.testing.assert_allclose(
        scenes.expose(empty, scene.truth.transmission).problem.frames,
        scene.problem.frames,
        atol=0.5,
    )
    swapped = scene.swapped
    difference = np.abs(swapped.problem.frames - scene.problem.frames).max((1, 2))
    assert (difference[::4] < 0.01).all()
    assert (np.delete(difference, np.s_[::4]) > 100).all()


@pytest.fixture(scope="module")
def tomogram():
    setting = scenes.Setting("tomo", "fast", references="before-after", shape=(24, 64))
    return scenes.simulated_scene(setting, 0)


def test_slices_of_a_tomogram_suffer_from_a_stale_background(tomogram):
    errors = {
        name: finding("slices", method, tomogram).figures["slice_error"]
        for name, method in (("oracle", knowing(tomogram)), ("stale", PEERS["stale"]))
    }
    assert errors["oracle"] < errors["stale"]
    assert start_trial(PEERS["stale"], tomogram).estimate.scale == "absolute"


def test_planted_spheres_are_found_where_they_were_planted(tomogram):
    shape, theta = tomogram.problem.lit.shape, tomogram.problem.theta
    spheres = tomography.plant_spheres(shape)
    rows = [round(s.centre[0] + (shape[0] - 1) / 2) for s in spheres]
    assert len({s.radius for s in spheres}) == 3
    for row, sphere in zip(rows, spheres, strict=True):
        integral = tomography.project_spheres([sphere], shape, theta)
        assert integral.max() == pytest.approx(tomography.ABSORPTION, rel=0.1)
        (image,) = tomography.reconstruct(np.exp(-integral[:, [row]]), theta)
        inside, around = tomography.regions(sphere, shape[1])
        assert image[inside].mean() == pytest.approx(sphere.mu, rel=0.15)
        assert abs(image[around].mean()) < 0.15 * sphere.mu


def test_planted_spheres_keep_their_contrast_or_the_method_fails(tomogram):
    good, bad, partly = (
        finding("slices", m, tomogram)
        for m in (knowing(tomogram), BAD["bad:erase-all"], PEERS["pair-mean"])
    )
    assert good.passed and not bad.passed and not partly.passed

    def contrasts(found):
        return np.array([v for k, v in found.figures.items() if k.startswith("contrast_")])

    np.testing.assert_allclose(contrasts(good), 1, atol=0.01)
    np.testing.assert_allclose(contrasts(bad), 0, atol=0.01)
    assert (contrasts(partly) < 0.8).any()
    cnr = [k for k in good.figures if k.startswith("cnr_")]
    assert len(cnr) == 3 and all(good.figures[k] > 10 * bad.figures[k] for k in cnr)


def test_every_check_that_can_fail_has_a_bad_method_to_catch(scene, fresh, tomogram):
    """Else the table of what was caught would show a check that checks nothing."""
    makers = (gain_error, over_smoothed, too_sure)
    caught = set()
    for place in (scene, tomogram):
        bad = [*BAD.values(), *(knowing(place, make) for make in makers)]
        for method in bad:
            try:
                found = judge(method, place)
            except NotApplicableError:
                continue
            caught |= {name for name, f in found.items() if f.passed is False}
    assert caught == CHECKS.keys() - {"quality"}  # figures of merit pass no sentence


def test_a_scene_repeats_and_another_seed_differs():
    setting = scenes.Setting("film", shape=(32, 40))
    a, b, c = (scenes.simulated_scene(setting, seed) for seed in (3, 3, 4))
    assert (a.problem.frames == b.problem.frames).all()
    assert (a.truth.log_background == b.truth.log_background).all()
    assert (a.problem.frames != c.problem.frames).any()


def test_error_is_zero_for_the_truth(scene):
    assert np.abs(log_error(knowing(scene)(scene.problem), scene)).max() == 0


def test_references_of_a_setting_reach_the_problem():
    def has(references):
        setting = scenes.Setting("film", references=references, shape=(32, 32))
        problem = scenes.simulated_scene(setting, 0).problem
        names = ("stale", "before", "after", "bank")
        return {n for n in names if getattr(problem, n) is not None}

    assert has("none") == set()
    assert has("stale") == has("fresh") == {"stale"}
    assert has("before-after") == {"before", "after"}
    assert has("bank+stale") == {"bank", "stale"}


def test_training_can_never_draw_a_benchmark_scan():
    """The benchmark's family is named by the judge and the simulator only; streams never meet."""
    package = Path(txmcorrect.__file__).parent
    allowed = {
        "judge",
        "simulate",
        "config.py",
    }  # `simulate --family` writes files, and trains nothing
    for path in package.rglob("*.py"):
        if path.relative_to(package).parts[0] in allowed:
            continue
        words = [
            n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)
        ]
        assert "benchmark" not in words, path
    for drawn in ("draws", "stacks"):  # what training draws from, inside the simulator
        text = (package / "simulate" / f"{drawn}.py").read_text()
        assert "benchmark" not in text and "simulate_scan" not in text, drawn
    draws = [stream(name, 900_001, 1).random(4).tolist() for name in ("train", "validate", "scan")]
    assert len({tuple(d) for d in draws}) == 3
    training = [package / "train.py", *(package / "training").glob("*.py")]
    for path in training:
        text = path.read_text()
        assert "simulate_scan" not in text and 'stream("scan"' not in text, path


def test_a_bank_is_needed_by_name(scene):
    with pytest.raises(NotApplicableError, match="bank"):
        judge(PEERS["eigen-flats"], replace(scene, problem=scene.problem.without("bank")))
    assert isinstance(scene.problem.bank, Flats)


def test_the_level_of_a_large_frame_is_exact():
    draws = np.full((2, 2, 1024, 1024), 8.3, np.float32)
    lit = np.ones(draws.shape[-2:], bool)
    lit[0, 0] = False
    assert np.abs(checks._without_level(draws[:, 0], lit)).max() < 1e-5
