"""`tomo`: projections to a volume.

transmission of every scan -> frames to use -> shifts -> axis -> slices, block by block -> one file
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from txmcorrect.background.correction import choose_device, correct_scan, open_for
from txmcorrect.background.quality import UNUSABLE
from txmcorrect.background.survey import mean_frame
from txmcorrect.config import CorrectSettings, TomoSettings
from txmcorrect.errors import FlatFieldError, GeometryError, ModelError, OutputError, TxmError
from txmcorrect.formats import open_references, open_scan
from txmcorrect.formats.corrected import read_result
from txmcorrect.formats.volume import DEPTH, Description, VolumeWriter, read_correction
from txmcorrect.formats.write_slabs import SLAB
from txmcorrect.matching import MatchedReferences, match_references
from txmcorrect.recon.absorption import absorption, is_phase_contrast, photon_floor, slices_of
from txmcorrect.recon.align import METHODS, move
from txmcorrect.recon.centre import Centre, find_centre
from txmcorrect.recon.fbp import fbp
from txmcorrect.recon.flatfield import FlatFielded
from txmcorrect.recon.geometry import ParallelBeam
from txmcorrect.recon.iterative import mlem, sirt
from txmcorrect.recon.projector import Projector
from txmcorrect.recon.selection import bad_frames, resolve_duplicates
from txmcorrect.recon.stripes import remove_stripes
from txmcorrect.report.tomography import TomographySummary, tomography_report
from txmcorrect.result import Result
from txmcorrect.scan import FloatArray, Frames, FrameView, JoinedFrames, Scan
from txmcorrect.stream import run_signature

log = logging.getLogger(__name__)
Report = Callable[[str, int, int], None]
AXIS_ROWS = 6  # slices the axis is found from
SHOWN = 3  # slices and sinograms in the report


def run(settings: TomoSettings) -> Result:
    """Reconstruct each scan, or all of them merged.

    Raises
    ------
    TxmError : see `errors`.
    """
    if settings.method == "tpdm":
        raise ModelError(
            "--method tpdm: expected two priors of attenuation slices, and none ships or can be named "
            "yet; use fbp, sirt or mlem"
        )
    if settings.format == "nxtomo":
        raise OutputError("--format nxtomo: expected h5 or tiff, for NXtomo holds no volume")
    with _progress(settings.quiet) as report:
        results = [_reconstruct(settings, p, out, report) for p, out in _outputs(settings)]
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


# --- transmission --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A scan whose frames are transmission.

    `counts` of an empty lit pixel, None if unknown; `bad` `(n,)` as the correction says;
    `temporary`: a corrected file made on the way.
    """

    scan: Scan
    frames: Frames
    scale: str
    verdict: str
    counts: float | None
    bad: NDArray[np.bool_]
    temporary: Path | None = None


def _open_source(settings: TomoSettings, path: Path, out: Path, report: Report) -> Source:
    """Transmission of one scan: as it is, over its own flats, or corrected by our model."""
    scan = open_for(settings, path)
    if scan.energies > 1:
        raise GeometryError(
            f"{path}: expected a scan of one energy, got a stack of {scan.energies}; "
            "write each energy as a file of its own (/exchange/data[i]) and name those"
        )
    if scan.corrected_by and not settings.force:
        return _corrected_source(scan)
    if settings.flats == "none":
        nothing = np.zeros(scan.shape[0], bool)
        return Source(scan, scan.projections, "as in the file", "as in the file", None, nothing)
    # A scan's own flats are better than what a pair of frames tells: generate only without them.
    if settings.flats == "measured" or (settings.flats == "auto" and scan.flats):
        return _flat_fielded(settings, scan)
    names = set(CorrectSettings.model_fields) - {"format"}
    wanted = CorrectSettings(**settings.model_dump(include=names))
    corrected = out.with_name(f"{out.stem}.{path.stem}.corrected.h5")
    if not _is_same_run(wanted, corrected, path):
        correct_scan(wanted, path, corrected, report)
    found = _corrected_source(open_scan(corrected))
    return replace(found, scan=scan, temporary=corrected)


def _is_same_run(settings: CorrectSettings, corrected: Path, raw: Path) -> bool:
    """Tell whether an interrupted run has already corrected this scan with these settings."""
    if not corrected.exists() or corrected.stat().st_mtime < raw.stat().st_mtime:
        return False
    with read_result(corrected) as stored:
        options = settings.model_dump(mode="json", exclude={"scans", "out", "out_dir"})
        return stored.options == options


