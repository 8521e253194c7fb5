"""The report of a correction: what was found, what was divided out, and whether to trust it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from txmcorrect.report import plots
from txmcorrect.report.page import Page, write_png
from txmcorrect.scan import Array


@dataclass(frozen=True)
class ShownFrame:
    """One frame as the report shows it: raw and background in counts above dark, `(h, w)` each."""

    label: str
    raw: Array
    background: Array
    corrected: Array


@dataclass(frozen=True)
class CorrectionSummary:
    """What a correction's report is made of; plain arrays.

    Attributes
    ----------
    title : e.g. the scan's name. verdict, scale : as stored in the result.
    frames : those shown, see `frames_to_show`.
    key_index : `(k,)`. drift : `(k,)`, see `plots.drift_from_first`.
    log_std : `(h, w)` spread of the least certain key frame, or None where only one sample was drawn.
    amplitude, flag : `(n,)`. flag_names : name of each bit. jump_index : first frames after a jump.
    lit : `(h, w)`. time_s : `(n,)` seconds or None.
    facts : short lines for the table at the top. options : resolved settings.
    """

    title: str
    verdict: str
    scale: str
    frames: Sequence[ShownFrame]
    key_index: Array
    drift: Array
    amplitude: Array
    flag: Array
    lit: Array
    flag_names: Sequence[str] = ()
    jump_index: Sequence[int] = ()
    log_std: Array | None = None
    time_s: Array | None = None
    facts: Mapping[str, object] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def frames_to_show(
    flag: Array, badness: Array | None = None, worst: int = 2
) -> list[tuple[int, str]]:
    """Choose first, middle, last and the worst flagged frames.

    Parameters
    ----------
    flag : `(n,)` bits. badness : `(n,)`, larger is worse; by default the number of bits set.

    Returns
    -------
    Frame numbers, rising, each with a label.
    """
    flag = np.asarray(flag)
    n = len(flag)
    ranking = np.bitwise_count(flag) if badness is None else np.asarray(badness)
    flagged = np.flatnonzero(flag)
    worst_frames = flagged[np.argsort(-ranking[flagged], kind="stable")][:worst]
    chosen = {int(i): f"frame {i} (flagged)" for i in worst_frames}
    for i, name in ((0, "first"), (n // 2, "middle"), (n - 1, "last")):
        chosen[i] = f"frame {i} ({name}{', flagged' if flag[i] else ''})"
    return sorted(chosen.items())


def correction_report(
    path: Path, summary: CorrectionSummary, png: Path | None = None
) -> tuple[Path, ...]:
    """Write the page and, where wanted, its triptychs as a PNG; return the files written.

    Raises
    ------
    OutputError : the folder is missing, or the disk is full.
    """
    triptychs = frame_figure(summary)
    page = Page(summary.title, summary.verdict, f"scale: {summary.scale}")
    page.table([*_flag_counts(summary).items(), *summary.facts.items()])
    page.heading("Frames")
    page.figure(triptychs, "Raw, background and corrected. Blue: too little light to correct.")
    _add_background(page, summary)
    page.heading("Options").table(sorted(summary.options.items()))
    written = [page.write(path)]
    if png is not None:
        written.append(write_png(triptychs, png))
    return tuple(written)


def frame_figure(summary: CorrectionSummary) -> Figure:
    """Raw / background / corrected of the frames shown."""
    frames = summary.frames
    return plots.triptychs(
        [f.label for f in frames],
        [f.raw for f in frames],
        [f.background for f in frames],
        [f.corrected for f in frames],
        summary.lit,
    )


def _add_background(page: Page, summary: CorrectionSummary) -> None:
    """Drift, amplitude, spread and histogram."""
    timeline = plots.Timeline(summary.flag, summary.flag_names, summary.jump_index, summary.time_s)
    page.heading("Background")
    page.figure(
        plots.drift_curve(summary.key_index, summary.drift, timeline),
        "Drift: rms change of the background's logarithm against the first key frame.",
    )
    page.figure(
        plots.amplitude_curve(summary.amplitude, timeline),
        "Brightness of the beam, frame by frame.",
    )
    if summary.log_std is None:
        page.text("Spread of the background: unknown, one sample was drawn (see --samples).")
    else:
        page.figure(
            plots.spread_map(summary.log_std, summary.lit),
            "Spread of the background among samples of the posterior, least certain key frame.",
        )
    page.heading("Transmission")
    page.figure(
        plots.transmission_histogram([f.corrected for f in summary.frames], summary.lit),
        "Corrected transmission in the frames shown above, lit pixels; 1 is vacuum.",
    )


def _flag_counts(summary: CorrectionSummary) -> dict[str, object]:
    """Count frames, key frames, jumps and flags."""
    n, flag = len(summary.flag), np.asarray(summary.flag)
    lit = 100 * float(np.mean(summary.lit))
    rows: dict[str, object] = {
        "frames": n,
        "key frames": len(summary.key_index),
        "jumps": len(summary.jump_index),
        "lit": f"{lit:.1f} % of pixels",
    }
    for bit, name in enumerate(summary.flag_names):
        hit = np.flatnonzero(flag >> bit & 1)
        if len(hit):
            more = ", ..." if len(hit) > 10 else ""
            rows[f"flagged: {name}"] = f"{len(hit)}: {', '.join(map(str, hit[:10]))}{more}"
    return rows
