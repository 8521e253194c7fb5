"""Guidance on a Gaussian prior with exact denoiser, against the closed-form posterior."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch

from txmcorrect.diffusion.denoiser import Noise, per_item
from txmcorrect.diffusion.guidance import GUIDANCE, Measurement, ddnm, dmps, dps
from txmcorrect.diffusion.langevin import langevin, predictor_corrector
from txmcorrect.diffusion.samplers import ddim, ddpm
from txmcorrect.diffusion.schedules import karras, subsequence
from txmcorrect.physics import (
    BlockMean,
    Blur,
    Chain,
    Identity,
    Inpainting,
    MaskedFourier,
    fourier_mask,
    gaussian_kernel,
    pseudo_inverse,
)
from txmcorrect.recon.geometry import FanBeam, ParallelBeam
from txmcorrect.recon.projector import Projector

N, S, HIGH = 8, 0.1, 20.0
DOUBLE = torch.float64
LEVELS = subsequence(karras(1000, 0.002, HIGH), 40)
SAMPLERS = {
    "ddim": ddim,
    "ddpm": ddpm,
    "langevin": partial(langevin, inner_steps=3),
    "pc": predictor_corrector,
}


def rng(seed):
    return torch.Generator().manual_seed(seed)


def operators():
    return {
        "denoise": Identity(),
        "inpaint": Inpainting((torch.rand(N, N, generator=rng(1)) > 0.4).double()),
        "blur": Blur(gaussian_kernel(1.0, 5).double(), (N, N)),
        "superres": BlockMean((2, 2)),
        "blur then bin": Chain(BlockMean((2, 2)), Blur(gaussian_kernel(0.7, 3).double(), (N, N))),
        "fourier": MaskedFourier(
            fourier_mask("gaussian2d", (N, N), 2, 0.3, generator=rng(2)).double()
        ),
    }


@dataclass
class Prior:
    """Stationary Gaussian images: mean 0.5, deviation 0.3, spectrum `power` (h, w)."""

    power: torch.Tensor
    scale: float = 1.0

    def denoise(self, x, sigma, cond=None, step=None):
        s2 = per_item(sigma, x) ** 2
        power = self.power.to(x) * self.scale**2
        shrunk = torch.fft.fft2(x - 0.5 * self.scale) * (power / (power + s2))
        return 0.5 * self.scale + torch.fft.ifft2(shrunk).real

    def covariance(self):
        eye = torch.eye(N * N, dtype=DOUBLE).reshape(-1, N, N)
        return torch.fft.ifft2(torch.fft.fft2(eye) * self.power).real.reshape(N * N, -1)


def white():
    return Prior(torch.full((N, N), 0.09, dtype=DOUBLE))


def smooth():
    k2 = torch.fft.fftfreq(N, dtype=DOUBLE)[:, None] ** 2 + torch.fft.fftfreq(N, dtype=DOUBLE) ** 2
    power = (0.02 + k2) ** -1.5
    return Prior(0.09 * power / power.mean())


def dense(operator):
    kind = torch.float32 if isinstance(operator, Projector) else DOUBLE
    a = operator.A(torch.eye(N * N, dtype=kind).reshape(-1, 1, N, N)).reshape(N * N, -1)
    return (torch.cat([a.real, a.imag], 1) if a.is_complex() else a).T


def case(prior, operator, s=S):
    """A measurement of a draw from the prior; mean and covariance of its posterior."""
    c, a = prior.covariance(), dense(operator)
    root = torch.linalg.cholesky(c + 1e-10 * torch.eye(N * N))
    x0 = 0.5 + (root @ torch.randn(N * N, generator=rng(3), dtype=DOUBLE)).reshape(1, 1, N, N)
    y = operator.A(x0)
    z = torch.randn(2, *y.shape, generator=rng(4), dtype=DOUBLE)
    y = y + s * (torch.complex(z[0], z[1]) if y.is_complex() else z[0]) * (y != 0)
    values = torch.cat([y.real.flatten(), y.imag.flatten()]) if y.is_complex() else y.flatten()
    gain = c @ a.T @ torch.linalg.inv(a @ c @ a.T + s**2 * torch.eye(len(a)))
    mean = 0.5 + gain @ (values - a.sum(1) * 0.5)
    return Measurement(operator, y, s**2), mean, c - gain @ a @ c


def bias_and_spread(prior, operator, guide, sampler, batch=200):
    """Error of the mean in posterior deviations; deviation over the posterior's."""
    measurement, mean, covariance = case(prior, operator)
    noise = Noise(seed=1, shared=False)
    x = noise.start((batch, 1, N, N), HIGH, like=mean)
    found = sampler(guide(prior.denoise, measurement), x, LEVELS, noise=noise).reshape(batch, -1)
    deviation = covariance.diagonal().mean().sqrt()
    bias = (found.mean(0) - mean).square().mean().sqrt() / deviation
    return float(bias), float(found.var(0).mean().sqrt() / deviation)


