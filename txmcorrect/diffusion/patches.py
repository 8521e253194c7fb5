"""A prior for large images made of one for small patches that know where they lie (PaDIS).

The image sits in a canvas with a border of `pad` pixels, where the clean image is known to be 0.
A whole-image prior is the same thing with one patch as large as the canvas.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from txmcorrect.diffusion.denoiser import Denoiser, Step

Assembly = Literal["random", "fixed", "average"]
OFFSET, BORDER = 101, 102  # purposes of the step's random numbers


@dataclass(frozen=True)
class PatchPrior:
    """Assemble a `Denoiser` of `(b, c, h, w)` images from one of patches.

    Attributes
    ----------
    denoise : of patches; its condition is `[cond, y, x]`, the last two from -1 to 1 over the canvas.
    patch : pixels a side; more than the canvas means one patch, the canvas.
    pad : border in pixels, as in training.
    assembly : `random` tiles at an offset drawn for each step, so that no seam stays in one place;
        `fixed` tiles; `average` of tiles that overlap by half, four times the work.
    batch : patches a network call; see `patches_within`.
    position : whether `denoise` takes the position channels.
    """

    denoise: Denoiser
    patch: int
    pad: int = 0
    assembly: Assembly = "random"
    batch: int = 16
    position: bool = True

    def __call__(self, x: Tensor, sigma: Tensor, cond: Tensor | None, step: Step) -> Tensor:
        """x0_hat `(b, c, h, w)`; the condition, where there is one, is 0 in the border."""
        canvas = self._canvas(x, sigma, step)
        shape = (canvas.shape[-2], canvas.shape[-1])
        side = (min(self.patch, shape[0]), min(self.patch, shape[1]))
        corners = self._corners(shape, side, step)
        sides = _position_axes(shape, x) if self.position else None
        border = None if cond is None else _bordered(cond, self.pad)
        window = _window(side, x) if self.assembly == "average" else x.new_ones(side)
        total, weight = torch.zeros_like(canvas), x.new_zeros(shape)
        for y0, x0 in corners:
            weight[y0 : y0 + side[0], x0 : x0 + side[1]] += window
        for places, real in _batches(len(x), corners, self.batch):
            cut = _cut(canvas, places, side)
            given = [] if border is None else [_cut(border, places, side)]
            given += [] if sides is None else [_positions(sides, places, side)]
            level = (
                sigma if sigma.ndim == 0 or sigma.numel() == 1 else sigma[[p[0] for p in places]]
            )
            found = self.denoise(cut, level, torch.cat(given, 1) if given else None, step)
            for (item, y0, x0), image in zip(places[:real], found, strict=False):
                total[item, :, y0 : y0 + side[0], x0 : x0 + side[1]] += image * window
        return _inside(total / weight.clamp(min=1e-6), self.pad)

    def _canvas(self, x: Tensor, sigma: Tensor, step: Step) -> Tensor:
        """Image in its border of noise: the clean border is 0."""
        if not self.pad:
            return x
        canvas = step.normal_like(_bordered(x, self.pad), BORDER) * sigma.to(x).reshape(-1, 1, 1, 1)
        _inside(canvas, self.pad).copy_(x)
        return canvas

    def _corners(self, shape: tuple[int, int], side: tuple[int, int], step: Step) -> list[Corner]:
        generator = step.generator(OFFSET)
        axes = [
            _starts(length, size, self.pad, self.assembly, generator)
            for length, size in zip(shape, side, strict=True)
        ]
        return [(y0, x0) for y0 in axes[0] for x0 in axes[1]]


Corner = tuple[int, int]
Place = tuple[int, int, int]  # item, y0, x0


def _starts(
    length: int, size: int, pad: int, assembly: Assembly, generator: torch.Generator
) -> list[int]:
    """First pixels of the tiles of one axis: they cover the image and stay inside the canvas."""
    first, stride = 0, size
    if assembly == "average":
        stride = max(1, size // 2)
    elif assembly == "random":
        low, high = (max(0, pad - size + 1), pad) if pad else (1 - size, 0)
        first = int(torch.randint(low, high + 1, (1,), generator=generator))
    starts = range(first, max(first + 1, length - pad), stride)
    return sorted({min(max(s, 0), length - size) for s in starts})


def _batches(items: int, corners: list[Corner], batch: int) -> Iterator[tuple[list[Place], int]]:
    """All patches of all items in batches of one size, the last one filled up by repetition."""
    places = [(item, y0, x0) for item in range(items) for y0, x0 in corners]
    batch = min(batch, len(places))
    for start in range(0, len(places), batch):
        some = places[start : start + batch]
        yield (some + places)[:batch], len(some)


def _cut(canvas: Tensor, places: list[Place], side: tuple[int, int]) -> Tensor:
    """Patches `(n, c, p, q)`."""
    return torch.stack(
        [canvas[i % len(canvas), :, y : y + side[0], x : x + side[1]] for i, y, x in places]
    )


def _position_axes(shape: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates of rows and columns of a canvas, -1 to 1."""
    y, x = (torch.linspace(-1, 1, n, dtype=like.dtype, device=like.device) for n in shape)
    return y, x


