"""FBP against scikit-image, SIRT and ML-EM with the matched pair, stripes."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from txmcorrect.errors import GeometryError
from txmcorrect.recon.fbp import FILTERS, angle_weights, fbp, filter_sinograms
from txmcorrect.recon.geometry import FanBeam, ParallelBeam
from txmcorrect.recon.iterative import mlem, sirt
from txmcorrect.recon.projector import Projector
from txmcorrect.recon.stripes import remove_stripes

SIZE = 127  # odd: scikit-image and we agree on the middle


@pytest.fixture(scope="module")
def phantom():
    data = pytest.importorskip("skimage.data")
    transform = pytest.importorskip("skimage.transform")
    return transform.resize(data.shepp_logan_phantom(), (SIZE, SIZE), anti_aliasing=True).astype(
        np.float32
    )


def rms(image, truth):
    grid = np.arange(SIZE) - (SIZE - 1) / 2
    inside = np.hypot(grid, grid[:, None]) < SIZE / 2 - 2
    return float(np.sqrt(((np.asarray(image) - np.asarray(truth))[inside] ** 2).mean()))


@pytest.mark.parametrize("name", [f for f in FILTERS if f != "none"])
def test_fbp_is_as_accurate_as_skimage(phantom, name):
    from skimage.transform import iradon, radon

    degrees = np.arange(0, 180, 1.0)
    sinogram = radon(phantom, degrees, circle=True)
    theirs = iradon(sinogram, degrees, filter_name=name, circle=True)
    beam = ParallelBeam(torch.from_numpy(np.deg2rad(degrees)), SIZE)
    ours = fbp(beam, SIZE, torch.from_numpy(sinogram.T.copy()), name).flip(0)
    assert rms(ours, phantom) < 1.02 * rms(theirs, phantom)
    assert rms(ours, theirs) < 0.1 * rms(theirs, phantom)


def test_fan_fbp(phantom):
    image = torch.from_numpy(phantom)
    fan = FanBeam(torch.linspace(0, 2 * math.pi, 241)[:-1], 200, 180.0)
    parallel = ParallelBeam(torch.linspace(0, math.pi, 241)[:-1], SIZE)
    errors = [rms(fbp(b, SIZE, Projector(b, SIZE).A(image)), phantom) for b in (fan, parallel)]
    assert errors[0] < 1.1 * errors[1]


def test_order_and_repeats_of_angles_do_not_matter(phantom):
    theta = torch.linspace(0, math.pi, 91)[:-1]
    image = torch.from_numpy(phantom)

    def error(angles):
        beam = ParallelBeam(angles, SIZE)
        return rms(fbp(beam, SIZE, Projector(beam, SIZE).A(image)), phantom)

    plain = error(theta)
    shuffled = theta[torch.randperm(90, generator=torch.Generator().manual_seed(0))]
    assert error(shuffled) == pytest.approx(plain, rel=1e-3)
    assert error(torch.cat([theta, theta[:30], theta[5:9]])) == pytest.approx(plain, rel=1e-2)
    assert error(torch.cat([theta, theta + math.pi])) == pytest.approx(plain, rel=1e-2)


def test_angle_weights_cover_half_a_turn():
    theta = torch.linspace(0, math.pi, 20)  # both ends: 0 and 180 degrees are one view
    assert float(angle_weights(theta).sum()) == pytest.approx(math.pi, rel=1e-6)
    wedge = angle_weights(torch.linspace(0, math.pi / 2, 46))
    assert float(wedge.max()) < 1.6 * float(wedge.median())


def test_sirt_and_mlem_converge(phantom):
    small = torch.from_numpy(phantom[::3, ::3].copy())
    beam = ParallelBeam(torch.linspace(0, math.pi, 61)[:-1], len(small))
    pair = Projector(beam, len(small))
    sinogram = pair.A(small)
    start = float(small.square().mean().sqrt())
    for method, least in ((sirt, 0.35), (mlem, 0.15)):
        curve: list[float] = []
        found = method(pair, sinogram, 60, watch=lambda i, misfit, c=curve: c.append(misfit))
        assert len(curve) == 60
        assert all(b < a for a, b in pairwise(curve[1:]))
        assert curve[-1] < 0.08 * float(sinogram.square().mean().sqrt())
        assert float((found - small).square().mean().sqrt()) < least * start


def test_sirt_starts_from_an_image_and_keeps_it_positive(phantom):
    small = torch.from_numpy(phantom[::4, ::4].copy())
    pair = Projector(ParallelBeam(torch.linspace(0, math.pi, 41)[:-1], 32), 32)
    assert torch.allclose(sirt(pair, pair.A(small), 3, start=small), small, atol=1e-5)
    noisy = pair.A(small) - 1.0
    assert float(sirt(pair, noisy, 5, nonnegative=True).min()) == 0
    assert float(sirt(pair, noisy, 5).min()) < 0


def test_mlem_takes_negative_integrals_for_zero():
    pair = Projector(ParallelBeam(torch.linspace(0, math.pi, 31)[:-1], 24), 24)
    sinogram = torch.full((2, 30, 24), -0.1)
    sinogram[1] = pair.A(torch.ones(24, 24))
    found = mlem(pair, sinogram, 10)
    assert torch.isfinite(found).all() and float(found.min()) >= 0
    assert float(found[0].max()) < 1e-3
    assert float(found[1, 8:16, 8:16].mean()) == pytest.approx(1, abs=0.1)


def test_unknown_filter_is_refused():
    with pytest.raises(GeometryError, match="expected a filter among ramp, shepp-logan"):
        filter_sinograms(torch.zeros(3, 8), "box")


def test_stripes_go_and_the_rest_stays(phantom):
    beam = ParallelBeam(torch.linspace(0, math.pi, 181)[:-1], SIZE)
    clean = Projector(beam, SIZE).A(torch.from_numpy(phantom)) / 30
    generator = torch.Generator().manual_seed(2)
    stripes = torch.zeros(SIZE)
    stripes[torch.randperm(SIZE, generator=generator)[:25]] = 0.05
    dirty = clean + stripes
    left = (remove_stripes(dirty) - clean).mean(0)
    assert left.square().mean() < 0.2 * stripes.square().mean()
    harm = (remove_stripes(clean) - clean).square().mean().sqrt()
    assert harm < 0.06 * clean.std()
