"""Which frames are used, at what angles, moved by what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from txmcorrect.background.pipeline import Report
from txmcorrect.config import TomoSettings
from txmcorrect.errors import FlatFieldError, GeometryError
from txmcorrect.formats.write_slabs import SLAB
from txmcorrect.recon.absorption import absorption, is_phase_contrast, photon_floor
from txmcorrect.recon.align import METHODS, move
from txmcorrect.recon.selection import bad_frames, resolve_duplicates
from txmcorrect.scan import FloatArray, Frames, FrameView, JoinedFrames, Scan
from txmcorrect.tomography.source import Source


@dataclass(frozen=True)
class Plan:
    """Which frames are used, at what angles, moved by what.

    `keep` `(m,)` numbers among all frames; `theta` `(m,)` radians; `shifts` `(m, 2)` (y, x);
    `least` transmission of a photon; `dropped` as text.
    """

    frames: Frames
    keep: NDArray[np.intp]
    theta: FloatArray
    shifts: FloatArray
    least: float
    contrast: str
    dropped: str


def make_plan(settings: TomoSettings, sources: list[Source], report: Report) -> Plan:
    """Look at every frame once, then decide.

    Raises
    ------
    FlatFieldError : no usable frame is left. GeometryError : frames or angles do not fit together.
    """
    frames = _joined(sources)
    n = frames.shape[0]
    theta = _theta(settings, [s.scan for s in sources], n)
    counts = [s.counts for s in sources if s.counts is not None]
    least = photon_floor(min(counts) if counts else None)
    stored = _stored_shifts(settings, sources)
    seen = _look(frames, stored, least, settings, report)
    bad = np.concatenate([s.bad for s in sources]) | bad_frames(seen["mass"], seen["finite"])
    good = resolve_duplicates(theta, bad) if settings.merge else np.flatnonzero(~bad)
    if len(good) == 0:
        raise FlatFieldError(f"{sources[0].scan.path}: no usable frame is left")
    shifts = stored[good]
    if settings.align in METHODS:
        shifts = shifts + METHODS[settings.align](
            seen["rows"][good], seen["columns"][good], theta[good]
        )
    dropped = f"{int(bad.sum())} bad, {n - int(bad.sum()) - len(good)} repeated angles"
    some = _frames_at(frames, good[np.linspace(0, len(good) - 1, min(len(good), 8)).astype(int)])
    contrast = settings.contrast
    if contrast == "auto":
        contrast = "phase" if is_phase_contrast(some) else "absorption"
    return Plan(frames, good, theta[good], shifts, least, contrast, dropped)


def _frames_at(frames: Frames, index: NDArray[np.intp]) -> NDArray[np.float32]:
    """Read some frames as float32."""
    return np.asarray(FrameView(frames, index).read(0, len(index)), np.float32)


def _joined(sources: list[Source]) -> Frames:
    sizes = {s.frames.shape[1:] for s in sources}
    pixels = {s.scan.optics.pixel_size_nm for s in sources}
    if len(sizes) > 1 or len(pixels) > 1:
        raise GeometryError(
            f"--merge: expected scans of one frame and pixel size, got {sorted(sizes)} px "
            f"and {sorted(map(str, pixels))} nm; reconstruct them apart"
        )
    return (
        sources[0].frames if len(sources) == 1 else JoinedFrames(tuple(s.frames for s in sources))
    )


def _theta(settings: TomoSettings, scans: list[Scan], n: int) -> FloatArray:
    """Angles in radians, from --theta or the scans, turned round where asked."""
    if settings.theta is not None:
        try:
            theta = np.deg2rad(np.loadtxt(settings.theta, ndmin=1))
        except (OSError, ValueError) as error:
            raise GeometryError(
                f"--theta {settings.theta}: expected one angle a line ({error})"
            ) from None
    else:
        known = [scan.theta for scan in scans if scan.theta is not None]
        if len(known) < len(scans):
            raise GeometryError(
                f"{scans[0].path}: expected angles in the scan, found none; give --theta FILE"
            )
        theta = np.concatenate(known)
    if theta.shape != (n,):
        raise GeometryError(f"expected {n} angles, one per frame, got {theta.shape}; see --theta")
    return -theta if settings.invert_theta else theta


def _stored_shifts(settings: TomoSettings, sources: list[Source]) -> FloatArray:
    """Alignment stored in the files `(n, 2)`, in pixels as they are binned now; zero if none."""
    if settings.align == "none":
        return np.zeros((sum(s.frames.shape[0] for s in sources), 2))
    parts = [
        np.zeros((s.frames.shape[0], 2)) if s.scan.shifts_px is None else s.scan.shifts_px
        for s in sources
    ]
    return np.concatenate(parts) / settings.bin


def _look(
    frames: Frames, shifts: FloatArray, least: float, settings: TomoSettings, report: Report
) -> dict[str, NDArray[np.float64]]:
    """Read every frame once: share of finite pixels, mean absorption, its sums along x and y."""
    n = frames.shape[0]
    found: dict[str, list[NDArray[Any]]] = {"finite": [], "mass": [], "rows": [], "columns": []}
    for start in range(0, n, SLAB):
        block = np.asarray(frames.read(start, min(start + SLAB, n)), np.float32)
        finite = np.isfinite(block)
        block = np.where(finite, block, np.float32(1))
        if settings.align in METHODS:
            block = move(block, shifts[start : start + SLAB])
        integral = absorption(torch.from_numpy(block), least).double().numpy()
        found["finite"].append(finite.mean((1, 2)))
        found["mass"].append(integral.mean((1, 2)))
        found["rows"].append(integral.sum(2))
        found["columns"].append(integral.sum(1))
        report("looking", start + len(block), n)
    return {name: np.concatenate(parts) for name, parts in found.items()}
