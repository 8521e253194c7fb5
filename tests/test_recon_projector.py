"""Projector and back-projector: exact transposes, right line integrals, handedness."""

import math

import numpy as np
import pytest
import torch

from txmcorrect.errors import GeometryError
from txmcorrect.recon.geometry import FanBeam, ParallelBeam
from txmcorrect.recon.projector import Projector, smear, smear_at

HALF = torch.linspace(0, math.pi, 61)[:-1]
TURN = torch.linspace(0, 2 * math.pi, 61)[:-1]
BEAMS = {
    "parallel": ParallelBeam(HALF, 70),
    "off-centre": ParallelBeam(HALF, 71, 28.3),
    "sparse": ParallelBeam(HALF[::10], 64),
    "limited": ParallelBeam(HALF[:30], 64),
    "unordered": ParallelBeam(torch.tensor([2.0, -0.3, 0.7, 0.7, 9.0]), 64),
    "fan": FanBeam(TURN, 96, 150.0),
    "close fan": FanBeam(TURN, 140, 60.0, 68.2),
    "narrow": ParallelBeam(HALF, 20),
}


@pytest.mark.parametrize("name", BEAMS)
@pytest.mark.parametrize("size", [32, 47])
def test_adjoint(name, size):
    beam = BEAMS[name]
    pair = Projector(beam, size)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(3, size, size, generator=generator)
    y = torch.rand(3, len(beam.theta), beam.width, generator=generator)
    forward = (pair.A(x).double() * y).sum()
    backward = (x.double() * pair.A_adjoint(y)).sum()
    assert abs(forward - backward) < 1e-5 * abs(forward)


@pytest.mark.parametrize(
    "beam",
    [ParallelBeam(TURN[:7] * 3, 15, 6.2), FanBeam(TURN[:7] * 9, 24, 9.0, 10.7)],
    ids=["parallel", "fan"],
)
def test_every_entry_of_the_transpose(beam):
    """Matrices column by column: one wrong entry would hide in a random dot product."""
    size = 9
    pair = Projector(beam, size)
    forward = pair.A(torch.eye(size**2).reshape(-1, size, size)).flatten(1)
    rays = len(beam.theta) * beam.width
    every = torch.eye(rays).reshape(-1, len(beam.theta), beam.width)
    backward = pair.A_adjoint(every).flatten(1)
    assert torch.allclose(forward, backward.T, atol=2e-5)


def test_mass_is_kept():
    image = _disc(64, 20, 5, -4)
    sums = Projector(ParallelBeam(HALF, 64), 64).A(image).sum(1)
    assert torch.allclose(sums, image.sum().expand_as(sums), rtol=3e-3)


def test_disc_has_the_right_chords():
    size, radius = 129, 40
    seen = Projector(ParallelBeam(HALF, size), size).A(_disc(size, radius))
    s = torch.arange(size) - 64.0
    chord = 2 * (radius**2 - s**2).clamp(min=0).sqrt()
    inside = s.abs() < radius - 3
    assert (seen - chord)[:, inside].abs().mean() < 0.35  # of 80 pixels


def test_agrees_with_skimage_radon():
    transform = pytest.importorskip("skimage.transform")
    image = _disc(65, 12, 9, -7).numpy() + 0.5 * _disc(65, 20).numpy()
    degrees = np.arange(0, 180, 7.0)
    expected = transform.radon(image, degrees).T
    beam = ParallelBeam(torch.from_numpy(np.deg2rad(degrees)), 65)
    # scikit-image counts y upwards.
    ours = Projector(beam, 65).A(torch.from_numpy(image[::-1].copy())).numpy()
    assert np.abs(ours - expected).mean() < 0.01 * expected.max()


def test_point_is_seen_where_the_geometry_says():
    image = torch.zeros(65, 65)
    image[32 + 20, 32 + 8] = 1  # y = 20, x = 8
    theta = torch.tensor([0.0, math.pi / 2, math.pi])
    seen = Projector(ParallelBeam(theta, 65), 65).A(image)
    assert seen.argmax(1).tolist() == [32 + 8, 32 + 20, 32 - 8]


def test_fan_far_away_is_parallel():
    image = _disc(64, 15, 6, 3)
    fan = Projector(FanBeam(TURN, 64, 1e6), 64).A(image)
    parallel = Projector(ParallelBeam(TURN, 64), 64).A(image)
    assert torch.allclose(fan, parallel, atol=0.02)


def test_fan_magnifies_what_is_near_the_source():
    image = torch.zeros(65, 65)
    image[32 - 16, 32 + 10] = 1  # the beam runs along +y: this is near the source
    seen = Projector(FanBeam(torch.zeros(1), 101, 80.0), 65).A(image)[0]
    place = (seen * torch.arange(101)).sum() / seen.sum() - 50
    assert place == pytest.approx(10 * 80 / (80 - 16), abs=0.1)


def test_gradient_is_the_transpose():
    pair = Projector(BEAMS["fan"], 16)
    x = torch.rand(2, 1, 16, 16, requires_grad=True)
    y = torch.rand(2, 1, 60, 96)
    (pair.A(x) * y).sum().backward()
    assert torch.allclose(x.grad, pair.A_adjoint(y), atol=1e-5)


def test_slices_do_not_depend_on_their_company():
    pair = Projector(BEAMS["parallel"], 32)
    x = torch.rand(9, 32, 32)
    assert torch.equal(pair.A(x)[4:5], pair.A(x[4:5]))
    y = torch.rand(9, 60, 70)
    assert torch.equal(pair.A_adjoint(y)[4:5], pair.A_adjoint(y[4:5]))


def test_smear_at_points_is_smear():
    beam, y = BEAMS["off-centre"], torch.rand(2, 60, 71)
    whole = smear(beam, 31, y)
    grid = torch.arange(31) - 15.0
    points = smear_at(beam, grid, torch.full_like(grid, -3.0), y)
    assert torch.allclose(points, whole[:, 12], atol=1e-4)


def test_wrong_shapes_are_refused():
    pair = Projector(BEAMS["parallel"], 32)
    with pytest.raises(GeometryError, match=r"expected \(..., 32, 32\), got \(31, 32\)"):
        pair.A(torch.zeros(31, 32))
    with pytest.raises(GeometryError, match="source outside the image"):
        Projector(FanBeam(TURN, 64, 20.0), 64).A_adjoint(torch.zeros(60, 64))
    with pytest.raises(GeometryError, match="finite angles"):
        ParallelBeam(torch.tensor([0.0, float("nan")]), 64)


@pytest.mark.gpu
def test_cuda_agrees():
    beam = BEAMS["off-centre"]
    there = ParallelBeam(beam.theta.cuda(), beam.width, beam.center)
    x = torch.rand(3, 48, 48)
    ours, theirs = Projector(beam, 48).A(x), Projector(there, 48).A(x.cuda()).cpu()
    assert torch.allclose(ours, theirs, atol=1e-3)


def _disc(size, radius, x=0.0, y=0.0):
    grid = torch.arange(size) - (size - 1) / 2
    return (((grid - x) ** 2 + (grid[:, None] - y) ** 2) <= radius**2).float()
