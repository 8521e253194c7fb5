"""One method on one scene, and what a check finds."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from txmcorrect.baselines.contract import Array, Estimate, Method
from txmcorrect.judge.scenes import Scene


@dataclass(frozen=True)
class Finding:
    """What a check measured; `passed` is None where the check says nothing about this method."""

    passed: bool | None
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One method on one scene, with its plain estimate, which most checks start from."""

    method: Method
    scene: Scene
    estimate: Estimate

    @property
    def lit(self) -> NDArray[np.bool_]:
        """Pixels that count, `(h, w)`."""
        return self.scene.problem.lit


def background_only(method: Method) -> Method:
    """The cheapest way to a method's background: without flags and spread, if it offers one.

    A method may carry a `background_only` that finds the very same `log_background` and `scale`.
    """
    cheap: Method = getattr(method, "background_only", method)
    return cheap


def start_trial(method: Method, scene: Scene) -> Trial:
    """Run the method once, as it is meant to be used."""
    return Trial(method, scene, method(scene.problem))


def log_error(estimate: Estimate, scene: Scene) -> Array:
    """Log of found over true background `(n, h, w)`."""
    return np.asarray(estimate.log_background - scene.truth.log_background)
