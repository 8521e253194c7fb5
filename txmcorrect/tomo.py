"""`tomo`: projections to a volume.

transmission of every scan -> frames to use -> shifts -> axis -> slices, block by block -> one file
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from txmcorrect.background.correction import choose_device
from txmcorrect.background.pipeline import Report
from txmcorrect.config import TomoSettings
from txmcorrect.errors import GeometryError, OutputError, TxmError
from txmcorrect.formats.volume import VolumeWriter
from txmcorrect.progress import Stages
from txmcorrect.report.tomography import tomography_report
from txmcorrect.result import Result
from txmcorrect.stream import run_signature
from txmcorrect.tomography.plan import make_plan
from txmcorrect.tomography.sampled import store_sampled_slices
from txmcorrect.tomography.slices import axis_of, sinograms_of, store_frames, store_slices
from txmcorrect.tomography.source import open_source
from txmcorrect.tomography.summary import describe, message, summarise
from txmcorrect.weights import load_model

AXIS_ROWS = 6  # slices the axis is found from


def run(settings: TomoSettings) -> Result:
    """Reconstruct each scan, or all of them merged.

    Raises
    ------
    TxmError : see `errors`.
    """
    if settings.format == "nxtomo":
        raise OutputError("--format nxtomo: expected h5 or tiff, for NXtomo holds no volume")
    with Stages(settings.quiet) as report:
        results = [reconstruct(settings, p, out, report) for p, out in _outputs(settings)]
    outputs = tuple(path for result in results for path in result.outputs)
    message = "\n".join(result.message for result in results)
    return Result(outputs, message, max(result.exit_code for result in results))


def _outputs(settings: TomoSettings) -> list[tuple[list[Path], Path]]:
    """Scans that belong together, and the file each becomes."""
    scans, suffix = settings.scans, ".recon.tif" if settings.format == "tiff" else ".recon.h5"
    if settings.merge or len(scans) == 1:
        folder = settings.out_dir or scans[0].parent
        return [(scans, settings.out or folder / (scans[0].stem + suffix))]
    if settings.out_dir is None:
        raise TxmError(
            f"expected --out-dir for {len(scans)} scans (or --merge to make one of them), got none"
        )
    return [([scan], settings.out_dir / (scan.stem + suffix)) for scan in scans]


def reconstruct(settings: TomoSettings, paths: list[Path], out: Path, report: Report) -> Result:
    """Reconstruct scans that belong together into one file."""
    sources = [open_source(settings, path, out, report) for path in paths]
    plan = make_plan(settings, sources, report)
    _, h, w = plan.frames.shape
    size = 0 if settings.method == "none" else w
    if size and len(plan.keep) < 4:
        raise GeometryError(
            f"expected 4 projections or more to reconstruct, got {len(plan.keep)}; "
            "use --method none for the transmission alone"
        )
    options = settings.model_dump(mode="json", exclude={"scans", "out", "out_dir"})
    inputs = [*paths, *(p for p in (settings.refs, settings.dark, settings.theta) if p)]
    prior = None
    if settings.method == "tpdm":
        prior = load_model(settings.prior, "slice", choose_device(settings.device))
    signature = run_signature(options, inputs, prior.sha256 if prior else "")
    shape = (len(plan.keep), h, w)
    with VolumeWriter(out, shape, size, signature, settings.overwrite) as writer:
        store_frames(plan, writer, report)
        rows = sorted(set(np.linspace(0, h - 1, min(h, AXIS_ROWS) + 2)[1:-1].round().astype(int)))
        sinograms = torch.cat([sinograms_of(settings, plan, writer, r, r + 1) for r in rows])
        centre = axis_of(settings, plan, sinograms) if size else None
        curve: list[float] = []
        if centre and prior:
            store_sampled_slices(settings, plan, writer, centre, sources, prior, report)
        elif centre:
            curve = store_slices(settings, plan, writer, centre, sources, report)
        summary = summarise(
            settings, plan, writer, sources, centre, sinograms, rows, curve, options
        )
        writer.finish(describe(plan, sources, centre, options), partial(report, "assembling"))
    page = tomography_report(out.with_suffix(".html"), summary)
    for source in sources:
        if source.temporary is not None:
            source.temporary.unlink()
    strict = settings.strict and not all(s.verdict.startswith("TRUSTED") for s in sources)
    return Result((out, page), message(out, plan, centre, sources), 3 if strict else 0)
