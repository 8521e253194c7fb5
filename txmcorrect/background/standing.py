"""A round sample that stands upright and turns about its own axis: a capillary, a pillar.

Its shadow is the same in all frames, so nothing tells it from the beam but its shape (`cylinders`).
Without this, a background found from frames alone holds the mean shadow of a capillary: 97 % of its
error in simulated tomograms. Whatever of a sample is round about the axis and has no sharp edge stays
unknown: projections at all angles agree with it (Helgason 1965, Ludwig 1966).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from txmcorrect.background.conditions import bin_mean
from txmcorrect.background.survey import Survey
from txmcorrect.background.thumbnails import Thumbnails
from txmcorrect.scan import Frames, Scan

Image = NDArray[np.float32]
Array = NDArray[Any]

STEP = 1e-3  # of numerical derivatives
FINE = 4  # places a pixel where derivatives of a profile are taken


@dataclass(frozen=True)
class Standing:
    """Cylinders about one upright axis.

    Attributes
    ----------
    centre : column of the axis in the middle row; tilt : columns a row. radii : pixels, falling. shade :
    natural log of each cylinder's shadow where it is deepest; the sum is never above 0. blur : pixels over
    which edges are smeared. doubt : `(2 + 2 k, m)` in rows: draws of `m` normal numbers, times it, deviate
    as `numbers` may.
    """

    centre: float
    tilt: float
    blur: float
    radii: tuple[float, ...]
    shade: tuple[float, ...]
    doubt: tuple[float, ...]

    def __str__(self) -> str:
        depth = 100 * (1 - np.exp(float(profile(np.array([self.centre]), self.numbers)[0])))
        return (
            f"upright cylinder about column {self.centre:.1f}, radius {self.radii[0]:.1f} px, taken for "
            f"sample: it darkens the axis by {depth:.1f} %"
        )

    @property
    def numbers(self) -> Array:
        """`(centre, log of blur, *radii, *shade)`."""
        return np.array([self.centre, np.log(self.blur), *self.radii, *self.shade])

    def as_numbers(self) -> list[float]:
        """All of it, for `of`."""
        shapes = *self.radii, *self.shade, *self.doubt
        return [len(self.radii), self.centre, self.tilt, self.blur, *shapes]

    @staticmethod
    def of(numbers: Array) -> Standing:
        """What `as_numbers` gave."""
        k, centre, tilt, blur, *rest = map(float, numbers)
        radii, shade, doubt = np.split(rest, [int(k), 2 * int(k)])
        shapes = tuple(radii.tolist()), tuple(shade.tolist()), tuple(doubt.tolist())
        return Standing(centre, tilt, blur, *shapes)

    def shadow(self, shape: tuple[int, int]) -> Image:
        """Natural log of its transmission, `(h, w)`."""
        return profile(self._columns(shape), self.numbers).astype(np.float32)

    def open(self, shape: tuple[int, int]) -> Image:
        """What its shadow may be off by, natural log `(m, h, w)`: independent images of deviation 1."""
        columns = self._columns(shape)
        at = np.linspace(columns.min(), columns.max(), FINE * shape[1])
        mixing = np.reshape(self.doubt, (len(self.numbers), -1))
        lines = (derivatives(at, self.numbers) @ mixing).T
        return np.stack([np.interp(columns, at, line) for line in lines]).astype(np.float32)

    def _columns(self, shape: tuple[int, int]) -> Array:
        """Column of every pixel, as if the axis did not lean."""
        rows, columns = np.indices(shape, np.float32)
        return np.asarray(columns - self.tilt * (rows - (shape[0] - 1) / 2))


class Without:
    """Frames less a sample whose transmission `(h, w)` is known: light above `dark` over that."""

    dtype = np.dtype(np.float32)

    def __init__(self, frames: Frames, dark: Image, transmission: Image) -> None:
        self.frames, self.dark, self.transmission = frames, dark, transmission
        self.shape = frames.shape

    def read(self, start: int, stop: int) -> Array:
        light = self.frames.read(start, stop).astype(np.float32) - self.dark
        return light / self.transmission + self.dark


def without(scan: Scan, survey: Survey, standing: Standing) -> tuple[Scan, Survey]:
    """A scan and what was seen of it, less that sample."""
    transmission = np.exp(standing.shadow(scan.shape[1:]))
    over = bin_mean(torch.from_numpy(transmission[None]), survey.factor)[0].numpy()
    assert isinstance(survey.small, Thumbnails)
    frames = Without(scan.projections, survey.dark, transmission)
    return (
        replace(scan, projections=frames),
        replace(survey, small=survey.small.divided(over)),
    )


def profile(at: Array, numbers: Array) -> Array:
    """Log shadow of cylinders, as in `Standing.numbers`, at columns `at`."""
    centre, blur, shapes = numbers[0], np.exp(numbers[1]), numbers[2:]
    parts = zip(*np.split(shapes, 2), strict=True)
    return sum((a * chord(at - centre, r, blur) for r, a in parts), np.zeros(at.shape))


def derivatives(at: Array, numbers: Array) -> Array:
    """Derivative of `profile` by each number, `(p, n)`, at columns `(p,)`."""
    steps = np.diag(np.full(len(numbers), STEP))
    found = [profile(at, numbers + step) - profile(at, numbers - step) for step in steps]
    return np.stack(found, 1) / (2 * STEP)


def chord(across: Array, radius: Any, blur: float) -> Array:
    """Chord of a disk over its diameter, `across` from its centre, mean over the width `blur`; exact."""

    def area(at: Array) -> Array:
        u = np.clip(at / radius, -1, 1)
        return radius * (u * np.sqrt(1 - u * u) + np.arcsin(u)) / 2

    return np.asarray(area(across + blur / 2) - area(across - blur / 2)) / blur
