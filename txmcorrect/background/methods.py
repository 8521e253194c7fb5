"""Our pipelines as methods that the judge can run: `Problem` -> `Estimate`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from txmcorrect.background.conditions import bin_mean, working_bin
from txmcorrect.background.estimate import Draw
from txmcorrect.background.pipeline import Background, estimate_background
from txmcorrect.background.quality import REMARKS
from txmcorrect.background.scale import Reference
from txmcorrect.baselines.contract import Estimate, Flats, Method, NotApplicableError, Problem
from txmcorrect.scan import ArrayFrames, Scan
from txmcorrect.weights import Model


def pair_method(model: Model, draw: Draw) -> Method:
    """Source 0's condition: a frame and its neighbour; references give fixed pattern and scale."""

    def method(problem: Problem) -> Estimate:
        return _estimate(problem, model, draw, settle_keys=5)

    return method


def stack_method(model: Model, draw: Draw) -> Method:
    """The window of frames around each, and every reference there is."""

    def method(problem: Problem) -> Estimate:
        return _estimate(problem, model, draw, settle_keys=SETTLE_STACK)

    return method


Placed = tuple[Flats | None, int | None]  # flats, and how many frames were taken before them
SETTLE_STACK = 5  # key frames; see `keyframes.settle`
METHODS: dict[str, Callable[[Model, Draw], Method]] = {"pair": pair_method, "stack": stack_method}


def _estimate(problem: Problem, model: Model, draw: Draw, settle_keys: int) -> Estimate:
    if len(problem.frames) < 2:
        raise NotApplicableError("expected at least two frames, got one")
    scan = Scan(
        path=Path("problem"),
        format="arrays",
        projections=ArrayFrames(problem.frames),
        darks=ArrayFrames(problem.dark[None]),
        theta=problem.theta,
        current_ma=problem.current_ma,
    )
    background = estimate_background(
        scan,
        model,
        draw,
        references=references_of(problem, model.spec.size),
        dark=problem.dark,
        settle_keys=settle_keys,
    )
    return as_estimate(background, draw)


def references_of(problem: Problem, size: int) -> tuple[Reference, ...]:
    """A problem's references as the pipeline takes them: the bank first, the scan's own last."""
    n = len(problem.frames)
    bank: list[Placed] = [(problem.bank, None)]
    own: list[Placed] = [(problem.stale, 0), (problem.before, 0), (problem.after, n)]
    found = []
    for name, members in (("bank", bank), ("scan", own)):
        present = [(flats, place) for flats, place in members if flats is not None]
        if present:
            found.append(_reference(problem, name, present, size))
    return tuple(found)


def _reference(
    problem: Problem, name: str, members: list[tuple[Flats, int | None]], size: int
) -> Reference:
    """Flats of one or two moments, or a bank, scaled to the median current of the frames."""
    counts = np.concatenate([f.counts for f, _ in members]) - problem.dark
    currents = [f.current_ma for f, _ in members if f.current_ma is not None]
    known = problem.current_ma is not None and len(currents) == len(members)
    exposure = np.zeros(len(problem.frames))
    if problem.current_ma is not None and known:
        usual = float(np.median(problem.current_ma))
        counts = counts * (usual / np.concatenate(currents)).astype(np.float32)[:, None, None]
        exposure = np.log(problem.current_ma / usual)
    factor = working_bin((counts.shape[1], counts.shape[2]), size)
    before = None
    if members[0][1] is not None:
        before = np.concatenate([np.full(len(f.counts), p) for f, p in members]).astype(np.intp)
    return Reference(
        counts.mean(0, dtype=np.float32),
        exposure,
        known,
        name,
        bin_mean(torch.from_numpy(counts.astype(np.float32)), factor).numpy(),
        before,
    )


def as_estimate(background: Background, draw: Draw) -> Estimate:
    """Every frame's log background; flags that are mere remarks do not count."""
    n = len(background.amplitude)
    std = None
    if draw.samples > 1:
        nearest = np.abs(np.arange(n)[:, None] - background.keys[None]).argmin(1)
        std = np.stack([background.key_std(int(k)) for k in nearest])
    return Estimate(
        log_background=np.stack([background.log_background(i) for i in range(n)]),
        scale="absolute" if background.scale.startswith("reference") else "relative",
        flags=(background.flag & ~np.uint32(REMARKS)) != 0,
        std=std,
    )
