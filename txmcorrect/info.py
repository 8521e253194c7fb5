"""`info`: what is in a scan, as a table to read or JSON to parse."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from rich.console import Console
from rich.table import Table

from txmcorrect.config import InfoSettings
from txmcorrect.errors import ReferenceMismatchError, TxmError
from txmcorrect.formats import holds_references_alone, open_references, open_scan
from txmcorrect.formats.write_process import GROUP
from txmcorrect.matching import match_references
from txmcorrect.result import Result
from txmcorrect.scan import FloatArray, Frames, Optics, References, Scan

log = logging.getLogger(__name__)


def run(settings: InfoSettings) -> Result:
    """Print what each file holds; files that cannot be read are named at the end.

    Raises
    ------
    TxmError : none of the files can be read.
    """
    found, failed = [], []
    for path in settings.files:
        try:
            found.append(describe(path, settings))
        except TxmError as error:
            failed.append(error)
    if not found:
        raise failed[0]
    if settings.json_output:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        for facts in found:
            print_table(as_table(facts))
    for reason in failed:
        log.error("%s", reason)
    return Result(exit_code=1 if failed else 0)


def print_table(table: Table) -> None:
    """Print to fit a terminal, or wide and without padding into a file or pipe."""
    if sys.stdout.isatty():
        Console().print(table)
        return
    with (console := Console(width=160, no_color=True)).capture() as text:
        console.print(table)
    sys.stdout.write("\n".join(line.rstrip() for line in text.get().splitlines()) + "\n")


def describe(path: Path, settings: InfoSettings) -> dict[str, Any]:
    """Collect the facts about one file or folder, ready for JSON; what is unknown is null.

    A file that holds references alone is described as such.
    """
    if not settings.data_path and holds_references_alone(path):
        groups = open_references(path, **settings.sources())
        return {
            "path": str(path),
            "format": "references",
            "references": [describe_references(group, None) for group in groups],
        }
    return describe_scan(open_scan(path, **settings.sources()))


def describe_scan(scan: Scan) -> dict[str, Any]:
    """Facts about a scan."""
    return {
        "path": str(scan.path),
        "format": scan.format,
        **_stack(scan.projections),
        "theta_deg": None if scan.theta is None else _range(np.rad2deg(scan.theta)),
        "energy_ev": _range(scan.energy_ev) or _single(scan.optics.energy_ev),
        **_optics(scan.optics),
        "exposure_s": _range(scan.exposure_s),
        "current_ma": _range(scan.current_ma),
        "time": _dates(scan.time_s),
        "mosaic": None if scan.mosaic_shape is None else list(scan.mosaic_shape),
        "positions": scan.position_um is not None,
        "stored_shifts": scan.shifts_px is not None,
        "darks": None if scan.darks is None else scan.darks.shape[0],
        "references": [describe_references(group, scan) for group in scan.flats],
        "corrected_by": scan.corrected_by or None,
        "model": _model(scan),
        "warnings": list(scan.warnings),
    }


def _model(scan: Scan) -> str | None:
    """What generated the background of a scan that we corrected; null where its file does not say."""
    if scan.corrected_by != "txmcorrect" or not h5py.is_hdf5(scan.path):
        return None
    with h5py.File(scan.path, "r") as file:
        options = file[GROUP].attrs.get("options", "{}") if GROUP in file else "{}"
    name = json.loads(options).get("model")
    return "none (fit alone)" if name == "none" else name


def describe_references(group: References, scan: Scan | None) -> dict[str, Any]:
    """Facts about references, and whether they fit the scan they came with."""
    facts = {
        "origin": group.origin,
        **_stack(group.frames),
        "energy_ev": _single(group.optics.energy_ev),
        **_optics(group.optics),
        "exposure_s": _range(group.exposure_s),
        "current_ma": _range(group.current_ma),
        "time": _dates(group.time_s),
        "before": None if group.before is None else sorted({int(i) for i in group.before}),
    }
    return facts if scan is None else {**facts, **_fit(scan, group)}


def _fit(scan: Scan, group: References) -> dict[str, Any]:
    try:
        (match,) = match_references(scan, group)
    except ReferenceMismatchError as error:
        return {"fits": False, "notes": [str(error)], "age_s": None}
    age = None if match.age_s is None else _range(match.age_s)
    return {"fits": True, "notes": list(match.warnings), "age_s": age}


def _stack(frames: Frames) -> dict[str, Any]:
    return {"shape": [int(size) for size in frames.shape], "dtype": frames.dtype.name}


def _optics(optics: Optics) -> dict[str, Any]:
    return {
        "pixel_size_nm": optics.pixel_size_nm,
        "magnification": optics.magnification,
        "binning": None if optics.binning is None else list(optics.binning),
    }


def _range(values: FloatArray | None) -> list[float] | None:
    """Smallest and largest."""
    return None if values is None else [float(values.min()), float(values.max())]


def _single(value: float | None) -> list[float] | None:
    return None if value is None else [value, value]


def _dates(times: FloatArray | None) -> list[str] | None:
    """First and last moment, as the file's clock showed them."""
    if times is None:
        return None
    ends = (times.min(), times.max())
    return [datetime.fromtimestamp(float(t), UTC).strftime("%Y-%m-%d %H:%M:%S") for t in ends]