def _corrected_source(scan: Scan) -> Source:
    n = scan.shape[0]
    if scan.corrected_by != "txmcorrect":
        note = f"corrected by {scan.corrected_by}"
        return Source(scan, scan.projections, "as in the file", note, None, np.zeros(n, bool))
    stored = read_correction(scan.path)
    view = scan.projections
    index = view.index if isinstance(view, FrameView) else np.arange(n)
    bad = np.zeros(n, bool) if stored.flag is None else (stored.flag[index] & UNUSABLE) != 0
    return Source(scan, view, stored.scale, stored.verdict, stored.counts, bad)


def _flat_fielded(settings: TomoSettings, scan: Scan) -> Source:
    """Divide by the measured flats, interpolated between those before and after."""
    groups = [*(open_references(settings.refs) if settings.refs else ()), *scan.flats]
    if not groups:
        raise FlatFieldError(
            f"{scan.path}: expected flats in the scan for --flats measured, found none; "
            "give some with --refs, or use --flats generated"
        )
    matches = match_references(scan, groups, settings.force)
    dark = _dark(settings, scan)
    flats, at = _knots(matches, dark, scan.shape[0])
    if settings.split is not None and len(at) < 2:
        raise GeometryError("--split: expected flats taken at two or more times, got one")
    frames = FlatFielded(scan.projections, dark, flats, at, matches[0].frame_scale, settings.split)
    counts = float(np.median(flats))
    scale = "reference" if matches[0].absolute else "relative"
    bad = np.zeros(scan.shape[0], bool)
    return Source(scan, frames, scale, "flats as measured", counts, bad)


def _dark(settings: TomoSettings, scan: Scan) -> NDArray[np.float32]:
    if settings.dark is not None:
        return mean_frame(open_references(settings.dark)[0].frames)
    if scan.darks is not None and scan.darks.shape[0]:
        return mean_frame(scan.darks)
    log.warning("%s: no dark frames: zero counts are taken for no light", scan.path)
    return np.zeros(scan.shape[1:], np.float32)


def _knots(
    matches: tuple[MatchedReferences, ...], dark: NDArray[np.float32], n: int
) -> tuple[NDArray[np.float32], FloatArray]:
    """Mean flats above dark `(k, h, w)`, one for each time they were taken, and those times."""
    found: list[tuple[float, NDArray[np.float32]]] = []
    for i, match in enumerate(matches):
        group = match.references
        own = dark if group.darks is None else mean_frame(group.darks)
        before = group.before
        if before is None:  # unknown times: in the order given, over the scan
            place = n * i / max(len(matches) - 1, 1)
            before = np.full(group.frames.shape[0], place)
        for when in np.unique(before):
            chosen = np.flatnonzero(before == when)
            stack = FrameView(group.frames, chosen)
            scale = np.float32(match.scale[chosen].mean())
            found.append((float(when), (mean_frame(stack, len(chosen)) - own) * scale))
    found.sort(key=lambda item: item[0])
    return np.stack([flat for _, flat in found]), np.array([when for when, _ in found])


