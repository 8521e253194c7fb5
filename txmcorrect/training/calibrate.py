"""How far a stack network, and the fit it starts from, are from what they claim; once it is trained.

A fit does not know its own mistakes, and few-step samples spread too little or too much. By how much
either errs more than it says depends on what references there are and on what the sample does: one that
turns hides the background, one that passes shows it, and overlapping tiles tell it. It is measured on whole
scans of the training family that training never draws, through what `correct` does, and travels with the
weights: `correct` weighs one against the other by it.
"""

from __future__ import annotations

from collections import defaultdict
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
from txmcorrect.judge.scenes import problem_of
from txmcorrect.simulate import SimulatedScan
from txmcorrect.simulate.calibration import scans_like_those_of_training
from txmcorrect.simulate.scans import Kind, References
from txmcorrect.weights import Model

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]
Table = dict[str, dict[str, float]]

# Of how many times as many scans: one that turns may be in any of several situations.
KINDS: dict[Kind, int] = {"film": 1, "tomo": 3, "mosaic-sparse": 1, "mosaic-dense": 1}
TAKEN: dict[str, tuple[References, bool]] = {
    "none": ("none", False),
    "one": ("stale", False),
    "before-after": ("before-after", False),
    "bank": ("stale", True),
}
ASKED = ("none",)  # with flats the linear model is fitted, and no network
TARGETS = 8  # frames of a scan
COVERED, DEVIATIONS = 0.9, 1.645  # of a normal distribution
QUANTILES = np.linspace(0, 1, 1001)  # that stand for all ratios of a scan: each counts as much
LEAST, MOST = 0.1, 100.0
FEWEST = 3  # scans that a factor is taken from


@dataclass(frozen=True)
class Calibration:
    """Error over what was claimed, by `SITUATIONS` and `REFERENCES`, so that over all scans nine errors in ten
    lie in 90 % intervals: `doubt` of the fit, `spread` of the network's samples.
    """

    doubt: Table
    spread: Table


def calibrate(model: Model, scans: int) -> Calibration:
    """Measure both on `scans` scans of each kind, or a few times as many, where the network is asked."""
    plain = replace(model, spec=replace(model.spec, extra={}))
    found: dict[tuple[str, str], list[Array]] = defaultdict(list)
    for kind, sort in product(KINDS, ASKED):
        count = KINDS[kind] * scans
        drawn = scans_like_those_of_training(kind, *TAKEN[sort], count, 4 * model.spec.size)
        for scan in drawn:
            situation, claimed = claims(plain, scan)
            found[situation, sort].append(claimed)
    doubt: Table = {situation: {} for situation in SITUATIONS}
    spread: Table = {situation: {} for situation in SITUATIONS}
    for (situation, sort), several in found.items():
        if len(several) >= min(FEWEST, scans):
            factors = np.clip(np.quantile(several, COVERED, (0, 2)) / DEVIATIONS, LEAST, MOST)
            doubt[situation][sort], spread[situation][sort] = factors.round(3).tolist()
    return Calibration(doubt, spread)


def claims(model: Model, scan: SimulatedScan) -> tuple[str, Array]:
    """The situation of a scan, and by how much fit and network are further off than they claim over some of
    its frames: `QUANTILES` of each, `(2, q)`.
    """
    problem = problem_of(scan)
    references = references_of(problem, model.spec.size)
    seen = look_at(as_scan(problem), model, references=references, dark=problem.dark)
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
    fit = ratios(base - truth, std, lit)
    network = ratios(mean.numpy() - truth, spread.numpy(), lit)
    return conditions.situation, np.stack([fit, network])


def ratios(error: Array, std: Array, lit: Mask) -> Array:
    """`QUANTILES` of errors of shape over `std`, `(n, h, w)` both."""
    apart = error[:, lit]
    apart = np.abs(apart - apart.mean(1, keepdims=True))
    return np.quantile(apart / np.maximum(std[:, lit], 1e-9), QUANTILES)


def _binned(images: Array, factor: int) -> Array:
    return np.asarray(bin_mean(torch.from_numpy(images), factor).numpy())


def as_metadata(calibration: Calibration) -> dict[str, Table]:
    """As a model's specification keeps it."""
    return {"doubt": calibration.doubt, "spread": calibration.spread}