@pytest.mark.parametrize("name", operators())
@pytest.mark.parametrize("guide", [ddnm, dps])
def test_white_prior_is_met_exactly(name, guide):
    """Where the methods' assumption holds, samples follow the true posterior."""
    bias, spread = bias_and_spread(white(), operators()[name], guide, ddim)
    assert bias < 0.12
    assert 0.85 < spread < 1.1


@pytest.mark.parametrize("sampler", ["langevin", "pc"])
@pytest.mark.parametrize("guide", GUIDANCE.values())
def test_stirring_samplers_find_the_posterior(guide, sampler):
    bias, spread = bias_and_spread(smooth(), operators()["blur"], guide, SAMPLERS[sampler], 150)
    assert bias < 0.25
    assert 0.9 < spread < 1.3


@pytest.mark.parametrize("name", ["blur", "superres"])
def test_smooth_prior_stays_close(name):
    for guide in (ddnm, dps):
        bias, spread = bias_and_spread(smooth(), operators()[name], guide, ddpm)
        assert bias < 0.25
        assert 0.8 < spread < 1.15


def test_dps_fills_holes_better_than_ddnm():
    """A correction that is white cannot reach unmeasured pixels; a gradient can."""
    hole = operators()["inpaint"]
    through_network = bias_and_spread(smooth(), hole, dps, ddpm)[0]
    assert through_network < 0.25
    assert through_network < 0.7 * bias_and_spread(smooth(), hole, ddnm, ddpm)[0]


def test_dmps_loses_its_spread_under_ddim_and_keeps_it_under_ddpm():
    """What the docstring says about where DMPS may be used."""
    assert bias_and_spread(smooth(), Identity(), dmps, ddim)[1] < 0.1
    assert bias_and_spread(smooth(), Identity(), dmps, ddpm)[1] > 0.6
    assert bias_and_spread(smooth(), Identity(), dmps, SAMPLERS["pc"], 150)[1] > 0.9


def sparse_parallel():
    return ParallelBeam(torch.arange(6) * torch.pi / 6, N + 4)


def limited_parallel():
    return ParallelBeam(torch.linspace(0, 2 * torch.pi / 3, 8), N + 4)


def sparse_fan():
    return FanBeam(torch.arange(6) * torch.pi / 3, N + 6, 3.0 * N)


@dataclass
class Matrix:
    """A dense operator `(m, n * n)`, as fast as tests like; solved by conjugate gradients."""

    a: torch.Tensor

    def A(self, x):
        return (x.flatten(1) @ self.a.T)[:, None, None]

    def A_adjoint(self, y):
        return (y.flatten(1) @ self.a).reshape(-1, 1, N, N)


@pytest.mark.parametrize("beam", [sparse_parallel, limited_parallel, sparse_fan])
@pytest.mark.parametrize("guide", [ddnm, dps])
def test_tomography_meets_the_posterior(beam, guide):
    """Sparse views, limited angle, fan beam: no closed form."""
    operator = Matrix(dense(Projector(beam(), N)).double())
    bias, spread = bias_and_spread(smooth(), operator, guide, ddpm, batch=60)
    assert bias < 0.4
    assert spread == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("guide", GUIDANCE.values(), ids=GUIDANCE)
def test_projector_guides_as_its_matrix_does(guide):
    projector = Projector(sparse_parallel(), N)
    measurement, _, _ = case(smooth(), Matrix(dense(projector).double()))
    y = measurement.y.reshape(projector.A(torch.zeros(1, 1, N, N)).shape).float()
    x, sigma = torch.randn(2, 1, N, N, generator=rng(3)), torch.tensor(0.5)
    found = guide(smooth().denoise, Measurement(projector, y, S**2))(
        x, sigma, None, Noise().step(0)
    )
    expected = guide(smooth().denoise, measurement)(x.double(), sigma, None, Noise().step(0))
    torch.testing.assert_close(found.double(), expected, atol=5e-3, rtol=0)


