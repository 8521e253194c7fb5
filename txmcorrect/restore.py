"""`restore`: denoise, deblur, superresolve or inpaint frames with a prior of samples."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from txmcorrect.config import FrameSlice, RestoreSettings, UsageError
from txmcorrect.diffusion.denoiser import Denoiser
from txmcorrect.errors import TxmError
from txmcorrect.formats import open_scan
from txmcorrect.physics import NoiseModel
from txmcorrect.progress import Stages
from txmcorrect.report.restoration import restoration_report, write_comparison, write_trajectory
from txmcorrect.restoring.draw import Restored, denoise_frame, generate_frame, restore_frame
from txmcorrect.restoring.output import assemble, frame_name
from txmcorrect.restoring.prior import load_prior, patch_prior
from txmcorrect.restoring.problem import Problem, pose
from txmcorrect.restoring.stack import restore_stack
from txmcorrect.result import Result
from txmcorrect.scan import ArrayFrames, Scan
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
    across = _across(settings, model, device)
    hashes = model.sha256 + (across.sha256 if across else "")
    signature = run_signature(settings.model_dump(mode="json"), inputs, hashes)
    count = settings.number if scan is None else scan.shape[0]
    with PartFolder(out, signature, overwrite=settings.overwrite) as part:
        if across:
            pictures, count = _restore_volume(settings, scan, model, across, device, part)
        else:
            pictures = _restore_all(settings, scan, prior, model, device, part, count)
        facts = {
            "task": settings.task,
            "options": settings.model_dump(mode="json"),
            "model_sha256": model.sha256,
            "seed": settings.seed,
        }
        theta = scan.theta if scan is not None and count == scan.shape[0] else None
        assemble(part, count, theta, facts)
    return Result((out, *pictures), f"{out}: {count} frame(s), {settings.task}, {_how(settings)}")


def _across(settings: RestoreSettings, model: Model, device: torch.device) -> Model | None:
    """Prior of the planes across the frames, where the stack is to be restored as one volume."""
    if settings.across is not None:
        return load_prior(settings.across, device)
    if model.spec.condition == "slice":
        return model  # it knows both planes
    if settings.axis == "stack":
        raise UsageError("--axis stack needs the planes across: give their prior with --across")
    return None


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
    if settings.task == "fourier":
        return _open_frequencies(settings.scan, settings.frames)
    scan = open_scan(
        settings.scan,
        data_path=settings.data_path,
        flat_path=settings.flat_path,
        dark_path=settings.dark_path,
        angle_path=settings.angle_path,
        reader=settings.reader,
    )
    return scan.select(slice(*settings.frames)) if settings.frames else scan


def _open_frequencies(path: Path, frames: FrameSlice | None) -> Scan:
    """Complex frequencies `(n, h, w)` or `(h, w)` of a npy file."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise TxmError(f"{path}: expected a npy file of complex frequencies ({error})") from None
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3:
        raise TxmError(f"{path}: expected frequencies (n, h, w), got shape {array.shape}")
    scan = Scan(path, "npy", ArrayFrames(array))
    return scan.select(slice(*frames)) if frames else scan


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
                pictures = _draw(part.out, problem, found, settings)
    return pictures


def _restore_volume(
    settings: RestoreSettings,
    scan: Scan | None,
    model: Model,
    across: Model,
    device: torch.device,
    part: PartFolder,
) -> tuple[list[Path], int]:
    """Restore the stack as one volume; returns pictures of the middle frame, and how many there are."""
    with Stages(settings.quiet, "moves") as stages, torch.no_grad():
        found = restore_stack(settings, scan, model, across, device, part.path, stages)
        pictures: list[Path] = []
        for index in range(found.count):
            mean, std = found.frame(index)
            noise = found.noise.get(index, NoiseModel(0.0))
            arrays = {"mean": mean.numpy(), "noise": np.array([noise.floor, noise.gain])}
            if std is not None:
                arrays["std"] = std.numpy()
            part.save_arrays(frame_name(index), **arrays)
            if index == found.count // 2 and scan is not None and settings.task != "fourier":
                measured = scan.projections.read(*_one(index * scan.shape[0] // found.count))[0]
                pictures = [part.out.with_suffix(".png")]
                spread = None if std is None else std.numpy()
                counts = np.float32(settings.counts or 1)
                write_comparison(pictures[0], measured / counts, mean.numpy(), spread)
    return pictures, found.count


def _one(index: int) -> tuple[int, int]:
    return index, index + 1


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


def _draw(
    out: Path, problem: Problem | None, found: Restored, settings: RestoreSettings
) -> list[Path]:
    """Pictures and a page beside the result."""
    pictures: list[Path] = []
    if problem is not None:
        pictures.append(out.with_suffix(".png"))
        std = None if found.std is None else found.std.numpy()
        measured, mean = problem.frame.numpy(), found.mean.numpy()
        write_comparison(pictures[0], measured, mean, std)
        if measured.shape == mean.shape and settings.task == "denoise":
            noise = problem.noise.floor, problem.noise.gain
            facts = {
                "task": settings.task,
                "how": _how(settings),
                "noise": f"variance {noise[0]:.3g} + {noise[1]:.3g} x transmission",
                "model": settings.model,
            }
            page = out.with_suffix(".html")
            pictures.append(restoration_report(page, measured, mean, std, noise, facts))
    if found.trajectory:
        steps = [(sigma, image.numpy()) for sigma, image in found.trajectory]
        pictures += write_trajectory(out, steps)
    return pictures


def _how(settings: RestoreSettings) -> str:
    if settings.sampler == "mean":
        return "posterior mean in one evaluation, no spread"
    samples = 1 if settings.task == "generate" else settings.samples
    return f"{samples} sample(s) of {settings.steps} levels by {settings.sampler}"
