"""Frames corrected as they arrive: slab by slab, each with a background of its own.

The background of a slab is estimated from its frames and those of the slab before, whose level it
continues. Finished slabs are kept like those of any run, so that a killed one goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from txmcorrect.background.correction import (
    Outcome,
    choose_device,
    condition_for,
    cut_for,
    describe,
    divide,
    one_background,
    one_torch_thread,
)
from txmcorrect.background.course import Background, StoredDetails, cut, join
from txmcorrect.background.flags import lit_cells
from txmcorrect.background.keyframes import interpolate
from txmcorrect.background.pipeline import Report
from txmcorrect.background.quality import Flag
from txmcorrect.background.scale import level_of
from txmcorrect.config import CorrectSettings
from txmcorrect.errors import FlatFieldError, FormatError
from txmcorrect.formats import open_arriving
from txmcorrect.formats.arriving import Arriving
from txmcorrect.formats.write import ResultWriter
from txmcorrect.formats.write_slabs import SLAB
from txmcorrect.scan import Scan
from txmcorrect.stream import run_signature
from txmcorrect.team import Shared, Team
from txmcorrect.weights import Model, load_model

log = logging.getLogger(__name__)
Stop = Callable[[], bool]
"""Whether the user wants the scan to be over."""
Show = Callable[[Scan, Background], None]
"""Told of the scan so far and the background of the frames that are done."""
POLL = 0.5  # seconds between looks
EVERY = 4  # key frames, unless the settings say otherwise
UNKNOWN = 2**40  # frames of a scan that has not ended


class Ended(Exception):
    """No more frames will come."""


def correct_live(
    settings: CorrectSettings, path: Path, out: Path, report: Report, show: Show, stop: Stop
) -> Outcome:
    """Correct the frames of a growing scan into `out`, until `stop()` or `--idle` seconds of silence.

    Raises
    ------
    FormatError : nothing has arrived, or it cannot be read. TxmError : see `errors`.
    """
    arriving = open_arriving(path, **settings.sources())
    scan = _wait_for(settings, arriving, 2, stop, path)
    model = load_model(settings.model, condition_for(settings), choose_device(settings.device))
    options = settings.model_dump(mode="json", exclude={"scans", "out", "out_dir"})
    inputs = [p for p in (settings.refs, settings.dark) if p is not None]
    signature = run_signature({**options, "scan": str(path.resolve())}, inputs, model.sha256)
    with (
        one_torch_thread() as workers,
        ResultWriter(
            out,
            (UNKNOWN, *scan.shape[1:]),
            signature,
            theta=scan.theta,
            source=path if path.is_file() else None,
            layout=settings.format,
            overwrite=settings.overwrite,
        ) as writer,
    ):
        live = _Live(settings, model, writer, Shared(writer.part, Team(), workers), show)
        try:
            while True:
                stop_at = live.done + SLAB
                scan = _wait_for(settings, arriving, stop_at, stop, path)
                live.take(scan, stop_at)
                report("corrected", live.done, live.done)
        except Ended:
            scan = _latest(settings, arriving, True) or scan
        n = scan.shape[0]
        writer.resize(n, scan.theta)
        while live.done < n:
            live.take(scan, min(live.done + SLAB, n))
        background = replace(live.background(), amplitude=writer.values("amplitude"))
        process = describe(settings, background, model, options)
        writer.finish(process, lambda done, total: report("assembling", done, total))
    return Outcome(out, background.verdict(), background, scan)


def _latest(settings: CorrectSettings, arriving: Arriving, last: bool = False) -> Scan | None:
    scan = arriving.look(last)
    return None if scan is None else cut_for(settings, scan)


def _wait_for(
    settings: CorrectSettings, arriving: Arriving, count: int, stop: Stop, path: Path
) -> Scan:
    """Return the scan once it has `count` frames.

    Raises
    ------
    Ended : it will not have them. FormatError : there is nothing at all.
    """
    known, heard = -1, time.monotonic()
    while True:
        scan = _latest(settings, arriving)
        n = 0 if scan is None else scan.shape[0]
        if scan is not None and n >= count:
            return scan
        if n != known:
            known, heard = n, time.monotonic()
        if stop() or time.monotonic() - heard > settings.idle:
            if n == 0 and (scan := _latest(settings, arriving, True)) is None:
                raise FormatError(f"{path}: expected frames to arrive, none did")
            if count == 2:  # the very first look: let the rest be done as a last slab
                assert scan is not None
                return scan
            raise Ended
        time.sleep(POLL)


class _Live:
    """The slabs done so far and what is known of their backgrounds."""

    def __init__(
        self,
        settings: CorrectSettings,
        model: Model,
        writer: ResultWriter,
        shared: Shared,
        show: Show,
    ) -> None:
        every = EVERY if settings.every == "auto" else settings.every
        self.settings = settings.model_copy(update={"every": every})
        self.model, self.writer, self.shared, self.show = model, writer, shared, show
        self.done = 0
        self._found: list[Background] = []
        self._stores: list[Shared] = []

    def take(self, scan: Scan, stop: int) -> None:
        """Correct frames up to `stop`, the end of a slab."""
        start, number = self.done, len(self._found)
        share = Shared(
            self.shared.part, self.shared.team, self.shared.workers, f"live{number:05d}-"
        )
        before = max(start - SLAB, 0)
        window = scan.select(list(range(before, stop)))
        try:
            whole = one_background(self.settings, window, self.model, share, _quiet)
            found = cut(self._continued(whole, start - before), start - before)
            self._stores.append(share)
        except FlatFieldError as error:
            if not self._found:
                raise
            log.warning("frames %d to %d: %s", start, stop - 1, error)
            found = self._without_light(stop - start)
            self._stores.append(self._stores[-1])
        self._found.append(replace(found, details=()))
        background = self.background()
        divide(self.settings, scan, background, self.writer, [start], _quiet)
        self.done = stop
        self.show(scan, background)

    def background(self) -> Background:
        """The background of all frames done."""
        return join(self._found, StoredDetails(self._stores))

    def _continued(self, whole: Background, start: int) -> Background:
        """Bring a window's level to that of the slab before, where only levels between frames count."""
        if start == 0 or not self._found or whole.scale != "relative":
            return whole
        last = self._found[-1]
        lit = lit_cells(whole.fields)
        shared = [k for k, key in enumerate(whole.keys) if key < start]
        offset = start - len(last.amplitude)
        wanted = [
            interpolate(last.fields, last.keys, last.jumps, int(whole.keys[k]) - offset)
            for k in shared
        ]
        if not wanted:
            return whole
        excess = level_of(whole.fields[shared], lit) - level_of(np.stack(wanted), lit)
        return replace(whole, fields=whole.fields - np.float32(np.median(excess)))

    def _without_light(self, count: int) -> Background:
        """The last background once more, for frames that show none."""
        last = self._found[-1]
        return replace(
            cut(last, int(last.keys[-1])),
            keys=np.zeros(1, np.intp),
            jumps=np.zeros(0, np.intp),
            fields=last.fields[-1:],
            std=last.std[-1:],
            shares=last.shares[-1:],
            amplitude=np.ones(count),
            flag=np.full(count, np.uint32(Flag.NO_LIGHT)),
            leak=np.zeros(1),
        )


def _quiet(stage: str, done: int, total: int) -> None:
    """A slab is too short to report on."""
