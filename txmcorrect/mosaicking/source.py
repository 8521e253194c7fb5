"""Transmission of the tiles: as it is, over the median of all, or corrected by the model."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from txmcorrect.background.correction import condition_for, correct_scan, is_same_run
from txmcorrect.background.quality import UNUSABLE
from txmcorrect.background.reference_check import lit_image, usable_dark
from txmcorrect.background.survey import read_counts
from txmcorrect.config import CorrectSettings, MosaicSettings
from txmcorrect.errors import FlatFieldError
from txmcorrect.formats.corrected import read_result
from txmcorrect.progress import Stages
from txmcorrect.scan import Frames, Scan
from txmcorrect.stitch.blend import trimmed

Array = NDArray[Any]

DARK_TILE = 0.05  # of the median signal: such a tile saw no beam
MEDIAN_FRAMES = 64  # frames that a median flat is made of
LIT_SHARE = 0.3  # of the median of a median flat
SLABS = 2**27  # bytes of the corrected file that are kept unpacked: two slabs of 1024 x 1024


@dataclass(frozen=True)
class Source:
    """Transmission of all tiles, and what is known about it.

    Attributes
    ----------
    lit : `(h, w)`, the rim of the beam left out. light : `(h, w)` brightness of the beam, 1 usual.
    """

    scan: Scan
    frames: Frames
    lit: NDArray[np.bool_]
    light: NDArray[np.float32]
    scale: str
    verdict: str
    unusable: NDArray[np.bool_]


def open_source(
    settings: MosaicSettings,
    scan: Scan,
    path: Path,
    out: Path,
    stages: Stages,
    files: ExitStack,
    corners: Array | None = None,
) -> Source:
    """Transmission of the tiles: as it is, over the median of all, or corrected by the model.

    `corners` : of the tiles `(n, 2)` px, however roughly known, so that a model may look at overlaps.
    """
    if _is_corrected(settings, scan):
        return _corrected_source(scan, path, files)
    if settings.flats == "median":
        return median_source(settings, scan)
    corrected = out.with_name(f"{out.stem}.tiles.h5")
    wanted = correction_of(settings)
    if not is_same_run(wanted, corrected, path):
        correct_scan(wanted, path, corrected, stages, corner_px=corners)
    return _corrected_source(scan, corrected, files)


def correction_of(settings: MosaicSettings) -> CorrectSettings:
    """How tiles are corrected; what only the mosaic depends on must not make that be done again."""
    own = {"format", "out", "out_dir", "overwrite"}
    names = set(CorrectSettings.model_fields) - own
    return CorrectSettings(**settings.model_dump(include=names), overwrite=settings.overwrite)


def looks_at_overlaps(settings: MosaicSettings, scan: Scan) -> bool:
    """Whether the tiles are still to be corrected, by a model that looks at where they overlap."""
    if settings.flats in ("median", "measured") or _is_corrected(settings, scan):
        return False
    return condition_for(correction_of(settings)) == "stack"


def _is_corrected(settings: MosaicSettings, scan: Scan) -> bool:
    """Whether the tiles are ours already, and to be taken as they are."""
    return scan.corrected_by == "txmcorrect" and not settings.force


def _corrected_source(scan: Scan, path: Path, files: ExitStack) -> Source:
    result = files.enter_context(read_result(path, SLABS))
    bad = (result.flag & UNUSABLE) != 0
    middle = result.key_index[len(result.key_index) // 2]
    lit, light = lit_area(result.background(int(middle)), result.lit)
    return Source(scan, result.transmission, lit, light, result.scale, result.verdict, bad)


def lit_area(background: Array, known: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], Array]:
    """Where a background `(h, w)` has light enough, its rim left out, and how much (1 is usual).

    `known` : `(h, w)` pixels that count at all.
    """
    usual = float(np.median(background[known])) if known.any() else 1.0
    light = np.where(known, background / max(usual, 1e-12), 0).astype(np.float32)
    lit = trimmed(known & (light > LIT_SHARE))
    return lit, np.where(lit, light, 0).astype(np.float32)


@dataclass(frozen=True)
class FlatFrames:
    """Raw frames over a flat: `(n, h, w)` transmission, 1 where the flat is dark."""

    source: Frames
    dark: Array
    flat: Array
    lit: NDArray[np.bool_]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.source.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    def read(self, start: int, stop: int) -> Array:
        counts = read_counts(self.source, start, stop, self.dark)
        flat = np.where(self.lit, self.flat, 1)
        return np.where(self.lit, counts / flat, 1).astype(np.float32)


def median_source(settings: MosaicSettings, scan: Scan) -> Source:
    """Divide by the median of all tiles; what their sample has in common goes with it."""
    n = scan.shape[0]
    darks = usable_dark(scan.darks, "dark", lit_image(scan))
    dark = np.zeros(scan.shape[1:], np.float32) if darks.image is None else darks.image
    chosen = np.unique(np.linspace(0, n - 1, MEDIAN_FRAMES).round().astype(int))
    stack = np.concatenate([read_counts(scan.projections, i, i + 1, dark) for i in chosen])
    level = np.median(stack, axis=(1, 2))
    used = level > DARK_TILE * np.median(level)
    if not used.any() or np.median(level) <= 0:
        raise FlatFieldError(f"{scan.path}: expected tiles with light, found none")
    flat = np.median(stack[used], axis=0)
    known = flat > LIT_SHARE * np.median(flat)
    frames = FlatFrames(scan.projections, dark, flat.astype(np.float32), known)
    lit, light = lit_area(flat, known)
    verdict = "CHECK: divided by the median of the tiles, no model"
    return Source(scan, frames, lit, light, "relative", verdict, np.zeros(n, bool))
