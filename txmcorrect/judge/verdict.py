"""All checks by name, and what they add up to."""

from __future__ import annotations

from collections.abc import Callable

from txmcorrect.baselines.contract import Method
from txmcorrect.judge import checks
from txmcorrect.judge.preservation import check_preservation
from txmcorrect.judge.scenes import Scene
from txmcorrect.judge.tomogram import check_slices
from txmcorrect.judge.trial import Finding, Trial, start_trial

CHECKS: dict[str, Callable[[Trial], Finding]] = {
    "quality": checks.check_quality,
    "gain": checks.check_gain,
    "preservation": check_preservation,
    "null": checks.check_null,
    "neighbours": checks.check_neighbours,
    "flags": checks.check_flags,
    "wrong-bank": checks.check_wrong_bank,
    "calibration": checks.check_calibration,
    "slices": check_slices,
}
# A method that fails one of these is not trusted.
CRITICAL = ("gain", "preservation", "null", "neighbours")


def judge(
    method: Method, scene: Scene, names: tuple[str, ...] = tuple(CHECKS)
) -> dict[str, Finding]:
    """Run a method through the checks on one scene."""
    trial = start_trial(method, scene)
    return {name: CHECKS[name](trial) for name in names}


def trusted(findings: dict[str, Finding]) -> bool:
    """Whether no critical check failed."""
    return all(findings[name].passed is not False for name in CRITICAL if name in findings)