LABELS = {
    "theta_deg": ("angles", "°"),
    "energy_ev": ("energy", " eV"),
    "pixel_size_nm": ("pixel size", " nm"),
    "magnification": ("magnification", "x"),
    "binning": ("binning", ""),
    "exposure_s": ("exposure", " s"),
    "current_ma": ("current or beam monitor", ""),
    "time": ("taken", ""),
    "mosaic": ("mosaic", ""),
    "positions": ("stage positions", ""),
    "stored_shifts": ("stored alignment", ""),
    "darks": ("darks", ""),
    "before": ("after projection", ""),
    "corrected_by": ("already corrected by", ""),
    "model": ("model", ""),
    "age_s": ("age", " s"),
}


def as_table(facts: dict[str, Any]) -> Table:
    """Lay the known facts out in two columns."""
    table = Table(title=facts["path"], title_justify="left", box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("format", facts["format"])
    if "shape" in facts:
        table.add_row("frames", _frames_text(facts))
    for key, text in _known(facts):
        table.add_row(key, text)
    for group in facts["references"]:
        table.add_row("references", _reference_text(group))
    if not facts["references"]:
        table.add_row("references", "none")
    for note in facts.get("warnings", ()):
        table.add_row("warning", note, style="yellow")
    return table


def _known(facts: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (label, _text(key, facts[key]) + unit)
        for key, (label, unit) in LABELS.items()
        if facts.get(key) not in (None, False)
    ]


def _text(key: str, value: Any) -> str:
    """A fact in words: one number, from-to, rows x columns."""
    if value is True:
        return "yes"
    if key in ("binning", "mosaic"):
        return f"{value[0]}x{value[1]}"
    if isinstance(value, list):
        shown = [f"{v:.6g}" if isinstance(v, float) else str(v) for v in value]
        return shown[0] if len(set(shown)) == 1 else " to ".join((shown[0], shown[-1]))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _frames_text(facts: dict[str, Any]) -> str:
    n, h, w = facts["shape"]
    return f"{n} of {h}x{w}, {facts['dtype']}"


def _reference_text(group: dict[str, Any]) -> str:
    details = ", ".join(f"{label} {text}" for label, text in _known(group))
    verdict = "" if "fits" not in group else "; fit" if group["fits"] else "; DO NOT FIT"
    notes = "".join(f"; {note}" for note in group.get("notes", ()))
    return f"{_frames_text(group)} ({group['origin']}{', ' + details if details else ''}){verdict}{notes}"
