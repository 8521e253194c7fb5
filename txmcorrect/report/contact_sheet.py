"""A page of thumbnails: what a training set looks like at a glance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from txmcorrect.scan import Array

COLUMNS = 8


def write_contact_sheet(path: Path, rows: list[tuple[str, list[tuple[str, Array]]]]) -> None:
    """Draw titled rows of captioned images `(h, w)` as PNG; each image has its own grey range.

    The range spans the 1st to 99th percentile, printed under the image.
    """
    lines = [
        (title if start == 0 else "", images[start : start + COLUMNS])
        for title, images in rows
        for start in range(0, len(images), COLUMNS)
    ]
    figure = Figure(figsize=(COLUMNS * 1.6, 2.0 * len(lines)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(lines), COLUMNS, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for (title, images), line in zip(lines, axes, strict=True):
        if title:
            line[0].text(0, 1.22, title, transform=line[0].transAxes, fontsize=9, weight="bold")
        for (caption, image), axis in zip(images, line, strict=False):
            low, high = np.percentile(image, (1, 99))
            axis.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            axis.set_title(f"{caption}\n{low:.3g} to {high:.3g}", fontsize=6)
    figure.savefig(path, format="png")
