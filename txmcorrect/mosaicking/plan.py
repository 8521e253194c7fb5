"""Where tiles are expected: --layout, --grid, what the file says, or a layout beside the tiles."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from txmcorrect.config import MosaicSettings
from txmcorrect.errors import GeometryError
from txmcorrect.scan import Scan
from txmcorrect.stitch import layout as layouts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What is known of the layout: `cells` `(n, 2)` of a grid, or `positions` `(n, 2)` px.

    `left_out`: tile -> why it cannot take part. `stage`: the positions are a stage's, whose axes may
    point either way.
    """

    names: tuple[str, ...]
    cells: layouts.Cells | None
    positions: layouts.Points | None
    left_out: dict[int, str]
    stage: bool = False


def plan_layout(settings: MosaicSettings, scan: Scan) -> Plan:
    """Find out where tiles are expected: --layout, --grid, the file, or a layout in the folder.

    Raises
    ------
    GeometryError : a single tile, a grid that does not fit, or nothing known at all.
    """
    n = scan.shape[0]
    names = scan.names or tuple(f"tile_{i + 1:04d}" for i in range(n))
    layouts.parse_order(settings.order)
    if n < 2:
        raise GeometryError(f"{scan.path}: expected at least two tiles, got {n}; nothing to stitch")
    if settings.layout is not None:
        return _listed_plan(settings.layout, names)
    grid = settings.grid or scan.mosaic_shape
    if grid is not None:
        if grid[0] * grid[1] != n:
            raise GeometryError(
                f"{scan.path}: a grid of {grid[0]}x{grid[1]} has {grid[0] * grid[1]} tiles, "
                f"got {n}{_gap(names)}; give the right --grid, or the places with --layout"
            )
        return Plan(names, layouts.grid_cells(grid, settings.order), None, {})
    nearby = scan.path / "TileConfiguration.txt"
    if scan.path.is_dir() and nearby.is_file():
        return _listed_plan(nearby, names)
    pixel_nm = settings.pixel_size_nm or scan.optics.pixel_size_nm
    if scan.position_um is not None and pixel_nm is not None and np.ptp(scan.position_um) > 0:
        return Plan(names, None, scan.position_um * 1000 / pixel_nm, {}, stage=True)
    raise GeometryError(
        f"{scan.path}: expected rows and columns or stage positions in the file, found none; "
        "give --grid ROWSxCOLUMNS or --layout TileConfiguration.txt"
    )


def _gap(names: Sequence[str]) -> str:
    """The first number missing in numbered file names, as a hint."""
    digits = ["".join(c if c.isdigit() else " " for c in name).split() for name in names]
    numbers = [int(d[-1]) for d in digits if d]
    if len(numbers) < len(names) or not numbers:
        return ""
    missing = sorted(set(range(min(numbers), max(numbers) + 1)) - set(numbers))
    return f" (number {missing[0]} is missing)" if len(missing) == 1 else ""


def _listed_plan(path: Path, names: tuple[str, ...]) -> Plan:
    try:
        listed = layouts.parse_tile_configuration(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise GeometryError(f"--layout {path}: expected a readable text file ({error})") from None
    known = [name for name in names if name in listed]
    if len(known) < 2:
        raise GeometryError(
            f"--layout {path}: expected the names of the tiles ({names[0]}, ...), "
            f"got {next(iter(listed))}, ..."
        )
    absent = sorted(set(listed) - set(names))
    if absent:
        log.warning("%s: no tile for %s; its place stays empty", path, ", ".join(absent))
    places = np.array([listed.get(name, listed[known[0]]) for name in names], float)
    unknown = {i: "not in the layout" for i, name in enumerate(names) if name not in listed}
    return Plan(names, None, places, unknown)
