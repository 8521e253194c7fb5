"""Leave-one-out on a user's own references: how well can each be predicted from the others?"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from txmcorrect.baselines import PEERS, Flats, Method, NotApplicableError
from txmcorrect.baselines.references import bank_mean
from txmcorrect.config import EvaluateSettings
from txmcorrect.errors import TxmError
from txmcorrect.formats import open_references
from txmcorrect.judge.recorded import judge_flats, leave_one_out, lit_pixels
from txmcorrect.judge.trial import Finding
from txmcorrect.report.page import Page, write_png
from txmcorrect.result import Result
from txmcorrect.scan import FrameView, References
from txmcorrect.scoring.contest import models
from txmcorrect.scoring.output import (
    json_text,
    markdown_table,
    number,
    say,
    write_json,
    write_text,
)

log = logging.getLogger(__name__)
PREDICTORS = ("none", "stale", "interpolated", "eigen-flats", "robust-eigen-flats")
LONG_SIDE = 1024  # references are binned below this: drift is wide, memory is not
MOST = 64
NEEDED = 3


def run(settings: EvaluateSettings, path: Path) -> Result:
    """Predict each reference from the others and report what is left, method by method."""
    group = _largest(path, open_references(path, **settings.sources()))
    flats, dark, factor = load_flats(group)
    lit = lit_pixels(flats.counts, dark)
    methods = {name: PEERS[name] for name in PREDICTORS} | {"mean of others": bank_mean}
    predicted = leave_one_out(methods, flats, dark, lit)
    nulls = _nulls({**methods, **models(settings)}, flats, dark, lit)
    return _report(settings, path, group, predicted, nulls, factor)


def _largest(path: Path, groups: tuple[References, ...]) -> References:
    group = max(groups, key=lambda g: g.frames.shape[0])
    if group.frames.shape[0] < NEEDED:
        raise TxmError(
            f"{path}: expected at least {NEEDED} references of one kind, got {group.frames.shape[0]}; "
            "point --refs at a folder or file with more"
        )
    if len(groups) > 1:
        log.warning("%s: %d kinds of references, only the largest is used", path, len(groups))
    return group


def load_flats(group: References) -> tuple[Flats, NDArray[np.float32], int]:
    """At most 64 references, evenly chosen and binned to at most 1024 pixels; their dark; the bin."""
    n, h, w = group.frames.shape
    index = np.unique(np.linspace(0, n - 1, min(n, MOST)).astype(np.intp))
    factor = max(1, -(-max(h, w) // LONG_SIDE))
    if min(h, w) < factor:
        factor = 1
    view = FrameView(group.frames, index, None, factor)
    counts = view.read(0, len(index)).astype(np.float32)
    dark = np.zeros(counts.shape[1:], np.float32)
    if group.darks is None:
        log.warning("no dark frames: zero counts are taken for no light")
    else:
        count = group.darks.shape[0]
        every = FrameView(group.darks, np.arange(count, dtype=np.intp), None, factor)
        dark = every.read(0, count).mean(0, dtype=np.float32)
    current = None if group.current_ma is None else group.current_ma[index]
    return Flats(counts, current), dark, factor


def _nulls(
    methods: Mapping[str, Method], flats: Flats, dark: NDArray[np.float32], lit: NDArray[np.bool_]
) -> dict[str, Finding]:
    """Each method on the references passed as a scan; what cannot run is left out."""
    found = {}
    for name, method in methods.items():
        try:
            found[name] = judge_flats(method, flats, dark, lit)
        except NotApplicableError as reason:
            log.info("%s: %s", name, reason)
    return found


def _report(
    settings: EvaluateSettings,
    path: Path,
    group: References,
    predicted: dict[str, dict[str, NDArray[np.float64]]],
    nulls: dict[str, Finding],
    factor: int,
) -> Result:
    header = ("method", "error %", "worst %", "gain %", "not shot noise %", "null test")
    rows = [
        _row(name, predicted.get(name), nulls.get(name))
        for name in dict.fromkeys([*predicted, *nulls])
    ]
    folder = settings.out or path.with_name(path.stem + ".scores")
    folder.mkdir(parents=True, exist_ok=True)
    figure = _draw(predicted)
    table = markdown_table(rows, header)
    body = {
        "references": path.name,
        "count": group.frames.shape[0],
        "bin": factor,
        "leave_one_out": predicted,
        "null": {name: {"passed": f.passed, **f.figures} for name, f in nulls.items()},
    }
    page = Page(f"{path.name}: leave one reference out", subtitle=EXPLANATION)
    page.table(rows, header).figure(figure, "Error of each reference, predicted from the others.")
    outputs = (
        write_text(folder / "references.md", table + "\n\n" + EXPLANATION + "\n"),
        write_json(folder / "references.json", body),
        write_png(figure, folder / "references.png"),
        page.write(folder / "references.html"),
    )
    say(settings, json_text(body) if settings.json_output else table)
    return Result(outputs)


EXPLANATION = (
    "Error: rms of log(reference / prediction), smoothed over 4 pixels, its mean removed; gain: its "
    "level, where currents are recorded. Not shot noise: worst octave of what is left when every "
    "second reference is corrected as if it were a scan."
)


def _row(
    name: str, predicted: dict[str, NDArray[np.float64]] | None, null: Finding | None
) -> tuple[str, ...]:
    error = np.array([np.nan]) if predicted is None else predicted["error"]
    gain = np.array([np.nan]) if predicted is None else predicted["gain"]
    gain = gain[np.isfinite(gain)]
    error = error[np.isfinite(error)]
    excess = (
        max(v for k, v in null.figures.items() if k.startswith("excess")) if null else float("nan")
    )
    return (
        name,
        number(100 * float(error.mean())) if len(error) else "",
        number(100 * float(error.max())) if len(error) else "",
        number(100 * float(np.abs(gain).mean())) if len(gain) else "",
        number(100 * excess),
        "" if null is None else "passed" if null.passed else "failed",
    )


def _draw(predicted: dict[str, dict[str, NDArray[np.float64]]]) -> Figure:
    figure = Figure((8, 4), layout="constrained")
    axis = figure.subplots()
    for name, values in predicted.items():
        axis.plot(100 * values["error"], marker="o", label=name)
    axis.set(xlabel="reference", ylabel="error (%)", yscale="log")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    return figure
