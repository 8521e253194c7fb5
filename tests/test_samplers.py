"""Samplers on a Gaussian prior with known answer, and step by step against diffusers."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from txmcorrect.diffusion.denoiser import (
    NetworkDenoiser,
    Noise,
    Preconditioning,
    with_guidance,
    within,
)
from txmcorrect.diffusion.samplers import SAMPLERS, ddim, ddpm, dpmpp_2m
from txmcorrect.diffusion.schedules import (
    SCHEDULES,
    alpha_bar_from_sigma,
    geometric,
    karras,
    linear,
    subsequence,
)

MEAN, SPREAD = 0.4, 0.25
ALL = {**SAMPLERS, "ddim eta 0.5": partial(ddim, eta=0.5)}


def exact(x, sigma, cond, step):
    """Posterior mean of independent pixels, each N(MEAN, SPREAD^2)."""
    sigma = sigma.to(x)
    return (SPREAD**2 * x + sigma**2 * MEAN) / (SPREAD**2 + sigma**2)


def start(levels, shape=(1, 1, 200, 200), seed=5):
    noise = Noise(seed, shared=False)
    template = torch.empty(shape, dtype=torch.float64)
    return noise.start(shape, float(levels[0]), like=template), noise


GRIDS = {
    "linear": linear(1000),
    "geometric": geometric(1000, 0.005, 100),
    "karras": karras(1000, 0.002),
}
# How much of the spread may be missing after 100 steps: a little over what the step rules lose.
BOUNDS = {
    "linear": {"ddpm": 0.12, "ddim": 0.07, "ddim eta 0.5": 0.08, "dpmpp": 0.02},
    "geometric": {"ddpm": 0.06, "ddim": 0.04, "ddim eta 0.5": 0.04, "dpmpp": 0.02},
    "karras": {"ddpm": 0.08, "ddim": 0.05, "ddim eta 0.5": 0.05, "dpmpp": 0.02},
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("grid", GRIDS)
def test_known_mean_and_spread(grid, name):
    """40,000 pixels; the mean of noise and the finite start cost at most 0.02 spreads of the mean."""
    levels = subsequence(GRIDS[grid], 100)
    x, noise = start(levels)
    sample = ALL[name](exact, x, levels, noise=noise)
    assert float(sample.mean()) == pytest.approx(MEAN, abs=0.02 * SPREAD)
    assert float(sample.std()) == pytest.approx(SPREAD, rel=BOUNDS[grid][name])


def test_the_second_order_solver_needs_fewer_steps():
    levels = subsequence(GRIDS["geometric"], 10)
    x, noise = start(levels)
    second, first = (float(f(exact, x, levels, noise=noise).std()) for f in (dpmpp_2m, ddim))
    assert second == pytest.approx(SPREAD, rel=0.04)
    assert first == pytest.approx(SPREAD * 0.78, rel=0.04)


def test_ddim_follows_its_recursion_exactly():
    """On this prior a step scales the distance from the mean by a known factor."""
    levels = subsequence(linear(1000), 10)
    x, noise = start(levels, (1, 1, 8, 8))
    factor = 1.0
    for now, after in pairwise(levels.tolist()):
        share = SPREAD**2 / (SPREAD**2 + now**2)
        factor *= share + (1 - share) * after / now
    expected = MEAN + (x - MEAN) * factor
    torch.testing.assert_close(ddim(exact, x, levels, noise=noise), expected)


@pytest.mark.parametrize("name", ALL)
def test_the_error_falls_as_the_steps_grow(name):
    """At least in proportion to 1 / steps, until chance decides."""
    errors = []
    for steps in (10, 80):
        levels = subsequence(GRIDS["linear"], steps)
        x, noise = start(levels)
        sample = ALL[name](exact, x, levels, noise=noise)
        errors.append(abs(float(sample.std()) / SPREAD - 1))
    assert errors[1] < errors[0] / 3.5


@pytest.mark.parametrize("name", ALL)
def test_one_step_is_the_posterior_mean(name):
    levels = subsequence(linear(1000), 1)
    x, noise = start(levels, (2, 1, 8, 8))
    sample = ALL[name](exact, x, levels, noise=noise)
    torch.testing.assert_close(sample, exact(x, levels[0], None, noise.step(0)))


# --- against diffusers ---------------------------------------------------------------------------


def bent(x, sigma, cond, step):
    """Some estimate of x0 that is no straight line."""
    return 0.7 * torch.tanh(x / torch.sqrt(1 + sigma.to(x) ** 2) + 0.2)


def theirs(scheduler, x_vp, sigmas, noise, give_noise):
    """Run diffusers' `scheduler` on the same estimates; yields its sample after every step."""
    for index, t in enumerate(scheduler.timesteps):
        sigma = sigmas[index]
        x = x_vp * torch.sqrt(1 + sigma**2).float()
        eps = (x - bent(x, sigma, None, None)) / sigma.float()
        extra = give_noise(noise.step(index), x)
        x_vp = scheduler.step(eps, t, x_vp, **extra).prev_sample
        yield x_vp


