"""Large images as tiled, pyramidal OME BigTIFF: Fiji, napari and QuPath read it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from txmcorrect import __version__
from txmcorrect.errors import FormatError
from txmcorrect.stream import atomic_output, check_output, disk_errors

Array = NDArray[Any]
TILE = 256
SMALLEST = 512  # the pyramid ends where an image fits on a screen


def write_pyramid(
    path: Path,
    strips: Iterable[tuple[int, Array]],
    shape: tuple[int, int],
    pixel_size_um: float | None = None,
    name: str = "",
    overwrite: bool = False,
) -> Path:
    """Write an image that arrives in strips; nothing larger than a strip is held in memory.

    The strips go into a scratch file beside the output, each level of the pyramid into another; the
    output appears when it is complete.

    Parameters
    ----------
    strips : first row and `(rows, w)` float32 each, from top to bottom. shape : (h, w).
    pixel_size_um : None if unknown. name : of the image, in the metadata.

    Raises
    ------
    OutputError : see `stream.check_output`; the disk is full.
    """
    check_output(path, overwrite)
    scratch = [path.with_name(f".{path.name}.level0")]
    try:
        with disk_errors(path):
            levels = [_store(scratch[0], strips, shape)]
            while max(levels[-1].shape) > SMALLEST:
                scratch.append(path.with_name(f".{path.name}.level{len(levels)}"))
                levels.append(_halve(levels[-1], scratch[-1]))
        with atomic_output(path, overwrite) as temporary:
            _write(temporary, levels, pixel_size_um, name)
    finally:
        for file in scratch:
            file.unlink(missing_ok=True)
    return path


@dataclass(frozen=True)
class _Level:
    """Rows of an image `(h, w)` in a scratch file: mapped, they would all count as memory in use."""

    path: Path
    shape: tuple[int, int]

    def rows(self, top: int, stop: int) -> Array:
        """Rows `top:stop`, no further than the last."""
        h, w = self.shape
        count = min(stop, h) - top
        return np.fromfile(self.path, np.float32, count * w, offset=4 * top * w).reshape(count, w)


def _store(path: Path, strips: Iterable[tuple[int, Array]], shape: tuple[int, int]) -> _Level:
    with path.open("wb") as file:
        file.truncate(4 * shape[0] * shape[1])
        for top, strip in strips:
            file.seek(4 * top * shape[1])
            file.write(np.ascontiguousarray(strip, np.float32).data)
    return _Level(path, shape)


def _halve(level: _Level, path: Path) -> _Level:
    """Mean of 2 x 2 pixels, of those that are known."""
    h, w = (max(side // 2, 1) for side in level.shape)

    def strips() -> Iterator[tuple[int, Array]]:
        for top in range(0, h, TILE):
            rows = min(TILE, h - top)
            block = level.rows(2 * top, 2 * (top + rows))[:, : 2 * w]
            quads = block.reshape(rows, 2, w, 2)
            known = np.isfinite(quads)
            count = known.sum((1, 3))
            total = np.where(known, quads, 0).sum((1, 3))
            yield top, np.where(count > 0, total / np.maximum(count, 1), np.nan)

    return _store(path, strips(), (h, w))


def _write(path: Path, levels: list[_Level], pixel_size_um: float | None, name: str) -> None:
    metadata: dict[str, Any] = {"axes": "YX", "Name": name}
    resolution: dict[str, Any] = {}
    if pixel_size_um is not None:
        metadata |= {
            "PhysicalSizeX": pixel_size_um,
            "PhysicalSizeXUnit": "µm",
            "PhysicalSizeY": pixel_size_um,
            "PhysicalSizeYUnit": "µm",
        }
        per_cm = 1e4 / pixel_size_um
        resolution = {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
    options: dict[str, Any] = {
        "tile": (TILE, TILE),
        "compression": "zlib",
        "photometric": "minisblack",
    }
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as tif:
        for number, level in enumerate(levels):
            tif.write(
                _tiles(level),
                shape=level.shape,
                dtype=np.float32,
                subifds=len(levels) - 1 if number == 0 else None,
                subfiletype=1 if number else 0,
                metadata=metadata if number == 0 else None,
                software=f"txmcorrect {__version__}" if number == 0 else None,
                **(resolution if number == 0 else {}),
                **options,
            )


def _tiles(level: _Level) -> Iterator[Array]:
    """Tiles of a level in the order TIFF wants them; the last ones are padded by the writer."""
    for y in range(0, level.shape[0], TILE):
        band = level.rows(y, y + TILE)
        for x in range(0, level.shape[1], TILE):
            yield np.ascontiguousarray(band[:, x : x + TILE])


def read_level(path: Path, least: int) -> Array:
    """The smallest level of a pyramid that is at least `least` pixels wide or high.

    Raises
    ------
    FormatError : not a TIFF image.
    """
    try:
        with tifffile.TiffFile(path) as file:
            levels = file.series[0].levels
            fitting = [level for level in levels if max(level.shape) >= least]
            return np.asarray((fitting or [levels[0]])[-1].asarray())
    except (tifffile.TiffFileError, IndexError) as error:
        raise FormatError(f"{path}: expected an image pyramid ({error})") from None
