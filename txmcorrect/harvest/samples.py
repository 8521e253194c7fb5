"""The samples of a training set: screened, paired with references, divided, binned, stored."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from txmcorrect.errors import FormatError, ReferenceMismatchError
from txmcorrect.harvest.collect import unit_of
from txmcorrect.harvest.manifest import Entry
from txmcorrect.harvest.pairing import FlatCache, Flats, Image, Pairing, mean_frame
from txmcorrect.harvest.screen import Screen
from txmcorrect.harvest.split import split_units
from txmcorrect.harvest.store import TrainingSet, bin_frame, binned_shape, transmission
from txmcorrect.scan import Array, Scan

# Median transmissions below: the beam rather than the sample is missing; above: another reference.
OPAQUE, IMPLAUSIBLE = 0.02, 3.0
Progress = Callable[[str, int, int], None]


def split_scans(scans: list[Scan], size: int, share: float, seed: int) -> list[str]:
    """Split of each scan; single images of one folder count as one scan."""
    units = [unit_of(scan.path, scan.shape[0]) for scan in scans]
    kinds = [binned_shape(*scan.shape[1:], size) for scan in scans]
    return split_units(units, kinds, share, seed)


class Samples:
    """Stores the frames of scans, one at a time."""

    def __init__(
        self,
        store: TrainingSet,
        flats: list[Flats],
        screen: Screen,
        size: int,
        max_age_s: float,
        force: bool,
    ) -> None:
        self.store, self.flats, self.screen = store, flats, screen
        self.size, self.max_age_s, self.force = size, max_age_s, force
        self.cache = FlatCache(size)

    def add(self, scans: list[Scan], splits: list[str], progress: Progress) -> list[Entry]:
        """Store all usable frames of scans, each in its split."""
        total, done, entries = sum(scan.shape[0] for scan in scans), 0, []
        for scan, split in zip(scans, splits, strict=True):

            def advance(i: int, begun: int = done) -> None:
                progress("samples", begun + i, total)

            entries.append(self._add_scan(scan, split, advance))
            done += scan.shape[0]
        return entries

    def _add_scan(self, scan: Scan, split: str, progress: Callable[[int], None]) -> Entry:
        entry = Entry(scan.path, "sample", split)
        entry.about = {
            "format": scan.format,
            "shape": list(scan.shape),
            "warnings": list(scan.warnings),
        }
        own_groups = {id(group) for group in scan.flats}
        own = [flats for flats in self.flats if id(flats.references) in own_groups]
        try:
            pairing = Pairing(scan, own, self.flats, self.force)
        except ReferenceMismatchError as error:
            entry.reason = str(error)
            progress(scan.shape[0])
            return entry
        first, match = pairing.candidates[0]
        entry.about["references"] = [flats.references.origin for flats, _ in pairing.candidates]
        entry.about["pairing"] = list(match.warnings)
        dark = mean_frame(scan.darks if scan.darks is not None else first.references.darks)
        for i in range(scan.shape[0]):
            entry.note(i, *self._add_frame(pairing, i, dark, split))
            progress(i + 1)
        return entry

    def _add_frame(
        self, pairing: Pairing, i: int, dark: Image | float, split: str
    ) -> tuple[str, int | None]:
        """Store a frame and say where, or say why not."""
        try:
            frame = pairing.scan.projections.read(i, i + 1)[0]
        except FormatError as error:
            return f"dead: {error}", None
        fault = self.screen.check(frame, f"{pairing.scan.path} frame {i}")
        if fault:
            return fault, None
        pair = pairing.pair(i, self.max_age_s)
        if isinstance(pair, str):
            return pair, None
        image = self._transmission(frame, dark, self.cache.open_beam(pair, dark))
        level = float(np.median(image))
        if not OPAQUE < level < IMPLAUSIBLE:
            word = "unmatched" if level >= IMPLAUSIBLE else "dim"
            return f"{word}: median transmission {level:.2g} against its reference", None
        return self.store.append(split, "transmission", image)

    def _transmission(self, frame: Array, dark: Image | float, open_beam: Image) -> Image:
        return transmission(bin_frame(np.asarray(frame, np.float32) - dark, self.size), open_beam)
