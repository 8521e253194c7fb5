"""Methods to compare with: what people use today, an oracle, and deliberately bad ones.

A method under test is any callable `Problem -> Estimate`; these dictionaries hold ours, and a
comparison takes any other beside them.
"""

from __future__ import annotations

from txmcorrect.baselines import eigenflats, external, frames, references
from txmcorrect.baselines.alarm import flags_all
from txmcorrect.baselines.contract import (
    Estimate,
    Flats,
    Method,
    MissingPackageError,
    NotApplicableError,
    Problem,
    correct,
)
from txmcorrect.baselines.knowing import gain_error, oracle, over_smoothed, too_sure

__all__ = [
    "BAD",
    "PEERS",
    "Estimate",
    "Flats",
    "Method",
    "MissingPackageError",
    "NotApplicableError",
    "Problem",
    "correct",
    "flags_all",
    "gain_error",
    "oracle",
    "over_smoothed",
    "too_sure",
]

PEERS: dict[str, Method] = {
    "none": references.no_correction,
    "stale": references.stale,
    "bank-mean": references.bank_mean,
    "interpolated": references.interpolated,
    "shift-registered": references.shift_registered,
    "smoothed-ratio": references.smoothed_ratio,
    "double-flat": references.double_flat_field,
    "stack-mean": frames.stack_mean,
    "stack-median": frames.stack_median,
    "stack-quantile": frames.stack_quantile,
    "pair-mean": frames.pair_mean,
    "pair-smoothed": frames.pair_smoothed_mean,
    "eigen-flats": eigenflats.eigen_flats,
    "robust-eigen-flats": eigenflats.robust_eigen_flats,
    "nabu-pca": external.nabu_pca,
    "basic": external.basic,
}

# Methods that every honest judge must catch; four more need the truth (`knowing`, `alarm`).
BAD: dict[str, Method] = {
    "bad:blur-division": frames.blur_division,
    "bad:erase-all": frames.erase_all,
    "bad:identity": references.no_correction,
    "bad:neighbours": frames.neighbours_mean,
    "bad:any-bank": references.bank_mean,
}
