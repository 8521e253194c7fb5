"""The page of a reconstruction: slices, sinograms, how the axis was found, how the misfit fell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from txmcorrect.report import plots
from txmcorrect.report.page import Page
from txmcorrect.scan import Array


@dataclass(frozen=True)
class TomographySummary:
    """What the page shows.

    Attributes
    ----------
    rows : numbers of the slices shown. sinograms : `(n_theta, w)` each, in order of angle.
    slices : `(y, x)` each, none where there is no volume. units : of the slices.
    candidates, contrast : `(k,)` the curve the axis was read from; axis : pixels.
    misfit : root mean square per iteration, of iterative methods.
    """

    title: str
    verdict: str
    scale: str
    facts: Mapping[str, object]
    options: Mapping[str, object]
    rows: Sequence[int]
    sinograms: Sequence[Array]
    slices: Sequence[Array]
    units: str
    candidates: Array
    contrast: Array
    axis: float | None
    misfit: Sequence[float]


def tomography_report(path: Path, summary: TomographySummary) -> Path:
    """Write the page.

    Raises
    ------
    OutputError : the folder is missing, or the disk is full.
    """
    page = Page(summary.title, summary.verdict, f"scale: {summary.scale}")
    page.table(summary.facts.items())
    labels = [f"slice {row}" for row in summary.rows]
    if summary.slices:
        page.heading("Slices")
        page.figure(
            plots.contact_sheet(summary.slices, labels, columns=3, unit=summary.units),
            f"Reconstructed slices, {summary.units}.",
        )
    page.heading("Sinograms").figure(
        plots.contact_sheet(summary.sinograms, labels, columns=3, unit="-log T"),
        "Line integrals, smallest angle on top. Upright lines would become rings.",
    )
    if len(summary.candidates) and summary.axis is not None:
        page.heading("Rotation axis").figure(
            axis_figure(summary), "Contrast of the slices about each axis; the highest is right."
        )
    if summary.misfit:
        page.heading("Convergence").figure(misfit_figure(summary.misfit), "Misfit per iteration.")
    page.heading("Options").table(sorted(summary.options.items()))
    return page.write(path)


@plots.styled
def axis_figure(summary: TomographySummary) -> Figure:
    """Contrast against the candidate axis."""
    figure = plots.new_figure(6, 2.8)
    axes = plots.add_axes(figure, 0.8, 0.55, 5, 1.9)
    axes.plot(summary.candidates, summary.contrast / np.max(summary.contrast), ".-")
    axes.axvline(float(summary.axis or 0), color=plots.ALARM, linewidth=1)
    axes.set(xlabel="axis (pixels)", ylabel="contrast", title=f"axis at {summary.axis:.2f} px")
    return figure


@plots.styled
def misfit_figure(misfit: Sequence[float]) -> Figure:
    """Misfit against the iteration."""
    figure = plots.new_figure(6, 2.8)
    axes = plots.add_axes(figure, 0.8, 0.55, 5, 1.9)
    axes.semilogy(np.arange(1, len(misfit) + 1), misfit)
    axes.set(xlabel="iteration", ylabel="rms misfit")
    return figure
