"""Training and validation never share a scan, nor, where there are several, a file of references."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

TRAIN, VALIDATION = "train", "validation"


def split_units(
    units: Sequence[Hashable], kinds: Sequence[Hashable], share: float, seed: int
) -> list[str]:
    """Split of each item: items of one unit stay together, and each kind is split for itself.

    A kind with a single unit goes to training whole.
    """
    members: dict[Hashable, list[Hashable]] = defaultdict(list)
    for unit, kind in zip(units, kinds, strict=True):
        if unit not in members[kind]:
            members[kind].append(unit)
    kept: set[tuple[Hashable, Hashable]] = set()
    for kind, names in members.items():
        order = np.random.default_rng(seed).permutation(len(names))
        kept |= {(kind, names[k]) for k in order[: _count(len(names), share)]}
    return [
        VALIDATION if (kind, unit) in kept else TRAIN
        for unit, kind in zip(units, kinds, strict=True)
    ]


def split_frames(n: int, share: float) -> list[str]:
    """Split of n frames of one file: the last ones are for validation."""
    kept = _count(n, share)
    return [TRAIN] * (n - kept) + [VALIDATION] * kept


def _count(n: int, share: float) -> int:
    """How many of n to keep for validation: some, but never all."""
    return 0 if share == 0 or n < 2 else min(max(1, round(share * n)), n - 1)
