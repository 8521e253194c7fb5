"""The references of a training set: screened, dark-corrected, normalised, binned, stored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path

import numpy as np

from txmcorrect.harvest.manifest import Entry
from txmcorrect.harvest.pairing import Flats, mean_frame
from txmcorrect.harvest.screen import DIM_SHARE, Screen
from txmcorrect.harvest.split import split_frames, split_units
from txmcorrect.harvest.store import TrainingSet, bin_frame
from txmcorrect.scan import FloatArray, References

Progress = Callable[[str, int, int], None]


class Bank:
    """All references found, with what is wrong with each frame ("" if nothing)."""

    def __init__(self, found: list[tuple[Path, References]]) -> None:
        self.paths = [path for path, _ in found]
        self.groups = [group for _, group in found]
        self.faults = [[""] * group.frames.shape[0] for group in self.groups]
        self.total = sum(map(len, self.faults))

    def screen(self, screen: Screen, progress: Progress) -> None:
        """Find dead, saturated, repeated and dim frames."""
        levels: list[FloatArray] = []
        done = 0
        for path, group, faults in zip(self.paths, self.groups, self.faults, strict=True):
            dark = float(np.mean(mean_frame(group.darks)))
            level = np.zeros(len(faults))
            for j in range(len(faults)):
                frame = group.frames.read(j, j + 1)[0]
                faults[j] = screen.check(frame, f"{path} ({group.origin}) frame {j}")
                level[j] = (float(frame.mean(dtype=np.float64)) - dark) / exposure_of(group)[j]
                done += 1
                progress("screening", done, self.total)
            levels.append(level)
        self._find_dim(levels)

    def _find_dim(self, levels: list[FloatArray]) -> None:
        """Compare each level with the median of those taken alike."""
        alike: dict[Hashable, list[float]] = defaultdict(list)
        kinds = [self._kind(k) for k in range(len(self.groups))]
        for kind, level, faults in zip(kinds, levels, self.faults, strict=True):
            alike[kind] += [v for v, fault in zip(level, faults, strict=True) if not fault]
        for kind, level, faults in zip(kinds, levels, self.faults, strict=True):
            usual = float(np.median(alike[kind])) if alike[kind] else 0.0
            for j, value in enumerate(level):
                if not faults[j] and value <= DIM_SHARE * usual:
                    faults[j] = (
                        f"dim: {100 * value / usual if usual else 0:.2g} % of the usual counts"
                    )

    def _kind(self, k: int) -> Hashable:
        """What makes levels comparable."""
        group = self.groups[k]
        known = (group.exposure_s is None, group.current_ma is None)
        return group.frames.shape[1:], group.optics, known

    def flats(self) -> list[Flats]:
        """The groups as pairing wants them."""
        return [
            Flats(k, group, np.array([not fault for fault in faults], bool))
            for k, (group, faults) in enumerate(zip(self.groups, self.faults, strict=True))
        ]

    def store(
        self,
        store: TrainingSet,
        size: int,
        share: float,
        seed: int,
        scans: Mapping[Path, str],
        progress: Progress,
    ) -> list[Entry]:
        """Store the good frames; counts are divided by exposure and current where recorded.

        `scans` gives the split of each scan; references inside a scan go where it goes.
        """
        entries, done = [], 0
        for k, split in enumerate(self._splits(share, seed, scans)):
            group = self.groups[k]
            entry = Entry(self.paths[k], "reference", "/".join(sorted(set(split))))
            entry.about = {"origin": group.origin, "shape": list(group.frames.shape)}
            dark, factors = mean_frame(group.darks), exposure_of(group)
            for j, fault in enumerate(self.faults[k]):
                if fault:
                    entry.note(j, fault)
                else:
                    counts = bin_frame(group.frames.read(j, j + 1)[0] - dark, size)
                    factor = float(factors[j])
                    place = store.append(split[j], "reference", counts / np.float32(factor), factor)
                    entry.note(j, *place)
                done += 1
                progress("references", done, self.total)
            entries.append(entry)
        return entries

    def _splits(self, share: float, seed: int, scans: Mapping[Path, str]) -> list[list[str]]:
        """Split of each frame of each group: that of its scan, or by file.

        Where a shape has but one file of references, the last of its frames are for validation.
        """
        shapes = [group.frames.shape[1:] for group in self.groups]
        by_file = split_units(self.paths, shapes, share, seed)
        files: dict[Hashable, set[Path]] = defaultdict(set)
        for shape, path in zip(shapes, self.paths, strict=True):
            files[shape].add(path)
        chosen = []
        for shape, path, split, faults in zip(
            shapes, self.paths, by_file, self.faults, strict=True
        ):
            whole = [scans.get(path, split)] * len(faults)
            alone = len(files[shape]) == 1 and path not in scans
            chosen.append(split_frames(len(faults), share) if alone else whole)
        return chosen


def exposure_of(group: References) -> FloatArray:
    """Exposure times current of each flat; 1 for what is not recorded or not positive."""
    factors = np.ones(group.frames.shape[0])
    for values in (group.exposure_s, group.current_ma):
        if values is not None and (values > 0).all():
            factors = factors * values
    return factors
