"""One scan from file to file: open, estimate, divide slab by slab, assemble."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from txmcorrect.allocation import return_large
from txmcorrect.background.conditions import working_bin
from txmcorrect.background.course import (
    Background,
    StoredDetails,
    divide_frame,
    join,
)
from txmcorrect.background.estimate import Draw
from txmcorrect.background.pipeline import Report, estimate_background, silent
from txmcorrect.background.quality import NAMES, Verdict
from txmcorrect.background.reference_check import (
    Dark,
    check_flats,
    frames_light,
    lit_image,
    usable_dark,
)
from txmcorrect.background.scale import Reference, mean_reference
from txmcorrect.background.survey import read_counts
from txmcorrect.config import CorrectSettings
from txmcorrect.errors import FlatFieldError
from txmcorrect.formats import open_references, open_scan
from txmcorrect.formats.corrected import read_result
from txmcorrect.formats.write import Process, ResultWriter
from txmcorrect.formats.write_slabs import SLAB
from txmcorrect.matching import MatchedReferences, check_raw, match_references, of_energy
from txmcorrect.scan import FloatArray, References, Scan
from txmcorrect.stream import run_signature
from txmcorrect.team import Pieces, Shared, Team
from txmcorrect.weights import NONE, Model, condition_of, gives, load_model

log = logging.getLogger(__name__)
# Of a slab on its way: raw counts, float32, and what is compressed of it.
SLAB_BYTES_PER_PIXEL = 12.0
MOST_AHEAD = 2  # slabs read before they are needed


@dataclass(frozen=True)
class Outcome:
    """A corrected scan on disk: where, and what to say about it."""

    path: Path
    verdict: Verdict
    background: Background
    scan: Scan


def choose_device(wanted: str) -> str:
    """`auto` is CUDA where there is one."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def open_for(settings: CorrectSettings, path: Path) -> Scan:
    """Open a scan as the settings ask: layout, reader, frames, region, binning."""
    return cut_for(settings, open_scan(path, **settings.sources()))


def cut_for(settings: CorrectSettings, scan: Scan) -> Scan:
    """Frames, region and binning that the settings ask for."""
    frames: slice | list[int] | None = slice(*settings.frames) if settings.frames else None
    if settings.preview is not None:
        count = scan.shape[0] // scan.energies
        chosen = range(count)[frames] if isinstance(frames, slice) else range(count)
        places = np.linspace(0, len(chosen) - 1, min(settings.preview, len(chosen)))
        frames = [chosen[int(p)] for p in places.round()]
    if frames is None and settings.roi is None and settings.bin == 1:
        return scan
    return scan.select(frames, settings.roi, settings.bin)


def references_for(
    settings: CorrectSettings,
    scan: Scan,
    dark: NDArray[np.float32],
    factor: int,
    energy: Energy | None = None,
) -> tuple[Reference, ...]:
    """Matching references: those of `--refs` first, then those inside the scan."""
    groups = list(scan.flats)
    if settings.refs is not None:
        given = open_references(settings.refs)
        if settings.roi is not None or settings.bin > 1:
            given = tuple(_cut_like(settings, scan, group) for group in given)
        groups = [*given, *groups]
    if energy is not None:
        groups = of_energy(groups, energy.all_ev, energy.number)
    if not groups:
        check_raw(scan, settings.force)
        return ()
    matches = match_references(scan, groups, settings.force)
    for match in matches:
        for warning in match.warnings:
            log.info("%s: %s", match.references.origin, warning)
    return tuple(
        replace(mean_reference(checked, dark, factor), notes=notes)
        for checked, notes in checked_references(scan, matches, dark)
    )


def checked_references(
    scan: Scan, matches: Sequence[MatchedReferences], dark: NDArray[np.float32]
) -> list[tuple[MatchedReferences, tuple[str, ...]]]:
    """Matching references without flats that are none, and what was left out.

    Raises
    ------
    FlatFieldError : no flat of any group is left.
    """
    light, found = frames_light(scan, dark), []
    error: FlatFieldError | None = None
    for match in matches:
        try:
            found.append(check_flats(match, dark, light))
        except FlatFieldError as none_left:
            log.warning("%s", none_left)
            error = none_left
    if error is not None and not found:
        raise error
    return found


def _cut_like(settings: CorrectSettings, scan: Scan, group: References) -> References:
    whole = replace(scan, projections=group.frames, flats=(group,))
    return whole.select(None, settings.roi, settings.bin).flats[0]


