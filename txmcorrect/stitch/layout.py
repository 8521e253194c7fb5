"""Where tiles are expected: grids, orders, neighbours, Fiji's TileConfiguration.txt."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from txmcorrect.errors import GeometryError

Points = NDArray[np.float64]
Cells = NDArray[np.intp]

WAYS = ("rows", "snake")
CORNERS = ("bottom-left", "bottom-right", "top-left", "top-right")
TILE_LINE = re.compile(r"\s*(?P<name>[^;]+?)\s*;[^;]*;\s*\((?P<x>[^,()]+),(?P<y>[^,()]+)\)\s*")


def parse_order(order: str) -> tuple[str, str]:
    """`rows,bottom-left` -> (`rows`, `bottom-left`).

    Raises
    ------
    GeometryError : not one of the ways and corners.
    """
    way, _, corner = (part.strip() for part in order.partition(","))
    corner = corner or CORNERS[0]
    if way not in WAYS or corner not in CORNERS:
        raise GeometryError(
            f"expected an order such as rows,bottom-left (rows or snake; {', '.join(CORNERS)}), "
            f"got {order!r}"
        )
    return way, corner


def grid_cells(shape: tuple[int, int], order: str) -> Cells:
    """Cell of each tile in the order of acquisition.

    Parameters
    ----------
    shape : (rows, columns). order : way and first corner, see `parse_order`.

    Returns
    -------
    `(n, 2)` (row, column), row 0 at the top.
    """
    way, corner = parse_order(order)
    rows, columns = shape
    row, column = (index.ravel() for index in np.indices(shape))
    if way == "snake":
        column = np.where(row % 2 == 1, columns - 1 - column, column)
    if corner.startswith("bottom"):
        row = rows - 1 - row
    if corner.endswith("right"):
        column = columns - 1 - column
    return np.stack([row, column], 1)


def grid_neighbours(cells: Cells) -> list[tuple[int, int]]:
    """Pairs of tiles in adjacent cells: (left, right) and (upper, lower)."""
    at = {(int(r), int(c)): i for i, (r, c) in enumerate(cells)}
    steps = ((0, 1), (1, 0))
    pairs = [(i, at.get((r + dr, c + dc))) for (r, c), i in at.items() for dr, dc in steps]
    return sorted((i, j) for i, j in pairs if j is not None)


def cells_of(positions: Points, shape: tuple[int, int]) -> Cells | None:
    """Cells of a grid that positions `(n, 2)` px stand in; None where they are no full grid."""
    cells = np.empty(positions.shape, np.intp)
    for axis in (0, 1):
        ordered = np.argsort(positions[:, axis], kind="stable")
        # A step of half a frame starts the next row; less is jitter.
        jumps = np.diff(positions[ordered, axis]) > shape[axis] / 2
        cells[ordered, axis] = np.concatenate([[0], np.cumsum(jumps)])
    full = len(np.unique(cells, axis=0)) == len(cells) == np.prod(cells.max(0) + 1)
    return cells if full else None


def near_neighbours(
    positions: Points, shape: tuple[int, int], slack_px: float
) -> list[tuple[int, int]]:
    """Pairs whose frames overlap, or would if one moved by `slack_px`; not corner against corner."""
    side = np.asarray(shape, float)
    pairs = []
    for i in range(len(positions)):
        distance = np.abs(positions[i + 1 :] - positions[i])
        near = (distance < side + slack_px).all(1) & (distance < side / 2).any(1)
        pairs += [(i, i + 1 + int(j)) for j in np.flatnonzero(near)]
    return pairs


def parse_tile_configuration(text: str) -> dict[str, tuple[float, float]]:
    """Read Fiji's tile layout: `{file name: (y, x)}` in pixels; y grows downward.

    Raises
    ------
    GeometryError : a line is not `name; ; (x, y)`, a name comes twice, or the layout is not 2D.
    """
    tiles: dict[str, tuple[float, float]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        if re.fullmatch(r"dim\s*=\s*2", stripped):
            continue
        match = TILE_LINE.fullmatch(line)
        try:
            if match is None:
                raise ValueError
            place = float(match["y"]), float(match["x"])
        except ValueError:
            raise GeometryError(
                f"tile layout, line {number}: expected `name; ; (x, y)` in two dimensions, "
                f"got {stripped!r}"
            ) from None
        if match["name"] in tiles:
            raise GeometryError(f"tile layout, line {number}: {match['name']} is listed twice")
        tiles[match["name"]] = place
    if not tiles:
        raise GeometryError("tile layout: expected lines `name; ; (x, y)`, found none")
    return tiles


def format_tile_configuration(names: Sequence[str], positions: Points) -> str:
    """Write Fiji's tile layout for tiles whose corners lie at `(n, 2)` (y, x) pixels."""
    lines = [f"{name}; ; ({x:.3f}, {y:.3f})" for name, (y, x) in zip(names, positions, strict=True)]
    head = ["# Define the number of dimensions we are working on", "dim = 2", ""]
    return "\n".join([*head, "# Define the image coordinates", *lines, ""])