def test_ddnm_without_noise_agrees_with_the_data_exactly():
    operator = operators()["superres"]
    y = operator.A(torch.rand(1, 1, N, N, generator=rng(5), dtype=DOUBLE))
    denoise = ddnm(smooth().denoise, Measurement(operator, y, 0.0))
    x = torch.randn(3, 1, N, N, generator=rng(6), dtype=DOUBLE)
    found = denoise(x, torch.tensor(0.7), None, Noise().step(0))
    torch.testing.assert_close(operator.A(found), y.expand(3, -1, -1, -1))
    kept = smooth().denoise(x, torch.tensor(0.7))  # the null space is the prior's
    hidden = found - pseudo_inverse(operator, operator.A(found))
    torch.testing.assert_close(hidden, kept - pseudo_inverse(operator, operator.A(kept)))


@pytest.mark.parametrize("guide", GUIDANCE.values(), ids=GUIDANCE)
@pytest.mark.parametrize("name", ["blur", "fourier"])
def test_weights_know_neither_batch_nor_units(guide, name):
    operator = operators()[name]
    measurement, _, _ = case(smooth(), operator)
    x = torch.randn(3, 1, N, N, generator=rng(7), dtype=DOUBLE)
    step, sigma = Noise().step(0), torch.tensor(0.8, dtype=DOUBLE)
    together = guide(smooth().denoise, measurement)(x, sigma, None, step)
    alone = guide(smooth().denoise, measurement)(x[1:2], sigma, None, step)
    torch.testing.assert_close(together[1:2], alone)
    k = 250.0  # the same in counts
    scaled = Measurement(operator, k * measurement.y, k**2 * measurement.s2)
    counts = guide(Prior(smooth().power, k).denoise, scaled)(k * x, k * sigma, None, step)
    torch.testing.assert_close(counts, k * together)


@pytest.mark.parametrize("guide", [dmps, ddnm])
def test_no_back_propagation(guide):
    """Nothing is recorded for a gradient, even where the network could be."""

    def denoise(x, sigma, cond, step):
        assert not x.requires_grad
        return smooth().denoise(x, sigma)

    measurement, _, _ = case(smooth(), Identity())
    x = torch.randn(1, 1, N, N, dtype=DOUBLE, generator=rng(8))
    guide(denoise, measurement)(x, torch.tensor(1.0), None, Noise().step(0))


def test_noise_may_differ_per_pixel():
    """A photon-starved half is trusted less; both halves are met exactly for a white prior."""
    s2 = torch.full((1, 1, N, N), 0.01, dtype=DOUBLE)
    s2[..., 4:] = 0.36
    y = 0.5 + (0.09 + s2).sqrt() * torch.randn(s2.shape, generator=rng(9), dtype=DOUBLE)
    mean, variance = 0.5 + 0.09 / (0.09 + s2) * (y - 0.5), 0.09 * s2 / (0.09 + s2)
    noise = Noise(seed=2, shared=False)
    x = noise.start((300, 1, N, N), HIGH, like=y)
    for guide in (ddnm, dps):
        out = ddim(guide(white().denoise, Measurement(Identity(), y, s2)), x, LEVELS, noise=noise)
        bias = (out.mean(0, keepdim=True) - mean) / variance.sqrt()
        assert bias.square().mean().sqrt() < 0.15
        spread = (out.var(0, keepdim=True) / variance).sqrt()
        assert spread[..., :4].mean() == pytest.approx(1, abs=0.15)
        assert spread[..., 4:].mean() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_repeat_and_end_clean(name):
    prior, sampler, seen = smooth(), SAMPLERS[name], []

    def hook(x, sigma, step):
        seen.append(float(sigma))
        return x

    noise = Noise(seed=3, shared=False)
    x = noise.start((2, 1, N, N), HIGH, like=prior.power)
    out = sampler(prior.denoise, x, LEVELS, noise=noise, after_step=hook)
    torch.testing.assert_close(out, sampler(prior.denoise, x, LEVELS, noise=noise))
    assert seen == LEVELS[1:].tolist()
    assert out.std() == pytest.approx(0.3, rel=0.5)
