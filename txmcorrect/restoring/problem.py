"""What was measured of a frame, in the prior's units."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
import torch
from torch import Tensor

from txmcorrect.config import RestoreSettings
from txmcorrect.diffusion.guidance import Measurement
from txmcorrect.errors import TxmError
from txmcorrect.physics import (
    BlockMean,
    Identity,
    Inpainting,
    MaskedFourier,
    NoiseModel,
    Operator,
    estimate_gaussian,
    estimate_poisson,
    gaussian_kernel,
    measured_kernel,
    open_blur,
    separable_blur,
)
from txmcorrect.restoring.prior import from_prior, to_prior, vacuum
from txmcorrect.scan import Array
from txmcorrect.weights import Model

MARGIN = 16  # pixels of mirrored frame
COUNTS_NOT_TRANSMISSION = 5.0  # no transmission image has a median above this


@dataclass(frozen=True)
class Problem:
    """One frame to restore.

    Attributes
    ----------
    measurement : in the prior's units. noise : in transmission.
    margin : pixels (y, x) that the restored scene has beyond the frame, to be cut off.
    frame : `(h, w)` transmission as measured; NaN where missing.
    """

    measurement: Measurement
    noise: NoiseModel
    margin: tuple[int, int]
    frame: Tensor


def pose(
    settings: RestoreSettings,
    frame: Array,
    model: Model,
    device: torch.device,
    noise: NoiseModel | None = None,
) -> Problem:
    """State what is known of a frame `(h, w)`; its noise is found, unless it is given.

    Raises
    ------
    TxmError : it holds counts rather than transmission, or the mask does not fit it.
    """
    if settings.task == "fourier":
        return _pose_frequencies(settings, frame, model, device)
    image = torch.from_numpy(np.asarray(frame, np.float32)) / (settings.counts or 1)
    image = torch.where(_missing(settings, image), torch.nan, image)
    median = float(image.nanmedian())
    if median > COUNTS_NOT_TRANSMISSION:
        raise TxmError(
            f"expected transmission (1 is vacuum), got a median of {median:.4g}; "
            "correct the scan first, or give --counts, those of an empty pixel"
        )
    known = torch.isfinite(image)
    filled = torch.where(known, image, vacuum(model))
    noise = noise or noise_of(settings.noise, image)
    margin = (0, 0)
    if settings.border == "mirrored" and settings.task == "denoise" and bool(known.all()):
        # A frame that a sample covers does not end at its edge; a prior takes what is there for empty.
        margin = (min(MARGIN, image.shape[0] - 1), min(MARGIN, image.shape[1] - 1))
        filled = _mirrored(filled, margin)
        known = torch.isfinite(filled)
    operator, beyond = _operator(settings, filled, known, device)
    margin = (margin[0] + beyond[0], margin[1] + beyond[1])
    y = to_prior(filled, model)[None, None].to(device) * known.to(device)
    s2 = _variance(noise, filled, isinstance(operator, Identity | Inpainting))
    s2 = s2 / float(model.spec.extra["scale"]) ** 2
    return Problem(Measurement(operator, y, s2.to(device)), noise, margin, image)


def _mirrored(image: Tensor, margin: tuple[int, int]) -> Tensor:
    """`(h, w)` with its own mirror image around it."""
    my, mx = margin
    return torch.nn.functional.pad(image[None, None], (mx, mx, my, my), mode="reflect")[0, 0]


def _pose_frequencies(
    settings: RestoreSettings, frame: Array, model: Model, device: torch.device
) -> Problem:
    """Frequencies `(h, w)` of an orthonormal Fourier transform, in FFT order; 0 was not measured.

    Raises
    ------
    TxmError : they are not complex, none was measured, or their noise is not stated.
    """
    if not np.iscomplexobj(frame) or not np.any(frame):
        raise TxmError(
            f"--task fourier: expected complex frequencies, 0 where not measured, got {frame.dtype}; "
            "np.fft.fft2(frame, norm='ortho') * mask makes them"
        )
    y = torch.from_numpy(np.array(frame, np.complex64))
    measured = _missing_marked(settings, y) & (y != 0)
    noise = noise_of(settings.noise, torch.empty(0), stated=True)
    operator = MaskedFourier(measured.float().to(device))
    empty = operator.A(torch.full(y.shape, vacuum(model)).to(device))
    scale = float(model.spec.extra["scale"])
    y = (y.to(device) * operator.mask - empty)[None, None] / scale
    seen = from_prior(operator.A_adjoint(y), model)[0, 0].cpu()
    return Problem(Measurement(operator, y, noise.floor / scale**2), noise, (0, 0), seen)


def _missing_marked(settings: RestoreSettings, image: Tensor) -> Tensor:
    """Where --mask leaves data, as booleans shaped like `image`."""
    if settings.mask is None:
        return torch.ones(image.shape, dtype=torch.bool)
    return ~_missing(settings, torch.zeros(image.shape))


def noise_of(wanted: str, image: Tensor, stated: bool = False) -> NoiseModel:
    """The noise the user states, or the frame shows; `stated` if it must be given as a number.

    Raises
    ------
    TxmError : `wanted` is neither a known word nor a positive number.
    """
    if stated and wanted in ("auto", "poisson", "gaussian"):
        raise TxmError(
            f"--noise {wanted}: expected a number, the deviation of the real part of a frequency: "
            "few of them do not tell it"
        )
    if wanted in ("auto", "poisson"):
        return estimate_poisson(_whole(image))
    if wanted == "gaussian":
        return estimate_gaussian(_whole(image))
    try:
        deviation = float(wanted)
    except ValueError:
        deviation = -1.0
    if deviation <= 0:
        raise TxmError(f"--noise: expected auto, poisson, gaussian or a number > 0, got {wanted!r}")
    return NoiseModel(deviation**2)


def _whole(image: Tensor) -> Tensor:
    return torch.where(torch.isfinite(image), image, image.nanmedian())


def _variance(noise: NoiseModel, image: Tensor, per_pixel: bool) -> Tensor:
    """Variance map `(1, 1, h, w)` from the local mean, or one number where maps are costly."""
    padded = torch.nn.functional.pad(image[None, None], (2, 2, 2, 2), mode="replicate")
    local = noise.variance(torch.nn.functional.avg_pool2d(padded, 5, 1))
    return local if per_pixel else local.mean()


def _operator(
    settings: RestoreSettings, image: Tensor, known: Tensor, device: torch.device
) -> tuple[Operator, tuple[int, int]]:
    """What turned the scene into the frame, and the scene's margin beyond it."""
    shape = (image.shape[0], image.shape[1])
    if settings.task == "superres":
        return BlockMean((settings.factor, settings.factor)), (0, 0)
    if settings.task == "deblur" and settings.psf_file:
        kernel = measured_kernel(read_image(settings.psf_file, "--psf-file")).to(device)
        return open_blur(kernel, shape), (kernel.shape[0] // 2, kernel.shape[1] // 2)
    if settings.task == "deblur":
        profile = gaussian_kernel(settings.psf).sum(0).to(device)
        return separable_blur(profile, profile, shape), (0, 0)
    if bool(known.all()):
        return Identity(), (0, 0)
    return Inpainting(known.float().to(device)), (0, 0)


def _missing(settings: RestoreSettings, image: Tensor) -> Tensor:
    """Pixels without data: not finite, or marked by the user."""
    missing = ~torch.isfinite(image)
    if settings.mask is None:
        return missing
    marked = read_image(settings.mask, "--mask") != 0
    if marked.shape != image.shape:
        raise TxmError(
            f"--mask {settings.mask}: expected {tuple(image.shape)} pixels, got {tuple(marked.shape)}"
        )
    return missing | marked


def read_image(path: Path, option: str) -> Tensor:
    """A 2D image from TIFF or npy.

    Raises
    ------
    TxmError : it cannot be read, or is not 2D.
    """
    try:
        array = (
            np.load(path, allow_pickle=False) if path.suffix == ".npy" else tifffile.imread(path)
        )
    except (OSError, ValueError, tifffile.TiffFileError) as error:
        raise TxmError(f"{option} {path}: expected a TIFF or npy image ({error})") from None
    if array.ndim != 2:
        raise TxmError(f"{option} {path}: expected a 2D image, got shape {array.shape}")
    return torch.from_numpy(array.astype(np.float32))
