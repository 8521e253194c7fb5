"""Reading through the real `dxchange` package, for those who trust it more than our readers.

Its stack readers slice by projection, so a block is all that is loaded. Angles are radians as it
returns them; Xradia rows are turned as our own reader turns them.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from txmcorrect.errors import FormatError
from txmcorrect.formats.source import sniff
from txmcorrect.scan import Array, References, Scan

WHERE = "it is on conda-forge and in Debian (python3-dxchange); or drop --reader dxchange"


def load_dxchange() -> ModuleType:
    """Import dxchange and make sure it is the one for tomography data.

    Raises
    ------
    FormatError : it is not installed, cannot be imported, or is PyPI's package of the same name.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what optional packages it lacks
            module = importlib.import_module("dxchange")
    except ModuleNotFoundError as error:
        lacks = "" if error.name == "dxchange" else f" (it lacks {error.name})"
        raise FormatError(
            f"--reader dxchange: the package is not installed{lacks}; {WHERE}"
        ) from None
    if not callable(getattr(module, "read_aps_32id", None)):
        raise FormatError(
            "--reader dxchange: the `dxchange` installed here is an unrelated package of that name "
            f"from PyPI; uninstall it and take the real one: {WHERE}"
        )
    return module


@dataclass(frozen=True)
class CalledFrames:
    """Frames that a call returns for `(start, stop)`; `flip` turns rows top first."""

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    load: Callable[[int, int], Array]
    flip: bool = False

    def read(self, start: int, stop: int) -> Array:
        frames = called(self.path, lambda: self.load(start, min(stop, self.shape[0])))
        return np.asarray(frames[:, ::-1] if self.flip else frames)


def called(path: Path, call: Callable[[], Any]) -> Any:
    """Call dxchange; whatever it raises or prints instead becomes one clear line."""
    try:
        result = call()
    except Exception as error:
        raise FormatError(
            f"{path}: dxchange cannot read it ({type(error).__name__}: {error}); drop --reader dxchange"
        ) from error
    if result is False or result is None:
        raise FormatError(f"{path}: dxchange cannot read it; drop --reader dxchange")
    return result


def open_through_dxchange(path: Path) -> Scan:
    """Open a Data Exchange, txrm, xrm or TIFF file as dxchange reads it.

    Raises
    ------
    FormatError : dxchange is missing, is an impostor, or cannot read the file.
    """
    module = load_dxchange()
    kind = sniff(path) if path.is_file() else ""
    openers = {"hdf5": _open_exchange, "xradia": _open_xradia, "tiff": _open_tiff}
    if kind not in openers:
        raise FormatError(
            f"{path}: --reader dxchange reads a Data Exchange, Xradia or TIFF file; drop it for others"
        )
    return openers[kind](module, path)


def _open_exchange(module: ModuleType, path: Path) -> Scan:
    def load(start: int, stop: int) -> Any:
        return module.read_aps_32id(str(path), proj=(start, stop, 1))

    first, flats, darks, theta = called(path, lambda: load(0, 1))
    n = int(called(path, lambda: module.reader.read_dx_dims(str(path), "data"))[0])
    frames = CalledFrames(path, (n, *first.shape[1:]), first.dtype, lambda a, b: load(a, b)[0])
    whites, blacks = (_small(path, load, i, x) for i, x in ((1, flats), (2, darks)))
    return Scan(
        path=path,
        format="data exchange (dxchange)",
        projections=frames,
        flats=() if whites is None else (References(whites, darks=blacks, origin=path.name),),
        darks=blacks,
        theta=None if theta is None else np.asarray(theta, np.float64)[:n],
    )


def _small(path: Path, load: Callable[[int, int], Any], i: int, stack: Any) -> CalledFrames | None:
    """Flats or darks: dxchange loads them whole with every block."""
    if stack is None or not len(stack):
        return None
    return CalledFrames(path, stack.shape, stack.dtype, lambda a, b: load(0, 1)[i][a:b])


def _open_xradia(module: ModuleType, path: Path) -> Scan:
    if path.suffix.lower() == ".xrm":
        image, meta = called(path, lambda: module.read_xrm(str(path)))
        image = np.atleast_3d(image).reshape(1, *image.shape[-2:])
        frames = CalledFrames(path, image.shape, image.dtype, lambda a, b: image[a:b], flip=True)
        return Scan(path=path, format="xradia (dxchange)", projections=frames)

    def load(start: int, stop: int) -> Any:
        return module.read_txrm(str(path), ((start, stop, 1), (None,), (None,)))

    first, meta = called(path, lambda: load(0, 1))
    n = int(meta["number_of_images"])
    frames = CalledFrames(
        path, (n, *first.shape[1:]), first.dtype, lambda a, b: load(a, b)[0], flip=True
    )
    theta = meta.get("thetas")
    return Scan(
        path=path,
        format="xradia (dxchange)",
        projections=frames,
        theta=None if theta is None else np.asarray(theta, np.float64),
    )


def _open_tiff(module: ModuleType, path: Path) -> Scan:
    image = np.asarray(called(path, lambda: module.read_tiff(str(path))))
    image = image.reshape(-1, *image.shape[-2:])
    frames = CalledFrames(path, image.shape, image.dtype, lambda a, b: image[a:b])
    return Scan(path=path, format="tiff (dxchange)", projections=frames)