def compare(sampler, scheduler, sigmas, give_noise):
    noise = Noise(11)
    x = noise.start((1, 1, 6, 6), float(sigmas[0]), like=torch.empty(0)) + 0.3
    ours = []

    def keep(x, sigma, step):
        ours.append(x * torch.sqrt(alpha_bar_from_sigma(sigma)).float())
        return x

    sampler(bent, x, sigmas, noise=noise, after_step=keep)
    x_vp = x * torch.sqrt(alpha_bar_from_sigma(sigmas[0])).float()
    expected = list(theirs(scheduler, x_vp, sigmas, noise, give_noise))
    assert len(ours) == len(expected)
    for mine, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-4, atol=2e-5)


def at(scheduler, timesteps):
    """Levels at diffusers' time steps, then 0."""
    sigmas = linear(len(scheduler.alphas_cumprod))[timesteps]
    return torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])


@pytest.mark.parametrize("steps", [40, 10])
def test_ddpm_is_that_of_diffusers(steps):
    scheduler = DDPMScheduler(40, clip_sample=False, variance_type="fixed_small")
    scheduler.set_timesteps(steps)
    compare(
        ddpm,
        scheduler,
        at(scheduler, scheduler.timesteps),
        lambda step, x: {"generator": step.generator()},
    )


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_that_of_diffusers(eta):
    scheduler = DDIMScheduler(100, clip_sample=False)
    scheduler.set_timesteps(10)
    compare(
        partial(ddim, eta=eta),
        scheduler,
        at(scheduler, scheduler.timesteps),
        lambda step, x: {"eta": eta, "variance_noise": step.normal_like(x) if eta else None},
    )


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # theirs
@pytest.mark.parametrize("steps", [8, 25])
def test_dpm_solver_is_that_of_diffusers(steps):
    scheduler = DPMSolverMultistepScheduler(
        1000, beta_start=1e-4, beta_end=0.02, algorithm_type="dpmsolver++", solver_order=2
    )
    scheduler.set_timesteps(steps)
    compare(dpmpp_2m, scheduler, scheduler.sigmas.double(), lambda step, x: {})


# --- random numbers -----------------------------------------------------------------------------


def test_noise_depends_on_seed_sample_step_and_purpose_only():
    like = torch.empty(2, 1, 5, 7)
    noise = Noise(4, 2)
    first = noise.step(3).normal_like(like)
    torch.manual_seed(99)
    torch.randn(10)
    assert torch.equal(Noise(4, 2).step(3).normal_like(like), first)
    others = [
        Noise(5, 2).step(3),
        Noise(4, 3).step(3),
        Noise(2, 4).step(3),
        noise.step(4),
        noise.step(-1),
    ]
    drawn = [first, *(step.normal_like(like) for step in others)]
    drawn.append(noise.step(3).normal_like(like, purpose=1))
    for i, a in enumerate(drawn):
        for b in drawn[i + 1 :]:
            assert not torch.equal(a, b)


def test_noise_is_shared_across_the_frames_of_a_batch_of_any_size():
    shared = Noise(1).step(0)
    four = shared.normal_like(torch.empty(4, 1, 6, 6))
    assert all(torch.equal(frame, four[0]) for frame in four)
    assert torch.equal(shared.normal_like(torch.empty(1, 1, 6, 6)), four[:1])
    own = replace(shared.noise, shared=False).step(0).normal_like(torch.empty(4, 1, 6, 6))
    assert not torch.equal(own[0], own[1])


@pytest.mark.parametrize("name", ALL)
def test_a_frame_s_sample_does_not_depend_on_its_companions(name):
    levels = subsequence(linear(1000), 5)
    noise = Noise(8)
    x = noise.start((3, 1, 6, 6), float(levels[0])).clone() + torch.arange(3)[:, None, None, None]
    together = ALL[name](bent, x, levels, noise=noise)
    for k in range(3):
        alone = ALL[name](bent, x[k : k + 1], levels, noise=noise)
        torch.testing.assert_close(alone[0], together[k])


