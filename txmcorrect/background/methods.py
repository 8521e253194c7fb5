"""Our pipelines as methods that the judge can run: `Problem` -> `Estimate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from txmcorrect.background.conditions import bin_mean, working_bin
from txmcorrect.background.course import Background
from txmcorrect.background.estimate import Draw, batches_of, draw_deviations
from txmcorrect.background.keyframes import nearest_keys
from txmcorrect.background.noise import Pairs
from txmcorrect.background.pipeline import estimate_background
from txmcorrect.background.quality import REMARKS
from txmcorrect.background.scale import Reference
from txmcorrect.baselines.contract import Estimate, Flats, Method, NotApplicableError, Problem
from txmcorrect.scan import ArrayFrames, Scan
from txmcorrect.weights import Model


def pair_method(model: Model, draw: Draw, interval: int = 1, settle_keys: int = 15) -> Method:
    """Source 0's condition: a frame and its neighbour; references give fixed pattern and scale.

    `settle_keys` 1, one sample and one evaluation after another is source 0's own recipe.
    """

    def method(problem: Problem) -> Estimate:
        return _estimate(problem, model, draw, interval, settle_keys)

    return method


def stack_method(model: Model, draw: Draw, interval: int = 1) -> Method:
    """The window of frames around each, and every reference there is; pairs' `interval` is unused."""

    def method(problem: Problem) -> Estimate:
        return _estimate(problem, model, draw, 1, SETTLE_STACK)

    return method


Placed = tuple[Flats | None, int | None]  # flats, and how many frames were taken before them
SETTLE_STACK = 15  # key frames; see `keyframes.settle`
METHODS: dict[str, Callable[[Model, Draw, int], Method]] = {
    "pair": pair_method,
    "stack": stack_method,
}


def _estimate(
    problem: Problem, model: Model, draw: Draw, interval: int, settle_keys: int
) -> Estimate:
    if len(problem.frames) <= interval:
        raise NotApplicableError(
            f"expected more than {interval} frames, got {len(problem.frames)}: nothing to pair with"
        )
    background = estimate_background(
        as_scan(problem),
        model,
        draw,
        references=references_of(problem, model.spec.size),
        dark=problem.dark,
        interval=interval,
        settle_keys=settle_keys,
    )
    return as_estimate(background, model, draw)


def as_scan(problem: Problem) -> Scan:
    """The frames as a scan that was read from a file."""
    return Scan(
        path=Path("problem"),
        format="arrays",
        projections=ArrayFrames(problem.frames),
        darks=ArrayFrames(problem.dark[None]),
        theta=problem.theta,
        current_ma=problem.current_ma,
        corner_px=problem.position_px,
    )


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
    counts = counts.astype(np.float32)
    pairs = Pairs()
    for flat in counts:
        pairs.also(flat)
    before = None
    if members[0][1] is not None:
        before = np.concatenate([np.full(len(f.counts), p) for f, p in members]).astype(np.intp)
    return Reference(
        counts.mean(0, dtype=np.float32),
        exposure,
        known,
        name,
        bin_mean(torch.from_numpy(counts), factor).numpy(),
        before,
        pairs.of_mean(),
        counts.__getitem__,
    )


def as_estimate(background: Background, model: Model, draw: Draw) -> Estimate:
    """Every frame's log background; flags that are mere remarks do not count."""
    std, n = None, len(background.amplitude)
    if draw.samples > 1:
        std = np.stack([background.key_std(int(k)) for k in nearest_keys(background.keys, n)])
    return Estimate(
        log_background=np.stack([background.log_background(i) for i in range(n)]),
        scale="absolute" if background.scale.startswith("reference") else "relative",
        # What is noted of a run, such as a bank of another optic, is a doubt about all frames.
        flags=((background.flag & ~np.uint32(REMARKS)) != 0) | bool(background.notes),
        sampler=None if draw.samples == 1 else partial(sample_background, background, model, draw),
        std=std,
    )


def sample_background(
    background: Background, model: Model, draw: Draw, count: int
) -> NDArray[np.float32]:
    """Draws of the log background about the one that was found, `(count, n, h, w)`.

    What is drawn is the spread, that of the nearest key frame: what the fit leaves open, samples less
    their own mean, and the grain of the fixed pattern. The mean is the result itself, which is settled
    over key frames and levelled.
    """
    conditions = background.conditions
    assert conditions is not None
    several = replace(draw, samples=count)
    keys, spread = background.keys, []
    for batch, keep in batches_of(keys):
        spread.append(draw_deviations(model, conditions, batch, several)[:, :keep].numpy())
    small = np.concatenate(spread, 1)
    shape = background.lit.shape
    out = np.empty((count, len(background.amplitude), *shape), np.float32)
    # The pattern is one for all frames, and so is what its photon noise makes of it.
    noise = np.random.default_rng(draw.seed).standard_normal((count, *shape), np.float32)
    grain = np.float32(background.grain) * noise
    for frame, key in enumerate(nearest_keys(keys, len(background.amplitude))):
        found = background.log_background(frame)
        for k in range(count):
            out[k, frame] = found + background.native(small[k, key]) + grain[k]
    return out
