"""Projector and back-projector that are exact transposes of each other, for many slices at once.

Joseph's method weighs a pixel at distance d from a ray by max(0, m - d) / m^2, with m the larger
component of the ray's normal. Both directions gather with that one formula: a ray over the pixels
it passes, a pixel over the rays in its shadow. Nothing is scattered, so sums are deterministic on
every device. Slices lie innermost, so that one table of indices serves them all.

Source: Joseph 1982, "An improved algorithm for reprojecting rays through pixel images".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

from txmcorrect.errors import GeometryError
from txmcorrect.recon.geometry import Beam, FanBeam

ENTRIES = 1 << 18  # weights worked out at a time: few enough to stay in the cache


@dataclass(frozen=True)
class Projector:
    """Line integrals through square images, and their transpose.

    `A` maps `(..., size, size)` to `(..., n_theta, width)`, `A_adjoint` maps back; each is the
    other's derivative, so both can be differentiated. Integrals are in units of pixels.
    """

    beam: Beam
    size: int

    def A(self, images: Tensor) -> Tensor:
        """Project `(..., size, size)` to `(..., n_theta, width)` float32."""
        _expect(images, (self.size, self.size))
        return _apply(images, self._project, self._back_project)

    def A_adjoint(self, sinograms: Tensor) -> Tensor:
        """Back-project `(..., n_theta, width)` to `(..., size, size)` float32."""
        _expect(sinograms, (len(self.beam.theta), self.beam.width))
        return _apply(sinograms, self._back_project, self._project)

    def _project(self, images: Tensor) -> Tensor:
        rays = self.beam.rays()
        nx, ny, s = rays.nx.flatten(), rays.ny.flatten(), rays.s.flatten()
        out = images.new_empty((len(s), images.shape[-1]))
        steep = nx.abs() >= ny.abs()
        # A steep ray crosses every row once; the others cross every column.
        for lines, chosen, major, minor in (
            (images, steep, nx, ny),
            (images.transpose(0, 1), ~steep, ny, nx),
        ):
            table = _padded(lines, 1).flatten(0, 1)
            for part in torch.split(chosen.nonzero()[:, 0], max(1, ENTRIES // self.size)):
                out[part] = self._cross(table, major[part], minor[part], s[part])
        return out.reshape(len(self.beam.theta), self.beam.width, -1)

    def _cross(self, table: Tensor, major: Tensor, minor: Tensor, s: Tensor) -> Tensor:
        """Sum rays over the lines they cross, interpolating between two pixels of each."""
        middle = (self.size - 1) / 2
        first, step = (s + minor * middle) / major + middle, -minor / major
        line = torch.arange(self.size, device=s.device, dtype=torch.int32)
        across = torch.addcmul(first.float()[:, None], step.float()[:, None], line.float())
        index, upper = _split(across, self.size, 1)
        index += line * (self.size + 3)
        return _weighted_sum(table, index, [1 - upper, upper]) / major.abs().float()[:, None]

    def _back_project(self, sinograms: Tensor) -> Tensor:
        reach = self.beam.reach(self.size)
        return _gather_pixels(self.beam, self.size, sinograms, reach, self._touch)

    def _touch(self, views: slice, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Rays each pixel touches: where the first lies in the padded view, and all weights."""
        reach, weights = self.beam.reach(self.size), []
        index, fraction = _split(self.beam.shadow(views, x, y), self.beam.width, reach)
        for k in range(2 * reach):
            miss, ray = fraction - (k + 1 - reach), (index + (k + 1 - 2 * reach)).float()
            m = self.beam.slope(views, ray)
            distance = self.beam.distance(views, x, y, ray, miss)
            weights.append((m - distance).clamp_(min=0).div_(m.square()))
        return index, weights


Touch = Callable[[slice, Tensor, Tensor], tuple[Tensor, list[Tensor]]]


def smear(beam: Beam, size: int, sinograms: Tensor) -> Tensor:
    """Back-project by linear interpolation on the detector, as filtered back-projection wants it.

    Parameters
    ----------
    sinograms : `(..., n_theta, width)`.

    Returns
    -------
    `(..., size, size)` float32: sum over views, weighted by a fan beam's squared magnification.
    """
    _expect(sinograms, (len(beam.theta), beam.width))

    def forward(flat: Tensor) -> Tensor:
        return _gather_pixels(beam, size, flat, 1, partial(_interpolate, beam))

    return _slices_innermost(sinograms, forward)


