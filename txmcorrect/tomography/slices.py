"""Frames in line, sinograms, the axis, and slices, block by block."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from txmcorrect.background.correction import choose_device
from txmcorrect.background.pipeline import Report
from txmcorrect.config import TomoSettings
from txmcorrect.errors import TxmError
from txmcorrect.formats.volume import DEPTH, VolumeWriter
from txmcorrect.formats.write_slabs import SLAB
from txmcorrect.recon.absorption import absorption, slices_of
from txmcorrect.recon.align import move
from txmcorrect.recon.centre import Centre, find_centre
from txmcorrect.recon.fbp import fbp
from txmcorrect.recon.geometry import ParallelBeam
from txmcorrect.recon.iterative import mlem, sirt
from txmcorrect.recon.projector import Projector
from txmcorrect.recon.stripes import remove_stripes
from txmcorrect.scan import FrameView
from txmcorrect.tomography.plan import Plan
from txmcorrect.tomography.source import Source

log = logging.getLogger(__name__)


def store_frames(plan: Plan, writer: VolumeWriter, report: Report) -> None:
    """Write the frames that are used, in line, slab by slab."""
    view = FrameView(plan.frames, plan.keep)
    for start in writer.missing_frames():
        stop = min(start + SLAB, len(plan.keep))
        frames = np.asarray(view.read(start, stop), np.float32)
        frames[~np.isfinite(frames)] = 1.0
        writer.write_frames(start, move(frames, plan.shifts[start:stop]))
        report("projections", stop, len(plan.keep))


def sinograms_of(
    settings: TomoSettings, plan: Plan, writer: VolumeWriter, first: int, stop: int
) -> Tensor:
    """Line integrals `(z, n, w)` of some rows, without stripes."""
    integrals = absorption(slices_of(writer.rows(first, stop)), plan.least)
    return remove_stripes(integrals, settings.stripes) if settings.stripes > 1 else integrals


def axis_of(settings: TomoSettings, plan: Plan, sinograms: Tensor) -> Centre:
    """The rotation axis, as given or found in some sinograms `(z, n, w)`."""
    if settings.center != "auto":
        none = np.zeros(0)
        return Centre(float(settings.center), 0.0, "given", None, none, none)
    centre = find_centre(sinograms, torch.from_numpy(plan.theta))
    log.info("rotation axis at %.2f +- %.2f px (%s)", centre.value, centre.std, centre.method)
    if centre.pairs is not None and abs(centre.pairs - centre.value) > max(1.0, 3 * centre.std):
        log.warning("opposite views put the axis at %.2f px; check the figure", centre.pairs)
    return centre


def store_slices(
    settings: TomoSettings,
    plan: Plan,
    writer: VolumeWriter,
    centre: Centre,
    sources: list[Source],
    report: Report,
) -> list[float]:
    """Reconstruct what is missing; return the misfit per iteration of the first block."""
    n, h, w = writer.slabs.shape
    device = choose_device(settings.device)
    beam = ParallelBeam(torch.from_numpy(plan.theta).to(device), w, centre.value)
    scale = 1 / (pixel_um(plan, sources, settings) or 1.0)
    batch = max(1, settings.memory // (2 * 4 * (8 * n * w + 6 * w * w)) // DEPTH) * DEPTH
    curve: list[float] = []
    for first, stop in _runs(writer.missing_slices(), batch, h):
        sinograms = sinograms_of(settings, plan, writer, first, stop).to(device)
        slices = _solve(settings, beam, sinograms, curve if first == 0 else [])
        writer.write_slices(first, (slices * (circle(w).to(device) * scale)).cpu().numpy())
        report("slices", stop, h)
    return curve


def _solve(
    settings: TomoSettings, beam: ParallelBeam, sinograms: Tensor, curve: list[float]
) -> Tensor:
    """Reconstruct slices `(z, w, w)`, per pixel length."""
    pair = Projector(beam, beam.width)

    def watch(_: int, misfit: float) -> None:
        curve.append(misfit)

    if settings.method == "fbp":
        return fbp(beam, beam.width, sinograms, settings.filter)
    if settings.method == "sirt":
        return sirt(pair, sinograms, settings.iterations, watch=watch)
    if settings.method == "mlem":
        return mlem(pair, sinograms, settings.iterations, watch=watch)
    raise TxmError(
        f"--method {settings.method}: expected fbp, sirt or mlem to solve slice by slice"
    )


def _runs(missing: list[int], batch: int, depth: int) -> Iterator[tuple[int, int]]:
    """Join neighbouring groups of slices that are missing into blocks of up to `batch`."""
    while missing:
        count = 1
        while count < min(len(missing), batch // DEPTH) and (
            missing[count] == missing[0] + count * DEPTH
        ):
            count += 1
        yield missing[0], min(missing[0] + count * DEPTH, depth)
        missing = missing[count:]


def circle(size: int) -> Tensor:
    """Ones in the circle that all views see, zeros beyond."""
    grid = torch.arange(size) - (size - 1) / 2
    return (grid[:, None] ** 2 + grid**2 <= (size / 2) ** 2).float()


def pixel_um(plan: Plan, sources: list[Source], settings: TomoSettings) -> float | None:
    """Pixel size, where the volume can have a physical unit."""
    pixel = sources[0].scan.optics.pixel_size_nm
    if plan.contrast != "absorption" or pixel is None:
        return None
    return pixel * settings.bin / 1000
