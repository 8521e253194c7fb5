"""The page of a mosaic: raw next to corrected, which pairs placed the tiles, how well seams close."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from txmcorrect.report import plots
from txmcorrect.report.page import Page, write_png
from txmcorrect.scan import Array


@dataclass(frozen=True)
class PairLine:
    """A pair of tiles in the graph: `(2,)` residual in px, how far it was believed (0: stage only)."""

    first: int
    second: int
    residual: Array
    weight: float
    correlation: float


@dataclass(frozen=True)
class MosaicSummary:
    """What the page shows.

    Attributes
    ----------
    raw, corrected : small images of the whole mosaic. names : of the tiles.
    positions, sigma_px : `(n, 2)` (y, x). shape : of a frame. left_out : tile -> why.
    preservation : rows (size in px, slope).
    """

    title: str
    verdict: str
    scale: str
    raw: Array
    corrected: Array
    names: Sequence[str]
    positions: Array
    sigma_px: Array
    shape: tuple[int, int]
    pairs: Sequence[PairLine]
    left_out: Mapping[int, str]
    facts: Mapping[str, object]
    preservation: Sequence[tuple[int, float]]
    options: Mapping[str, object]


def mosaic_report(path: Path, preview: Path, summary: MosaicSummary) -> tuple[Path, Path]:
    """Write the page and the preview.

    Raises
    ------
    OutputError : the folder is missing, or the disk is full.
    """
    page = Page(summary.title, summary.verdict, f"scale: {summary.scale}")
    page.table(summary.facts.items())
    page.heading("Mosaic")
    page.figure(image_figure(summary.raw, "raw, over its median"), "Raw tiles at the same places.")
    page.figure(image_figure(summary.corrected, "corrected"), "Corrected, blended; blue: no data.")
    page.heading("Positions").figure(
        graph_figure(summary),
        "Tiles and pairs. Green: the pair agrees; amber: given up by the solution; grey, dashed: "
        "nothing stands out in the overlap, the tile hangs on the stage and on its other pairs.",
    )
    page.table(_pair_rows(summary), ("pair", "correlation", "believed", "residual y, x (px)"))
    page.table(_tile_rows(summary), ("tile", "y, x (px)", "one sigma (px)", "remark"))
    page.heading("Preservation").text(
        "Disks multiplied into the tiles at the same places of the sample, then recovered through the "
        "refinement of the background from overlaps; 1 is perfect."
    )
    page.table(summary.preservation, ("disk (px)", "slope"))
    page.heading("Options").table(sorted(summary.options.items()))
    write_png(image_figure(summary.corrected, "", width=9.0), preview)
    return page.write(path), preview


def _pair_rows(summary: MosaicSummary) -> list[tuple[object, ...]]:
    return [
        (
            f"{summary.names[p.first]} - {summary.names[p.second]}",
            f"{p.correlation:.2f}" if p.weight > 0 else "-",
            f"{p.weight:.2f}" if p.weight > 0 else "stage only",
            f"{p.residual[0]:+.2f}, {p.residual[1]:+.2f}" if p.weight > 0 else "-",
        )
        for p in summary.pairs
    ]


def _tile_rows(summary: MosaicSummary) -> list[tuple[object, ...]]:
    return [
        (
            name,
            f"{summary.positions[i][0]:.2f}, {summary.positions[i][1]:.2f}",
            f"{summary.sigma_px[i][0]:.2f}, {summary.sigma_px[i][1]:.2f}",
            summary.left_out.get(i, ""),
        )
        for i, name in enumerate(summary.names)
    ]


@plots.styled
def image_figure(image: Array, title: str, width: float = 8.0) -> Figure:
    """One image with its grey scale."""
    height = width * image.shape[0] / image.shape[1]
    figure = plots.new_figure(width + plots.BAR, height + plots.TITLE)
    axes = plots.add_axes(figure, 0, 0, width, height)
    low, high = plots.percentile_limits([image])
    greys = mpl.colormaps["gray"].with_extremes(bad=plots.UNLIT)
    shown = axes.imshow(image, cmap=greys, vmin=low, vmax=high, aspect="auto")
    axes.set(title=title, xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    bar = plots.add_axes(figure, width + 0.06, 0.1, 0.12, max(height - 0.2, 0.3))
    figure.colorbar(shown, cax=bar, extend="both").set_label("transmission")
    return figure


@plots.styled
def graph_figure(summary: MosaicSummary) -> Figure:
    """Tiles as frames, pairs as lines."""
    h, w = summary.shape
    size = summary.positions.max(0) + np.array([h, w])
    width = 6.0
    figure = plots.new_figure(width, width * size[0] / size[1] + 0.1)
    axes = plots.add_axes(figure, 0.05, 0.05, width - 0.1, width * size[0] / size[1])
    middle = summary.positions + np.array([h, w]) / 2
    for i, (y, x) in enumerate(summary.positions):
        colour = plots.ALARM if i in summary.left_out else plots.INK
        axes.plot([x, x + w, x + w, x, x], [y, y, y + h, y + h, y], color=colour, linewidth=0.6)
        if len(summary.positions) <= 100:
            axes.text(x + w / 2, y + h / 2 - h / 12, str(i + 1), ha="center", fontsize=8)
    for pair in summary.pairs:
        (ya, xa), (yb, xb) = middle[pair.first], middle[pair.second]
        if pair.weight <= 0:
            axes.plot([xa, xb], [ya, yb], color=plots.INK, linewidth=1, linestyle="--")
        else:
            colour = plots.COLOURS[2] if pair.weight > 0.25 else plots.COLOURS[1]
            axes.plot([xa, xb], [ya, yb], color=colour, linewidth=2.5)
    axes.set(xlim=(0, size[1]), ylim=(size[0], 0), xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_visible(False)
    return figure
