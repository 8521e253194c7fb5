"""Volume prior: turns, exact posterior of a separable Gaussian field, memory, resuming."""

import tracemalloc

import numpy as np
import pytest
import torch

from txmcorrect.diffusion.denoiser import Noise, per_item
from txmcorrect.diffusion.guidance import Measurement, ddnm
from txmcorrect.diffusion.samplers import ddpm
from txmcorrect.diffusion.schedules import geometric, subsequence
from txmcorrect.diffusion.volume import VolumePrior, VolumeSampler, is_auxiliary
from txmcorrect.physics import BlockMean, Identity

LEVELS = subsequence(geometric(400, 0.01, 20.0), 60)


def field_power(n):
    """Spectrum `(n,)` of a smooth periodic line of unit variance."""
    power = (0.003 + torch.fft.fftfreq(n) ** 2) ** -1.5
    return power / power.mean()


def plane_denoiser(x, sigma, cond, step):
    """Exact for planes of a field whose covariance is a product over the axes."""
    power = field_power(x.shape[-2])[:, None] * field_power(x.shape[-1])
    s2 = per_item(sigma, x) ** 2
    return torch.fft.ifft2(torch.fft.fft2(x) * (power / (power + s2))).real


def states(shape):
    return np.zeros(shape, np.float32), np.zeros(shape, np.float32)


def sample(shape, k=2.0, micro_batch=4, seed=0, **more):
    sampler = VolumeSampler(
        VolumePrior(plane_denoiser, plane_denoiser, k),
        LEVELS,
        Noise(seed),
        micro_batch=micro_batch,
        **more,
    )
    pair = states(shape)
    sampler.start(pair[0])
    return sampler.run(pair)


def correlation(volume, axis):
    """Of neighbours along an axis."""
    a, b = (
        np.take(volume, range(volume.shape[axis] - 1), axis),
        np.take(volume, range(1, volume.shape[axis]), axis),
    )
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


@pytest.mark.parametrize("k,share", [(2, 0.5), (3, 1 / 3), (2.7, 1 / 2.7), (1, 1.0)])
def test_turns_are_taken_as_asked(k, share):
    noise = Noise(4)
    turns = [is_auxiliary(k, noise.step(i)) for i in range(600)]
    assert np.mean(turns) == pytest.approx(share, abs=0.06)
    assert turns == [is_auxiliary(k, noise.step(i)) for i in range(600)]
    if k == 3:
        assert turns[:6] == [False, False, True, False, False, True]


def test_two_planes_make_a_volume():
    """Taking turns averages the two scores: precisions average, frequency by frequency."""
    n = 16
    both, alone = sample((n, n, n)), sample((n, n, n), k=1e9)
    p = field_power(n)
    primary, auxiliary = p[None, :, None] * p[None, None, :], p[:, None, None] * p[None, None, :]
    spectrum = 2 / (1 / primary + 1 / auxiliary)
    assert both.std() == pytest.approx(float(spectrum.mean().sqrt()), rel=0.15)
    next_z = (spectrum * torch.cos(2 * torch.pi * torch.fft.fftfreq(n))[:, None, None]).mean()
    assert correlation(both, 0) == pytest.approx(float(next_z / spectrum.mean()), abs=0.15)
    assert correlation(both, 0) == pytest.approx(correlation(both, 1), abs=0.1)
    assert abs(correlation(alone, 0)) < 0.15


def test_denoiser_of_volumes_turns_its_planes():
    x = torch.randn(6, 1, 8, 10, generator=torch.Generator().manual_seed(0))
    prior = VolumePrior(lambda x, *_: x + x.shape[-2], lambda x, *_: x * x.shape[-2], 2)
    noise, sigma = Noise(), torch.tensor(1.0)
    torch.testing.assert_close(prior(x, sigma, None, noise.step(0)), x + 8)
    torch.testing.assert_close(prior(x, sigma, None, noise.step(1)), x * 6)


def test_micro_batches_do_not_change_the_volume():
    shape = (7, 12, 10)
    np.testing.assert_allclose(
        sample(shape, micro_batch=1), sample(shape, micro_batch=50), atol=1e-4
    )


def noisy(truth, deviation):
    z = np.random.default_rng(0).standard_normal(truth.shape)
    return torch.from_numpy(truth + deviation * z.astype(np.float32))[:, None]


