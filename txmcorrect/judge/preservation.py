"""Known objects in raw frames must come out of a correction as they went in.

No flatness counts without: a method that erases the sample is perfectly flat.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from txmcorrect.baselines.contract import Array, Estimate, Method, Problem
from txmcorrect.judge import implants as implant
from txmcorrect.judge.trial import Finding, Trial, background_only
from txmcorrect.memo import remembered

SLOPE_SMALL = 0.02  # slopes within 1 +- this up to 64 pixels
SLOPE_LARGE = 0.05  # and within 1 +- this above
ELSEWHERE = 0.003  # log-change where nothing was implanted


def check_preservation(trial: Trial) -> Finding:
    """Multiply known objects into the raw frames; find them again after correction."""
    return preservation_finding(trial.method, trial.scene.problem, trial.estimate, trial.scene.seed)


def preservation_finding(
    method: Method, problem: Problem, estimate: Estimate, seed: int
) -> Finding:
    """The same for frames without truth: only the change that implants cause is looked at."""
    objects, implanted = _implanted(problem, seed)
    after = background_only(method)(implanted)
    change = _unscaled(after.log_background - estimate.log_background, estimate, problem.lit)
    slopes = implant.slopes(implant.recovered(objects, change, problem.lit))
    outside = implant.elsewhere_rms(objects, change, problem.lit)
    figures = {f"slope_{size}": value for size, value in slopes.items()} | {"elsewhere": outside}
    return Finding(slopes_pass(slopes) and outside < ELSEWHERE, figures)


@remembered()
def _implanted(problem: Problem, seed: int) -> tuple[list[implant.Implant], Problem]:
    """Objects and the frames that hold them: made once for all methods."""
    objects = implant.draw_implants(problem.shape, seed, problem.position_px)
    return objects, implant.implant_into(problem, objects)


def slopes_pass(slopes: dict[int, float]) -> bool:
    """0.98-1.02 up to 64 pixels, 0.95-1.05 above."""
    return all(
        abs(value - 1) <= (SLOPE_SMALL if size <= 64 else SLOPE_LARGE)
        for size, value in slopes.items()
    )


def _unscaled(change: Array, estimate: Estimate, lit: NDArray[np.bool_]) -> Array:
    """Take out the one constant that a relative scale leaves open for the whole scan."""
    if estimate.scale == "absolute":
        return change
    return np.asarray(change - np.median(change[:, lit]))
