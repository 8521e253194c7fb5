"""Which flats a sample frame is divided by: those that match, nearest in time where dates exist."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from txmcorrect.errors import ReferenceMismatchError
from txmcorrect.harvest.store import bin_frame
from txmcorrect.matching import MatchedReferences, match_references
from txmcorrect.scan import Frames, References, Scan

Image = NDArray[np.float32]
BURST_S = 60.0  # flats closer in time than this to the nearest one are averaged with it
CACHED = 32


@dataclass
class Flats:
    """References with what screening left of them: `good` is `(m,)`; `id` is unique."""

    id: int
    references: References
    good: NDArray[np.bool_]


@dataclass(frozen=True)
class Pair:
    """Flats for one frame: their mean, times `factor`, is the open-beam frame, dark removed."""

    flats: Flats
    index: tuple[int, ...]
    weights: tuple[float, ...]
    factor: float
    age_s: float | None


def mean_frame(frames: Frames | None) -> Image | float:
    """Mean of a stack, read one frame at a time; 0 without one."""
    if frames is None:
        return 0.0
    total = np.zeros(frames.shape[1:], np.float64)
    for i in range(frames.shape[0]):
        total += frames.read(i, i + 1)[0]
    return (total / frames.shape[0]).astype(np.float32)


class Pairing:
    """The flats at hand for one scan: its own, or else those of the pool that match it.

    Raises
    ------
    ReferenceMismatchError : none matches.
    """

    def __init__(self, scan: Scan, own: list[Flats], pool: Iterable[Flats], force: bool) -> None:
        self.scan = scan
        self._refusal = "no usable reference at hand"
        self.candidates = [found for f in own if (found := self._match(f, force))]
        if not self.candidates:
            self.candidates = [
                found
                for f in pool
                if self._comparable(f, force) and (found := self._match(f, force))
            ]
        if not self.candidates:
            raise ReferenceMismatchError(self._refusal)

    def _match(self, flats: Flats, force: bool) -> tuple[Flats, MatchedReferences] | None:
        """References with their factors for this scan, if they match and any is usable."""
        if not flats.good.any():
            return None
        try:
            return flats, match_references(self.scan, flats.references, force)[0]
        except ReferenceMismatchError as error:
            self._refusal = str(error)
            return None

    def _comparable(self, flats: Flats, force: bool) -> bool:
        """Whether both sides record their optics, or neither does; a mixture may be anything."""
        ours, theirs = self.scan.optics, flats.references.optics
        for name in ("energy_ev", "binning"):
            known = [
                side for side, o in (("samples", ours), ("references", theirs)) if getattr(o, name)
            ]
            if len(known) == 1 and not force:
                what = name.removesuffix("_ev")
                self._refusal = f"only the {known[0]} record their {what}; insist with --force"
                return False
        return True

    def pair(self, i: int, max_age_s: float) -> Pair | str:
        """Flats for frame i, or why there are none."""
        dated = self._nearest_in_time(i)
        if dated is None:
            return self._nearest_in_order(i)
        flats, match, index, age = dated
        if age > max_age_s:
            return f"no reference within {max_age_s / 3600:g} h (the nearest is {age / 3600:.1f} h away)"
        return self._make(flats, match, index, i, age)

    def _nearest_in_time(
        self, i: int
    ) -> tuple[Flats, MatchedReferences, NDArray[np.intp], float] | None:
        """The burst of flats nearest to a frame; None without dates on both sides."""
        if self.scan.time_s is None:
            return None
        best = None
        for flats, match in self.candidates:
            times = flats.references.time_s
            if times is None:
                continue
            gaps = np.where(flats.good, np.abs(times - self.scan.time_s[i]), np.inf)
            if best is None or gaps.min() < best[3]:
                near = np.abs(times - times[gaps.argmin()]) <= BURST_S
                best = flats, match, np.flatnonzero(near & flats.good), float(gaps.min())
        return best

    def _nearest_in_order(self, i: int) -> Pair:
        """Without dates: the flats taken nearest in the scan's order, or else all of a group."""
        flats, match = self.candidates[0]
        good = np.flatnonzero(flats.good)
        before = flats.references.before
        if before is not None:
            gaps = np.abs(before[good] - (i + 0.5))
            good = good[before[good] == before[good][gaps.argmin()]]
        return self._make(flats, match, good, i, None)

    def _make(
        self,
        flats: Flats,
        match: MatchedReferences,
        index: NDArray[np.intp],
        i: int,
        age: float | None,
    ) -> Pair:
        weights = tuple(float(s) for s in match.scale[index])
        return Pair(flats, tuple(int(j) for j in index), weights, float(match.frame_scale[i]), age)


class FlatCache:
    """Mean flats, dark removed and binned; the last few are kept."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[tuple[object, ...], Image] = OrderedDict()

    def open_beam(self, pair: Pair, scan_dark: Image | float) -> Image:
        """Mean of a pair's flats, binned, as they would be at the frame's exposure and current."""
        key = (pair.flats.id, pair.index, pair.weights)
        if key not in self._kept:
            self._kept[key] = self._mean(pair, scan_dark)
            if len(self._kept) > CACHED:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key] * np.float32(pair.factor)

    def _mean(self, pair: Pair, scan_dark: Image | float) -> Image:
        references = pair.flats.references
        dark = scan_dark if references.darks is None else mean_frame(references.darks)
        total = np.zeros(references.frames.shape[1:], np.float64)
        for j, weight in zip(pair.index, pair.weights, strict=True):
            total += weight * (references.frames.read(j, j + 1)[0] - dark)
        return bin_frame(total / len(pair.index), self._size)