def smear_at(beam: Beam, x: Tensor, y: Tensor, sinograms: Tensor) -> Tensor:
    """Do what `smear` does, at some points only.

    Parameters
    ----------
    x, y : `(p,)` pixels from the axis. sinograms : `(z, n_theta, width)`.

    Returns
    -------
    `(z, p)` float32.
    """
    _expect(sinograms, (len(beam.theta), beam.width))
    table = _padded(sinograms.permute(1, 2, 0).float().contiguous(), 1).flatten(0, 1)
    n = max(1, ENTRIES // len(beam.theta))
    parts = [
        _gather(beam, table, 1, partial(_interpolate, beam), x_part, y_part)
        for x_part, y_part in zip(
            torch.split(x[:, None], n), torch.split(y[:, None], n), strict=True
        )
    ]
    return torch.cat(parts).T


def _interpolate(beam: Beam, views: slice, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Detector pixels around each shadow, with the weights of linear interpolation."""
    index, upper = _split(beam.shadow(views, x, y), beam.width, 1)
    weights = [1 - upper, upper]
    if isinstance(beam, FanBeam):
        scale = beam.magnification(views, x, y).square()
        weights = [weight * scale for weight in weights]
    return index, weights


def _gather_pixels(beam: Beam, size: int, sinograms: Tensor, reach: int, touch: Touch) -> Tensor:
    """Sum what `touch` names for every pixel: `(n_theta, width, z)` to `(size, size, z)`."""
    table = _padded(sinograms, reach).flatten(0, 1)
    grid = torch.arange(size, device=table.device) - (size - 1) / 2
    out = sinograms.new_empty((size, size, sinograms.shape[-1]))
    for rows in _slices(size, max(1, ENTRIES // (size * len(beam.theta)))):
        total = _gather(beam, table, reach, touch, grid[:, None], grid[rows, None, None])
        out[rows] = total.reshape(-1, size, out.shape[-1])
    return out


def _gather(beam: Beam, table: Tensor, reach: int, touch: Touch, x: Tensor, y: Tensor) -> Tensor:
    """Sum over views what `touch` names for points whose `x`, `y` broadcast: `(points, z)`."""
    n_theta, stride = len(beam.theta), beam.width + 4 * reach - 1
    first = torch.arange(n_theta, device=table.device, dtype=torch.int32) * stride
    total = table.new_zeros(())
    for views in _slices(n_theta, max(1, ENTRIES // len(x))):
        index, weights = touch(views, x, y)
        index = (index + first[views]).flatten(0, -2)
        shape = (*(x + y).shape[:-1], index.shape[-1])
        spread = [weight.expand(shape).flatten(0, -2) for weight in weights]
        total = total + _weighted_sum(table, index, spread)
    return total


def _padded(lines: Tensor, reach: int) -> Tensor:
    """Add the zeros that `_split` points at beside the pixels of `(line, pixel, z)`."""
    return pad(lines, (0, 0, 2 * reach - 1, 2 * reach))


def _split(position: Tensor, width: int, reach: int) -> tuple[Tensor, Tensor]:
    """Split a position between pixels: the first of 2 `reach` neighbours, padded; the fraction."""
    position = (position + reach).clamp_(0, width - 1 + 2 * reach)
    index = position.int()
    return index, position.sub_(index)


def _weighted_sum(table: Tensor, index: Tensor, weights: list[Tensor]) -> Tensor:
    """Sum of weights[k] * table[index + k] over k and the last axis: `(p, n)` to `(p, z)`."""
    total = table.new_zeros(())
    for k, weight in enumerate(weights):
        total = total + embedding_bag(index, table[k:], mode="sum", per_sample_weights=weight)
    return total


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _slices_innermost(data: Tensor, forward: Callable[[Tensor], Tensor]) -> Tensor:
    """Run `forward` on `(a, b, z)` for data of `(..., a, b)`, as float32."""
    flat = data.reshape(-1, *data.shape[-2:]).permute(1, 2, 0).float().contiguous()
    out = forward(flat).permute(2, 0, 1)
    return out.reshape(*data.shape[:-2], *out.shape[1:])


class _Linear(torch.autograd.Function):
    """A linear map whose derivative is its given transpose."""

    @staticmethod
    def forward(ctx: Any, data: Tensor, forward: Any, transpose: Any) -> Tensor:
        ctx.pair = transpose, forward
        return _slices_innermost(data, forward)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _apply(gradients[0], *ctx.pair), None, None


def _apply(data: Tensor, forward: Any, transpose: Any) -> Tensor:
    out: Tensor = _Linear.apply(data, forward, transpose)  # type: ignore[no-untyped-call]
    return out


def _expect(data: Tensor, shape: tuple[int, int]) -> None:
    if data.ndim < 2 or tuple(data.shape[-2:]) != shape:
        raise GeometryError(f"expected (..., {shape[0]}, {shape[1]}), got {tuple(data.shape)}")
