"""A capillary that stands in all frames is told from the beam by its edges, and by nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from txmcorrect.api import correct_array
from txmcorrect.background import base, cylinders, fixed
from txmcorrect.background.conditions import bin_mean
from txmcorrect.background.cylinders import find_standing
from txmcorrect.background.estimate import Draw
from txmcorrect.background.methods import as_estimate, as_scan, references_of
from txmcorrect.background.pattern import survey_light
from txmcorrect.background.pipeline import estimate_background, look_at
from txmcorrect.background.standing import Standing, Without
from txmcorrect.background.survey import survey_scan
from txmcorrect.judge.failures import plant_failures
from txmcorrect.judge.scenes import Setting, problem_of, simulated_scene
from txmcorrect.scan import ArrayFrames
from txmcorrect.simulate import simulate_scan
from txmcorrect.weights import load_model

SETTING = Setting("tomo", counts=20000.0, references="none", shape=(128, 128))


@pytest.fixture(scope="module")
def scene():
    return simulated_scene(SETTING, 77104)


def lowest(scene):
    """The shadow `(w,)` that all frames share: of the capillary."""
    return np.log(scene.truth.transmission).max(0).mean(0)


def found_in(problem, frames=None):
    frames = problem.frames if frames is None else frames
    return find_standing(ArrayFrames(frames), np.arange(len(frames)), problem.dark, problem.lit)


def apart(shadow, true):
    """Rms difference of two profiles, whatever their level."""
    return float((shadow.mean(0) - true).std())


def test_a_capillary_is_found_with_its_depth(scene):
    found, true = found_in(scene.problem), lowest(scene)
    assert abs(found.centre - 63.5) < 0.3
    assert apart(found.shadow(SETTING.shape), true) < 0.25 * true.std()


def test_a_capillary_may_lean_but_not_swing(scene):
    problem, rows = scene.problem, np.arange(128) - 63.5

    def moved(frame, by):
        x = np.arange(128)
        return np.stack([np.interp(x - dx, x, row) for row, dx in zip(frame, by, strict=True)])

    sample = scene.truth.transmission
    background = np.exp(scene.truth.log_background)
    leaning = background * np.stack([moved(t, 0.05 * rows) for t in sample]) + problem.dark
    assert abs(found_in(problem, leaning.astype(np.float32)).tilt - 0.05) < 0.01
    sine = 3 * np.sin(np.linspace(0, np.pi, len(sample)))
    swinging = background * np.stack(
        [moved(t, np.full(128, by)) for t, by in zip(sample, sine, strict=True)]
    )
    assert found_in(problem, (swinging + problem.dark).astype(np.float32)) is None


def test_a_frame_that_is_half_dark_does_not_hide_a_capillary():
    """What is in the way moves what looks like the axis of that frame by seven pixels."""
    scene = simulated_scene(Setting("tomo", references="none"), 77100)
    spoilt, _ = plant_failures(scene, 77100)
    scan = as_scan(spoilt.problem)
    survey = survey_scan(scan, spoilt.problem.dark, 64, 2**28, lambda done, total: None)
    usable = np.flatnonzero(survey.usable)
    lit = survey_light(survey, scan.shape[1:])
    found = find_standing(scan.projections, usable, survey.dark, lit)
    assert found is not None and abs(found.centre - 127.4) < 0.5


def test_a_pillar_is_one_cylinder(scene):
    across = np.clip(1 - ((np.arange(128) - 60) / 35) ** 2, 0, None) ** 0.5
    light = np.exp(scene.truth.log_background - np.float32(0.3) * across.astype(np.float32))
    found = found_in(scene.problem, light + scene.problem.dark)
    assert len(found.radii) == 1
    assert found.radii[0] == pytest.approx(35, abs=0.5)
    assert found.shade[0] == pytest.approx(-0.3, abs=0.03)
    assert Standing.of(np.array(found.as_numbers())) == found


@pytest.mark.parametrize("bounds", [{"EQUAL": (1.2, 1.6), "CHANCE": 0}, {"CERTAIN": 1e4}])
def test_sides_must_say_the_same_and_be_likely_beyond_doubt(scene, monkeypatch, bounds):
    assert found_in(scene.problem) is not None
    for bound, value in bounds.items():
        monkeypatch.setattr(cylinders, bound, value)
    assert found_in(scene.problem) is None


def test_one_side_is_enough_where_the_other_has_no_light(scene):
    problem, x = scene.problem, np.arange(128)
    light, dark = np.exp(scene.truth.log_background), scene.problem.dark
    darker, true = scene.truth.transmission**3, 3 * lowest(scene)[:80]
    half = replace(problem, lit=problem.lit & (x < 80))
    found = found_in(half, light * darker + dark)
    assert apart(found.shadow(SETTING.shape)[:, :80], true) < 0.25 * true.std()
    covered = np.where(x < 80, darker, 1).astype(np.float32)  # light, but no edge there
    assert found_in(problem, light * covered + dark) is None


def test_what_it_may_be_off_by_covers_what_it_is_off_by(scene):
    found, true, lit = found_in(scene.problem), lowest(scene), scene.problem.lit.all(0)
    error = (found.shadow(SETTING.shape)[64] - true)[lit]
    doubt = found.open(SETTING.shape)[:, 64, lit]
    spread = np.sqrt(((doubt - doubt.mean(1, keepdims=True)) ** 2).sum(0).mean())
    assert spread / 3 < error.std() < 3 * spread


def test_nothing_is_found_where_nothing_stands(scene):
    problem = scene.problem
    light = np.exp(scene.truth.log_background)
    assert found_in(problem, light + problem.dark) is None
    grains = scene.truth.transmission / np.exp(lowest(scene))
    assert found_in(problem, light * grains + problem.dark) is None
    edge = np.where(np.arange(128) < 40, 0.8, 1.0).astype(np.float32)  # of one side alone
    assert found_in(problem, light * edge + problem.dark) is None
    narrow = replace(problem, lit=problem.lit & (np.arange(128) < 20))
    assert found_in(narrow) is None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["film", "mosaic-sparse"])
def test_other_samples_are_no_capillary(kind, seed):
    problem = problem_of(simulate_scan(kind, "medium", 20000, (128, 128), seed, "benchmark"))
    assert found_in(problem) is None


def test_what_was_found_can_be_kept_and_taken_out(scene):
    mixing = np.zeros((6, 2))  # shades alone are in doubt
    mixing[4:] = [[0.02, 0.0], [-0.01, 0.005]]
    found = Standing(60.0, 0.01, 1.0, (40.0, 36.0), (-0.4, 0.2), tuple(mixing.ravel().tolist()))
    assert Standing.of(np.array(found.as_numbers())) == found
    doubt = found.open(SETTING.shape)
    assert doubt.shape == (2, *SETTING.shape)
    drawn = np.random.default_rng(0).standard_normal((4000, 2)) @ doubt[:, 64, 60]
    # At the axis, where both chords are 1.
    assert drawn.std() == pytest.approx(np.hypot(0.02 - 0.01, 0.005), rel=0.05)
    transmission = np.exp(found.shadow(SETTING.shape))
    dark = np.full(SETTING.shape, 100, np.float32)
    light = np.full((3, *SETTING.shape), 1000, np.float32)
    frames = ArrayFrames((light * transmission + dark).astype(np.float32))
    assert np.abs(Without(frames, dark, transmission).read(1, 3) - light[1:] - dark).max() < 0.01
    assert "column 60.0, radius 40.0 px" in str(found)
    assert "by 18.1 %" in str(found)


def test_a_pipeline_keeps_the_capillary_and_says_so(scene):
    model, draw = load_model("bundled", "stack"), Draw(samples=1, steps=1)
    problem, lit = scene.problem, scene.problem.lit
    scan = as_scan(problem)
    background = estimate_background(scan, model, draw, dark=problem.dark)
    estimate = as_estimate(background, model, draw)
    error = (estimate.log_background - scene.truth.log_background).mean(0)
    across = np.where(lit, error - error[lit].mean(), 0).mean(0)
    assert across.std() < 0.3 * lowest(scene).std()
    assert "upright cylinder" in str(background.verdict())
    blind = look_at(replace(scan, theta=None), model, dark=problem.dark)  # a film
    seen = look_at(scan, model, dark=problem.dark)
    assert blind.standing is None and seen.standing is not None
    raw = survey_scan(scan, problem.dark, 64, 2**30, lambda done, total: None)
    over = np.exp(seen.standing.shadow(SETTING.shape))
    small = bin_mean(torch.from_numpy(over[None]), raw.factor)[0].numpy()
    assert np.allclose(seen.survey.small[3] * small, raw.small[3], rtol=1e-5)
    assert survey_light(seen.survey, SETTING.shape).any()


def test_arrays_in_memory_are_corrected_alike(scene):
    problem = scene.problem
    transmission, background = correct_array(problem.frames, problem.dark, theta=problem.theta)
    assert "upright cylinder" in background.standing
    inside = transmission[:, :, 50:78][:, problem.lit[:, 50:78]]
    beside = transmission[:, :, 3:12][:, problem.lit[:, 3:12]]
    true = np.exp(lowest(scene))[50:78].mean()
    assert np.median(inside) / np.median(beside) == pytest.approx(true, abs=0.03)


def with_references(kind, drift="medium"):
    scene = simulated_scene(replace(SETTING, references=kind, drift=drift), 77104)
    return scene, references_of(scene.problem, 64)


def looked_at(scene, references):
    """What is seen of a scene, and the error of the fit's background, rms of the shape."""
    problem, model = scene.problem, load_model("bundled", "stack")
    seen = look_at(as_scan(problem), model, references=references, dark=problem.dark)
    background = np.exp(scene.truth.log_background.astype(np.float32))
    lit = problem.lit[None].astype(np.float32)
    truth, inside = (bin_mean(torch.from_numpy(x), seen.survey.factor) for x in (background, lit))
    fields = seen.conditions.base.fields(np.arange(len(background)))
    error = fields - np.log(np.maximum(truth.numpy(), 1e-3))
    return seen, shape_rms(error[:, inside[0].numpy() > 0.99])


