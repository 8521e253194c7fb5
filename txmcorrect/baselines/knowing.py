"""Methods that are told the true background: the oracle, and bad ones that are wrong in one way only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.ndimage import gaussian_filter

from txmcorrect.baselines.contract import Estimate, Image, Method, Problem, correct


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
