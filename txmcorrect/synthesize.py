"""`simulate`: write a synthetic scan, its bank of earlier references and its truth."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from txmcorrect.config import SimulateSettings, UsageError
from txmcorrect.result import Result
from txmcorrect.simulate.beam import DRIFTS
from txmcorrect.simulate.choices import Choices
from txmcorrect.simulate.drifts import AMOUNTS
from txmcorrect.simulate.records import EXPOSURE_S, Records
from txmcorrect.simulate.scans import PIXEL_UM, SimulatedScan, simulate_scan
from txmcorrect.simulate.specimens import grid_of
from txmcorrect.simulate.worlds import draw_world
from txmcorrect.stream import atomic_output, check_output

START = 1_767_225_600.0  # an arbitrary night; frames follow every two seconds
SECONDS_PER_FRAME = 2.0
SCAN_S = 3600.0  # how long a world's scan takes
ENERGY_KEV = 8.0
INSTRUMENT = "measurement/instrument"
TURNS = 90  # projections of a tomogram, where nothing else is asked for
# What simulate_scan cannot do, with what it does instead.
BEYOND: dict[str, Any] = {
    "drift_kind": "trend",
    "order": "time",
    "records": "full",
    "flat_exposure": 1.0,
    "sample": None,
    "strength": None,
    "detector": "pattern",
    "texture": "mottle",
}
NEW_REFERENCES = ("burst", "before", "within", "bank")
PACKING = {"compression": "gzip", "compression_opts": 4, "shuffle": True}


def run(settings: SimulateSettings) -> Result:
    """Write OUT.h5 (Data Exchange), OUT.refs.h5 and OUT.truth.h5."""
    out = settings.out if settings.out.suffix else settings.out.with_suffix(".h5")
    refs, truth = out.with_suffix(".refs.h5"), out.with_suffix(".truth.h5")
    for path in (out, refs, truth):
        check_output(path, settings.overwrite)
    scan = simulate(settings)
    # All three, or none of them.
    with contextlib.ExitStack() as files:
        paths = [
            files.enter_context(atomic_output(p, settings.overwrite)) for p in (out, refs, truth)
        ]
        write_scan(paths[0], scan)
        write_bank(paths[1], scan)
        write_truth(paths[2], scan)
    n, h, w = scan.counts.shape
    kind = "" if settings.drift_kind == "trend" else f" {settings.drift_kind}"
    message = f"{out}: {n} frames of {h}x{w}, {scan.kind}, {settings.drift}{kind} drift"
    return Result((out, refs, truth), message)


def simulate(settings: SimulateSettings) -> SimulatedScan:
    """The scan asked for: as ever, or a world where anything beyond that is asked for."""
    shape = (settings.height or settings.size, settings.size)
    grid = _grid(settings)
    beyond = any(getattr(settings, name) != usual for name, usual in BEYOND.items())
    if beyond or settings.references in NEW_REFERENCES:
        return _world(settings, shape, grid)
    return simulate_scan(
        kind=settings.kind,
        drift=settings.drift,
        counts=settings.counts,
        shape=shape,
        seed=settings.seed,
        family=settings.family,
        references=settings.references,  # type: ignore[arg-type]
        frames=settings.frames,
        grid=grid,
        overlap=settings.overlap,
        bank=settings.bank,
    )


def _sample(settings: SimulateSettings) -> str:
    return settings.sample or settings.kind.removeprefix("mosaic-")


def _grid(settings: SimulateSettings) -> tuple[int, int]:
    """Rows and columns of a mosaic: as given, or as its frames make them."""
    frames, grid = settings.frames, settings.grid
    if frames is None or _sample(settings) not in ("sparse", "dense"):
        return grid
    if "grid" not in settings.model_fields_set:
        return grid_of(frames)
    if grid[0] * grid[1] != frames:
        raise UsageError(
            f"--frames: expected the {grid[0] * grid[1]} tiles of --grid {grid[0]}x{grid[1]}, "
            f"got {frames}; give one of both"
        )
    return grid


def _world(
    settings: SimulateSettings, shape: tuple[int, int], grid: tuple[int, int]
) -> SimulatedScan:
    """A world with these choices and no others that are drawn, but those that have no option."""
    sample = _sample(settings)
    tiled = sample in ("sparse", "dense")
    usual = TURNS if sample in ("tomo", "wide") else grid[0] * grid[1]
    choices: Choices = {
        "drift": settings.drift_kind,
        "amount": _amount(settings.drift_kind, settings.drift),
        "order": settings.order,
        "records": settings.records,
        "flats_exposure": settings.flat_exposure,
        "sample": sample,
        "detector": settings.detector,
        "texture": settings.texture,
        "references": settings.references,
        "bank": settings.bank,
        "counts": settings.counts,
        "frames": grid[0] * grid[1] if tiled else settings.frames or usual,
        "shape": shape,
        "overlap": settings.overlap,
        "volume": True,
    }
    if tiled:
        choices["grid"] = grid
    if settings.strength is not None:
        choices["strength"] = settings.strength
    return draw_world(settings.seed, settings.family, **choices)


def _amount(kind: str, drift: str) -> float:
    """How much `slow`, `medium` or `fast` is: the least, the middle or the most that is drawn."""
    if kind == "trend":
        return DRIFTS[drift]
    low, high = AMOUNTS[kind]
    return {"slow": low, "medium": (low * high) ** 0.5, "fast": high}[drift]


def _times(scan: SimulatedScan) -> np.ndarray:
    if scan.time is not None:
        return START + SCAN_S * scan.time
    return START + SECONDS_PER_FRAME * np.arange(len(scan.counts))


def _bank_times(scan: SimulatedScan) -> np.ndarray:
    if scan.bank_time is not None:
        return START + SCAN_S * scan.bank_time
    return START - 3600.0 * 6 * np.arange(len(scan.bank), 0, -1)


def _records(scan: SimulatedScan) -> Records:
    """What the files say; without a word about it, currents as they were and equal exposures."""
    if scan.records is not None:
        return scan.records
    exposures = [np.full(len(a), EXPOSURE_S) for a in (scan.counts, scan.bank)]
    return Records(
        exposures[0],
        scan.current_ma,
        None,
        scan.flats_current_ma,
        exposures[1],
        scan.bank_current_ma,
    )


def _describe(
    file: h5py.File,
    exposure_s: np.ndarray | None,
    current_ma: np.ndarray | None,
    times: np.ndarray | None,
) -> None:
    """Instrument settings and per-frame records, where the readers look for them."""
    file["implements"] = "exchange:measurement"
    group = file.require_group(INSTRUMENT)
    _number(group, "monochromator/energy", ENERGY_KEV, "keV")
    if exposure_s is not None:
        equal = len(exposure_s) == 0 or np.ptp(exposure_s) == 0
        _number(group, "detector/exposure_time", EXPOSURE_S if equal else exposure_s, "s")
    _number(group, "detector/binning_x", 1)
    _number(group, "detector/binning_y", 1)
    _number(group, "detection_system/objective/magnification", 1.0)
    _number(group, "detection_system/objective/resolution", PIXEL_UM, "um")
    if current_ma is not None:
        _number(group, "source/current", current_ma, "mA")
    if times is not None:
        _number(file, "exchange/time", times, "s")


def _number(group: h5py.Group, name: str, value: Any, units: str = "") -> None:
    group[name] = value
    if units:
        group[name].attrs["units"] = units


def _stack(group: h5py.Group, name: str, frames: np.ndarray) -> None:
    data = group.create_dataset(name, data=frames, chunks=(1, *frames.shape[1:]), **PACKING)
    data.attrs.update(axes="frame:y:x", units="counts")


def write_scan(path: Path, scan: SimulatedScan) -> None:
    """Data Exchange: projections, darks, the flats inside the scan, angles or stage positions."""
    records = _records(scan)
    with h5py.File(path, "w") as file:
        exchange = file.create_group("exchange")
        _stack(exchange, "data", scan.counts)
        _stack(exchange, "data_dark", scan.dark)
        if len(scan.flats):
            _stack(exchange, "data_white", scan.flats)
            taken = file.create_group("process/acquisition/flat_fields")
            taken["projections_before"] = scan.flats_before
            _describe_flats(exchange, taken, scan, records)
        if scan.theta is not None:
            exchange["theta"] = np.rad2deg(scan.theta)
            exchange["theta"].attrs["units"] = "degrees"
        if scan.position_px is not None and scan.grid is not None:
            stage = file.create_group(f"{INSTRUMENT}/sample_motor_stack/setup")
            for axis, values in zip("yx", scan.position_px.T, strict=True):
                _number(stage, axis, np.rint(values) * PIXEL_UM, "um")  # the encoder's whole pixels
            mosaic = file.create_group("process/acquisition/mosaic")
            mosaic["rows"], mosaic["columns"] = scan.grid
        times = _times(scan) if records.times else None
        _describe(file, records.exposure_s, records.current_ma, times)


def _describe_flats(
    exchange: h5py.Group, taken: h5py.Group, scan: SimulatedScan, records: Records
) -> None:
    """What is recorded of the flats inside a scan."""
    if records.flats_current_ma is not None:
        _number(taken, "current", records.flats_current_ma, "mA")
    if records.flats_exposure_s is not None:
        _number(taken, "flat_exposure_time", records.flats_exposure_s, "s")
    if scan.flats_time is not None and records.times:
        _number(exchange, "time_white", START + SCAN_S * scan.flats_time, "s")


def write_bank(path: Path, scan: SimulatedScan) -> None:
    """References of earlier days as `/exchange/data_white`."""
    m, records = len(scan.bank), _records(scan)
    with h5py.File(path, "w") as file:
        exchange = file.create_group("exchange")
        if m:
            _stack(exchange, "data_white", scan.bank)
        _stack(exchange, "data_dark", scan.dark)
        if records.bank_current_ma is not None:
            _number(file, "process/acquisition/flat_fields/current", records.bank_current_ma, "mA")
        times = _bank_times(scan) if records.times else None
        _describe(file, records.bank_exposure_s, records.bank_current_ma, times)


def write_truth(path: Path, scan: SimulatedScan) -> None:
    """What is true: transmission, background, lit pixels, geometry."""
    optional: dict[str, Any] = {
        "position_px": scan.position_px,
        "world": scan.world,
        "volume": scan.volume,
        "theta": scan.theta,
        "time": scan.time,
        "level": scan.level,
    }
    with h5py.File(path, "w") as file:
        truth = file.create_group("truth")
        for name in ("transmission", "background"):
            frames = getattr(scan, name)
            truth.create_dataset(name, data=frames, chunks=(1, *frames.shape[1:]), **PACKING)
        truth["lit"] = scan.lit
        truth["direct"] = scan.direct
        truth["jumps"] = np.array(scan.jumps, np.int64)
        for name, values in optional.items():
            if values is not None:
                truth[name] = values
        if "volume" in truth:
            truth["volume"].attrs["units"] = "1/um"