def test_one_old_reference_does_not_hide_what_stands(monkeypatch):
    """A capillary that the reference has not seen is sample, however dark: 6 % were lost without this."""
    scene, references = with_references("stale")
    seen, error = looked_at(scene, references)
    assert seen.standing is not None
    assert seen.conditions.notes == ()  # the verdict names the cylinder
    assert error < 0.015
    monkeypatch.setattr(fixed, "find_standing", lambda *given: None)
    monkeypatch.setattr(base, "SIMPLER", 0.0)
    assert looked_at(scene, references)[1] > 2 * error


def test_a_reference_that_still_holds_leaves_the_sample_whole():
    scene, references = with_references("fresh")
    seen, error = looked_at(scene, references)
    assert seen.standing is None
    assert seen.conditions.notes == ()
    assert error < 0.002


def test_a_reference_that_held_until_the_beam_jumped_leaves_the_sample_whole():
    scene, references = with_references("fresh")
    field = (0.05 * np.cos(np.pi * np.arange(128) / 127)).astype(np.float32)
    jump = np.exp(field * (np.arange(len(scene.problem.frames)) > 25)[:, None, None])
    frames = (scene.problem.frames - scene.problem.dark) * jump + scene.problem.dark
    jumped = replace(scene, problem=replace(scene.problem, frames=frames.astype(np.float32)))
    background = scene.truth.log_background + np.log(jump)
    jumped = replace(jumped, truth=replace(scene.truth, log_background=background))
    seen, error = looked_at(jumped, references)
    assert seen.conditions.notes == ()
    assert seen.conditions.base.solution.base.jumps == (26,)
    assert error < 0.004


