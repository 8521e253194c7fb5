"""Whole scans of the family that training draws from: what a trained model's claims are measured on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import numpy as np

from txmcorrect.simulate.beam import DRIFTS
from txmcorrect.simulate.scans import Kind, References, SimulatedScan, simulate_scan

FIRST = 1_000_000  # seed; scans before it serve other purposes
FRAMES, BANK = 24, 12
LEAST_COUNTS, MOST_COUNTS = 1000.0, 20000.0
LEAST_OVERLAP, MOST_OVERLAP = 0.05, 0.2


def scans_like_those_of_training(
    kind: Kind, references: References, bank: bool, count: int, side: int
) -> Iterator[SimulatedScan]:
    """`count` scans with drifts, counts and overlaps as they come, frames of `side` x `side` pixels."""
    sort = 3 if bank else get_args(References).index(references)
    for seed in range(FIRST, FIRST + count):
        rng = np.random.default_rng([seed, sort, get_args(Kind).index(kind)])
        yield simulate_scan(
            kind,
            str(rng.choice(list(DRIFTS))),
            float(np.exp(rng.uniform(np.log(LEAST_COUNTS), np.log(MOST_COUNTS)))),
            (side, side),
            int(rng.integers(2**31)),
            "train",
            references,
            FRAMES,
            overlap=float(rng.uniform(LEAST_OVERLAP, MOST_OVERLAP)),
            bank=BANK if bank else 0,
        )
