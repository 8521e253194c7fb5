"""Pictures of a restoration: input, result, difference and its spectrum, spread; how it came about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from txmcorrect.report import plots
from txmcorrect.report.page import Page
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


def restoration_report(
    path: Path,
    measured: Array,
    mean: Array,
    std: Array | None,
    noise: tuple[float, float],
    facts: Mapping[str, object],
) -> Path:
    """Write a page about one frame: pictures, spread, and the spectrum of what was taken away.

    `measured` and `mean` `(h, w)` are of one size; `noise` is its variance's floor and gain.

    Raises
    ------
    OutputError : the folder is missing, or the disk is full.
    """
    page = Page(f"restore: {path.stem}").table(facts.items())
    images, labels = [measured, mean], ["measured", "restored"]
    page.heading("Before and after").figure(
        plots.contact_sheet(images, labels, columns=2, unit="transmission"), "Shared grey range."
    )
    residual = np.nan_to_num(measured - mean)
    page.heading("What was taken away").figure(
        plots.contact_sheet([residual], ["measured - restored"], columns=1, unit="transmission"),
        "Noise has no structure: edges or objects seen here were taken from the sample.",
    )
    page.figure(
        spectrum_figure(residual, noise[0] + noise[1] * float(np.clip(mean, 0, None).mean())),
        "Power of the difference by spatial frequency over that of the noise: 1 where all of it and "
        "nothing else was taken. Low frequencies fall short where the sample's own are as strong.",
    )
    if std is not None:
        page.heading("Spread of samples").figure(
            plots.contact_sheet([std], ["spread"], columns=1, unit="transmission"),
            "Standard deviation of the samples, pixel by pixel.",
        )
    return page.write(path)


def radial_power(residual: Array, bins: int = 25) -> tuple[Array, Array]:
    """Mean power per pixel by spatial frequency `(bins,)`, cycles a pixel; white noise: its variance."""
    h, w = residual.shape
    power = np.abs(np.fft.fft2(residual - residual.mean())) ** 2 / (h * w)
    k = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w))
    edges = np.linspace(0, 0.5, bins + 1)
    place = np.digitize(k.ravel(), edges) - 1
    inside = place < bins
    total = np.bincount(place[inside], power.ravel()[inside], bins)
    count = np.bincount(place[inside], minlength=bins)
    return (edges[1:] + edges[:-1]) / 2, total / np.maximum(count, 1)


@plots.styled
def spectrum_figure(residual: Array, variance: float) -> Figure:
    """Power of the residual over the noise's variance, by spatial frequency."""
    figure = plots.new_figure(6, 2.8)
    axes = plots.add_axes(figure, 0.8, 0.55, 5, 1.9)
    k, power = radial_power(residual)
    axes.plot(k, power / max(variance, 1e-12), ".-")
    axes.axhline(1.0, color=plots.ALARM, linewidth=1)
    axes.set(xlabel="cycles a pixel", ylabel="power / noise", ylim=(0, None))
    return figure


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
