"""The stack condition: sets of frames and references, masks, bases, and the pipeline on top."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from txmcorrect.background.base import find_base
from txmcorrect.background.conditions import CHANNELS, bin_mean
from txmcorrect.background.estimate import Draw, generate, stack_conditions
from txmcorrect.background.known import known_scan
from txmcorrect.background.methods import as_scan, references_of, stack_method
from txmcorrect.background.pattern import LIKE, likeness
from txmcorrect.background.pipeline import estimate_background, look_at
from txmcorrect.background.quality import REMARKS
from txmcorrect.background.stack import WINDOW, Basis, stack_condition
from txmcorrect.background.survey import survey_scan
from txmcorrect.background.windows import joined, make_stack, window_of
from txmcorrect.judge.failures import failure_places, plant_failures
from txmcorrect.judge.scenes import Setting, problem_of, simulated_scene, with_wrong_bank
from txmcorrect.scan import ArrayFrames, Scan
from txmcorrect.simulate import simulate_scan
from txmcorrect.simulate.stacks import draw_scans
from txmcorrect.training.batches import known_of, make_stack_batch
from txmcorrect.weights import Model, ModelSpec, load_model, no_model

SPEC = ModelSpec(
    network={"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [], "patch": 4},
    condition="stack",
    cond_channels=CHANNELS["stack"],
    size=32,
)


@pytest.fixture(scope="module")
def model():
    """An untrained network, whose last layer is zero."""
    torch.manual_seed(0)
    return Model(SPEC.build().eval().requires_grad_(False), SPEC, "0" * 64, "test")


@pytest.fixture(scope="module")
def scans():
    """Scans of all sorts, three batches."""
    return [scan for index in range(3) for scan in draw_scans(5, index, 8, 32)]


def stack_of(scan):
    facts = known_of(scan)
    return make_stack(facts, find_base(facts), scan.targets)


def scene(references, drift="medium", kind="mosaic-sparse"):
    return simulated_scene(Setting(kind, drift, 5000.0, references, (64, 64)), 0)


def shape_error(method, problem_scene):
    """Rms log error over lit pixels with its mean removed."""
    estimate = method(problem_scene.problem)
    error = estimate.log_background - problem_scene.truth.log_background
    return float(error[:, problem_scene.problem.lit].std(1).mean())


def test_draws_are_functions_of_seed_and_index():
    first, again, other = (draw_scans(5, index, 8, 32) for index in (0, 0, 1))
    assert sum(len(scan.targets) for scan in first) == 8
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(first, again, strict=True))
    assert first[0].frames.shape != other[0].frames.shape or not np.array_equal(
        first[0].frames, other[0].frames
    )


def test_batches_are_finite_and_of_unit_size():
    batches = [make_stack_batch(draw_scans(5, index, 16, 32)) for index in range(4)]
    assert all(b.cond.shape[1] == CHANNELS["stack"] for b in batches)
    assert all(torch.isfinite(t).all() for b in batches for t in b.tensors)
    sizes = torch.cat([(b.x0**2).mean((1, 2, 3)).sqrt() for b in batches])
    assert 0.2 < sizes.median() < 2


def test_the_order_of_frames_does_not_matter(scans):
    for scan in scans:
        stack = stack_of(scan)
        order = torch.tensor([0, *(1 + torch.randperm(WINDOW - 1)).tolist()])
        names = ("frames", "present")
        turned = replace(stack, **{name: getattr(stack, name)[:, order] for name in names})
        (cond, basis), (same, other) = stack_condition(stack), stack_condition(turned)
        assert torch.equal(cond, same) and torch.equal(basis.scale, other.scale)


def test_what_is_masked_does_not_matter(scans):
    for scan in scans:
        stack = stack_of(scan)
        absent = stack.present[:, :, None, None] == 0
        garbage = {"frames": stack.frames.masked_fill(absent, 777.0)}
        for name, mask_name in (("before", "before"), ("after", "after"), ("mean", "bank")):
            mask = getattr(stack, f"has_{mask_name}") == 0
            value = getattr(stack, name)
            garbage[name] = torch.where(mask.reshape(-1, *[1] * (value.ndim - 1)), 5.0, value)
        cond, basis = stack_condition(stack)
        same, other = stack_condition(replace(stack, **garbage))
        assert torch.allclose(cond, same, atol=1e-4)
        assert torch.allclose(basis.scale, other.scale)


def test_residual_and_log_counts_are_inverse():
    torch.manual_seed(0)
    lit = (torch.rand(3, 8, 9) > 0.3).float()
    share = torch.tensor([1.0, 0.1, 0.1])
    basis = Basis(
        torch.randn(3, 8, 9), torch.tensor([0.01, 0.1, 0.3]), share, lit, torch.ones(3, 8, 9)
    )
    truth = torch.randn(3, 8, 9)
    assert torch.allclose(basis.log_counts(basis.residual(truth)), truth, atol=1e-5)


def test_a_window_holds_the_nearest_usable_frames():
    usable = np.ones(30, bool)
    usable[[9, 12]] = False
    window = window_of(10, usable)
    assert window[0] == 10 and len(window) == WINDOW and usable[window].all()
    assert set(window) == {3, 4, 5, 6, 7, 8, 10, 11, 13, 14, 15, 16}
    long = window_of(300, np.ones(640, bool))
    assert long[0] == 300 and set(np.diff(np.sort(long))) == {10}


def survey_of(problem, size=32):
    scan = Scan(Path("x"), "arrays", ArrayFrames(problem.frames), current_ma=problem.current_ma)
    return survey_scan(scan, problem.dark, size, 2**30, lambda done, total: None)


def known(references):
    """Of the fit of smooth drifts and of the network, to which flats one by one are nothing new."""
    problem = scene(references).problem
    exposure = np.log(problem.current_ma / np.median(problem.current_ma))
    found = known_scan(survey_of(problem), references_of(problem, 32), exposure)
    return replace(found, flats=None)


def test_references_are_told_apart():
    bank, both, one, none = (known(r) for r in ("bank+stale", "before-after", "stale", "none"))
    assert bank.bank is not None and bank.before is not None and bank.after is None
    assert both.before is not None and both.after is not None and both.bank is None
    assert both.place is not None and both.place[0] < 0.1 and both.place[-1] > 0.9
    assert one.before is not None and one.bank is None and one.absolute
    assert none.before is None and none.bank is None and not none.absolute


@pytest.mark.parametrize("references", ["bank+stale", "before-after", "none"])
def test_untrained_the_answer_is_the_base_for_any_key_plan(model, references):
    facts = known(references)
    conditions = stack_conditions(facts)
    all_frames = np.arange(len(facts.frames))

    def fields(keys):
        return generate(model, conditions, keys, Draw("ddim", 1, 1), lambda done, total: None)[0]

    whole, part = fields(all_frames), fields(all_frames[[3, 11]])
    assert np.abs(whole[[3, 11]] - part).max() < 1e-5
    basis = stack_condition(make_stack(facts, find_base(facts), all_frames))[1]
    away = torch.from_numpy(whole) - basis.base
    # One evaluation at the largest level leaves under a hundredth of the noise, a few sigma high.
    assert (away.abs() < 0.15 * basis.scale[:, None, None]).all()


def test_a_fresh_reference_is_best_and_fewer_never_fail(model):
    method = stack_method(model, Draw("ddim", 1, 1))
    errors = [shape_error(method, scene(r)) for r in ("fresh", "before-after", "stale")]
    assert errors[0] < min(errors[1:])
    assert max(errors) < 0.012
    with_bank = shape_error(method, scene("bank+stale"))
    assert with_bank < min(
        0.9 * errors[2], 0.0053
    )  # 0.7 of a stale reference's before that got better
    without = stack_method(model, Draw("ddim", 1, 1))(scene("none").problem)
    assert np.isfinite(without.log_background).all() and without.scale == "relative"


def test_the_fit_alone_is_the_base_with_the_doubt_that_was_measured():
    alone, bundled = no_model(), load_model("bundled", "stack")
    assert alone.spec.size == bundled.spec.size
    assert alone.spec.extra["doubt"] == bundled.spec.extra["doubt"]
    facts, keys = known("stale"), np.array([3, 11])
    conditions = stack_conditions(facts, alone.spec.extra)
    mean, std = generate(alone, conditions, keys, Draw(), lambda done, total: None)
    base = stack_conditions(facts, bundled.spec.extra).base
    np.testing.assert_array_equal(mean, base.fields(keys))
    np.testing.assert_array_equal(std, base.std(keys))
    assert (std > 1.5 * find_base(facts).std(keys)).mean() > 0.9  # the doubt counts: 1.7 here


def test_the_fit_alone_can_be_judged():
    estimate = stack_method(no_model(), Draw())(scene("stale").problem)
    assert np.isfinite(estimate.log_background).all()
    draws = estimate.sampler(24)
    spread, lit = draws.std(0), scene("stale").problem.lit
    assert np.median(spread[:, lit] / estimate.std[:, lit]) == pytest.approx(1, abs=0.3)


def test_a_wrong_bank_is_flagged_and_not_used(model):
    method = stack_method(model, Draw("ddim", 1, 1))
    right = scene("bank+stale")
    wrong = with_wrong_bank(right)
    alone = replace(right, problem=right.problem.without("bank"))
    assert shape_error(method, wrong) < 1.05 * shape_error(method, alone)


@pytest.mark.parametrize("references", ["stale", "before-after"])
@pytest.mark.parametrize("seed", [77100, 77102])
def test_a_bank_of_a_few_is_not_taken_for_all_that_a_beam_does(references, seed):
    """More references never cost much, and what four of them leave open shows in the deviation."""
    few = simulate_scan(
        "mosaic-sparse", "medium", 5000, (256, 256), seed, "benchmark", references, bank=4
    )
    error, covered = judged(few)
    assert covered > 0.4  # 0.07 to 0.39 where the bank was all
    assert error < 1.2 * judged(replace(few, bank=few.bank[:0]))[0]  # 1.2 to 2.2 times


def judged(scan):
    """Rms log error of the fit on the working grid, and the share of cells within 90 % intervals."""
    problem = problem_of(scan)
    survey = survey_of(problem, 64)
    exposure = np.log(scan.current_ma / np.median(scan.current_ma))
    base = find_base(known_scan(survey, references_of(problem, 64), exposure))
    index = np.arange(len(scan.counts))
    truth = bin_mean(torch.from_numpy(scan.background.astype(np.float32)), survey.factor)
    lit = bin_mean(torch.from_numpy(scan.lit[None].astype(np.float32)), survey.factor)[0] > 0.99
    error = (base.fields(index) - truth.clamp_min(1e-3).log().numpy())[:, lit.numpy()]
    error -= error.mean(1, keepdims=True)
    inside = np.abs(error) < 1.645 * base.std(index)[:, lit.numpy()]
    return float(np.sqrt((error**2).mean())), float(inside.mean())


@pytest.mark.parametrize("references", ["none", "stale"])
def test_what_frames_of_a_mosaic_share_is_the_beams(model, monkeypatch, references):
    scene = simulated_scene(
        Setting("mosaic-sparse", shape=(128, 128), references=references), 77104
    )
    problem = scene.problem
    flats = references_of(problem, model.spec.size)

    def error() -> float:
        seen = look_at(as_scan(problem), model, references=flats, dark=problem.dark)
        base = seen.conditions.base
        light = torch.from_numpy(np.exp(scene.truth.log_background))
        truth = bin_mean(light, seen.survey.factor).log().numpy()
        off = (base.fields(np.arange(len(truth))) - truth)[:, base.lit]
        return float((off - off.mean(1, keepdims=True)).std())

    found = error()
    monkeypatch.setattr(
        "txmcorrect.background.base.agreed", lambda left, *others: np.zeros_like(left)
    )
    assert found < 0.97 * error()


def test_a_jump_near_the_end_of_a_turn_that_no_bank_has_seen_is_flagged():
    """The linear model does not follow it; the frames before stay right, and those after are named."""
    scene, _ = plant_failures(
        simulated_scene(Setting("tomo", references="bank+stale"), 77102), 77102
    )
    problem, n = scene.problem, len(scene.problem.frames)
    found = estimate_background(
        as_scan(problem),
        no_model(),
        Draw(),
        references=references_of(problem, 64),
        dark=problem.dark,
    )
    base, jump = found.conditions.base, failure_places(n)["jump"]
    small = bin_mean(torch.from_numpy(np.exp(scene.truth.log_background)), found.factor)
    change = np.log(small.numpy()) - base.fields(np.arange(n))
    error = change[:, base.lit].std(1)
    assert np.median(error[:jump]) < 0.008  # one of them is half dark
    assert (error[jump:] > 0.05).all()
    assert ((found.flag[jump:] & ~np.uint32(REMARKS)) != 0).all()
    assert found.verdict().word.startswith("CHECK")


def test_several_stacks_join():
    scans = draw_scans(5, 0, 8, 32)
    parts = [stack_of(scan) for scan in scans]
    assert len(joined(parts).frames) == 8


def test_a_sample_that_stands_still_does_not_hide_the_fixed_pattern():
    """A capillary's walls are the strongest fine structure of every frame; the reference is right."""
    rng = np.random.default_rng(4)
    pattern = 0.01 * rng.standard_normal((64, 64))
    walls = np.zeros((64, 64))
    walls[:, [16, 17, 46, 47]] = -0.2
    noise = 0.005 * rng.standard_normal((3, 64, 64))
    own, theirs, other = pattern + walls + noise[0], pattern + noise[1], pattern[::-1] + noise[2]
    assert likeness(own, theirs) > 2 * LIKE
    assert abs(likeness(own, other)) < LIKE / 2
