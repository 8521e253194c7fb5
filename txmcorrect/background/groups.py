"""Modes of a background in groups: what their weights do through a scan, and how large they are.

Source: sizes of priors from the evidence, MacKay 1992, by moments.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Array = NDArray[Any]

# How large the parts of a weight's course are: constant, line, cosines of 2 to 5 half periods; then
# sines of 1 to 3, which are nothing at both ends.
COURSE = np.array([1.0, 1.0, 0.3, 0.15, 0.08, 0.05, 0.15, 0.1, 0.05])
COSINES, SINES = (2, 3, 4, 5), (1, 2, 3)
STEADY, STRAIGHT, DRIFTING, SLOW = (0,), (0, 1), (0, 1, 2, 3), (0, 1, 2, 3, 4)
MOVING, BENT = (1, 2, 3), (6, 7, 8)
ABRUPT: tuple[int, ...] = ()  # of modes that only jump


@dataclass
class Group:
    """Modes whose size is found together.

    Attributes
    ----------
    images : `(k, h, w)` natural log, each as large as it is expected to be. course : which parts of
    `COURSE` their weights have. size, least, most : of all over what is expected. doubt : variance of
    chance over what the fit takes it for, where its size is found.
    weights : `(k, len(course))` once fitted, std likewise. jumps : `(k, j)`.
    """

    images: Image
    course: tuple[int, ...]
    size: float = 1.0
    least: float = 0.01
    most: float = 5.0
    doubt: float = 1.0
    weights: Array = field(default_factory=lambda: np.zeros((0, 0)))
    std: Array = field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def steady(self) -> bool:
        return self.course == STEADY

    def shapes(self, lit: NDArray[np.bool_]) -> Image:
        """Images `(k, h, w)` less their level where there is light."""
        return self.images - self.images[:, lit].mean(1)[:, None, None]


@dataclass(frozen=True)
class Fit:
    """`change` `(n, h, w)`: background over the reference, natural log, of every frame; `std`
    `(n, h, w)` of its shape, as far as the fit can tell, and `sudden`, the part of it that jumps bring
    along; `jumps`: first frames after a jump; `told`: of a sample that turns, whether it is known where
    it ends. `groups` as they were fitted; `course` `(n, q)`, what parts of weights do through the frames;
    `lit` `(h, w)`.
    """

    change: Image
    std: Image
    sudden: Image
    jumps: tuple[int, ...]
    told: bool
    groups: tuple[Group, ...]
    course: Array
    lit: NDArray[np.bool_]

    def deviation(self, rng: np.random.Generator, doubt: float = 1.0) -> Image:
        """A draw of what `std` is the deviation of, `(n, h, w)`: broad and slow, as modes are.

        `doubt`: factor on all but what jumps leave open.
        """
        drawn = np.zeros_like(self.change)
        for group in self.groups:
            usual = np.array(group.course) < len(COURSE)
            weights = np.where(usual, doubt, 1.0) * group.std * rng.standard_normal(group.std.shape)
            course = self.course[:, list(group.course)] @ weights.T
            drawn += np.tensordot(course.astype(np.float32), group.shapes(self.lit), 1)
        return drawn


def courses(time: Array, at: Array | None = None, jumps: tuple[int, ...] = ()) -> Array:
    """Parts of a weight's course `(m, len(COURSE) + j)` at places `at` `(m,)` among frames; None: at
    all frames. `time` `(n,)`: of each frame, 0 to 1.
    """
    index = np.arange(len(time), dtype=float)
    place = index if at is None else np.asarray(at, float)
    u = np.interp(place, index, time)
    waves = [np.cos(np.pi * k * u) for k in COSINES] + [np.sin(np.pi * k * u) for k in SINES]
    steps = [np.where(place > j - 0.5, 1.0, 0.0) for j in jumps]
    return np.stack([np.ones(len(u)), 2 * u - 1, *waves, *steps], 1)


def find_size(group: Group, prior: Array, parts: NDArray[np.bool_]) -> None:
    """How large the weights of those parts of their course are that have a `prior` `(k, q)`, from the evidence.

    MacKay's update is the spread of the weights over how many of them the frames determine. It approaches
    a size of nothing so slowly that fresh references were left behind; there, moments: how far the
    weights exceed what chance would give them. With a `doubt` of 1 both have the same fixed point.
    """
    weights, std = group.weights[:, parts], group.std[:, parts]
    known = np.maximum(1 - (std / prior) ** 2, 1e-3)
    one = prior / group.size  # of a group of size 1
    spread = ((weights / one) ** 2).sum() / known.sum()
    chance = group.doubt * known * std**2
    excess = (weights**2 - chance).sum() / ((known * one) ** 2).sum()
    size = np.sqrt(max(min(spread, excess), 0.0))
    group.size = float(np.clip(size, group.least, group.most))
