"""A round sample that stands upright and turns about its own axis: a capillary, a pillar.

Its shadow is the same in all frames, so nothing tells it from the beam but its shape: chords of
cylinders about one axis have edges on both sides, alike, down the whole frame, and no beam has. Their
edges, which are sharp, say how dark they are in between, where a beam could be as dark. What the beam
may do across the frame is learnt from what it does down the frame, where such a shadow does not show.

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
from scipy.fft import dct
from scipy.optimize import least_squares

from txmcorrect.background.conditions import bin_mean
from txmcorrect.background.scale import LEAST
from txmcorrect.background.survey import Survey
from txmcorrect.background.thumbnails import Thumbnails
from txmcorrect.scan import Frames, Scan

Image = NDArray[np.float32]
Array = NDArray[Any]

FRAMES = 24  # looked at
WAVES = 60  # half periods of the finest cosine that a beam is made of
ROUGH = 2  # the coarsest whose size is measured
SLOPE = 2.0  # amplitudes of a beam's cosines fall with this power of their number
SEARCHED, COLUMNS = 256, 512  # places that edges are looked for at; columns of a profile, about
LEAST_RADIUS, EDGE = 0.04, 3.0  # of the width; pixels to the border
WALL = 0.1  # of a column of the profile: radii that lie nearer say nothing of each other
AXIS = (0.3, 0.7)  # of the width, where it may stand
LEVEL = 3.0  # natural log: deviation of the mean, which says nothing
LEAST_NOISE = 1e-4  # natural log
SHINE = 0.02  # natural log: what is taken for nothing
LIT_ROW, LIT_COLUMN = 0.8, 0.9  # of the best row; of these rows
BANDS, BAND_ROWS = 32, 16  # bands of rows that are looked at, and about how many rows of each
LEAST_TILT = 0.2  # of a column as searched, from the middle of one half to that of the other
LEAST_GAIN = 50.0  # chi squared that either side adds: far beyond what beams reach by chance
PAIR = 12.0  # chi squared that a second cylinder has to add
# Of the chi squared of what is left: other shapes gain no more; with the tilt known, wrong cylinders neither.
MISFIT, CERTAIN = 0.1, 0.3
STEP = 1e-3  # relative, of numerical derivatives
BLUR = (0.1, 8.0)  # columns over which edges may be smeared
# Darkness by the edges of one side over that by both: at first, and with the tilt known.
ALIKE, EQUAL = (0.6, 1.6), (0.92, 1.09)
MOST_SHIFT = 0.5  # of a column as searched: an axis that stands still does so within


@dataclass(frozen=True)
class Standing:
    """Cylinders about one upright axis.

    Attributes
    ----------
    centre : column of the axis in the middle row; tilt : columns a row. radii : pixels. shade :
    natural log of each cylinder's shadow where it is deepest; the sum is never above 0. blur : pixels over
    which edges are smeared. doubt : `(k, k)` in rows: draws of normal numbers times it deviate as `shade` may.
    """

    centre: float
    tilt: float
    blur: float
    radii: tuple[float, ...]
    shade: tuple[float, ...]
    doubt: tuple[float, ...]

    def __str__(self) -> str:
        depth = 100 * (1 - np.exp(float(_profile(np.zeros(1), self)[0])))
        return (
            f"upright cylinder about column {self.centre:.1f}, radius {self.radii[0]:.1f} px, taken for "
            f"sample: it darkens the axis by {depth:.1f} %"
        )

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
        return _profile(self._across(shape), self).astype(np.float32)

    def open(self, shape: tuple[int, int]) -> Image:
        """What shadows may be off by, natural log `(k, h, w)`: independent images of deviation 1."""
        across = self._across(shape)
        chords = np.stack([_chord(across, r, self.blur) for r in self.radii])
        mixing = np.reshape(self.doubt, (len(self.radii), -1))
        return np.tensordot(mixing.T, chords, 1).astype(np.float32)

    def _across(self, shape: tuple[int, int]) -> Array:
        """Distance of every pixel from the axis."""
        rows, columns = np.indices(shape, np.float32)
        return np.asarray(columns - self.centre - self.tilt * (rows - (shape[0] - 1) / 2))


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


def _profile(across: Array, standing: Standing) -> Array:
    """Log shadow at distances `across` from the axis."""
    parts = zip(standing.shade, standing.radii, strict=True)
    return sum((a * _chord(across, r, standing.blur) for a, r in parts), np.zeros(across.shape))


def _chord(across: Array, radius: Any, blur: float) -> Array:
    """Chord of a disk over its diameter, mean over the width `blur`; exact."""

    def area(at: Array) -> Array:
        u = np.clip(at / radius, -1, 1)
        return radius * (u * np.sqrt(1 - u * u) + np.arcsin(u)) / 2

    return np.asarray(area(across + blur / 2) - area(across - blur / 2)) / blur


def _binned(rows: Array, size: int) -> Array:
    """Means over so many columns, `(b, w // size)`; what is left over is dropped."""
    b, w = rows.shape
    return rows[:, : w // size * size].reshape(b, w // size, size).mean(2)


def find_standing(
    frames: Frames,
    index: NDArray[np.intp],
    dark: Image,
    lit: NDArray[np.bool_],
    beam: Image | None = None,
) -> Standing | None:
    """Cylinders that stand in all frames beyond doubt, or None.

    Parameters
    ----------
    frames : raw. index : usable ones. dark : `(h, w)`. lit : `(h, w)` pixels that work and have light.
    beam : `(h, w)` counts above dark of a reference, if there is one: what the beam has changed by since is
    smoother than the beam.
    """
    h, w = lit.shape
    rows = np.flatnonzero(lit.mean(1) > LIT_ROW * lit.mean(1).max())
    columns = lit[rows].mean(0) > LIT_COLUMN
    if len(rows) < 2 * BANDS or columns.sum() < SEARCHED // 4:
        return None
    bands = [band[:: 1 + len(band) // BAND_ROWS] for band in np.array_split(rows, BANDS)]
    height = np.array([band.mean() - (h - 1) / 2 for band in bands])
    some = index[np.linspace(0, len(index) - 1, min(len(index), FRAMES)).round().astype(int)]
    known = 0 if beam is None else np.log(np.maximum(beam, LEAST))
    seen = np.empty((len(some), BANDS, w))
    for view, i in zip(seen, some.tolist(), strict=True):
        logs = np.log(np.maximum(frames.read(i, i + 1)[0] - dark, LEAST)) - known
        logs[~lit] = np.nan
        view[:] = [_median(logs[band], 0) for band in bands]
    usual = _median(seen, 0)
    middle = _View(usual, height, columns)
    found = middle.fit()
    if found is None or not middle.shows(found, MISFIT, ALIKE):
        return None
    if tilt := _tilt(usual, height, columns, found):
        middle = _View(usual, height, columns, tilt)
        found = middle.fit()
    if found is None or not middle.shows(found, CERTAIN, EQUAL):
        return None
    moved = [_View(view, height, columns, tilt).moved(found) for view in seen]
    # Where it swings its shadow is not the same in all frames.
    return found if np.std(moved) < MOST_SHIFT * w / SEARCHED else None


def _median(values: Array, axis: int) -> Array:
    """Median without NaN; 0 where there is nothing else."""
    empty = np.isnan(values).all(axis, keepdims=True)
    return np.asarray(np.nanmedian(np.where(empty, 0, values), axis))


def _tilt(usual: Array, height: Array, columns: NDArray[np.bool_], found: Standing) -> float:
    """Columns a row, from where the axis stands in the upper and the lower half."""
    middle = len(height) // 2
    halves = (slice(0, middle), slice(middle, None))
    upper, lower = (_View(usual[h], height[h], columns).moved(found) for h in halves)
    tilt = (lower - upper) / (height[middle:].mean() - height[:middle].mean())
    least = LEAST_TILT * usual.shape[1] / SEARCHED
    return float(tilt) if abs(lower - upper) > least else 0.0


class _View:
    """A profile across the frame, and what is usual of a beam there: a Gaussian of smooth cosines and noise.

    `usual` `(b, w)` logs of bands of rows, at `height` `(b,)` from the middle row, sheared by `tilt`.
    """

    def __init__(
        self, usual: Array, height: Array, columns: NDArray[np.bool_], tilt: float = 0.0
    ) -> None:
        self.tilt, self.width = tilt, usual.shape[1]
        self.bin = max(1, self.width // COLUMNS)
        x = np.arange(self.width, dtype=float)
        rows = zip(usual, height, strict=True)
        sheared = np.stack([np.interp(x + tilt * y, x, row) for row, y in rows])
        whole = _binned(columns[None].astype(float), self.bin)[0] > 1 - 1e-9
        sheared = _binned(sheared, self.bin)[:, whole]
        self.at = _binned(x[None], self.bin)[0, whole]
        self.profile = np.median(sheared - np.median(sheared, 1)[:, None], 0)
        down = np.median(sheared - np.median(sheared, 0), 1)
        self.size = _roughness(down)
        self.white = _whitener(self.at, self.width, self.profile, self.size)
        self.seen = self.white @ self.profile

    def fit(self) -> Standing | None:
        """One cylinder, or one in another if that says much more, if they fit into the view and absorb."""
        start = self._search()
        if start is None:
            return None
        pair = self._nearest(start)
        alone = self._nearest(start[:2])
        least = _squares(self._left(pair))
        worth = PAIR * max(1.0, least / len(self.seen))  # where neither fits well, chance adds more
        place = alone if _squares(self._left(alone)) < least + worth else pair
        shade = self._left(place)[1]
        centre, *radii, blur = place.tolist()
        walls = -np.diff([*radii, LEAST_RADIUS * self.width])
        if (walls < WALL * self.bin).any() or radii[0] + EDGE > min(centre, self.width - centre):
            return None
        atoms = self._atoms(centre, place[1:-1], blur := float(np.exp(blur)))
        doubt = np.linalg.cholesky(np.linalg.inv(atoms.T @ atoms)).ravel().tolist()
        found = Standing(centre, self.tilt, blur, tuple(radii), tuple(shade.tolist()), tuple(doubt))
        return found if _absorbs(found) else None

    def shows(self, found: Standing, misfit: float, alike: tuple[float, float]) -> bool:
        """Whether both sides' edges say much more than is left, by `misfit`, and are `alike` within bounds."""
        left = self.seen - self.white @ _profile(self.at - found.centre, found)
        darkness, gain = self._sides(found)
        certain = min(gain) > max(LEAST_GAIN, misfit * float(left @ left))
        return bool(certain and all(alike[0] < side < alike[1] for side in darkness))

    def _nearest(self, start: list[float]) -> Array:
        """`(centre, *radii, log of blur)` that leave least, from `(centre, *radii)`."""
        least, most = (np.log(self.bin * blur) for blur in BLUR)
        count = len(start) - 1

        def misfit(place: Array) -> Array:
            return self._left(place)[0]

        found = least_squares(
            misfit,
            [*start, np.log(self.bin)],
            bounds=([0, *[1] * count, least], [*[self.width] * (count + 1), most]),
            diff_step=np.full(count + 2, STEP),
        )
        return np.asarray(found.x)

    def moved(self, found: Standing) -> float:
        """Where the axis of known cylinders stands, in columns."""

        def left(centre: Array) -> Array:
            return np.asarray(self.seen - self.white @ _profile(self.at - centre[0], found))

        return float(least_squares(left, [found.centre], diff_step=[STEP]).x[0])

    def _atoms(self, centre: float, radii: Array, blur: float) -> Array:
        """Whitened shadows of cylinders `(p, k)`."""
        across = (self.at - centre)[:, None]
        return np.asarray(self.white @ _chord(across, np.asarray(radii)[None], blur))

    def _left(self, place: Array) -> tuple[Array, Array]:
        """What is left of the profile, whitened, and the shade of each cylinder, of those at
        `(centre, *radii, log of blur)`.
        """
        atoms = self._atoms(place[0], place[1:-1], float(np.exp(place[-1])))
        shade = np.linalg.lstsq(atoms, self.seen, rcond=None)[0]
        return self.seen - atoms @ shade, shade

    def _sides(self, found: Standing) -> tuple[Array, list[float]]:
        """How dark the edges of either side say it is, over what was found; chi squared that each side adds."""
        # Over what it is at the axis, where the sides meet: levels say nothing.
        shadow = _profile(self.at - found.centre, found) - _profile(np.zeros(1), found)
        right = self.at >= found.centre
        sides = self.white @ np.stack([shadow * ~right, shadow * right], 1)

        def left(some: Array) -> tuple[float, Array]:
            size = np.linalg.lstsq(some, self.seen, rcond=None)[0]
            return float(((self.seen - some @ size) ** 2).sum()), size

        both, alike = left(sides)
        return alike, [left(sides[:, 1:])[0] - both, left(sides[:, :1])[0] - both]

    def _search(self) -> list[float] | None:
        """`(centre, radius, radius)` of the two cylinders that explain most, on a grid."""
        w = self.width
        step = w / SEARCHED
        radii = np.arange(LEAST_RADIUS * w, w / 2, step)
        best, place = 0.0, None
        for centre in np.arange(AXIS[0] * w, AXIS[1] * w, step):
            inside = radii[radii < min(centre, w - centre) - EDGE]
            if not len(inside):
                continue
            atoms = self._atoms(centre, inside, self.bin)
            square, pull = atoms.T @ atoms, atoms.T @ self.seen
            one, two = np.triu_indices(len(inside), 1)
            a, b, c = square[one, one], square[two, two], square[one, two]
            u, v = pull[one], pull[two]
            det = np.maximum(a * b - c * c, 1e-12 * a * b + 1e-30)
            inner, outer = (b * u - c * v) / det, (a * v - c * u) / det
            gain = inner * u + outer * v
            # The outer one absorbs, and what is in the inner one, which lies in its stead, does not shine.
            gain[(outer >= 0) | (inner / inside[one] + outer / inside[two] > 0)] = 0
            k = int(gain.argmax())
            if gain[k] > best:
                best, place = float(gain[k]), [centre, inside[two[k]], inside[one[k]]]
        return place


