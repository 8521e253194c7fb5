"""Our own pipeline as a method that the judge can run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from txmcorrect.background.estimate import Draw
from txmcorrect.background.pipeline import Background, estimate_background
from txmcorrect.background.quality import REMARKS
from txmcorrect.background.scale import Reference
from txmcorrect.baselines import Estimate, Flats, Method, NotApplicableError, Problem
from txmcorrect.scan import ArrayFrames, Scan
from txmcorrect.weights import Model


def model_method(model: Model, draw: Draw, interval: int = 1) -> Method:
    """The pipeline behind `correct`, from a problem's frames and references to its estimate."""

    def method(problem: Problem) -> Estimate:
        if len(problem.frames) <= interval:
            raise NotApplicableError(f"expected more than {interval} frames to pair")
        scan = as_scan(problem)
        references = tuple(
            as_reference(problem, flats, name)
            for name in ("stale", "before", "after", "bank")
            if (flats := getattr(problem, name)) is not None
        )
        background = estimate_background(
            scan, model, draw, references=references, dark=problem.dark, interval=interval
        )
        return as_estimate(background, draw)

    return method


def method_name(model: Model, draw: Draw) -> str:
    """A name that changes whenever the model or the way it is sampled does."""
    kind = f"{model.spec.condition}-{model.sha256[:6]}"
    return f"model:{kind}-{draw.sampler}{draw.steps}x{draw.samples}"


def as_scan(problem: Problem) -> Scan:
    """The frames as a scan that was read from a file."""
    return Scan(
        path=Path("problem"),
        format="arrays",
        projections=ArrayFrames(problem.frames),
        darks=ArrayFrames(problem.dark[None]),
        theta=problem.theta,
        current_ma=problem.current_ma,
    )


def as_reference(problem: Problem, flats: Flats, name: str) -> Reference:
    """A reference as the pipeline takes it, scaled to the median current of the frames."""
    light = flats.counts - problem.dark
    n = len(problem.frames)
    if flats.current_ma is None or problem.current_ma is None:
        return Reference(light.mean(0, dtype=np.float32), np.zeros(n), False, name)
    usual = float(np.median(problem.current_ma))
    scale = (usual / flats.current_ma).astype(np.float32)[:, None, None]
    exposure = np.log(problem.current_ma / usual)
    return Reference((light * scale).mean(0, dtype=np.float32), exposure, True, name)


def as_estimate(background: Background, draw: Draw) -> Estimate:
    """Every frame's log background; flags that are mere remarks do not count."""
    n = len(background.amplitude)
    images = np.stack([background.log_background(i) for i in range(n)])
    std = None
    if draw.samples > 1:
        nearest = np.abs(np.arange(n)[:, None] - background.keys[None]).argmin(1)
        std = np.stack([background.key_std(int(k)) for k in nearest])
    return Estimate(
        log_background=images.astype(np.float32),
        scale="absolute" if background.scale.startswith("reference") else "relative",
        flags=(background.flag & ~np.uint32(REMARKS)) != 0,
        std=std,
    )


def candidate(model: Model, draw: Draw, interval: int = 1) -> dict[str, Method]:
    """The model under a name that tells it from others."""
    name = method_name(model, draw) + ("" if interval == 1 else f"-i{interval}")
    return {name: model_method(model, draw, interval)}
