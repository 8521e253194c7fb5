"""How far a stack network, and the fit it starts from, are from what they claim; once it is trained.

A fit does not know its own mistakes, and few-step samples spread too little or too much. By how much
either errs more than it says depends on what references there are and on what the sample does: one that
turns hides the background, one that passes shows it, and overlapping tiles tell it. It is measured on whole
scans of the training family that training never draws, through what `correct` does, and travels with the
weights: `correct` weighs one against the other by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from txmcorrect.background.conditions import bin_mean
from txmcorrect.background.estimate import Draw, draw_samples, shape_spread
from txmcorrect.background.known import SITUATIONS
from txmcorrect.background.methods import as_scan, references_of
from txmcorrect.background.pipeline import look_at
from txmcorrect.background.stack import REFERENCES
from txmcorrect.judge.scenes import problem_of
from txmcorrect.simulate import SimulatedScan
from txmcorrect.simulate.calibration import scans_like_those_of_training
from txmcorrect.simulate.scans import Kind, References
from txmcorrect.weights import Model

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Table = dict[str, dict[str, float]]

KINDS: dict[str, tuple[Kind, ...]] = {
    "passing": ("film",),
    "turning": ("tomo",),
    "standing": ("tomo",),
    "overlapping": ("mosaic-sparse", "mosaic-dense"),
}
TAKEN: dict[str, tuple[References, bool]] = {
    "none": ("none", False),
    "one": ("stale", False),
    "before-after": ("before-after", False),
    "bank": ("stale", True),
}
TARGETS = 8  # frames of a scan
COVERED, DEVIATIONS = 0.9, 1.645  # of a normal distribution
LEAST, MOST = 0.1, 100.0


@dataclass(frozen=True)
class Calibration:
    """Error over what was claimed, of the usual scan, by `SITUATIONS` and `REFERENCES`: `doubt` of the fit,
    `spread` of the network's samples.
    """

    doubt: Table
    spread: Table


def calibrate(model: Model, scans: int) -> Calibration:
    """Measure both on `scans` scans of each kind with each sort of references."""
    plain = replace(model, spec=replace(model.spec, extra={}))
    doubt: Table = {situation: {} for situation in SITUATIONS}
    spread: Table = {situation: {} for situation in SITUATIONS}
    for situation, sort in product(SITUATIONS, REFERENCES):
        if situation == "standing" and sort != "none":
            continue  # what stands is looked for where references are missing
        drawn = _drawn(situation, sort, scans, model.spec.size)
        found = [c for scan in drawn if (c := claims(plain, scan, situation)) is not None]
        if not found:
            continue
        middle = np.clip(np.median(found, 0), LEAST, MOST).round(3)
        doubt[situation][sort], spread[situation][sort] = middle.tolist()
    return Calibration(doubt, spread)


def _drawn(situation: str, sort: str, scans: int, size: int) -> Iterator[SimulatedScan]:
    references, bank = TAKEN[sort]
    for kind in KINDS[situation]:
        yield from scans_like_those_of_training(kind, references, bank, scans, 4 * size)


def claims(model: Model, scan: SimulatedScan, situation: str) -> tuple[float, float] | None:
    """By how much fit and network are further off than they claim, over some frames of a scan; None if it is
    not in that `situation` after all: nothing was found that stands.
    """
    standing = situation == "standing"
    problem = problem_of(scan)
    references = references_of(problem, model.spec.size)
    seen = look_at(
        as_scan(problem),
        model,
        references=references,
        dark=problem.dark,
        round_sample=standing,
    )
    if standing and seen.standing is None:
        return None
    usable = np.flatnonzero(seen.survey.usable)
    targets = usable[np.linspace(0, len(usable) - 1, TARGETS).astype(int)]
    conditions, factor = seen.conditions, seen.survey.factor
    assert conditions.base is not None
    base, std = conditions.base.fields(targets), conditions.base.std(targets)
    draw = Draw()
    once = replace(draw, sampler="ddim", steps=1, samples=1)
    mean = draw_samples(model, conditions.looks, targets, once)[0]
    spread = shape_spread(draw_samples(model, conditions.looks, targets, draw), mean)
    truth = np.log(np.maximum(_binned(scan.background[targets].astype(np.float32), factor), 1e-3))
    lit = _binned(scan.lit[None].astype(np.float32), factor)[0] > 0.99
    return excess(base - truth, std, lit), excess(mean.numpy() - truth, spread.numpy(), lit)


def excess(error: Array, std: Array, lit: Mask) -> float:
    """Factor on `std` `(n, h, w)` by which 90 % of the errors of shape would lie in 90 % intervals."""
    apart = error[:, lit]
    apart = np.abs(apart - apart.mean(1, keepdims=True))
    return float(np.quantile(apart / np.maximum(std[:, lit], 1e-9), COVERED) / DEVIATIONS)


def _binned(images: Array, factor: int) -> Array:
    return np.asarray(bin_mean(torch.from_numpy(images), factor).numpy())


def as_metadata(calibration: Calibration) -> dict[str, Table]:
    """As a model's specification keeps it."""
    return {"doubt": calibration.doubt, "spread": calibration.spread}
