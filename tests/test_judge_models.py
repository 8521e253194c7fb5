"""Networks under judgement: samples about the result, a regression that sees no noise, names."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from txmcorrect.background import methods
from txmcorrect.background.conditions import CHANNELS
from txmcorrect.background.estimate import Draw
from txmcorrect.config import TrainSettings, load_settings
from txmcorrect.diffusion.denoiser import Noise
from txmcorrect.diffusion.loss import denoising_loss, snr_weight
from txmcorrect.errors import ModelError
from txmcorrect.judge import scenes
from txmcorrect.judge.checks import check_calibration
from txmcorrect.judge.trial import start_trial
from txmcorrect.scoring.model import candidate, regression, source0
from txmcorrect.train import spec_of
from txmcorrect.weights import Model, ModelSpec, save_model

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SMALL = {"channels": 8, "multipliers": [1, 2], "attention": [], "patch": 4}


def network(target, seed=0, condition="pair"):
    """An untrained model whose last layer is not zero."""
    schedule = ("const", 2) if target == "mean" else ("linear", 50)
    spec = ModelSpec(
        SMALL,
        condition,
        CHANNELS[condition],
        32,
        target=target,
        schedule=schedule[0],
        timesteps=schedule[1],
    )
    torch.manual_seed(seed)
    denoiser = spec.build()
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return Model(denoiser.requires_grad_(False).eval(), spec, f"{seed:064d}", "here")


@pytest.fixture(scope="module")
def scene():
    setting = scenes.Setting("mosaic-sparse", references="none", shape=(32, 32))
    return scenes.simulated_scene(setting, 2)


def test_samples_lie_about_the_result_as_the_spread_says(scene):
    method = methods.pair_method(network("v"), Draw(samples=16))
    estimate = method(scene.problem)
    draws = estimate.sampler(16)
    assert draws.shape == (16, *scene.problem.shape)
    np.testing.assert_allclose(draws.mean(0), estimate.log_background, atol=1e-4)
    # The stated spread is that of the shape: brightness has checks of its own.
    shapes = draws - draws.mean((2, 3), keepdims=True)
    ratio = shapes.std(0, ddof=1) / estimate.std
    assert np.median(ratio) == pytest.approx(1, abs=0.05)
    assert estimate.std.min() > 0
    found = check_calibration(start_trial(method, scene))
    assert {"coverage", "coverage_slow", "crps", "crps_slow"} <= found.figures.keys()


def test_one_sample_has_no_spread(scene):
    estimate = methods.pair_method(network("v"), Draw(samples=1))(scene.problem)
    assert estimate.sampler is None and estimate.std is None
    assert check_calibration(start_trial(lambda _: estimate, scene)).passed is None


def test_a_regression_sees_nothing_of_what_it_is_to_predict():
    x, other, cond = (
        torch.randn(2, 1, 16, 16),
        torch.randn(2, 1, 16, 16),
        torch.randn(2, 10, 16, 16),
    )
    sigma, step = torch.tensor(0.2), Noise().step(0)
    blind, seeing = (network(target).denoiser for target in ("mean", "v"))
    assert torch.equal(blind(x, sigma, cond, step), blind(other, sigma, cond, step))
    assert not torch.equal(seeing(x, sigma, cond, step), seeing(other, sigma, cond, step))
    assert not torch.equal(blind(x, sigma, cond, step), blind(x, sigma, 2 * cond, step))


def test_a_regression_is_trained_on_the_image_itself():
    model = network("mean")
    x0, cond = torch.randn(2, 1, 16, 16), torch.randn(2, 10, 16, 16)
    sigma, eps = torch.tensor([0.1, 0.2]), torch.randn(2, 1, 16, 16)
    loss = denoising_loss(
        model.denoiser,
        model.denoiser.preconditioning,
        x0,
        cond,
        sigma,
        eps,
        torch.ones(2),
        torch.ones(2, 1, 16, 16),
    )
    said = model.denoiser(x0, sigma, cond, Noise().step(0))
    assert float(loss) == pytest.approx(float(((said - x0) ** 2).mean()), rel=1e-5)
    assert snr_weight("min-snr", sigma, "mean").tolist() == [1, 1]


def test_the_regression_differs_from_the_pair_model_in_nothing_else():
    pair, regress = (yaml.safe_load((CONFIGS / f"{n}.yaml").read_text()) for n in NAMES)
    assert pair.pop("diffusion") != regress.pop("diffusion")
    assert pair == regress
    ours, theirs = (
        spec_of(load_settings(TrainSettings, {"config": CONFIGS / f"{n}.yaml"})) for n in NAMES
    )
    count = [sum(p.numel() for p in spec.build().parameters()) for spec in (ours, theirs)]
    assert count[0] == count[1] and theirs.target == "mean"


NAMES = ("pair", "pair-regression")


def test_a_regression_joins_by_its_file(scene, tmp_path):
    for target in ("mean", "v"):
        model = network(target)
        save_model(tmp_path / f"{target}.safetensors", model.denoiser.state_dict(), model.spec)
    ((name, method),) = regression(tmp_path / "mean.safetensors", "cpu").items()
    assert name.startswith("unet-regression:pair-")
    estimate = method(scene.problem)
    assert np.isfinite(estimate.log_background).all()
    assert estimate.sampler is None and estimate.std is None  # a single answer
    with pytest.raises(ModelError, match=r"--regression .* expected .*target: mean.* got target v"):
        regression(tmp_path / "v.safetensors", "cpu")


def test_names_change_with_model_and_sampling():
    one, two = network("v"), replace(network("v"), sha256="f" * 64)
    names = [*candidate(one, Draw()), *candidate(two, Draw()), *candidate(one, Draw(steps=8))]
    names += candidate(one, Draw(partners=2))
    names += [*candidate(one, Draw(), 2), *source0(one), *source0(two)]
    assert len(set(names)) == len(names)


def test_source_0_keeps_every_sample_as_it_comes(scene, monkeypatch):
    seen = {}
    real = methods.estimate_background

    def watch(scan, model, draw, **rest):
        seen.update(draw=draw, **rest)
        return real(scan, model, draw, **rest)

    monkeypatch.setattr(methods, "estimate_background", watch)
    (method,) = source0(network("v")).values()
    method(scene.problem)
    draw = seen["draw"]
    assert (draw.sampler, draw.samples, draw.partners, seen["settle_keys"]) == ("ddpm", 1, 1, 1)


@pytest.mark.parametrize("references", ["none", "bank+stale"])
def test_the_background_of_pairs_alone_is_the_same_background(references):
    setting = scenes.Setting("mosaic-sparse", references=references, shape=(32, 32))
    problem = scenes.simulated_scene(setting, 3).problem
    (method,) = candidate(network("v"), Draw()).values()
    full, alone = method(problem), method.background_only(problem)
    np.testing.assert_array_equal(full.log_background, alone.log_background)
    assert full.scale == alone.scale
    assert full.sampler is not None and full.std is not None


@pytest.mark.parametrize(("condition", "samples"), [("pair", 1), ("stack", 4)])
def test_a_single_sample_and_one_that_samples_weigh_have_no_shorter_way(condition, samples):
    (method,) = candidate(network("v", condition=condition), Draw(samples=samples)).values()
    assert not hasattr(method, "background_only")


def test_a_regression_may_see_the_stack(tmp_path):
    model = network("mean", condition="stack")
    path = tmp_path / "stack.safetensors"
    save_model(path, model.denoiser.state_dict(), model.spec)
    ((name, method),) = regression(path, "cpu").items()
    assert name.startswith("unet-regression:stack-")
    setting = scenes.Setting("mosaic-sparse", references="bank+stale", shape=(32, 32))
    estimate = method(scenes.simulated_scene(setting, 3).problem)
    assert np.isfinite(estimate.log_background).all() and estimate.sampler is None
