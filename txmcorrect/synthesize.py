"""`simulate`: write a synthetic scan, its bank of earlier references and its truth."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from txmcorrect.config import SimulateSettings
from txmcorrect.result import Result
from txmcorrect.simulate.scans import PIXEL_UM, SimulatedScan, simulate_scan
from txmcorrect.stream import atomic_output, check_output

START = 1_767_225_600.0  # an arbitrary night; frames follow every two seconds
SECONDS_PER_FRAME = 2.0
EXPOSURE_S = 1.0
ENERGY_KEV = 8.0
INSTRUMENT = "measurement/instrument"
PACKING = {"compression": "gzip", "compression_opts": 4, "shuffle": True}


def run(settings: SimulateSettings) -> Result:
    """Write OUT.h5 (Data Exchange), OUT.refs.h5 and OUT.truth.h5."""
    out = settings.out if settings.out.suffix else settings.out.with_suffix(".h5")
    refs, truth = out.with_suffix(".refs.h5"), out.with_suffix(".truth.h5")
    for path in (out, refs, truth):
        check_output(path, settings.overwrite)
    scan = simulate_scan(
        kind=settings.kind,
        drift=settings.drift,
        counts=settings.counts,
        shape=(settings.height or settings.size, settings.size),
        seed=settings.seed,
        references=settings.references,
        frames=settings.frames,
        grid=settings.grid,
        overlap=settings.overlap,
        bank=settings.bank,
    )
    # All three, or none of them.
    with contextlib.ExitStack() as files:
        paths = [
            files.enter_context(atomic_output(p, settings.overwrite)) for p in (out, refs, truth)
        ]
        write_scan(paths[0], scan)
        write_bank(paths[1], scan)
        write_truth(paths[2], scan)
    n, h, w = scan.counts.shape
    message = f"{out}: {n} frames of {h}x{w}, {settings.kind}, {settings.drift} drift"
    return Result((out, refs, truth), message)


def _times(n: int) -> np.ndarray:
    return START + SECONDS_PER_FRAME * np.arange(n)


def _describe(file: h5py.File, current_ma: np.ndarray, times: np.ndarray) -> None:
    """Instrument settings and per-frame records, where the readers look for them."""
    file["implements"] = "exchange:measurement"
    group = file.require_group(INSTRUMENT)
    _number(group, "monochromator/energy", ENERGY_KEV, "keV")
    _number(group, "detector/exposure_time", EXPOSURE_S, "s")
    _number(group, "detector/binning_x", 1)
    _number(group, "detector/binning_y", 1)
    _number(group, "detection_system/objective/magnification", 1.0)
    _number(group, "detection_system/objective/resolution", PIXEL_UM, "um")
    _number(group, "source/current", current_ma, "mA")
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
    n = len(scan.counts)
    with h5py.File(path, "w") as file:
        exchange = file.create_group("exchange")
        _stack(exchange, "data", scan.counts)
        _stack(exchange, "data_dark", scan.dark)
        if len(scan.flats):
            _stack(exchange, "data_white", scan.flats)
            taken = file.create_group("process/acquisition/flat_fields")
            taken["projections_before"] = scan.flats_before
            _number(taken, "current", scan.flats_current_ma, "mA")
        if scan.theta is not None:
            exchange["theta"] = np.rad2deg(scan.theta)
            exchange["theta"].attrs["units"] = "degrees"
        if scan.position_px is not None and scan.grid is not None:
            stage = file.create_group(f"{INSTRUMENT}/sample_motor_stack/setup")
            for axis, values in zip("yx", scan.position_px.T, strict=True):
                _number(stage, axis, np.rint(values) * PIXEL_UM, "um")  # the encoder's whole pixels
            mosaic = file.create_group("process/acquisition/mosaic")
            mosaic["rows"], mosaic["columns"] = scan.grid
        _describe(file, scan.current_ma, _times(n))


def write_bank(path: Path, scan: SimulatedScan) -> None:
    """References of earlier days as `/exchange/data_white`."""
    m = len(scan.bank)
    with h5py.File(path, "w") as file:
        exchange = file.create_group("exchange")
        if m:
            _stack(exchange, "data_white", scan.bank)
        _stack(exchange, "data_dark", scan.dark)
        _number(file, "process/acquisition/flat_fields/current", scan.bank_current_ma, "mA")
        _describe(file, scan.bank_current_ma, START - 3600.0 * 6 * np.arange(m, 0, -1))


def write_truth(path: Path, scan: SimulatedScan) -> None:
    """What is true: transmission, background, lit pixels, geometry."""
    optional: dict[str, Any] = {
        "position_px": scan.position_px,
        "world": scan.world,
        "volume": scan.volume,
        "theta": scan.theta,
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