def test_what_needs_much_less_change_is_believed(monkeypatch):
    """Of another form than a cylinder a sample that stands shows in how much would have changed."""
    scene, references = with_references("stale", "slow")
    monkeypatch.setattr(fixed, "find_standing", lambda *given: None)
    seen, error = looked_at(scene, references)
    assert seen.conditions.base.solution.base.fit.told
    monkeypatch.setattr(base, "SIMPLER", 0.0)
    assert looked_at(scene, references)[1] > 2 * error


def shape_rms(error):
    return float((error - error.mean(1, keepdims=True)).std())


def test_a_reference_of_another_pattern_is_not_compared_with():
    scene, (reference,) = with_references("stale")
    other = replace(
        reference,
        counts=np.ascontiguousarray(reference.counts[::-1, ::-1]),
        flats=np.ascontiguousarray(reference.flats[:, ::-1, ::-1]),
    )
    model, scan, dark = load_model("bundled", "stack"), as_scan(scene.problem), scene.problem.dark
    given = look_at(scan, model, references=(other,), dark=dark)
    assert given.references == () and "another fixed pattern" in given.notes[0]
    without_any = look_at(scan, model, dark=dark)
    assert given.standing == without_any.standing is not None
    assert np.array_equal(given.pattern.detail, without_any.pattern.detail)


@pytest.mark.parametrize("kind", ["before-after", "bank+stale"])
def test_where_references_tell_how_the_beam_changed_nothing_is_looked_for(kind):
    scene, references = with_references(kind)
    model, dark = load_model("bundled", "stack"), scene.problem.dark
    assert look_at(as_scan(scene.problem), model, references=references, dark=dark).standing is None
