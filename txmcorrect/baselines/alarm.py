"""A method that is right and says of every frame that it is not."""

from __future__ import annotations

import numpy as np

from txmcorrect.baselines.contract import Estimate, Image, Method, Problem


def flags_all(log_background: Image, additive: Image | None = None) -> Method:
    """Deliberately bad: the true background `(n, h, w)`, with a flag on every frame."""

    def method(problem: Problem) -> Estimate:
        flags = np.ones(len(problem.frames), np.bool_)
        return Estimate(log_background, "absolute", flags, additive=additive)

    return method
