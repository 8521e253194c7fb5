"""A stack of frames restored as one volume: frames, and the planes across them, take turns (TPDM).

Of a corrected scan the planes are projections and sinograms, of a reconstruction slices and upright
planes. Thick slices are thinned along the stack: there the planes across are the measured ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from txmcorrect.config import RestoreSettings, UsageError
from txmcorrect.diffusion.denoiser import Noise
from txmcorrect.diffusion.guidance import Measurement
from txmcorrect.diffusion.schedules import subsequence
from txmcorrect.diffusion.volume import Agree, Volume, VolumePrior, VolumeSampler, unmeasured
from txmcorrect.physics import BlockMean, NoiseModel
from txmcorrect.restoring.prior import from_prior, of_attenuation, to_prior
from txmcorrect.restoring.problem import noise_of, pose
from txmcorrect.scan import Scan
from txmcorrect.simulate.bodies import UPRIGHT, typical
from txmcorrect.volumes import Draws, claim, draw_volumes, plane
from txmcorrect.weights import Model

MICRO_BATCH = 8  # planes at a time; fixed, so that no result depends on --memory
LOOKED_AT = 8  # frames that a unit and a noise are told from


@dataclass(frozen=True)
class RestoredStack:
    """Volumes drawn, in the prior's units; `frame(i)` gives mean and spread of a frame `(h, w)`."""

    draws: Draws
    model: Model
    margin: tuple[int, int]
    count: int
    upended: bool  # the first axis of the volumes is y, not the stack
    noise: dict[int, NoiseModel] = field(default_factory=dict)

    def frame(self, index: int) -> tuple[Tensor, Tensor | None]:
        """Mean, and of several draws the spread, in the data's units."""
        cut = (slice(None), index) if self.upended else (index,)
        found = np.stack([np.asarray(volume[cut]) for volume in self.draws.volumes])
        (my, mx), (h, w) = self.margin, found.shape[1:]
        x = torch.from_numpy(found[:, my : h - my, mx : w - mx].copy())
        mean = from_prior(x.mean(0), self.model)
        scale = float(self.model.spec.extra["scale"])
        return mean, x.std(0) * scale if len(x) > 1 else None


def restore_stack(
    settings: RestoreSettings,
    scan: Scan | None,
    model: Model,
    across: Model,
    device: torch.device,
    folder: Path,
    report: Callable[[str, int, int], None],
) -> RestoredStack:
    """Draw `samples` volumes, kept in `folder`; None for a scan means from the priors alone.

    Raises
    ------
    UsageError : a guidance or sampler was asked for that volumes do not have. TxmError : see `pose`.
    """
    if settings.guidance not in ("auto", "ddnm"):
        raise UsageError(
            f"--guidance {settings.guidance}: a stack as one volume is met by ddnm only"
        )
    if settings.sampler not in ("ddpm", "pc") or settings.record:
        raise UsageError(
            f"--sampler {settings.sampler}: a stack as one volume is drawn by pc, and not recorded"
        )
    if scan is not None and model.spec.condition == "slice":
        unit = _unit(scan)
        model, across = of_attenuation(model, unit), of_attenuation(across, unit)
    settings = settings.model_copy(update={"border": "empty"})
    noise: dict[int, NoiseModel] = {}
    upended = settings.task == "superres" and settings.axis == "stack"
    if scan is None:
        shape, margin = (settings.number, settings.size, settings.size), (0, 0)
        agree: Agree = unmeasured
    elif upended:
        n, h, w = scan.shape
        shape, margin = (h, n * settings.factor, w), (0, 0)
        agree = _thick(settings, scan, model, device, folder)
    else:
        problem = pose(settings, scan.projections.read(0, 1)[0], model, device)
        like = problem.measurement.operator.A_adjoint(problem.measurement.y)
        shape, margin = (scan.shape[0], like.shape[-2], like.shape[-1]), problem.margin
        agree = _frames(settings, scan, model, device, noise)
    frames, planes = plane(model), plane(across, UPRIGHT)
    prior = VolumePrior(planes, frames, _swapped(settings.turns)) if upended else None
    prior = prior or VolumePrior(frames, planes, settings.turns)
    levels = subsequence(model.spec.sigmas(), settings.steps)
    samplers = [
        VolumeSampler(prior, levels, Noise(settings.seed, k), agree, MICRO_BATCH, device=device)
        for k in range(settings.samples)
    ]
    draws = draw_volumes(folder, shape, samplers, report)
    count = shape[1] if upended else shape[0]
    return RestoredStack(draws, model, margin, count, upended, noise)


def _swapped(turns: float) -> float:
    """The same share of turns where primary and auxiliary plane have changed places."""
    return turns / (turns - 1) if turns > 1 else 1e9


def _unit(scan: Scan) -> float:
    """Typical attenuation of some slices."""
    index = np.linspace(0, scan.shape[0] - 1, min(scan.shape[0], LOOKED_AT)).round().astype(int)
    some = np.stack([scan.projections.read(i, i + 1)[0] for i in index])
    return typical(np.nan_to_num(some).clip(min=0).astype(np.float32))


def _frames(
    settings: RestoreSettings,
    scan: Scan,
    model: Model,
    device: torch.device,
    noise: dict[int, NoiseModel],
) -> Agree:
    """Frames meet their own measurement; what noise each has is found once."""

    def agree(x0_hat: Tensor, sigma: Tensor, slices: slice) -> Tensor:
        out = []
        frames = scan.projections.read(slices.start, slices.stop)
        for k, index in enumerate(range(slices.start, slices.stop)):
            problem = pose(settings, frames[k], model, device, noise.get(index))
            noise[index] = problem.noise
            out.append(problem.measurement.agree(x0_hat[k : k + 1], sigma))
        return torch.cat(out)

    return agree


def _thick(
    settings: RestoreSettings, scan: Scan, model: Model, device: torch.device, folder: Path
) -> Agree:
    """Planes `(stack, x)` meet the thick frames' lines."""
    thick = _mapped(scan, folder)
    index = np.linspace(0, len(thick) - 1, min(len(thick), LOOKED_AT)).round().astype(int)
    noise = noise_of(settings.noise, torch.from_numpy(np.asarray(thick[index])))
    mean = torch.tensor(float(np.mean(thick[index])))
    s2 = float(noise.variance(mean)) / float(model.spec.extra["scale"]) ** 2
    operator = BlockMean((settings.factor, 1))

    def agree(x0_hat: Tensor, sigma: Tensor, rows: slice) -> Tensor:
        lines = np.ascontiguousarray(thick[:, rows].swapaxes(0, 1))
        y = to_prior(torch.from_numpy(lines), model)[:, None].to(device)
        return Measurement(operator, y, s2).agree(x0_hat, sigma)

    return agree


def _mapped(scan: Scan, folder: Path) -> Volume:
    """The frames in a file, for every step reads lines of all of them."""
    n, h, w = scan.shape
    path = folder / "frames.f4"
    claim(path, 4 * n * h * w)
    mapped = np.memmap(path, "<f4", "r+", shape=(n, h, w))
    for i in range(n):
        mapped[i] = scan.projections.read(i, i + 1)[0]
    return mapped
