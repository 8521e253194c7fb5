"""`correct`: remove the background of every frame of one or more scans."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import numpy as np

from txmcorrect.background.correction import Outcome, correct_scan
from txmcorrect.background.course import Background, divide_frame
from txmcorrect.background.flags import lit_cells
from txmcorrect.background.live import correct_live
from txmcorrect.background.quality import NAMES
from txmcorrect.background.survey import read_counts
from txmcorrect.config import CorrectSettings, UsageError
from txmcorrect.errors import OutputError
from txmcorrect.formats import open_scan
from txmcorrect.formats.corrected import read_result
from txmcorrect.progress import Stages
from txmcorrect.report.correction import (
    CorrectionSummary,
    ShownFrame,
    correction_report,
    frames_to_show,
)
from txmcorrect.report.page import write_png
from txmcorrect.report.plots import drift_from_first, triptychs
from txmcorrect.result import Result
from txmcorrect.scan import Scan
from txmcorrect.team import Team, assembled

log = logging.getLogger(__name__)
NOT_TRUSTED = 3
FIT_ALONE = "none (fit alone)"
SUFFIX = {"h5": ".h5", "nxtomo": ".nx", "tiff": ".tif"}


def run(settings: CorrectSettings) -> Result:
    """Correct all scans; with --strict the exit code is 3 unless every one is TRUSTED."""
    outs = output_paths(settings)
    written: list[Path] = []
    lines: list[str] = []
    trusted = True
    with assembled(settings.device) as team:
        check_watch(settings, team)
        for scan, out in zip(settings.scans, outs, strict=True):
            with Stages(settings.quiet or team.rank > 0) as stages:
                if settings.watch:
                    outcome = watch(settings, scan, out, stages)
                else:
                    outcome = correct_scan(settings, scan, out, stages, team)
            if outcome is None:  # rank 0 speaks for all
                continue
            written += [out, *write_report(outcome, settings)]
            trusted &= outcome.verdict.word == "TRUSTED"
            lines.append(f"{out}: {outcome.verdict}")
    code = NOT_TRUSTED if settings.strict and not trusted else 0
    return Result(tuple(written), "\n".join(lines), code)


def output_paths(settings: CorrectSettings) -> list[Path]:
    """Where each scan's result goes.

    Raises
    ------
    UsageError : one --out for several scans. OutputError : two scans would get the same name.
    """
    if settings.out is not None:
        if len(settings.scans) > 1:
            raise UsageError("--out: names one file but there are several scans; use --out-dir")
        return [settings.out]
    suffix = ".corrected" + SUFFIX[settings.format]
    outs = [
        (settings.out_dir or scan.absolute().parent) / (scan.absolute().stem + suffix)
        for scan in settings.scans
    ]
    if len(set(outs)) < len(outs):
        raise OutputError("two scans have the same name; correct them into different --out-dir")
    return outs


def check_watch(settings: CorrectSettings, team: Team) -> None:
    """Refuse what cannot be had of a scan that is still being taken.

    Raises
    ------
    UsageError : several scans or processes, or frames chosen from those to come.
    """
    if not settings.watch:
        return
    if len(settings.scans) > 1 or team.size > 1:
        raise UsageError("--watch: expected one scan and one process, got more; start one for each")
    if settings.frames is not None or settings.preview is not None:
        raise UsageError("--watch: takes frames as they come; leave --frames and --preview away")
    if settings.format == "nxtomo":
        raise UsageError(
            "--watch: expected --format h5 or tiff, got nxtomo, which wants all angles"
        )


def watch(settings: CorrectSettings, path: Path, out: Path, stages: Stages) -> Outcome | None:
    """Correct frames as they arrive; the newest is shown in a picture beside the result.

    The first Ctrl-C ends the scan with a complete file, the second leaves it for later.
    """
    picture = out.with_suffix(".live.png")

    def show(scan: Scan, background: Background) -> None:
        newest = len(background.amplitude) - 1
        raw = read_counts(scan.projections, newest, newest + 1, background.dark)[0]
        corrected = raw.copy()
        divide_frame(corrected, background, newest)
        empty = np.exp(background.log_background(newest))
        label = f"frame {newest} (newest)"
        figure = triptychs([label], [raw], [empty], [corrected], background.lit)
        write_png(figure, picture)
        log.info("%d frames: %s; see %s", newest + 1, background.verdict(), picture)

    with first_interrupt() as stop:
        outcome = correct_live(settings, path, out, stages, show, stop.is_set)
    picture.unlink(missing_ok=True)
    return outcome


@contextmanager
def first_interrupt() -> Iterator[Event]:
    """Catch the first Ctrl-C; the event tells of it. The second interrupts as usual."""
    asked = Event()

    def note(number: int, frame: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)
        log.info("ending the scan; Ctrl-C once more leaves it unfinished")

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def write_report(outcome: Outcome, settings: CorrectSettings) -> tuple[Path, ...]:
    """A picture and a page beside the result."""
    background = outcome.background
    keys = background.keys
    badness = np.bitwise_count(background.flag).astype(float)
    summary = CorrectionSummary(
        title=outcome.scan.path.name,
        verdict=str(outcome.verdict),
        scale=background.scale,
        frames=[_shown(outcome, i, label) for i, label in frames_to_show(background.flag, badness)],
        key_index=keys,
        drift=drift_from_first(background.fields, lit_cells(background.fields)),
        amplitude=background.amplitude,
        flag=background.flag,
        lit=background.lit,
        flag_names=NAMES,
        jump_index=background.jumps.tolist(),
        log_std=_least_certain(outcome) if settings.samples > 1 else None,
        time_s=outcome.scan.time_s,
        facts=_facts(outcome, settings),
        options=settings.model_dump(mode="json", exclude_none=True),
    )
    page = outcome.path.with_suffix(".html")
    return correction_report(page, summary, page.with_suffix(".png"))


def _shown(outcome: Outcome, frame: int, label: str) -> ShownFrame:
    background = outcome.background
    raw = read_counts(outcome.scan.projections, frame, frame + 1, background.dark)[0]
    if outcome.path.suffix == ".tif":  # which does not hold the background
        corrected = open_scan(outcome.path).projections.read(frame, frame + 1)[0]
        empty = raw / np.where(corrected == 0, 1, corrected)
    else:  # show what was written, not what should have been
        with read_result(outcome.path) as result:
            corrected = result.transmission.read(frame, frame + 1)[0]
            empty = result.background(frame)
    return ShownFrame(label, raw, empty, corrected)


def _least_certain(outcome: Outcome) -> np.ndarray:
    background = outcome.background
    worst = int(np.argmax((background.std**2).mean((1, 2))))
    return background.key_std(worst)


def _facts(outcome: Outcome, settings: CorrectSettings) -> dict[str, object]:
    """What a tired user wants to know first."""
    background, scan = outcome.background, outcome.scan
    spread = float(np.sqrt((background.std**2).mean()))
    facts: dict[str, object] = {
        "scan": f"{scan.format}, {scan.shape[0]} frames of {scan.shape[1]} x {scan.shape[2]}",
        "model": FIT_ALONE
        if settings.model == "none"
        else f"{settings.model}, {settings.condition}, {settings.sampler}, "
        f"{settings.steps} steps, {settings.samples} samples",
        "dark": "given" if background.dark.any() else "none: zero counts taken for no light",
        "scale": background.scale,
        "background": background.decided,
    }
    if background.remembered:
        facts["remembered"] = (
            "a bank of references from the model's training counts as well "
            f"(likeness of the fixed pattern {background.remembered:.2f})"
        )
    if background.standing:
        facts["standing in all frames"] = background.standing
    if settings.samples > 1:
        facts["spread of the log background"] = f"{100 * spread:.2f} % rms"
    for warning in (*scan.warnings, *background.notes, *background.remarks):
        facts.setdefault("warnings", warning)
    return facts
