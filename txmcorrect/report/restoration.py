"""Pictures of a restoration: input, result, difference, spread; how a sample came about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from txmcorrect.scan import Array

SHEET = 20  # pictures on a contact sheet
SECONDS = 4.0  # of the animation


def write_comparison(path: Path, measured: Array, mean: Array, std: Array | None) -> None:
    """Draw measured, restored, their difference and the spread `(h, w)` side by side as PNG.

    Both images share a grey range; the difference is left out where their sizes differ.
    """
    panels: list[tuple[str, Array, str]] = [
        ("measured", measured, "gray"),
        ("restored", mean, "gray"),
    ]
    if measured.shape == mean.shape:
        panels.append(("measured - restored", measured - mean, "RdBu"))
    if std is not None:
        panels.append(("spread of samples", std, "viridis"))
    figure = Figure(figsize=(4 * len(panels), 3.4), dpi=110)
    FigureCanvasAgg(figure)
    low, high = np.nanpercentile(mean, (0.5, 99.5))
    for axis, (title, image, colours) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        reach = float(np.nanpercentile(np.abs(image), 99.5))
        limits = {"gray": (low, high), "RdBu": (-reach, reach), "viridis": (0.0, reach)}[colours]
        shown = axis.imshow(image, cmap=colours, vmin=limits[0], vmax=limits[1])
        axis.set_title(title)
        axis.axis("off")
        figure.colorbar(shown, ax=axis, shrink=0.8)
    figure.savefig(path, format="png")


def write_trajectory(stem: Path, trajectory: list[tuple[float, Array]]) -> tuple[Path, Path]:
    """Write the estimates `(sigma, (h, w))` of a run as contact sheet and animated GIF.

    Returns the two paths, `<stem>.trajectory.png` and `.gif`; all images share a grey range.
    """
    sheet, film = stem.with_suffix(".trajectory.png"), stem.with_suffix(".trajectory.gif")
    low, high = np.percentile(trajectory[-1][1], (0.5, 99.5))
    chosen = np.unique(np.linspace(0, len(trajectory) - 1, SHEET).round().astype(int))
    figure = Figure(figsize=(10, 2.2 * -(-len(chosen) // 5)), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.subplots(-(-len(chosen) // 5), 5, squeeze=False).flat
    for axis in axes:
        axis.axis("off")
    for axis, index in zip(axes, chosen, strict=False):
        sigma, image = trajectory[index]
        axis.imshow(image, cmap="gray", vmin=low, vmax=high)
        axis.set_title(f"sigma {sigma:.3g}", fontsize=8)
    figure.savefig(sheet, format="png")
    grey = [
        Image.fromarray(np.uint8(255 * np.clip((image - low) / max(high - low, 1e-9), 0, 1)))
        for _, image in trajectory
    ]
    pause = max(20, round(1000 * SECONDS / len(grey)))
    grey[0].save(film, save_all=True, append_images=grey[1:], duration=pause, loop=0)
    return sheet, film