def restored(truth, y, operator, s2, k, **more):
    """Mean of two samples given slices `y` `(z, 1, ...)`."""
    measurement = Measurement(operator, y, s2)

    def agree(x0_hat, sigma, slices):
        return measurement.of(slices).agree(x0_hat, sigma)

    return np.mean([sample(truth.shape, k=k, seed=s, agree=agree, **more) for s in (1, 2)], 0)


def test_perpendicular_prior_restores_better_than_slices_alone():
    truth = sample((12, 12, 12), seed=9)
    y = noisy(truth, 0.5)
    found = {k: restored(truth, y, Identity(), 0.25, k) - truth for k in (2, 1e9)}
    assert found[2].std() < 0.95 * found[1e9].std()
    assert found[2].std() < 0.4
    assert np.diff(found[2], axis=0).std() < 0.9 * np.diff(found[1e9], axis=0).std()


def test_thick_slices_are_thinned():
    """z-superresolution: the primary plane is (z, x), where the blocks lie."""
    truth = sample((8, 12, 12), seed=9)
    thick = BlockMean((2, 1))
    y = thick.A(torch.from_numpy(truth)[:, None])
    assert y.shape == (8, 1, 6, 12)
    found = restored(truth, y, thick, 0.0, 2)
    assert (thick.A(torch.from_numpy(found)[:, None]) - y).abs().max() < 1e-3
    nearest = 2 * thick.A_adjoint(y).numpy()[:, 0]
    detail = np.corrcoef((found - nearest).ravel(), (truth - nearest).ravel())[0, 1]
    assert detail > 0.2


def test_streamed_and_in_memory_agree():
    """Both are the same algorithm but for their random numbers: equal errors against the truth."""
    truth = sample((10, 10, 10), seed=9)
    y = noisy(truth, 0.5)
    streamed = restored(truth, y, Identity(), 0.25, 2, snr=0.0) - truth
    prior = ddnm(VolumePrior(plane_denoiser, plane_denoiser), Measurement(Identity(), y, 0.25))
    runs = []
    for seed in (1, 2):
        noise = Noise(seed, shared=False)
        runs.append(ddpm(prior, noise.start(tuple(y.shape), 20.0), LEVELS, noise=noise))
    whole = torch.stack(runs).mean(0)[:, 0].numpy() - truth
    assert streamed.std() == pytest.approx(whole.std(), rel=0.12)


def test_interrupted_equals_uninterrupted(tmp_path):
    """State in memory maps; killed in the middle of a step, gone on from the last whole one."""
    sampler = VolumeSampler(
        VolumePrior(plane_denoiser, plane_denoiser), LEVELS, Noise(3), micro_batch=3
    )
    whole = states((6, 8, 10))
    sampler.start(whole[0])
    expected = sampler.run(whole).copy()

    maps = tuple(
        np.lib.format.open_memmap(tmp_path / f"{i}.npy", "w+", np.float32, (6, 8, 10))
        for i in range(2)
    )
    sampler.start(maps[0])
    done = []

    def stop(count):
        done.append(count)
        if count == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler.run(maps, after_move=stop)
    maps[(done[-1] + 1) % 2][:3] = np.nan  # half of the next step, lost
    np.testing.assert_array_equal(sampler.run(maps, done=done[-1]), expected)


def test_memory_does_not_grow_with_the_number_of_slices(tmp_path):
    """Peak of what a step allocates, besides the mapped volume."""

    def traced(n):
        maps = tuple(
            np.lib.format.open_memmap(tmp_path / f"{n}{i}.npy", "w+", np.float32, (n, 32, 32))
            for i in range(2)
        )
        biggest = []

        def spy(x, sigma, cond, step):
            biggest.append(x.numel())
            return plane_denoiser(x, sigma, cond, step)

        sampler = VolumeSampler(VolumePrior(spy, spy, 1e9), LEVELS[-3:], Noise(0), micro_batch=4)
        sampler.start(maps[0])
        tracemalloc.start()
        sampler.run(maps)
        _, high = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return high, max(biggest)

    (small, small_batch), (large, large_batch) = traced(8), traced(64)
    assert small_batch == large_batch == 4 * 32 * 32
    assert large < small + 8 * 32 * 32 * 4
