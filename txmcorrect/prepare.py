"""`prepare`: harvest raw frames and references into a training set that is streamed.

References come first: each frame is screened, dark-corrected, normalised to exposure and current,
binned and stored. Then each sample frame is screened, paired with the references that match it,
divided and stored. One full frame is in memory at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from txmcorrect import __version__
from txmcorrect.config import PrepareSettings
from txmcorrect.errors import TxmError
from txmcorrect.harvest.collect import collect
from txmcorrect.harvest.manifest import Entry, left_out
from txmcorrect.harvest.references import Bank
from txmcorrect.harvest.samples import Samples, split_scans
from txmcorrect.harvest.screen import Screen
from txmcorrect.harvest.store import TrainingSet
from txmcorrect.progress import Stages
from txmcorrect.report.contact_sheet import write_contact_sheet
from txmcorrect.result import Result
from txmcorrect.scan import Array
from txmcorrect.stream import atomic_output, check_output

SHEET_IMAGES = 8  # of each group on the contact sheet


def run(settings: PrepareSettings) -> Result:
    """Write OUT.h5, its manifest OUT.json and its contact sheet OUT.png: all three or none.

    Raises
    ------
    TxmError : no sample or no reference is usable; the message says why.
    """
    out = settings.out if settings.out.suffix else settings.out.with_suffix(".h5")
    outputs = (out.with_suffix(".png"), out.with_suffix(".json"), out)
    for path in outputs:
        check_output(path, settings.overwrite)
        clear_leftovers(path)
    with contextlib.ExitStack() as files:
        sheet, manifest, data = (
            files.enter_context(atomic_output(path, settings.overwrite)) for path in outputs
        )
        with h5py.File(data, "w") as file:
            store = TrainingSet(file)
            entries = harvest(settings, store)
            check_usable(store, entries)
            file.attrs.update(version=__version__, size=settings.size, seed=settings.seed)
            write_contact_sheet(sheet, thumbnails(file))
        manifest.write_text(json.dumps(describe(settings, store, entries), indent=1))
    return Result(tuple(reversed(outputs)), f"{out}: {summarise(store, entries)}")


def harvest(settings: PrepareSettings, store: TrainingSet) -> list[Entry]:
    """Store what is usable; return what became of every file and frame."""
    found = collect(settings.raw, settings.refs, settings.pattern, settings.sources())
    entries = [Entry(path, "none", reason=reason) for path, reason in found.unusable]
    screen, bank = Screen(), Bank(found.references)
    size, share, seed = settings.size, settings.validation, settings.seed
    splits = split_scans(found.scans, size, share, seed)
    of_scan = {scan.path: split for scan, split in zip(found.scans, splits, strict=True)}
    with Stages(settings.quiet) as progress:
        bank.screen(screen, progress)
        entries += bank.store(store, size, share, seed, of_scan, progress)
        max_age_s = settings.max_age_hours * 3600
        samples = Samples(store, bank.flats(), screen, size, max_age_s, settings.force)
        return entries + samples.add(found.scans, splits, progress)


def clear_leftovers(path: Path) -> None:
    """Remove what a killed run left beside an output: temporary files of processes that are gone."""
    for leftover in path.parent.glob(f".{path.stem}.*{path.suffix}"):
        number = leftover.name.removeprefix(f".{path.stem}.").removesuffix(path.suffix)
        if number.isdigit() and not _is_running(int(number)):
            leftover.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def check_usable(store: TrainingSet, entries: list[Entry]) -> None:
    """Refuse to write a training set that could not train anything.

    Raises
    ------
    TxmError : see `run`.
    """
    for kind in ("reference", "transmission"):
        if not any(name.endswith("/" + kind) for name in store.counts):
            what = "reference" if kind == "reference" else "sample frame with a reference"
            why = [e.reason for e in entries if e.reason and e.reason != "not a data file"]
            why += [fate for e in entries for _, _, fate, place in e.runs if place is None]
            raise TxmError(
                f"no usable {what} was found among {len(entries)} files"
                + (f" (for instance: {why[0]})" if why else "")
                + "; check RAW and REFS, or --pattern"
            )


def describe(settings: PrepareSettings, store: TrainingSet, entries: list[Entry]) -> dict[str, Any]:
    """The manifest: settings, totals, and every file with its frames."""
    return {
        "version": __version__,
        "settings": settings.model_dump(mode="json"),
        "datasets": store.counts,
        "frames_left_out": dict(left_out(entries)),
        "files": [entry.as_dict() for entry in entries],
    }


def summarise(store: TrainingSet, entries: list[Entry]) -> str:
    """One line: what was stored, what was left out."""
    kept = ", ".join(f"{n} in {name}" for name, n in sorted(store.counts.items()))
    dropped = [f"{n} {kind}" for kind, n in left_out(entries).most_common()]
    files = sum(1 for e in entries if e.reason and e.reason != "not a data file")
    dropped += [f"{files} files"] if files else []
    hint = (
        ""
        if any("validation/" in name for name in store.counts if "trans" in name)
        else ("; one scan only, so none is kept for validation")
    )
    return kept + (f"; left out: {', '.join(dropped)}" if dropped else "") + hint


def thumbnails(file: h5py.File) -> list[tuple[str, list[tuple[str, Array]]]]:
    """A few images, evenly spread, of each dataset of frames."""
    names: list[str] = []
    file.visit(
        lambda name: names.append(name) if name.endswith(("/reference", "/transmission")) else None
    )
    rows = []
    for name in sorted(names):
        data = file[name]
        chosen = np.unique(np.linspace(0, len(data) - 1, SHEET_IMAGES).round().astype(int))
        rows.append((f"{name} ({len(data)})", [(f"frame {i}", data[i]) for i in chosen]))
    return rows
