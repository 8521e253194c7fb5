"""Patch prior: every pixel is denoised once, in its place, whatever the tiling."""

import pytest
import torch

from txmcorrect.diffusion.denoiser import Noise, per_item
from txmcorrect.diffusion.patches import PatchPrior, draw_patches, patches_within
from txmcorrect.diffusion.samplers import ddpm
from txmcorrect.diffusion.schedules import karras, subsequence

ASSEMBLIES = ["random", "fixed", "average"]
STEP = Noise(seed=1).step(0)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def shrink(x, sigma, cond, step):
    """Exact for white Gaussian pixels of unit deviation."""
    return x / (1 + per_item(sigma, x) ** 2)


def place(x, sigma, cond, step):
    """Answers with the position channels."""
    return cond[:, -2:]


@pytest.mark.parametrize("assembly", ASSEMBLIES)
@pytest.mark.parametrize("pad", [0, 6])
@pytest.mark.parametrize("patch", [16, 56, 500])
def test_pixelwise_denoiser_is_reproduced(assembly, pad, patch):
    x = torch.randn(2, 1, 61, 47, generator=rng())
    sigma = torch.tensor([0.5, 2.0])
    found = PatchPrior(shrink, patch, pad, assembly, batch=3)(x, sigma, None, STEP)
    torch.testing.assert_close(found, shrink(x, sigma, None, STEP))


@pytest.mark.parametrize("assembly", ASSEMBLIES)
def test_positions_span_the_canvas(assembly):
    pad, h, w = 5, 40, 30
    x = torch.zeros(1, 2, h, w)
    found = PatchPrior(place, 16, pad, assembly)(x, torch.tensor(1.0), None, STEP)
    y, across = (torch.linspace(-1, 1, n + 2 * pad)[pad:-pad] for n in (h, w))
    torch.testing.assert_close(found[0, 0], y[:, None].expand(h, w))
    torch.testing.assert_close(found[0, 1], across[None].expand(h, w))


def test_condition_travels_with_its_patch():
    cond = torch.rand(2, 1, 40, 40, generator=rng())
    prior = PatchPrior(lambda x, s, c, step: c[:, :1], 16, 4, batch=5)
    torch.testing.assert_close(
        prior(torch.zeros(2, 1, 40, 40), torch.tensor(1.0), cond, STEP), cond
    )
    shared = prior(torch.zeros(2, 1, 40, 40), torch.tensor(1.0), cond[:1], STEP)
    torch.testing.assert_close(shared, cond[:1].expand(2, -1, -1, -1))


def test_border_is_known_to_be_zero():
    """The border holds noise of the right level and nothing else; the image is untouched."""
    seen = []
    spy = PatchPrior(lambda x, *_: (seen.append(x), x)[1], 500, 16, position=False)
    x = torch.full((1, 1, 64, 64), 7.0)
    torch.testing.assert_close(spy(x, torch.tensor(0.3), None, STEP), x)
    canvas = seen[0]
    assert canvas.shape[-2:] == (96, 96)
    border = canvas[canvas != 7.0]
    assert border.std() == pytest.approx(0.3, rel=0.05)
    assert border.mean() == pytest.approx(0.0, abs=0.02)


def _seams(step):
    """Columns where one tile of a random assembly ends and another begins."""

    def label(x, sigma, cond, _):
        return torch.arange(len(x), dtype=x.dtype).reshape(-1, 1, 1, 1).expand_as(x)

    found = PatchPrior(label, 16, 0, batch=1000, position=False)(
        torch.zeros(1, 1, 64, 64), torch.tensor(1.0), None, step
    )
    return (found[0, 0, 0].diff() != 0).float()


def test_random_seams_wander_evenly_and_repeat_with_the_step():
    noise = Noise(seed=3)
    assert torch.equal(_seams(noise.step(4)), _seams(noise.step(4)))
    share = torch.stack([_seams(noise.step(i)) for i in range(320)]).mean(0)
    middle = share[16:47]
    assert middle.mean() == pytest.approx(1 / 16, rel=0.15)
    assert middle.max() < 3 / 16


def test_batch_never_exceeds_its_bound_and_does_not_change_the_result():
    x = torch.randn(1, 1, 100, 90, generator=rng())
    sizes = []

    def spy(x, sigma, cond, step):
        sizes.append(len(x))
        return shrink(x + 0.1 * cond[:, :1], sigma, cond, step)

    few, many = (PatchPrior(spy, 32, 8, "average", batch=n) for n in (4, 1000))
    one = few(x, torch.tensor(0.7), None, STEP)
    assert set(sizes) == {4}
    torch.testing.assert_close(one, many(x, torch.tensor(0.7), None, STEP))


def test_whole_image_is_sampled_from_patches():
    """A white prior through random patches keeps its deviation over a whole sampling run."""
    noise = Noise(seed=5)
    levels = subsequence(karras(1000, 0.01, 20), 40)
    x = noise.start((1, 1, 96, 96), 20.0)
    found = ddpm(PatchPrior(shrink, 24, 8), x, levels, noise=noise)
    assert found.std() == pytest.approx(1.0, abs=0.12)
    assert found.mean() == pytest.approx(0.0, abs=0.05)


def test_training_patches_know_where_they_come_from():
    h, w, pad = 40, 36, 4
    y, x = (torch.linspace(-1, 1, n + 2 * pad)[pad:-pad] for n in (h, w))
    image = torch.stack([y[:, None].expand(h, w), x[None].expand(h, w)])[None].expand(8, -1, -1, -1)
    sides = set()
    for seed in range(30):
        patches, where = draw_patches(image + 2, generator=rng(seed), pad=pad, sizes=(8, 16, 500))
        sides.add(tuple(patches.shape[-2:]))
        inside = patches != 0
        torch.testing.assert_close(patches[inside], where[inside] + 2)
        beyond = (where[:, :1] < y[0]) | (where[:, :1] > y[-1])
        assert not inside[:, :1][beyond].any()
    assert sides == {(8, 8), (16, 16), (48, 44)}


def test_size_mix_is_kept():
    images = torch.zeros(1, 1, 64, 64)
    drawn = [draw_patches(images, generator=rng(i))[0].shape[-1] for i in range(400)]
    assert [drawn.count(s) / 400 for s in (16, 32, 64)] == pytest.approx([0.2, 0.3, 0.5], abs=0.07)


def test_memory_budget_sets_the_batch():
    assert patches_within(1, 64) == 1
    assert patches_within(2 * 1024**3, 64) > 4 * patches_within(256 * 1024**2, 64)