def condition_for(settings: CorrectSettings) -> str:
    """What the model is to see: as asked, as a given model does, or else all there is."""
    if settings.condition != "auto":
        return settings.condition
    return "stack" if settings.model in ("bundled", NONE) else condition_of(settings.model)


def dark_for(settings: CorrectSettings, scan: Scan) -> Dark:
    """Mean dark of `--dark`, else of the scan; without those that are none."""
    given = scan.darks if settings.dark is None else open_references(settings.dark)[0].frames
    found = usable_dark(given, "dark", lit_image(scan))
    for note in found.notes:
        log.warning("%s", note)
    if not found.doubt:
        return found
    doubt = f"darks not used: {found.doubt}; zero counts are taken for no light"
    log.warning("%s", doubt)
    return replace(found, doubt=doubt)


def is_same_run(settings: CorrectSettings, corrected: Path, raw: Path) -> bool:
    """Whether an earlier run has already corrected `raw` (a file, or a folder of frames) with these
    settings and with the weights that they name today.
    """
    files = [raw, *raw.iterdir()] if raw.is_dir() else [raw]
    if not corrected.exists():
        return False
    if corrected.stat().st_mtime < max(f.stat().st_mtime for f in files):
        return False
    changing = {"scans", "out", "out_dir", "overwrite"}
    given = settings.model_dump(mode="json", exclude=changing)
    with read_result(corrected) as stored:
        same = {k: v for k, v in stored.options.items() if k not in changing} == given
        return same and gives(settings.model, stored.model_sha256)


def correct_scan(
    settings: CorrectSettings,
    path: Path,
    out: Path,
    report: Report = silent,
    team: Team | None = None,
    corner_px: NDArray[np.float64] | None = None,
) -> Outcome | None:
    """Correct one scan into `out`; resumes what a killed run of the same settings left.

    With a `team` all its processes call this; they share the work, rank 0 assembles and has the
    outcome, the others get None.

    Raises
    ------
    TxmError : see `errors`; nothing half-written is left under the name `out`.
    """
    return_large()
    team = team or Team()
    scan = replace(open_for(settings, path), corner_px=corner_px)
    device = team.device or choose_device(settings.device)
    model = load_model(settings.model, condition_for(settings), device)
    inputs = [p for p in (path, settings.refs, settings.dark) if p is not None]
    options = settings.model_dump(mode="json", exclude={"scans", "out", "out_dir"})
    signature = run_signature(options, inputs, model.sha256)

    def open_writer() -> ResultWriter:
        return ResultWriter(
            out,
            scan.shape,
            signature,
            theta=scan.theta,
            source=path if path.is_file() else None,
            layout=settings.format,
            overwrite=settings.overwrite,
            rank=team.rank,
            energies=scan.energies,
        )

    with one_torch_thread() as workers, team.first_of_all(open_writer) as writer:
        shared = Shared(writer.part, team, workers)
        with shared.guard():
            background = scan_background(settings, scan, model, shared, report)
            mine = [s for i, s in enumerate(writer.slabs.starts()) if team.falls_to_us(i)]
            divide(settings, scan, background, writer, mine, report)
            if team.rank > 0:
                shared.wait_for_rank_0()
                return None
            shared.wait(writer.names(), lambda done, total: report("waiting", done, total))
            background = replace(background, amplitude=writer.values("amplitude"))
            process = describe(settings, background, model, options)
            writer.finish(process, lambda done, total: report("assembling", done, total))
    return Outcome(out, background.verdict(), background, scan)


