"""Methods to compare with: what people use today, an oracle, and deliberately bad ones.

A method under test is any callable `Problem -> Estimate`; these dictionaries hold ours, and a
comparison takes any other beside them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.ndimage import gaussian_filter

from txmcorrect.baselines import eigenflats, external, frames, references
from txmcorrect.baselines.contract import (
    Estimate,
    Flats,
    Image,
    Method,
    MissingPackageError,
    NotApplicableError,
    Problem,
    correct,
)

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

# Methods that every honest judge must catch; three more need the truth (below).
BAD: dict[str, Method] = {
    "bad:blur-division": frames.blur_division,
    "bad:erase-all": frames.erase_all,
    "bad:identity": references.no_correction,
    "bad:neighbours": frames.neighbours_mean,
    "bad:any-bank": references.bank_mean,
}


def oracle(log_background: Image, additive: Image | None = None) -> Method:
    """Return the method that knows the background, `(n, h, w)`: what no method can beat."""

    def method(problem: Problem) -> Estimate:
        return Estimate(log_background, "absolute", additive=additive)

    return method


def gain_error(log_background: Image, additive: Image | None = None) -> Method:
    """Deliberately bad: the true background, one per cent too bright, vouched for."""
    return oracle((log_background + np.float32(np.log(1.01))).astype(np.float32), additive)


def over_smoothed(log_background: Image, additive: Image | None = None) -> Method:
    """Deliberately bad: corrected perfectly, then smoothed frame by frame; clean, and blurred."""

    def method(problem: Problem) -> Estimate:
        right = Estimate(log_background, "absolute", additive=additive)
        light = np.maximum(
            problem.frames - problem.dark - (0 if additive is None else additive), 0.5
        )
        wanted = gaussian_filter(correct(problem, right), (0, 2, 2))
        return replace(
            right, log_background=np.log(light / np.maximum(wanted, 1e-3)).astype(np.float32)
        )

    return method


def too_sure(log_background: Image, additive: Image | None = None) -> Method:
    """Deliberately bad: off by smooth errors of two per cent, sure to half a per cent."""

    def method(problem: Problem) -> Estimate:
        rng = np.random.default_rng(0)
        n, h, w = problem.shape

        def smooth(rms: float) -> Image:
            """Four by four slow cosine modes, frame by frame."""
            waves = [np.cos(np.pi * np.outer(np.arange(4), np.arange(s) + 0.5) / s) for s in (h, w)]
            field = np.einsum(
                "nij,iy,jx->nyx", rng.standard_normal((n, 4, 4)), *waves, optimize=True
            )
            return (rms * field / field.std((1, 2), keepdims=True)).astype(np.float32)

        found = log_background + smooth(0.02)
        return Estimate(
            found,
            "absolute",
            sampler=lambda count: np.stack([found + smooth(0.005) for _ in range(count)]),
            std=np.full((n, h, w), 0.005, np.float32),
            additive=additive,
        )

    return method