def _positions(axes: tuple[Tensor, Tensor], places: list[Place], side: tuple[int, int]) -> Tensor:
    """Position channels `(n, 2, p, q)`."""
    grids = [
        torch.stack(
            torch.meshgrid(axes[0][y : y + side[0]], axes[1][x : x + side[1]], indexing="ij")
        )
        for _, y, x in places
    ]
    return torch.stack(grids)


def _window(side: tuple[int, int], like: Tensor) -> Tensor:
    """Weights that fade towards a patch's rim, where it knows least."""
    ramps = [torch.hann_window(n + 2, periodic=False).to(like)[1:-1] for n in side]
    return ramps[0][:, None] * ramps[1][None, :] + 1e-3


def _bordered(x: Tensor, pad: int) -> Tensor:
    return torch.nn.functional.pad(x, (pad, pad, pad, pad)) if pad else x


def _inside(canvas: Tensor, pad: int) -> Tensor:
    h, w = canvas.shape[-2:]
    return canvas[..., pad : h - pad, pad : w - pad]


def draw_patches(
    images: Tensor,
    *,
    generator: torch.Generator,
    sizes: tuple[int, ...] = (16, 32, 64),
    shares: tuple[float, ...] = (0.2, 0.3, 0.5),
    pad: int = 0,
) -> tuple[Tensor, Tensor]:
    """Cut a training batch: one size for all, a corner for each.

    Parameters
    ----------
    images : `(b, c, h, w)`, 0 meaning nothing there.
    sizes, shares : patch sides and how often each is used; a side larger than the canvas is the
        whole canvas, which makes whole-image training the case `sizes=(big,)`.

    Returns
    -------
    Patches `(b, c, p, q)` and their position channels `(b, 2, p, q)`.
    """
    canvas = _bordered(images, pad)
    shape = (canvas.shape[-2], canvas.shape[-1])
    size = sizes[int(torch.multinomial(torch.tensor(shares), 1, generator=generator))]
    side = (min(size, shape[0]), min(size, shape[1]))
    starts = [
        torch.randint(0, n - s + 1, (len(images),), generator=generator).tolist()
        for n, s in zip(shape, side, strict=True)
    ]
    places = [(i, y, x) for i, (y, x) in enumerate(zip(*starts, strict=True))]
    return _cut(canvas, places, side), _positions(_position_axes(shape, images), places, side)


def patches_within(memory: int, patch: int, floats_per_pixel: int = 400) -> int:
    """How many patches of `patch` x `patch` fit a memory budget in bytes.

    `floats_per_pixel` is what the network holds at its peak; the default was measured on the
    U-Net of 32 channels without space-to-depth and rounded up.
    """
    return max(1, int(memory // (4 * floats_per_pixel * patch * patch)))