@contextmanager
def one_torch_thread() -> Iterator[int]:
    """Torch works with one thread meanwhile; yields how many it had, to do as many things at once.

    Its sums have other last bits with another number of threads, and a launcher of several processes
    gives each fewer.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


def scan_background(
    settings: CorrectSettings, scan: Scan, model: Model, shared: Shared, report: Report
) -> Background:
    """The background of a scan as the settings ask; of an energy stack, each energy its own."""
    if scan.energies == 1:
        return one_background(settings, scan, model, shared, report)
    every = None if scan.energy_ev is None else scan.energy_ev.reshape(scan.energies, -1)[:, 0]
    shares = shared.parts("energy", scan.energies)

    def found(number: int) -> Background:
        energy = Energy(number, every)
        share = shares[number]
        return one_background(settings, scan.at_energy(number), model, share, report, energy)

    for number, share in enumerate(shares):  # whole energies fall to processes
        if share.is_ours():
            found(number)
    backgrounds = []
    for number in range(scan.energies):
        backgrounds.append(replace(found(number), details=(), conditions=None))
        report("energies", number + 1, scan.energies)
    return join(backgrounds, StoredDetails(shares))


@dataclass(frozen=True)
class Energy:
    """One energy of a stack: its number and all energies `(e,)` in eV, None if not recorded."""

    number: int
    all_ev: FloatArray | None


def one_background(
    settings: CorrectSettings,
    scan: Scan,
    model: Model,
    pieces: Pieces,
    report: Report,
    energy: Energy | None = None,
) -> Background:
    """The background of frames that share one: those of a scan, or of one energy of it."""
    h, w = scan.shape[1:]
    dark = dark_for(settings, scan)
    zero = np.zeros((h, w), np.float32) if dark.image is None else dark.image
    scan = scan if dark.image is not None else replace(scan, darks=None)  # none of them is dark
    factor = working_bin((h, w), model.spec.size)
    found = estimate_background(
        scan,
        model,
        Draw(settings.sampler, settings.steps, settings.samples, settings.seed, settings.partners),
        references=references_for(settings, scan, zero, factor, energy),
        dark=dark.image,
        interval=settings.interval,
        every=None if settings.every == "auto" else int(settings.every),
        settle_keys=settings.settle,
        scale_roi=settings.scale_roi,
        memory=settings.memory,
        report=report,
        pieces=pieces,
        flats=settings.flats,
    )
    doubts = (dark.doubt,) if dark.doubt else ()
    return replace(found, notes=(*found.notes, *doubts), remarks=(*dark.notes, *found.remarks))


def describe(
    settings: CorrectSettings,
    background: Background,
    model: Model,
    options: dict[str, object],
) -> Process:
    """What is stored beside the frames."""
    return Process(
        key_index=background.keys,
        jump_index=background.jumps,
        field=background.fields,
        field_std=background.std,
        detail=background.details,
        share=background.shares,
        part=background.part,
        factor=background.factor,
        grain=background.grain,
        amplitude=background.amplitude,
        flag=background.flag,
        flag_names=NAMES,
        lit=background.lit,
        dark=background.dark,
        scale=background.scale,
        verdict=str(background.verdict()),
        options=options,
        model_sha256=model.sha256,
        seed=settings.seed,
    )


def divide(
    settings: CorrectSettings,
    scan: Scan,
    background: Background,
    writer: ResultWriter,
    starts: Sequence[int],
    report: Report,
) -> None:
    """Write frame / background for the slabs that begin at `starts` and are not stored yet."""
    stored = writer.done()
    missing = [start for start in starts if start not in stored]
    total = sum(writer.slabs.length(start) for start in starts)
    done = total - sum(writer.slabs.length(start) for start in missing)
    for start, counts in _read_ahead(settings, scan, background, writer, missing):
        amplitude = divide_block(counts, background, start, settings.scale_roi, writer.pool)
        writer.write(start, counts, amplitude=amplitude)
        done += len(counts)
        report("dividing", done, total)


def divide_block(
    counts: NDArray[np.float32],
    background: Background,
    start: int,
    scale_roi: tuple[int, int, int, int] | None,
    pool: ThreadPoolExecutor,
) -> list[float]:
    """Turn counts `(m, h, w)` into transmission, in place; returns the brightness of each frame."""

    def one(i: int) -> float:
        return divide_frame(counts[i], background, start + i, scale_roi)

    return list(pool.map(one, range(len(counts))))


def _read_ahead(
    settings: CorrectSettings,
    scan: Scan,
    background: Background,
    writer: ResultWriter,
    starts: Sequence[int],
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Counts of slab after slab; the next ones are read meanwhile, as many as memory allows."""
    h, w = scan.shape[1:]
    fitting = int(settings.memory // (SLAB * h * w * SLAB_BYTES_PER_PIXEL))
    ahead = min(max(fitting - 1, 0), MOST_AHEAD)

    def read(start: int) -> NDArray[np.float32]:
        stop = start + writer.slabs.length(start)
        return read_counts(scan.projections, start, stop, background.dark)

    with ThreadPoolExecutor(1) as reader:
        coming = [reader.submit(read, start) for start in starts[:ahead]]
        try:
            for i, start in enumerate(starts):
                if i + ahead < len(starts):
                    coming.append(reader.submit(read, starts[i + ahead]))
                yield start, coming.pop(0).result()
        finally:
            for future in coming:
                future.cancel()
