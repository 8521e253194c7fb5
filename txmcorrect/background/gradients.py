"""What frames have in common, told by their gradients.

Where a sample covers a cell in half of the frames the median of the cell is that of the sample; its
edges lie elsewhere in each frame, so that the median of a *step* between two cells is the background's
as long as few frames have an edge there. Source: intrinsic images from sequences, Weiss 2001.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sparse
import scipy.sparse.linalg
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

DISTANCES = (1, 2, 4)  # cells: steps over one alone add up their noise
RIDGE = 1e-6  # parts of what is lit that do not touch have no steps to each other


def from_steps(logs: Image, lit: Mask) -> Image:
    """The image `(h, w)` whose steps are nearest the medians over `logs` `(n, h, w)`; 0 is its mean.

    Steps between two lit cells only; 0 elsewhere.
    """
    number = np.full(lit.shape, -1)
    number[lit] = np.arange(int(lit.sum()))
    normal: Any = RIDGE * sparse.eye_array(int(lit.sum()), format="csr")
    right = np.zeros(int(lit.sum()))
    for distance in DISTANCES:
        for axis in (0, 1):
            ahead: list[slice] = [slice(None), slice(None)]
            back = list(ahead)
            ahead[axis], back[axis] = slice(distance, None), slice(None, -distance)
            one, other = (number[tuple(s)] for s in (ahead, back))
            both = (one >= 0) & (other >= 0)
            steps = logs[:, *ahead][:, both] - logs[:, *back][:, both]
            if steps.size == 0:
                continue
            k = np.arange(int(both.sum()))
            shape = (len(k), len(right))
            design = sparse.csr_array((np.ones(len(k)), (k, one[both])), shape=shape)
            design = design - sparse.csr_array((np.ones(len(k)), (k, other[both])), shape=shape)
            normal = normal + design.T @ design / distance
            right += design.T @ np.median(steps, 0) / distance
    out = np.zeros(lit.shape, np.float32)
    if lit.any():
        out[lit] = scipy.sparse.linalg.spsolve(normal.tocsc(), right)
        out[lit] -= out[lit].mean()
    return out


def fine(image: Image, lit: Mask, cells: float) -> Image:
    """What is left of the lit part of an image `(h, w)` without what is broader than `cells`."""
    share = gaussian_filter(lit.astype(np.float32), cells)
    broad = gaussian_filter(np.where(lit, image, 0), cells) / np.maximum(share, 0.1)
    return np.where(lit, image - broad, 0).astype(np.float32)
