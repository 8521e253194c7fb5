"""Noise levels against the formulas they come from, against diffusers, and at their ends."""

import pytest
import torch
from diffusers import DDPMScheduler

from txmcorrect.diffusion import schedules
from txmcorrect.diffusion.schedules import (
    SCHEDULES,
    SIGMA_LIMIT,
    alpha_bar_from_sigma,
    from_betas,
    sigma_from_alpha_bar,
    subsequence,
)

T = 1000


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("timesteps", [2, 50, T])
def test_levels_ascend_and_are_finite(name, timesteps):
    sigmas = SCHEDULES[name](timesteps)
    assert sigmas.shape == (timesteps,)
    assert sigmas.dtype == torch.float64
    assert bool(torch.isfinite(sigmas).all())
    assert float(sigmas[0]) > 0
    assert bool((sigmas.diff()[sigmas[1:] < SIGMA_LIMIT] > 0).all())
    assert float(sigmas[-1]) <= SIGMA_LIMIT


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("linear", "linear"), ("scaled-linear", "scaled_linear"), ("cosine", "squaredcos_cap_v2")],
)
def test_signal_fractions_are_those_of_diffusers(ours, theirs):
    alpha_bar = alpha_bar_from_sigma(SCHEDULES[ours](T)).float()
    expected = DDPMScheduler(T, beta_schedule=theirs).alphas_cumprod
    torch.testing.assert_close(alpha_bar, expected, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "beta"),
    [
        ("linear", lambda u: 1e-4 + u * (0.02 - 1e-4)),
        ("quad", lambda u: (0.01 + u * (0.02**0.5 - 0.01)) ** 2),
        ("sqrt", lambda u: (1e-4 + u * (0.02 - 1e-4)) ** 0.5),
        ("const", lambda u: 0.02 + 0 * u),
        ("jsd", lambda u: 1 / (T - u * (T - 1))),
    ],
)
def test_betas_are_what_the_name_says(name, beta):
    u = torch.linspace(0, 1, T, dtype=torch.float64)
    sigmas = SCHEDULES[name](T)
    alpha_bar = alpha_bar_from_sigma(sigmas[sigmas < SIGMA_LIMIT])
    assert len(alpha_bar) > T / 4
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    wanted = beta(u)[: len(alpha_bar)]
    torch.testing.assert_close(1 - alpha_bar / before, wanted, rtol=1e-6, atol=1e-9)


def test_an_infinite_end_is_clamped():
    assert float(schedules.jsd(10)[-1]) == SIGMA_LIMIT
    assert float(schedules.jsd(10)[-2]) < 10
    assert float(from_betas([0.1, 1.0])[-1]) == SIGMA_LIMIT


def test_custom_betas():
    sigmas = from_betas([0.1, 0.2])
    expected = torch.tensor([0.1 / 0.9, 0.28 / 0.72], dtype=torch.float64) ** 0.5
    torch.testing.assert_close(sigmas, expected)


@pytest.mark.parametrize("betas", [[], [0.1, 1.2], [-0.1], [[0.1]]], ids=str)
def test_betas_that_cannot_be_are_refused(betas):
    with pytest.raises(ValueError, match="betas must be"):
        from_betas(betas)


def test_variance_exploding_levels():
    sigmas = schedules.geometric(2000)
    assert (float(sigmas[0]), float(sigmas[-1])) == pytest.approx((0.01, 378.0))
    torch.testing.assert_close(sigmas.log().diff(), sigmas.log().diff()[:1].expand(1999))


def test_karras_levels():
    sigmas = schedules.karras(100, 0.003, 10)
    assert (float(sigmas[0]), float(sigmas[-1])) == pytest.approx((0.003, 10))
    steps = (sigmas ** (1 / 7)).diff()
    torch.testing.assert_close(steps, steps[:1].expand(99))


def test_sigma_and_signal_fraction_are_inverse():
    alpha_bar = torch.tensor([0.999, 0.5, 1e-4], dtype=torch.float64)
    torch.testing.assert_close(alpha_bar_from_sigma(sigma_from_alpha_bar(alpha_bar)), alpha_bar)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("spacing", ["uniform", "quadratic"])
@pytest.mark.parametrize("steps", [1, 7, T])
def test_a_sampler_s_levels_descend_from_the_largest_to_zero(name, spacing, steps):
    sigmas = SCHEDULES[name](T)
    levels = subsequence(sigmas, steps, spacing)
    assert float(levels[0]) == float(sigmas[-1])
    assert float(levels[-1]) == 0
    assert bool((levels.diff() < 0).all())
    assert set(levels[:-1].tolist()) <= set(sigmas.tolist())
    if spacing == "uniform" and steps == T:
        assert levels[:-1].tolist() == sorted(set(sigmas.tolist()), reverse=True)


def test_quadratic_spacing_is_finer_where_little_noise_is_left():
    index = {float(s): i for i, s in enumerate(schedules.linear(T))}
    levels = subsequence(schedules.linear(T), 10, "quadratic")[:-1]
    places = torch.tensor([index[float(s)] for s in levels])
    gaps = -places.diff()
    assert bool((gaps.diff() < 0).all())
    torch.testing.assert_close(  # squares of an even ramp
        (places / (T - 1)).sqrt(), torch.linspace(1, 0, 11)[:-1], rtol=0, atol=0.02
    )


@pytest.mark.parametrize(("steps", "spacing"), [(0, "uniform"), (T + 1, "uniform"), (5, "cubic")])
def test_levels_that_cannot_be_are_refused(steps, spacing):
    with pytest.raises(ValueError, match="must"):
        subsequence(schedules.linear(T), steps, spacing)
