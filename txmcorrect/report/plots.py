"""Figures: greys with shared, stated limits; pixels without light in a colour of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from txmcorrect.scan import Array

Limits = tuple[float, float]

INK = "#808080"  # readable on white and on black
UNLIT = "#31598a"
GAP, TITLE, BAR = 0.06, 0.25, 0.85  # inches: between images, above one, beside one
SIDE = 400  # pixels that an image has at most in a figure
COLOURS = ("#3f8fd2", "#d98324", "#3aa165", "#b565c9", "#c9b037", "#7f8c9a")
ALARM = "#d8493e"
MARKED = 100  # key frames that get a marker each; more would be a band
STYLE: Any = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLOURS),
}
styled = mpl.rc_context(STYLE)  # decorates whatever makes parts of a figure, or draws it


@dataclass(frozen=True)
class Timeline:
    """What is known of each frame: `flag` `(n,)` bits named by `flag_names`; `time_s` `(n,)` seconds.

    `jump_index` holds the first frames after a jump of the beam.
    """

    flag: Array
    flag_names: Sequence[str] = ()
    jump_index: Sequence[int] = ()
    time_s: Array | None = None

    def axis(self) -> tuple[Array, str]:
        """Return the frames' places on the horizontal axis, and its name."""
        if self.time_s is None:
            return np.arange(len(self.flag)), "frame"
        return (np.asarray(self.time_s) - self.time_s[0]) / 60, "minutes"


@styled
def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure (inches), apart from pyplot and its state."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


@styled
def add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Place axes at a point, all in inches: many times faster than to let matplotlib search."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, bottom / h, width / w, height / h))


def percentile_limits(
    images: Iterable[Array], lit: NDArray[np.bool_] | None = None, share: float = 0.5
) -> Limits:
    """Return grey limits that leave out `share` percent of the lit, finite pixels at either end."""
    low, high = [], []
    for image in images:
        values = image[np.isfinite(image) if lit is None else np.isfinite(image) & lit]
        if values.size:
            a, b = np.percentile(values, (share, 100 - share))
            low.append(float(a))
            high.append(float(b))
    if not low:
        return 0.0, 1.0
    return min(low), max(high) if max(high) > min(low) else min(low) + 1