def _squares(fit: tuple[Array, Array]) -> float:
    """Chi squared of what a fit leaves."""
    return float(fit[0] @ fit[0])


def _absorbs(found: Standing) -> bool:
    """Whether no part of nested cylinders shines: attenuation is shade over radius, summed inwards."""
    radii = np.asarray(found.radii)
    return bool((np.cumsum(np.asarray(found.shade) / radii) * radii[0] < SHINE).all())


def _roughness(down: Array) -> float:
    """Size of the cosines of a beam down the frame, at half period 1; finer ones fall with `SLOPE`."""
    waves = dct(down, norm="ortho") * (2 / len(down)) ** 0.5
    number = np.arange(ROUGH, len(down) // 2)
    return float(np.sqrt(((waves[number] * number**SLOPE) ** 2).mean()))


def _whitener(at: Array, width: int, profile: Array, size: float) -> Array:
    """Matrix `(p, p)` that makes noise and beam white in columns `at` `(p,)`."""
    noise = 1.4826 * np.median(np.abs(np.diff(profile, 2))) / 6**0.5 + LEAST_NOISE
    number = np.arange(WAVES + 1)
    waves = np.cos(np.pi * number * ((at[:, None] + 0.5) / width))
    spread = size * np.maximum(number, 1.0) ** -SLOPE
    spread[0] = LEVEL
    covariance = (waves * spread**2) @ waves.T + noise**2 * np.eye(len(at))
    return np.linalg.inv(np.linalg.cholesky(covariance))
