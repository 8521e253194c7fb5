"""A scan as transmission: as it is, over its own flats, or corrected by our model."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from txmcorrect.background.correction import (
    checked_references,
    correct_scan,
    dark_for,
    is_same_run,
    open_for,
)
from txmcorrect.background.pipeline import Report
from txmcorrect.background.quality import UNUSABLE
from txmcorrect.background.survey import mean_frame
from txmcorrect.config import CorrectSettings, TomoSettings
from txmcorrect.errors import FlatFieldError, GeometryError
from txmcorrect.formats import open_references, open_scan
from txmcorrect.formats.volume import read_correction
from txmcorrect.matching import MatchedReferences, match_references
from txmcorrect.recon.flatfield import FlatFielded
from txmcorrect.scan import FloatArray, Frames, FrameView, Scan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A scan whose frames are transmission.

    `counts` of an empty lit pixel, None if unknown; `bad` `(n,)` as the correction says;
    `temporary`: a corrected file made on the way.
    """

    scan: Scan
    frames: Frames
    scale: str
    verdict: str
    counts: float | None
    bad: NDArray[np.bool_]
    temporary: Path | None = None


def open_source(settings: TomoSettings, path: Path, out: Path, report: Report) -> Source:
    """Transmission of one scan: as it is, over its own flats, or corrected by our model."""
    scan = open_for(settings, path)
    if scan.energies > 1:
        raise GeometryError(
            f"{path}: expected a scan of one energy, got a stack of {scan.energies}; "
            "write each energy as a file of its own (/exchange/data[i]) and name those"
        )
    if scan.corrected_by and not settings.force:
        return _corrected_source(scan)
    if settings.flats == "none":
        nothing = np.zeros(scan.shape[0], bool)
        return Source(scan, scan.projections, "as in the file", "as in the file", None, nothing)
    # A scan's own flats are better than what a pair of frames tells: generate only without them.
    if settings.flats == "measured" or (settings.flats == "auto" and scan.flats):
        return _flat_fielded(settings, scan)
    names = set(CorrectSettings.model_fields) - {"format"}
    wanted = CorrectSettings(**settings.model_dump(include=names))
    corrected = out.with_name(f"{out.stem}.{path.stem}.corrected.h5")
    if not is_same_run(wanted, corrected, path):
        correct_scan(wanted, path, corrected, report)
    found = _corrected_source(open_scan(corrected))
    return replace(found, scan=scan, temporary=corrected)


def _corrected_source(scan: Scan) -> Source:
    n = scan.shape[0]
    if scan.corrected_by != "txmcorrect":
        note = f"corrected by {scan.corrected_by}"
        return Source(scan, scan.projections, "as in the file", note, None, np.zeros(n, bool))
    stored = read_correction(scan.path)
    view = scan.projections
    index = view.index if isinstance(view, FrameView) else np.arange(n)
    bad = np.zeros(n, bool) if stored.flag is None else (stored.flag[index] & UNUSABLE) != 0
    return Source(scan, view, stored.scale, stored.verdict, stored.counts, bad)


def _flat_fielded(settings: TomoSettings, scan: Scan) -> Source:
    """Divide by the measured flats, interpolated between those before and after."""
    groups = [*(open_references(settings.refs) if settings.refs else ()), *scan.flats]
    if not groups:
        raise FlatFieldError(
            f"{scan.path}: expected flats in the scan for --flats measured, found none; "
            "give some with --refs, or use --flats generated"
        )
    matches = match_references(scan, groups, settings.force)
    dark, notes = _dark(settings, scan)
    checked = checked_references(scan, matches, dark)
    matches = tuple(match for match, _ in checked)
    said = "; ".join(["flats as measured", *notes, *(n for _, some in checked for n in some)])
    flats, at = _knots(matches, dark, scan.shape[0])
    if settings.split is not None and len(at) < 2:
        raise GeometryError("--split: expected flats taken at two or more times, got one")
    frames = FlatFielded(scan.projections, dark, flats, at, matches[0].frame_scale, settings.split)
    counts = float(np.median(flats))
    scale = "reference" if matches[0].absolute else "relative"
    bad = np.zeros(scan.shape[0], bool)
    return Source(scan, frames, scale, said, counts, bad)


def _dark(settings: TomoSettings, scan: Scan) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Mean dark `(h, w)` and what is to be said of the darks."""
    dark = dark_for(settings, scan)
    notes = (*([dark.doubt] if dark.doubt else []), *dark.notes)
    if dark.image is None:
        if not dark.doubt:
            log.warning("%s: no dark frames: zero counts are taken for no light", scan.path)
        return np.zeros(scan.shape[1:], np.float32), notes
    return dark.image, notes


def _knots(
    matches: tuple[MatchedReferences, ...], dark: NDArray[np.float32], n: int
) -> tuple[NDArray[np.float32], FloatArray]:
    """Mean flats above dark `(k, h, w)`, one for each time they were taken, and those times."""
    found: list[tuple[float, NDArray[np.float32]]] = []
    for i, match in enumerate(matches):
        group = match.references
        own = dark if group.darks is None else mean_frame(group.darks)
        before = group.before
        if before is None:  # unknown times: in the order given, over the scan
            place = n * i / max(len(matches) - 1, 1)
            before = np.full(group.frames.shape[0], place)
        for when in np.unique(before):
            chosen = np.flatnonzero(before == when)
            stack = FrameView(group.frames, chosen)
            scale = np.float32(match.scale[chosen].mean())
            found.append((float(when), (mean_frame(stack, len(chosen)) - own) * scale))
    found.sort(key=lambda item: item[0])
    return np.stack([flat for _, flat in found]), np.array([when for when, _ in found])