def show_image(axes: Axes, image: Array, limits: Limits, title: str = "") -> mpl.image.AxesImage:
    """Show an image in grey, binned to a size a page can bear; NaN is blue."""
    greys = mpl.colormaps["gray"].with_extremes(bad=UNLIT)
    shown = axes.imshow(_reduce(image), cmap=greys, vmin=limits[0], vmax=limits[1], aspect="auto")
    axes.set(title=title, xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return shown


@styled
def contact_sheet(
    images: Sequence[Array],
    labels: Sequence[str] = (),
    columns: int = 4,
    lit: NDArray[np.bool_] | None = None,
    limits: Limits | None = None,
    unit: str = "",
) -> Figure:
    """Show images `(h, w)` side by side under one grey scale.

    Parameters
    ----------
    labels : one per image, or none. lit : `(h, w)`; other pixels are blue, as is NaN.
    limits : of the grey scale; by default percentiles over all images. unit : of the bar.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    limits = limits or percentile_limits(images, lit)
    width, height = _cell(images[0], min(2.4, 12 / columns))
    total = rows * (height + TITLE)
    figure = new_figure(columns * (width + GAP) + BAR, total)
    for i, image in enumerate(images):
        x, y = i % columns * (width + GAP), total - (i // columns + 1) * (height + TITLE)
        ax = add_axes(figure, x, y, width, height)
        shown = show_image(ax, _hide(image, lit), limits, labels[i] if labels else "")
    low = max(0.1, total / 2 - 1.5)
    _add_bar(shown, columns * (width + GAP), low, min(3, total - low - TITLE), unit)
    return figure


@styled
def triptychs(
    labels: Sequence[str],
    raw: Sequence[Array],
    background: Sequence[Array],
    corrected: Sequence[Array],
    lit: NDArray[np.bool_] | None = None,
) -> Figure:
    """Show raw, background and corrected of some frames, one frame a row.

    Raw and background share a grey scale within a row (the amplitude may vary); all corrected
    frames share theirs.
    """
    width, height = _cell(raw[0], 2.5)
    total = len(labels) * (height + TITLE)
    right = 2 * (width + GAP) + BAR
    figure = new_figure(right + width + GAP + BAR, total)
    span = percentile_limits(corrected, lit)
    for i, label in enumerate(labels):
        y = total - (i + 1) * (height + TITLE)
        left, middle, last = (
            add_axes(figure, x, y, width, height) for x in (0, width + GAP, right)
        )
        counts = percentile_limits((raw[i], background[i]), lit)
        show_image(left, _hide(raw[i], lit), counts, f"{label}: raw")
        shown = show_image(middle, _hide(background[i], lit), counts, "background")
        _add_bar(shown, 2 * (width + GAP), y, height, "counts")
        shown = show_image(last, _hide(corrected[i], lit), span, "corrected")
        _add_bar(shown, right + width + GAP, y, height, "transmission")
    return figure


@styled
def drift_curve(key_index: Array, drift: Array, timeline: Timeline) -> Figure:
    """Plot how far the background has moved, with key frames, jumps and flags.

    Parameters
    ----------
    key_index : `(k,)` frame numbers.
    drift : `(k,)` rms change of the log-background there (`drift_from_first`).
    """
    x, unit = timeline.axis()
    figure, ax = _wide_axes(2.8)
    jumps = np.searchsorted(key_index, timeline.jump_index)  # the line breaks where the beam did
    places, values = np.insert(x[key_index] * 1.0, jumps, np.nan), np.insert(drift, jumps, np.nan)
    style = "o-" if len(key_index) <= MARKED else "-"
    ax.plot(places, 100 * values, style, markersize=4, linewidth=1, label="key frames")
    for i, jump in enumerate(timeline.jump_index):
        ax.axvline(x[jump], color=ALARM, linewidth=1, label="jump" if i == 0 else None)
    ax.set(xlabel=unit, ylabel="change of background (%)", ylim=(0, None))
    _mark_flags(ax, timeline)
    figure.legend(loc="upper center", ncols=5)
    return figure


@styled
def amplitude_curve(amplitude: Array, timeline: Timeline) -> Figure:
    """Plot the amplitude `(n,)` of each frame, with flags."""
    x, unit = timeline.axis()
    figure, ax = _wide_axes(2.4)
    ax.plot(x, amplitude, ".-", linewidth=0.7, markersize=3, label="amplitude")
    ax.set(xlabel=unit, ylabel="amplitude")
    ax.ticklabel_format(axis="y", useOffset=False)
    _mark_flags(ax, timeline)
    figure.legend(loc="upper center", ncols=5)
    return figure


@styled
def transmission_histogram(
    corrected: Sequence[Array], lit: NDArray[np.bool_] | None = None
) -> Figure:
    """Plot the histogram of corrected frames over lit pixels; 1 is vacuum."""
    low, high = percentile_limits(corrected, lit, share=0.1)
    edges = np.linspace(min(low, 0.95), max(high, 1.05), 201)
    counts = np.zeros(200)
    for image in corrected:
        counts += np.histogram(image if lit is None else image[lit], edges)[0]
    figure, ax = _wide_axes(2.4)
    ax.stairs(counts, edges, fill=True, alpha=0.8)
    ax.axvline(1, color=INK, linewidth=1, linestyle="--")
    ax.set(xlabel="transmission", ylabel="pixels", ylim=(0, None))
    return figure


@styled
def spread_map(log_std: Array, lit: NDArray[np.bool_] | None = None, title: str = "") -> Figure:
    """Show the relative spread of a background, in percent."""
    width, height = _cell(log_std, 3.6)
    figure = new_figure(width + GAP + BAR, height + TITLE)
    percent = 100 * _hide(log_std, lit)
    top = percentile_limits((percent,))[1]
    limits = (0.0, top if top > 0 else 1.0)
    shown = show_image(add_axes(figure, 0, 0, width, height), percent, limits, title)
    _add_bar(shown, width + GAP, 0, height, "spread (%)")
    return figure


def drift_from_first(log_background: Iterable[Array], lit: NDArray[np.bool_]) -> Array:
    """Return the rms over lit pixels of each log-background's change from the first, mean removed.

    Parameters
    ----------
    log_background : k images `(h, w)`, taken one at a time.

    Returns
    -------
    `(k,)`; 0.05 is a change of shape by 5 %.
    """
    images = iter(log_background)
    first = np.asarray(next(images))[lit]
    return np.array([0.0, *(float(np.std(np.asarray(image)[lit] - first)) for image in images)])


def _cell(image: Array, width: float) -> tuple[float, float]:
    """Return the size in inches of an image; very flat or tall ones are stretched to be seen."""
    h, w = image.shape
    return width, min(max(width * h / w, 0.5), 1.5 * width)


def _add_bar(
    shown: mpl.image.AxesImage, left: float, bottom: float, height: float, unit: str
) -> None:
    """Draw the grey scale beside an image, its place in inches."""
    figure = shown.axes.figure
    assert isinstance(figure, Figure)
    cax = add_axes(figure, left, bottom + 0.05, 0.12, max(height - 0.1, 0.3))
    figure.colorbar(shown, cax=cax, extend="both").set_label(unit)


def _wide_axes(height: float) -> tuple[Figure, Axes]:
    """Make a figure for a curve, with room for a legend above."""
    figure = new_figure(9.6, height)
    return figure, add_axes(figure, 0.75, 0.45, 8.7, height - 0.75)


def _hide(image: Array, lit: NDArray[np.bool_] | None) -> Array:
    """Make pixels without light NaN."""
    return image if lit is None else np.where(lit, image, np.nan)


def _reduce(image: Array) -> Array:
    """Bin an image to at most SIDE pixels a side; a bin with any value has one."""
    step = -(-max(image.shape) // SIDE)
    h, w = (max(s // step, 1) for s in image.shape)
    if step == 1:
        return image
    rows, columns = min(step, image.shape[0]), min(step, image.shape[1])
    blocks = image[: h * rows, : w * columns].reshape(h, rows, w, columns)
    good = np.isfinite(blocks)
    total = np.where(good, blocks, 0).sum((1, 3), dtype=np.float64)
    count = good.sum((1, 3))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _mark_flags(ax: Axes, timeline: Timeline) -> None:
    """Mark flagged frames along the top, one row a kind."""
    x, _ = timeline.axis()
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.2 * (high - low))  # room for the marks
    for bit, name in enumerate(timeline.flag_names):
        frames = np.flatnonzero(np.asarray(timeline.flag) >> bit & 1)
        if len(frames):
            ax.plot(
                x[frames],
                np.full(len(frames), 0.97 - 0.07 * bit),
                "v",
                color=(ALARM, *COLOURS[1:])[bit % 6],
                markersize=5,
                transform=ax.get_xaxis_transform(),
                label=f"{name} ({len(frames)})",
            )
