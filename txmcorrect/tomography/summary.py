"""What is said about a reconstruction: in its file, its report and one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from txmcorrect.config import TomoSettings
from txmcorrect.formats.volume import DEPTH, Description, VolumeWriter
from txmcorrect.recon.centre import Centre
from txmcorrect.report.tomography import TomographySummary
from txmcorrect.tomography.plan import Plan
from txmcorrect.tomography.source import Source

SHOWN = 3  # slices and sinograms in the report


def describe(
    plan: Plan, sources: list[Source], centre: Centre | None, options: dict[str, Any]
) -> Description:
    """What is stored beside frames and volume."""
    lengths = [s.frames.shape[0] for s in sources]
    source = np.repeat(np.arange(len(sources)), lengths)[plan.keep]
    frame = np.concatenate([np.arange(length) for length in lengths])[plan.keep]
    facts: dict[str, Any] = {"least_transmission": plan.least}
    if centre is not None:
        facts |= {
            "center_px": centre.value,
            "center_std_px": centre.std,
            "center_method": centre.method,
            "method": options["method"],
        }
    return Description(
        theta=plan.theta,
        units=units_of(plan, sources),
        contrast=plan.contrast,
        scale="; ".join(sorted({s.scale for s in sources})),
        verdict="; ".join(sorted({s.verdict for s in sources})),
        source=source,
        frame=frame,
        shifts_px=plan.shifts,
        options=options,
        facts=facts,
        measurement=sources[0].scan.path,
    )


def units_of(plan: Plan, sources: list[Source]) -> str:
    """Unit of the volume."""
    if plan.contrast == "phase":
        return "arbitrary"  # a phase image's logarithm is no attenuation
    return "1/pixel" if sources[0].scan.optics.pixel_size_nm is None else "1/um"


def message(out: Path, plan: Plan, centre: Centre | None, sources: list[Source]) -> str:
    """One line for the user."""
    size = f"{len(plan.keep)} projections ({plan.dropped} left out)"
    axis = f", axis {centre.value:.2f} +- {centre.std:.2f} px" if centre else ""
    return f"{out}: {size}{axis}, {plan.contrast}, {sources[0].verdict}"


def summarise(
    settings: TomoSettings,
    plan: Plan,
    writer: VolumeWriter,
    sources: list[Source],
    centre: Centre | None,
    sinograms: Tensor,
    rows: list[int],
    curve: list[float],
    options: dict[str, Any],
) -> TomographySummary:
    """What the report shows: `sinograms` `(z, n, w)` of `rows`, `curve` the misfit by iteration."""
    h = writer.slabs.shape[1]
    shown = [rows[i] for i in np.linspace(0, len(rows) - 1, min(len(rows), SHOWN)).astype(int)]
    slices = [writer.slices(z // DEPTH * DEPTH)[z % DEPTH] for z in shown] if centre else []
    order = np.argsort(plan.theta, kind="stable")
    facts = {
        "projections": f"{len(plan.keep)} of {plan.frames.shape[0]} ({plan.dropped} left out)",
        "angles": f"{np.rad2deg(plan.theta.min()):.2f} to {np.rad2deg(plan.theta.max()):.2f} degrees",
        "slices": f"{h} of {writer.size} x {writer.size}" if centre else "none",
        "contrast": plan.contrast,
        "shifts": f"up to {np.abs(plan.shifts).max():.2f} px ({settings.align})",
        "least transmission": f"{plan.least:.2g}; below it the logarithm goes on as its tangent",
    }
    if centre:
        facts["axis"] = f"{centre.value:.2f} +- {centre.std:.2f} px ({centre.method})"
        if centre.pairs is not None:
            facts["axis from opposite views"] = f"{centre.pairs:.2f} px"
    return TomographySummary(
        title=f"tomo: {', '.join(s.scan.path.name for s in sources)}",
        verdict=sources[0].verdict,
        scale=sources[0].scale,
        facts=facts,
        options=options,
        rows=shown,
        sinograms=[sinograms[rows.index(z)][order].numpy() for z in shown],
        slices=slices,
        units=units_of(plan, sources),
        candidates=centre.candidates if centre else np.zeros(0),
        contrast=centre.contrast if centre else np.zeros(0),
        axis=centre.value if centre else None,
        misfit=curve,
    )
