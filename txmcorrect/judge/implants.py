"""Known objects multiplied into raw frames, and how much of them a correction leaves."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from txmcorrect.baselines.contract import Image, Problem
from txmcorrect.metrics import slope

SIZES_PX = (4, 8, 16, 32, 64, 128, 256)
TRANSMISSIONS = (0.8, 0.9, 0.95, 0.99, 1.05, 1.2)
SHAPES = ("disk", "fibre", "slab")
COVER = 0.05  # share of a frame that many small objects may cover together


@dataclass(frozen=True)
class Implant:
    """One object: where it is, how large, what it multiplies the light by."""

    frame: int
    size_px: int
    transmission: float
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class _Form:
    """A shape, its size and orientation, and where it lies in the frame it was drawn for."""

    shape: str
    size: int
    centre: tuple[float, float]
    angle: float

    def mask(
        self, shape: tuple[int, int], moved: tuple[float, float] = (0, 0)
    ) -> NDArray[np.bool_]:
        """Pixels of a frame `(h, w)` whose corner lies `moved` (y, x) pixels off the first frame's."""
        y, x = np.ogrid[: shape[0], : shape[1]]
        y, x = y - self.centre[0] + moved[0], x - self.centre[1] + moved[1]
        along = y * np.sin(self.angle) + x * np.cos(self.angle)
        across = y * np.cos(self.angle) - x * np.sin(self.angle)
        if self.shape == "disk":
            return np.asarray(along**2 + across**2 <= (self.size / 2) ** 2)
        inside = np.abs(across) <= self.size / 2
        if self.shape == "fibre":
            return np.asarray(inside & (np.abs(along) <= 4 * self.size))
        return np.asarray(inside)


def draw_implants(
    shape: tuple[int, int, int], seed: int = 0, position_px: NDArray[np.float64] | None = None
) -> list[Implant]:
    """Disks, fibres and slabs of every size that fits half of the frame, in every second frame.

    `shape` is `(n, h, w)`. Frames take turns through sizes, transmissions and shapes, so that a
    scan of 16 frames sees each size at least once. `size_px` is the diameter of a disk, the
    width of a fibre (which is as long as eight widths) or of a slab (which crosses the frame).
    `position_px` `(n, 2)`: corners (y, x) of a mosaic's frames. Objects lie in the world: every frame
    that overlaps with theirs sees them, too.
    """
    n, h, w = shape
    rng = np.random.default_rng(seed)
    sizes = [s for s in SIZES_PX if s <= max(h, w) // 2]
    implants = []
    turn = 0
    for frame in range(0, n, 2):
        size = sizes[(frame // 2) % len(sizes)]
        taken = np.zeros((h, w), np.bool_)
        for _ in range(int(np.clip(COVER * h * w / (size * size), 1, 6))):
            form = _draw_form(rng, (h, w), size, SHAPES[turn % len(SHAPES)])
            mask = form.mask((h, w))
            if position_px is None:  # in a mosaic they may lie over each other, and add up
                mask &= ~taken
                taken |= mask
            if mask.any():
                level = TRANSMISSIONS[int(rng.integers(len(TRANSMISSIONS)))]
                implants.append(Implant(frame, size, level, mask))
                implants += _seen_by_others(form, implants[-1], position_px)
            turn += 1
    return implants


def _seen_by_others(
    form: _Form, implant: Implant, position_px: NDArray[np.float64] | None
) -> list[Implant]:
    """The same object in the frames that overlap with its own."""
    found: list[Implant] = []
    if position_px is None:
        return found
    h, w = implant.mask.shape
    for other, (y, x) in enumerate(position_px - position_px[implant.frame]):
        if other != implant.frame and abs(y) < h and abs(x) < w:
            mask = form.mask((h, w), (float(y), float(x)))
            if mask.any():
                found.append(replace(implant, frame=other, mask=mask))
    return found


def _draw_form(rng: np.random.Generator, shape: tuple[int, int], size: int, form: str) -> _Form:
    cy, cx = rng.uniform(0.1, 0.9, 2) * shape
    return _Form(form, size, (float(cy), float(cx)), float(rng.uniform(0, np.pi)))


def log_change(shape: tuple[int, int, int], implants: list[Implant]) -> Image:
    """What the implants add to the log transmission, `(n, h, w)`."""
    change = np.zeros(shape, np.float32)
    for implant in implants:
        change[implant.frame][implant.mask] += np.float32(np.log(implant.transmission))
    return change


def implant_into(problem: Problem, implants: list[Implant]) -> Problem:
    """Multiply existing counts above dark; their noise is multiplied too and cancels in the ratio."""
    factor = np.exp(log_change(problem.shape, implants))
    frames = problem.dark + (problem.frames - problem.dark) * factor
    return replace(problem, frames=frames.astype(np.float32))


def recovered(
    implants: list[Implant], background_change: Image, lit: NDArray[np.bool_]
) -> dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """True and recovered mean log-change of each implant, by size.

    `background_change` `(n, h, w)` is the log-background found with the implants less the one
    found without. The corrected frame changes by what was multiplied in, less that. Where objects of
    a mosaic lie over each other, all that was multiplied in counts.
    """
    added = log_change(background_change.shape, implants)
    pairs: dict[int, list[tuple[float, float]]] = {}
    for implant in implants:
        mask = implant.mask & lit
        if not mask.any():
            continue
        true = float(added[implant.frame][mask].mean(dtype=np.float64))
        lost = float(background_change[implant.frame][mask].mean())
        pairs.setdefault(implant.size_px, []).append((true, true - lost))
    out = {}
    for size, values in sorted(pairs.items()):
        true_values, found_values = np.array(values).T
        out[size] = (true_values, found_values)
    return out


def slopes(found: dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]]) -> dict[int, float]:
    """Slope of recovered on true log-change, by size; 1 is perfect."""
    return {size: slope(true, got) for size, (true, got) in found.items()}


def elsewhere_rms(
    implants: list[Implant], background_change: Image, lit: NDArray[np.bool_]
) -> float:
    """Rms of the background's change where nothing was implanted, over lit pixels of all frames."""
    outside = np.broadcast_to(lit, background_change.shape).copy()
    for implant in implants:
        outside[implant.frame] &= ~implant.mask
    return float(np.sqrt(np.mean(background_change[outside].astype(np.float64) ** 2)))
