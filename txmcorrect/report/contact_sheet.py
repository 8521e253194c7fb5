"""A page of thumbnails: what a training set looks like at a glance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from txmcorrect.scan import Array

CELL, MARGIN = 128, 48  # pixels of a thumbnail's square, and of the text above it
DPI = 100


def write_contact_sheet(path: Path, rows: list[tuple[str, list[tuple[str, Array]]]]) -> None:
    """Draw titled rows of captioned images `(h, w)` as PNG; each image has its own grey range.

    The range spans the 1st to 99th percentile, printed over the image.
    """
    columns = max(len(images) for _, images in rows)
    page = np.ones((len(rows) * (CELL + MARGIN + 8), columns * (CELL + 8)))
    size = (page.shape[1] / DPI, page.shape[0] / DPI)
    figure = Figure(figsize=size, dpi=DPI)
    FigureCanvasAgg(figure)
    for line, (title, images) in enumerate(rows):
        top = line * (CELL + MARGIN + 8)
        figure.text(0.005, 1 - (top + 14) / page.shape[0], title, fontsize=9, weight="bold")
        for column, (caption, image) in enumerate(images):
            low, high = np.percentile(image, (1, 99))
            left, y = column * (CELL + 8) + 4, top + MARGIN
            thumbnail = _shrink((image - low) / max(float(high - low), 1e-12))
            page[y : y + thumbnail.shape[0], left : left + thumbnail.shape[1]] = thumbnail
            note = f"{caption}\n{low:.3g} to {high:.3g}"
            figure.text(left / page.shape[1], 1 - (y - 4) / page.shape[0], note, fontsize=6)
    figure.figimage(np.clip(page, 0, 1), cmap="gray", vmin=0, vmax=1, zorder=-1)
    figure.savefig(path, format="png")


def _shrink(image: Array) -> NDArray[np.float64]:
    """Bring the long side to a thumbnail's by picking or repeating pixels."""
    scale = CELL / max(image.shape)
    rows, columns = (
        np.minimum(np.arange(max(1, round(n * scale))) / scale, n - 1).astype(int)
        for n in image.shape
    )
    return np.asarray(image[np.ix_(rows, columns)], np.float64)
