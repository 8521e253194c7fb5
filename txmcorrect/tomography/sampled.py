"""Slices from a prior: the whole volume at once, for few views and short arcs (TPDM)."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from txmcorrect.background.correction import choose_device
from txmcorrect.background.pipeline import Report
from txmcorrect.config import TomoSettings
from txmcorrect.diffusion.denoiser import Noise
from txmcorrect.diffusion.guidance import Measurement
from txmcorrect.diffusion.schedules import subsequence
from txmcorrect.diffusion.volume import Volume, VolumePrior, VolumeSampler
from txmcorrect.formats.volume import DEPTH, VolumeWriter
from txmcorrect.physics import NoiseModel, estimate_poisson
from txmcorrect.physics.noise import MAD
from txmcorrect.recon.centre import Centre
from txmcorrect.recon.geometry import ParallelBeam
from txmcorrect.recon.iterative import sirt
from txmcorrect.recon.projector import Projector
from txmcorrect.simulate.bodies import typical
from txmcorrect.tomography.plan import Plan
from txmcorrect.tomography.slices import circle, pixel_um, sinograms_of
from txmcorrect.tomography.source import Source
from txmcorrect.volumes import claim, draw_volumes, slice_planes
from txmcorrect.weights import Model

log = logging.getLogger(__name__)
MICRO_BATCH = 8  # slices at a time; fixed, so that no result depends on --memory
FIRST_LOOK = 30  # iterations of the reconstruction that tells how strongly the sample absorbs
BAND = 16  # rows that the noise is told from
SOLVE = 10  # conjugate gradients a step: what is left is taken up by the next step


def store_sampled_slices(
    settings: TomoSettings,
    plan: Plan,
    writer: VolumeWriter,
    centre: Centre,
    sources: list[Source],
    model: Model,
    report: Report,
) -> None:
    """Draw the volume given all sinograms, and store its slices and, of several, their spread."""
    if plan.contrast == "phase":
        log.warning("tpdm: the prior knows absorption only; phase contrast may come out wrong")
    _, h, w = writer.slabs.shape
    device = choose_device(settings.device)
    beam = ParallelBeam(torch.from_numpy(plan.theta).to(device), w, centre.value)
    operator = Projector(beam, w)
    sinograms = _mapped_sinograms(settings, plan, writer)
    unit = _unit(sinograms, operator) * float(model.spec.extra["scale"])
    noise = _frame_noise(writer)

    def agree(x0_hat: Tensor, sigma: Tensor, slices: slice) -> Tensor:
        y = torch.from_numpy(sinograms[slices].copy())[:, None]
        s2 = _variance(noise, y, plan.least) / unit**2
        measured = Measurement(operator, (y / unit).to(device), s2.to(device), SOLVE)
        return measured.agree(x0_hat, sigma)

    prior = VolumePrior(*slice_planes(model), settings.turns)
    levels = subsequence(model.spec.sigmas(), settings.levels)
    samplers = [
        VolumeSampler(prior, levels, Noise(settings.seed, k), agree, MICRO_BATCH, device=device)
        for k in range(settings.draws)
    ]
    with torch.no_grad():
        draws = draw_volumes(writer.part.path, (h, w, w), samplers, report)
    scale = circle(w).numpy() * np.float32(unit / (pixel_um(plan, sources, settings) or 1.0))
    for first in range(0, h, DEPTH):
        some = slice(first, min(first + DEPTH, h))
        writer.write_slices(first, draws.mean(some) * scale)
        spread = draws.std(some)
        if spread is not None:
            writer.write_slices(first, spread * scale, "std")


def _mapped_sinograms(settings: TomoSettings, plan: Plan, writer: VolumeWriter) -> Volume:
    """Line integrals `(h, n, w)` in a file: every step reads all of them."""
    n, h, w = writer.slabs.shape
    path = writer.part.path / "sinograms.f4"
    claim(path, 4 * n * h * w)
    mapped = np.memmap(path, "<f4", "r+", shape=(h, n, w))
    step = max(1, settings.memory // (16 * n * w))
    for first in range(0, h, step):
        stop = min(first + step, h)
        mapped[first:stop] = sinograms_of(settings, plan, writer, first, stop).numpy()
    return mapped


def _unit(sinograms: Volume, operator: Projector) -> float:
    """Typical attenuation of the matter per pixel, from a quick reconstruction of a few slices."""
    h = len(sinograms)
    rows = sorted({int(r) for r in np.linspace(0, h - 1, min(h, 7) + 2)[1:-1].round()})
    some = torch.from_numpy(sinograms[rows].copy()).to(operator.beam.theta.device)
    found = sirt(operator, some, FIRST_LOOK, nonnegative=True)
    unit = typical((found.cpu() * circle(operator.size)).numpy())
    log.info("the sample attenuates by about %.3g a pixel", unit)
    return unit


def _frame_noise(writer: VolumeWriter) -> NoiseModel:
    """Noise of the transmission, from parts of frames: sinograms of few views are not smooth."""
    n, h, _ = writer.slabs.shape
    first = max(0, (h - BAND) // 2)
    some = np.linspace(0, n - 1, min(n, 8)).round().astype(int)
    frames = torch.from_numpy(writer.rows(first, min(first + BAND, h))[some])
    if h >= 3:
        return estimate_poisson(frames)
    bend = frames[..., 2:] - 2 * frames[..., 1:-1] + frames[..., :-2]
    return NoiseModel(float((bend.abs().median() / MAD) ** 2 / 6))


def _variance(noise: NoiseModel, integrals: Tensor, least: float) -> Tensor:
    """Variance of line integrals `(z, 1, n, w)`: of the transmission, over its square."""
    blurred = torch.nn.functional.avg_pool2d(integrals, (1, 3), 1, (0, 1), count_include_pad=False)
    transmission = torch.exp(-blurred).clamp(min=least)
    return noise.variance(transmission) / transmission**2