# --- which frames, where they lie ----------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Which frames are used, at what angles, moved by what.

    `keep` `(m,)` numbers among all frames; `theta` `(m,)` radians; `shifts` `(m, 2)` (y, x);
    `least` transmission of a photon; `dropped` as text.
    """

    frames: Frames
    keep: NDArray[np.intp]
    theta: FloatArray
    shifts: FloatArray
    least: float
    contrast: str
    dropped: str


def _plan(settings: TomoSettings, sources: list[Source], report: Report) -> Plan:
    frames = _joined(sources)
    n = frames.shape[0]
    theta = _theta(settings, [s.scan for s in sources], n)
    counts = [s.counts for s in sources if s.counts is not None]
    least = photon_floor(min(counts) if counts else None)
    stored = _stored_shifts(settings, sources)
    seen = _look(frames, stored, least, settings, report)
    bad = np.concatenate([s.bad for s in sources]) | bad_frames(seen["mass"], seen["finite"])
    good = resolve_duplicates(theta, bad) if settings.merge else np.flatnonzero(~bad)
    if len(good) == 0:
        raise FlatFieldError(f"{sources[0].scan.path}: no usable frame is left")
    shifts = stored[good]
    if settings.align in METHODS:
        shifts = shifts + METHODS[settings.align](
            seen["rows"][good], seen["columns"][good], theta[good]
        )
    dropped = f"{int(bad.sum())} bad, {n - int(bad.sum()) - len(good)} repeated angles"
    some = frames_at(frames, good[np.linspace(0, len(good) - 1, min(len(good), 8)).astype(int)])
    contrast = settings.contrast
    if contrast == "auto":
        contrast = "phase" if is_phase_contrast(some) else "absorption"
    return Plan(frames, good, theta[good], shifts, least, contrast, dropped)


def frames_at(frames: Frames, index: NDArray[np.intp]) -> NDArray[np.float32]:
    """Read some frames as float32."""
    return np.asarray(FrameView(frames, index).read(0, len(index)), np.float32)


def _joined(sources: list[Source]) -> Frames:
    sizes = {s.frames.shape[1:] for s in sources}
    pixels = {s.scan.optics.pixel_size_nm for s in sources}
    if len(sizes) > 1 or len(pixels) > 1:
        raise GeometryError(
            f"--merge: expected scans of one frame and pixel size, got {sorted(sizes)} px "
            f"and {sorted(map(str, pixels))} nm; reconstruct them apart"
        )
    return (
        sources[0].frames if len(sources) == 1 else JoinedFrames(tuple(s.frames for s in sources))
    )


def _theta(settings: TomoSettings, scans: list[Scan], n: int) -> FloatArray:
    """Angles in radians, from --theta or the scans, turned round where asked."""
    if settings.theta is not None:
        try:
            theta = np.deg2rad(np.loadtxt(settings.theta, ndmin=1))
        except (OSError, ValueError) as error:
            raise GeometryError(
                f"--theta {settings.theta}: expected one angle a line ({error})"
            ) from None
    else:
        known = [scan.theta for scan in scans if scan.theta is not None]
        if len(known) < len(scans):
            raise GeometryError(
                f"{scans[0].path}: expected angles in the scan, found none; give --theta FILE"
            )
        theta = np.concatenate(known)
    if theta.shape != (n,):
        raise GeometryError(f"expected {n} angles, one per frame, got {theta.shape}; see --theta")
    return -theta if settings.invert_theta else theta


def _stored_shifts(settings: TomoSettings, sources: list[Source]) -> FloatArray:
    """Alignment stored in the files `(n, 2)`, in pixels as they are binned now; zero if none."""
    if settings.align == "none":
        return np.zeros((sum(s.frames.shape[0] for s in sources), 2))
    parts = [
        np.zeros((s.frames.shape[0], 2)) if s.scan.shifts_px is None else s.scan.shifts_px
        for s in sources
    ]
    return np.concatenate(parts) / settings.bin


def _look(
    frames: Frames, shifts: FloatArray, least: float, settings: TomoSettings, report: Report
) -> dict[str, NDArray[np.float64]]:
    """Read every frame once: share of finite pixels, mean absorption, its sums along x and y."""
    n = frames.shape[0]
    found: dict[str, list[NDArray[Any]]] = {"finite": [], "mass": [], "rows": [], "columns": []}
    for start in range(0, n, SLAB):
        block = np.asarray(frames.read(start, min(start + SLAB, n)), np.float32)
        finite = np.isfinite(block)
        block = np.where(finite, block, np.float32(1))
        if settings.align in METHODS:
            block = move(block, shifts[start : start + SLAB])
        integral = absorption(torch.from_numpy(block), least).double().numpy()
        found["finite"].append(finite.mean((1, 2)))
        found["mass"].append(integral.mean((1, 2)))
        found["rows"].append(integral.sum(2))
        found["columns"].append(integral.sum(1))
        report("looking", start + len(block), n)
    return {name: np.concatenate(parts) for name, parts in found.items()}


# --- reconstruction ------------------------------------------------------------------------------


def _reconstruct(settings: TomoSettings, paths: list[Path], out: Path, report: Report) -> Result:
    sources = [_open_source(settings, path, out, report) for path in paths]
    plan = _plan(settings, sources, report)
    _, h, w = plan.frames.shape
    size = 0 if settings.method == "none" else w
    if size and len(plan.keep) < 4:
        raise GeometryError(
            f"expected 4 projections or more to reconstruct, got {len(plan.keep)}; "
            "use --method none for the transmission alone"
        )
    options = settings.model_dump(mode="json", exclude={"scans", "out", "out_dir"})
    inputs = [*paths, *(p for p in (settings.refs, settings.dark, settings.theta) if p)]
    signature = run_signature(options, inputs)
    shape = (len(plan.keep), h, w)
    with VolumeWriter(out, shape, size, signature, settings.overwrite) as writer:
        _store_frames(plan, writer, report)
        rows = sorted(set(np.linspace(0, h - 1, min(h, AXIS_ROWS) + 2)[1:-1].round().astype(int)))
        sinograms = torch.cat([_sinograms(settings, plan, writer, r, r + 1) for r in rows])
        centre = _centre(settings, plan, sinograms) if size else None
        curve = _store_slices(settings, plan, writer, centre, sources, report) if centre else []
        summary = _summary(settings, plan, writer, sources, centre, sinograms, rows, curve, options)
        writer.finish(_describe(plan, sources, centre, options), partial(report, "assembling"))
    page = tomography_report(out.with_suffix(".html"), summary)
    for source in sources:
        if source.temporary is not None:
            source.temporary.unlink()
    strict = settings.strict and not all(s.verdict.startswith("TRUSTED") for s in sources)
    return Result((out, page), _message(out, plan, centre, sources), 3 if strict else 0)


def _store_frames(plan: Plan, writer: VolumeWriter, report: Report) -> None:
    """Write the frames that are used, in line, slab by slab."""
    view = FrameView(plan.frames, plan.keep)
    for start in writer.missing_frames():
        stop = min(start + SLAB, len(plan.keep))
        frames = np.asarray(view.read(start, stop), np.float32)
        frames[~np.isfinite(frames)] = 1.0
        writer.write_frames(start, move(frames, plan.shifts[start:stop]))
        report("projections", stop, len(plan.keep))


def _sinograms(
    settings: TomoSettings, plan: Plan, writer: VolumeWriter, first: int, stop: int
) -> Tensor:
    """Line integrals `(z, n, w)` of some rows, without stripes."""
    integrals = absorption(slices_of(writer.rows(first, stop)), plan.least)
    return remove_stripes(integrals, settings.stripes) if settings.stripes > 1 else integrals


def _centre(settings: TomoSettings, plan: Plan, sinograms: Tensor) -> Centre:
    if settings.center != "auto":
        none = np.zeros(0)
        return Centre(float(settings.center), 0.0, "given", None, none, none)
    centre = find_centre(sinograms, torch.from_numpy(plan.theta))
    log.info("rotation axis at %.2f +- %.2f px (%s)", centre.value, centre.std, centre.method)
    if centre.pairs is not None and abs(centre.pairs - centre.value) > max(1.0, 3 * centre.std):
        log.warning("opposite views put the axis at %.2f px; check the figure", centre.pairs)
    return centre


def _store_slices(
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
    scale = 1 / (_pixel_um(plan, sources, settings) or 1.0)
    batch = max(1, settings.memory // (2 * 4 * (8 * n * w + 6 * w * w)) // DEPTH) * DEPTH
    curve: list[float] = []
    for first, stop in _runs(writer.missing_slices(), batch, h):
        sinograms = _sinograms(settings, plan, writer, first, stop).to(device)
        slices = _solve(settings, beam, sinograms, curve if first == 0 else [])
        writer.write_slices(first, (slices * (_circle(w).to(device) * scale)).cpu().numpy())
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
        f"--method {settings.method}: expected fbp, sirt, mlem or none: no prior for volumes is installed"
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


def _circle(size: int) -> Tensor:
    """Ones in the circle that all views see, zeros beyond."""
    grid = torch.arange(size) - (size - 1) / 2
    return (grid[:, None] ** 2 + grid**2 <= (size / 2) ** 2).float()


def _pixel_um(plan: Plan, sources: list[Source], settings: TomoSettings) -> float | None:
    """Pixel size, where the volume can have a physical unit."""
    pixel = sources[0].scan.optics.pixel_size_nm
    if plan.contrast != "absorption" or pixel is None:
        return None
    return pixel * settings.bin / 1000


# --- what is said about it -----------------------------------------------------------------------


def _describe(
    plan: Plan, sources: list[Source], centre: Centre | None, options: dict[str, Any]
) -> Description:
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
        units=_units(plan, sources),
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


def _units(plan: Plan, sources: list[Source]) -> str:
    if plan.contrast == "phase":
        return "arbitrary"  # a phase image's logarithm is no attenuation
    return "1/pixel" if sources[0].scan.optics.pixel_size_nm is None else "1/um"


def _message(out: Path, plan: Plan, centre: Centre | None, sources: list[Source]) -> str:
    size = f"{len(plan.keep)} projections ({plan.dropped} left out)"
    axis = f", axis {centre.value:.2f} +- {centre.std:.2f} px" if centre else ""
    return f"{out}: {size}{axis}, {plan.contrast}, {sources[0].verdict}"


def _summary(
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
        units=_units(plan, sources),
        candidates=centre.candidates if centre else np.zeros(0),
        contrast=centre.contrast if centre else np.zeros(0),
        axis=centre.value if centre else None,
        misfit=curve,
    )


@contextmanager
def _progress(quiet: bool) -> Iterator[Report]:
    """Show one bar per stage, with rate and time left; nothing where nobody watches."""
    console = Console(stderr=True)
    with Progress(console=console, disable=quiet or not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield report
