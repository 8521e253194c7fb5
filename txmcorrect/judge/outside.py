"""Score a corrected scan against exact truth with no gain removed: shape, levels, absolute, octaves, slope.

For backgrounds that nobody here simulated: the truth is what was multiplied in and the open beam it
was multiplied into. The error of a cell is the log of the light that the result accounts for over
the light that came through the sample; pixels count as their photons do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from txmcorrect.baselines.contract import Array

CELL_PX = 4  # photon noise of single pixels says nothing about a background
OCTAVES = 6  # 4 px to 128 px, the coarsest holds all that is broader
COARSE_PX = 32  # from here up a sample is easily taken for background
FEW_COUNTS = 400.0  # a cell with so many true counts has half of the full weight
LEAST_COUNTS = 50.0  # a cell with fewer counts for nothing
LEAST_FRACTION = 0.01  # of the truth: a result below it has lost the frame; keeps the log finite
FLAT_SAMPLE = 1e-6  # mean square log contrast below which a slope means nothing

Figures = dict[str, float | None]


@dataclass(frozen=True)
class Known:
    """What a result is compared with.

    Attributes
    ----------
    transmission : `(n, h, w)`. background : `(n, h, w)` counts of the open beam, dark excluded.
    lit : `(h, w)` pixels that count.
    """

    transmission: Array
    background: Array
    lit: NDArray[np.bool_]


@dataclass(frozen=True)
class _Cells:
    """Log error and log sample of cells `(n, a, b)`, and what each counts."""

    error: Array
    sample: Array
    weight: Array


def score(result: Array, known: Known) -> Figures:
    """Figures of a corrected scan `(n, h, w)`, in per cent but for the slopes.

    Returns
    -------
    `shape` : rms error within frames, free of each frame's level; `levels` : standard deviation of the
    frames' levels; `absolute` : mean of the frames' levels; `4px` ... `128px` : shape by octave;
    `slope`, `coarse` : of what was found on what is true within frames, over all octaves and from
    32 px up; 1 keeps the contrast. Slopes are None where the sample has none.
    """
    cells = _compare(result, known)
    level, errors = _octaves(cells.error, cells.weight)
    _, samples = _octaves(cells.sample, cells.weight)
    total = cells.weight.sum()

    def rms(part: Array) -> float:
        return 100 * float(np.sqrt((cells.weight * part**2).sum() / total))

    figures: Figures = {
        "shape": rms(np.sum(list(errors.values()), axis=0)),
        "levels": 100 * float(level.std()),
        "absolute": 100 * float(level.mean()),
    }
    figures |= {f"{size}px": rms(part) for size, part in errors.items()}
    broad = [size for size in errors if size >= COARSE_PX]
    figures["slope"] = _slope(errors, samples, list(errors), cells.weight)
    figures["coarse"] = _slope(errors, samples, broad, cells.weight)
    return figures


def _compare(result: Array, known: Known) -> _Cells:
    """Cells of the error and of the sample; what is dark, broken or hardly exposed weighs nothing."""
    light = np.where(known.lit, known.background, 0.0).astype(np.float64)
    found = np.where(np.isfinite(result), result, 0.0)
    opened, true, seen = (cell_sums(v) for v in (light, light * known.transmission, light * found))
    area = cell_sums(np.ones(known.lit.shape))
    counts = (cell_sums(known.lit.astype(np.float64)) >= area / 2) & (true > LEAST_COUNTS)
    safe = np.where(counts, true, 1.0)
    error = np.log(np.maximum(seen, LEAST_FRACTION * safe) / safe)
    sample = np.log(safe / np.where(counts, opened, 1.0))
    weight = np.where(counts, true / (true + FEW_COUNTS), 0.0)
    return _Cells(np.where(counts, error, 0.0), np.where(counts, sample, 0.0), weight)


def cell_sums(image: Array, size: int = CELL_PX) -> Array:
    """Sums over squares `(..., h, w)` -> `(..., ceil(h / size), ceil(w / size))`; the last may be cut."""
    rows, columns = (np.arange(0, side, size) for side in image.shape[-2:])
    return np.add.reduceat(np.add.reduceat(image, rows, axis=-2), columns, axis=-1)


def _octaves(cells: Array, weight: Array) -> tuple[Array, dict[int, Array]]:
    """Each frame's level `(n,)` and one part an octave, which add up to the rest.

    Means are weighted and nested, so that the parts are orthogonal under the weight.
    """
    parts: dict[int, Array] = {}
    finer = cells
    for octave in range(1, OCTAVES):
        coarser = _block_means(cells, weight, 2**octave)
        parts[CELL_PX * 2 ** (octave - 1)], finer = finer - coarser, coarser
    level = (cells * weight).sum((1, 2)) / np.maximum(weight.sum((1, 2)), 1e-12)
    parts[CELL_PX * 2 ** (OCTAVES - 1)] = finer - level[:, None, None]
    return level, parts


def _block_means(cells: Array, weight: Array, size: int) -> Array:
    """Weighted means of blocks of `size` cells, spread over their cells again."""
    total = cell_sums(weight, size)
    means = cell_sums(cells * weight, size) / np.where(total > 0, total, 1.0)
    wide = means.repeat(size, -2).repeat(size, -1)
    return wide[..., : cells.shape[-2], : cells.shape[-1]]


def _slope(
    errors: dict[int, Array], samples: dict[int, Array], sizes: list[int], weight: Array
) -> float | None:
    """Slope of what was found on the true sample over some octaves."""
    sample = np.sum([samples[size] for size in sizes], axis=0)
    error = np.sum([errors[size] for size in sizes], axis=0)
    power = float((weight * sample**2).sum())
    if power <= FLAT_SAMPLE * float(weight.sum()):
        return None
    return 1 + float((weight * sample * error).sum()) / power
