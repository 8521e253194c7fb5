"""`restore`: denoise, deblur, superresolve or inpaint frames with a prior of samples."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from txmcorrect.config import RestoreSettings, UsageError
from txmcorrect.diffusion.denoiser import Denoiser
from txmcorrect.errors import TxmError
from txmcorrect.formats import open_scan
from txmcorrect.progress import Stages
from txmcorrect.report.restoration import write_comparison, write_trajectory
from txmcorrect.restoring.draw import Restored, denoise_frame, generate_frame, restore_frame
from txmcorrect.restoring.output import assemble, frame_name
from txmcorrect.restoring.prior import load_prior, patch_prior
from txmcorrect.restoring.problem import Problem, pose
from txmcorrect.result import Result
from txmcorrect.scan import Scan
from txmcorrect.stream import PartFolder, run_signature
from txmcorrect.weights import Model

log = logging.getLogger(__name__)


def run(settings: RestoreSettings) -> Result:
    """Restore every frame; finished frames survive a kill, and the same command goes on."""
    scan, out = _open(settings), output_path(settings)
    device = _device(settings.device)
    model = load_prior(settings.model, device)
    if model.spec.condition == "denoise" and settings.task != "denoise":
        raise UsageError(
            f"--task {settings.task} needs a prior, and {settings.model} is a denoiser"
        )
    # Seams wander over many evaluations; a single one must not have any.
    assembly = "average" if settings.sampler == "mean" else settings.assembly
    prior = patch_prior(model, settings.memory, assembly)
    inputs = [p for p in (settings.scan, settings.mask, settings.psf_file) if p is not None]
    for path in inputs:
        if not path.exists():
            raise TxmError(f"{path}: no such file or folder")
    signature = run_signature(settings.model_dump(mode="json"), inputs, model.sha256)
    count = settings.number if scan is None else scan.shape[0]
    with PartFolder(out, signature, overwrite=settings.overwrite) as part:
        pictures = _restore_all(settings, scan, prior, model, device, part, count)
        facts = {
            "task": settings.task,
            "options": settings.model_dump(mode="json"),
            "model_sha256": model.sha256,
            "seed": settings.seed,
        }
        assemble(part, count, None if scan is None else scan.theta, facts)
    return Result((out, *pictures), f"{out}: {count} frame(s), {settings.task}, {_how(settings)}")


def output_path(settings: RestoreSettings) -> Path:
    """`--out`, or `<stem>.restored.h5` beside the scan."""
    if settings.out is not None:
        return settings.out
    stem = settings.scan.with_suffix("") if settings.scan is not None else Path("generated")
    return stem.with_name(stem.name + ".restored.h5")


def _open(settings: RestoreSettings) -> Scan | None:
    if settings.task == "generate":
        if settings.scan is not None:
            raise UsageError("--task generate takes no scan")
        return None
    if settings.scan is None:
        raise UsageError(f"--task {settings.task} needs a SCAN to restore")
    if settings.sampler == "mean" and settings.task != "denoise":
        raise UsageError("--sampler mean serves --task denoise only; use ddpm")
    scan = open_scan(
        settings.scan,
        data_path=settings.data_path,
        flat_path=settings.flat_path,
        dark_path=settings.dark_path,
        angle_path=settings.angle_path,
        reader=settings.reader,
    )
    return scan.select(slice(*settings.frames)) if settings.frames else scan


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise TxmError("--device cuda: no CUDA device was found; use --device cpu")
    available = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(available if wanted == "auto" else wanted)


def _restore_all(
    settings: RestoreSettings,
    scan: Scan | None,
    prior: Denoiser,
    model: Model,
    device: torch.device,
    part: PartFolder,
    count: int,
) -> list[Path]:
    """Restore what is not stored yet; returns the pictures of the first frame."""
    pictures: list[Path] = []
    each = settings.samples if scan is not None and settings.sampler != "mean" else 1
    with Stages(settings.quiet, "samples") as stages, torch.no_grad():
        for index in range(count):
            if frame_name(index) in part.names():
                continue
            tell = _counter(stages, index * each, count * each)
            if scan is None:
                problem, found = None, generate_frame(settings, prior, model, index, device)
            else:
                problem = pose(settings, scan.projections.read(index, index + 1)[0], model, device)
                restore = denoise_frame if model.spec.condition == "denoise" else restore_frame
                found = restore(settings, prior, model, problem, tell)
            _store(part, index, found, problem)
            if index == 0:
                pictures = _draw(part.out, problem, found)
    return pictures


def _counter(stages: Stages, done: int, total: int) -> Callable[[], None]:
    """Count samples on the progress line."""
    state = [done]

    def tell() -> None:
        state[0] += 1
        stages("restore", state[0], total)

    return tell


def _store(part: PartFolder, index: int, found: Restored, problem: Problem | None) -> None:
    noise = np.zeros(2) if problem is None else np.array([problem.noise.floor, problem.noise.gain])
    arrays = {"mean": found.mean.numpy(), "noise": noise}
    if found.std is not None:
        arrays["std"] = found.std.numpy()
    part.save_arrays(frame_name(index), **arrays)


def _draw(out: Path, problem: Problem | None, found: Restored) -> list[Path]:
    """Pictures beside the result."""
    pictures: list[Path] = []
    if problem is not None:
        pictures.append(out.with_suffix(".png"))
        std = None if found.std is None else found.std.numpy()
        write_comparison(pictures[0], problem.frame.numpy(), found.mean.numpy(), std)
    if found.trajectory:
        steps = [(sigma, image.numpy()) for sigma, image in found.trajectory]
        pictures += write_trajectory(out, steps)
    return pictures


def _how(settings: RestoreSettings) -> str:
    if settings.sampler == "mean":
        return "posterior mean in one evaluation, no spread"
    samples = 1 if settings.task == "generate" else settings.samples
    return f"{samples} sample(s) of {settings.steps} levels by {settings.sampler}"
