"""Inputs of other projects, for `prepare`: PNG images, MATLAB `.mat` files, NIfTI volumes."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from txmcorrect.errors import FormatError
from txmcorrect.scan import Array, ArrayFrames, Scan


@dataclass(frozen=True)
class NiftiFrames:
    """Slices along the last axis of a NIfTI volume `(x, y, z)`, as `(z, y, x)`, top row first."""

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]

    def read(self, start: int, stop: int) -> Array:
        volume = optional("nibabel", self.path).load(self.path).dataobj
        block = np.asarray(volume[:, :, start : min(stop, self.shape[0])])
        return block.transpose(2, 1, 0)[:, ::-1].astype(self.dtype, copy=False)


def optional(name: str, path: Path) -> Any:
    """Import a package that only some inputs need.

    Raises
    ------
    FormatError : it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise FormatError(
            f"{path}: needs the package {name}; install it with `pip install txmcorrect[inputs]`"
        ) from None


def open_png(path: Path) -> Scan:
    """Describe a grey PNG image, 8 or 16 bits.

    Raises
    ------
    FormatError : unreadable, or a colour image.
    """
    try:
        image = np.asarray(optional("imageio.v3", path).imread(path, extension=".png"))
    except (OSError, ValueError, SyntaxError) as error:  # imageio passes on what Pillow raises
        raise FormatError(f"{path}: unreadable PNG image ({error})") from None
    if image.ndim == 3 and (image[..., :3] == image[..., :1]).all():
        image = image[..., 0]  # grey stored as colour
    if image.ndim != 2:
        raise FormatError(f"{path}: expected a grey image, got one of shape {image.shape}")
    return Scan(path=path, format="png", projections=ArrayFrames(image[np.newaxis]))


def open_mat(path: Path) -> Scan:
    """Describe the one array of frames in a MATLAB 5 file; frames lie along its last axis.

    Raises
    ------
    FormatError : unreadable, or without a single such array.
    """
    from scipy.io import loadmat, whosmat

    try:
        stacks = [
            (name, shape)
            for name, shape, _ in whosmat(path)
            if len(shape) in (2, 3) and min(shape) > 1
        ]
        if len(stacks) != 1:
            listing = ", ".join(f"{n} {s}" for n, s in stacks) or "none"
            raise FormatError(
                f"{path}: expected one array of frames, got {listing}; keep only that one"
            )
        array = np.asarray(loadmat(path, variable_names=[stacks[0][0]])[stacks[0][0]])
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        raise FormatError(f"{path}: unreadable MATLAB file ({error})") from None
    if array.dtype.kind not in "uifb":
        raise FormatError(f"{path}: expected numbers, got {array.dtype}")
    frames = array[np.newaxis] if array.ndim == 2 else array.transpose(2, 0, 1)
    return Scan(path=path, format="mat", projections=ArrayFrames(frames))


def open_nifti(path: Path) -> Scan:
    """Describe a NIfTI volume as a stack of its slices.

    Raises
    ------
    FormatError : unreadable, or not three-dimensional.
    """
    nibabel = optional("nibabel", path)
    try:
        image = nibabel.load(path)
    except Exception as error:  # nibabel has its own error classes
        raise FormatError(f"{path}: unreadable NIfTI file ({error})") from None
    if len(image.shape) != 3 or 0 in image.shape:
        raise FormatError(f"{path}: expected a volume (x, y, z), got shape {image.shape}")
    w, h, n = image.shape
    dtype = np.asarray(image.dataobj[:1, :1, :1]).dtype
    return Scan(path=path, format="nifti", projections=NiftiFrames(path, (n, h, w), dtype))