def test_the_seed_decides_a_sample():
    levels = subsequence(linear(1000), 5)

    def sample(seed, index):
        noise = Noise(seed, index)
        x = noise.start((1, 1, 6, 6), float(levels[0]))
        return ddpm(bent, x, levels, noise=noise)

    assert torch.equal(sample(1, 0), sample(1, 0))
    assert not torch.equal(sample(1, 0), sample(2, 0))
    assert not torch.equal(sample(1, 0), sample(1, 1))


# --- the contract -------------------------------------------------------------------------------


def test_every_step_says_its_index_and_the_hook_may_change_the_sample():
    seen = []

    def watched(x, sigma, cond, step):
        seen.append((step.index, float(sigma), cond))
        return exact(x, sigma, cond, step)

    levels = subsequence(linear(1000), 4)
    for sampler in ALL.values():
        seen.clear()
        x, noise = start(levels, (1, 1, 4, 4))
        out = sampler(
            watched, x, levels, "given", noise=noise, after_step=lambda x, s, step: x * 0 + 7
        )
        assert [index for index, _, _ in seen] == [0, 1, 2, 3]
        assert [sigma for _, sigma, _ in seen] == levels[:-1].tolist()
        assert {cond for _, _, cond in seen} == {"given"}
        assert torch.equal(out, torch.full_like(out, 7))


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
def test_a_network_that_says_what_is_wanted_gives_the_image_back(target):
    g = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(3, 1, 4, 4, generator=g, dtype=torch.float64) for _ in range(2))
    sigma = torch.tensor([0.01, 1.0, 50.0], dtype=torch.float64)[:, None, None, None]
    scaling = Preconditioning(target, sigma_data=0.7)
    x = x0 + sigma * eps
    torch.testing.assert_close(scaling.x0_hat(x, sigma, scaling.wanted(x0, x, sigma)), x0)


def test_v_is_that_of_variance_preserving_models_up_to_sign():
    x0, eps, sigma = (torch.tensor(v, dtype=torch.float64) for v in (0.3, -1.2, 0.8))
    alpha_bar = alpha_bar_from_sigma(sigma)
    v = alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x0
    torch.testing.assert_close(Preconditioning("v").wanted(x0, x0 + sigma * eps, sigma), -v)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_extrapolates_from_the_free_estimate(scale):
    def denoise(x, sigma, cond, step):
        return torch.full_like(x, 1.0 if cond is None else 3.0)

    x = torch.zeros(1, 1, 2, 2)
    guided = with_guidance(denoise, scale)(x, torch.tensor(1.0), x, Noise().step(0))
    assert torch.equal(guided, torch.full_like(x, 1 + 2 * scale))


def test_without_a_condition_the_network_sees_zeros_in_its_place():
    seen = []

    class Network(torch.nn.Module):
        def forward(self, inputs, c_noise):
            seen.append((inputs, c_noise))
            return inputs[:, :1]

    denoise = NetworkDenoiser(Network(), Preconditioning("eps"), 2)
    x, sigma = torch.ones(2, 1, 3, 3), torch.tensor(3.0)
    denoise(x, sigma)
    denoise(x, sigma, torch.ones(2, 2, 3, 3))
    (free, level), (given, _) = seen
    assert torch.equal(free[:, 1:], torch.zeros(2, 2, 3, 3))
    assert torch.equal(given[:, 1:], torch.ones(2, 2, 3, 3))
    torch.testing.assert_close(free[:, :1], x / 10**0.5)
    torch.testing.assert_close(level, sigma.log().expand(2) / 4)


def test_estimates_stay_within_what_an_image_can_be():
    """A network that errs by half a deviation in eps is off by that times sigma; the chain ends in range."""

    def errs(x, sigma, cond, step):
        return x - sigma * (x / torch.sqrt(1 + sigma**2) + 0.5)

    levels = subsequence(SCHEDULES["linear"](1000), 20)
    noise = Noise(3)
    x = noise.start((4, 1, 8, 8), float(levels[0]))
    free = SAMPLERS["ddim"](errs, x, levels, None, noise=noise)
    kept = SAMPLERS["ddim"](within(errs, -1.0, 2.0), x, levels, None, noise=noise)
    assert float(free.max()) > 2.5 or float(free.min()) < -1.5
    assert -1 <= float(kept.min()) and float(kept.max()) <= 2
    inside = within(lambda x, *_: 0.5 * x, -1.0, 1.0)
    same = torch.full((1, 1, 2, 2), 0.6)
    assert torch.equal(inside(same, torch.tensor(1.0), None, noise.step(0)), 0.5 * same)
