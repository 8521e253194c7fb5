"""Finding cylinders that stand in all frames: chords about one axis beside a beam's own structure.

Chords have edges, alike on both sides, down the whole frame, and no beam has. Their edges, which are
sharp, say what they are made of, and so how dark it is in between, where a beam could be as dark. What a
beam does is a Gaussian of smooth cosines and noise: its size, smoothness and noise are those under which
the profile is likeliest, beside what the beam does down the frame, where such a shadow does not show
(evidence; Rasmussen and Williams 2006, eq. 5.8). A cylinder is found where the profile is beyond doubt
likelier with it than with any such beam alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct
from scipy.linalg import solve_triangular
from scipy.optimize import least_squares, minimize, nnls

from txmcorrect.background.scale import LEAST
from txmcorrect.background.standing import Array, Image, Standing, chord, derivatives, profile
from txmcorrect.scan import Frames

FRAMES = 24  # looked at
PASSED = 0.6  # quantile of frames: grains darken some
WAVES = 60  # half periods of the finest cosine that a beam is made of
ROUGH = 2  # the coarsest whose size is measured
SLOPE = 2.0  # amplitudes of a beam's cosines fall with this power of their number, about
SURE = np.array([1.0, 0.5, 0.5])  # deviations of log size, slope, log noise from what is expected
LEVEL = 3.0  # natural log: deviation of the mean, which says nothing
LEAST_NOISE = 1e-4  # natural log
SEARCHED, COLUMNS = 256, 512  # places that edges are looked for at; columns of a profile, about
LEAST_RADIUS, EDGE = 0.04, 3.0  # of the width; pixels to the border
TINY = 1e-3  # pixels: a bore of no more is none
LEAST_WALL = 0.5  # of a column of the profile
BORES = (0.97, 0.93, 0.88)  # of the radius, tried beside what the search found
AXIS = (0.3, 0.7)  # of the width, where it may stand
LIT_ROW, LIT_COLUMN = 0.8, 0.9  # of the best row; of these rows
BANDS, BAND_ROWS = 32, 16  # bands of rows that are looked at, and about how many rows of each
TILTS = 3  # tried: the first is none
LEAST_TILT = 0.2  # of a column as searched, from the middle of one half to that of the other
LEANING = 0.025  # of the width: how far aside the axis of some rows or a frame is looked for
PLACES = 13  # at which it is tried
MOST_SHIFT = 0.5  # of a column as searched: an axis that stands still does so within
CERTAIN = 52.0  # natural log of evidence: wrong ones in 260 simulated scans had 51 at most
SECOND = 6.0  # natural log of evidence that a second cylinder has to add
EQUAL = (0.92, 1.09)  # darkness by either side alone
CHANCE = 5.0  # chi squared of their difference, which is enough as well
BLUR = (0.1, 8.0)  # columns over which edges may be smeared
ROUNDS = 2  # of beam and cylinders in turn
# What may be off if nothing shows it: centre (of the width), log of blur, radii (of the width), shades.
UNSURE = (0.1, 1.0, 0.1, 1.0)


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
        view[:] = [_median(logs[band]) for band in bands]
    usual = np.quantile(seen, PASSED, 0)
    tilt = 0.0
    for _ in range(TILTS):
        beside = _Beside(usual, height, columns, tilt)
        if (start := beside.search()) is None:
            return None
        place = beside.fit(start)
        if not (more := beside.tilt_of(place, usual, height)):
            break
        tilt += more
    if not beside.shows(place):
        return None
    moved = [beside.moved(place, view, height) for view in seen]
    # Where it swings its shadow is not the same in all frames.
    low, high = np.quantile(moved, (0.16, 0.84))  # blind to a frame that is half dark
    return beside.standing(place) if (high - low) / 2 < MOST_SHIFT * w / SEARCHED else None


def _median(rows: Array) -> Array:
    """Median down `(b, w)` without NaN; 0 where there is nothing else."""
    empty = np.isnan(rows).all(0, keepdims=True)
    return np.asarray(np.nanmedian(np.where(empty, 0, rows), 0))


def _binned(rows: Array, size: int) -> Array:
    """Means over so many columns, `(b, w // size)`; what is left over is dropped."""
    b, w = rows.shape
    return rows[:, : w // size * size].reshape(b, w // size, size).mean(2)


class _Place(NamedTuple):
    """Where cylinders stand: pixels; `blur` natural log; `walls` between them, from the outside."""

    centre: float
    blur: float
    radius: float
    walls: tuple[float, ...] = ()

    @property
    def radii(self) -> Array:
        return np.maximum(self.radius - np.cumsum([0.0, *self.walls]), TINY)

    def values(self) -> list[float]:
        return [self.centre, self.blur, self.radius, *self.walls]

    @staticmethod
    def of(values: Array) -> _Place:
        centre, blur, radius, *walls = values.tolist()
        return _Place(centre, blur, radius, tuple(walls))


class _Beside:
    """A profile across the frame, and what is likely of a beam there.

    `usual` `(b, w)` logs of bands of rows, at `height` `(b,)` from the middle row, sheared by `tilt`.
    `beam`: log size of its cosines at half period 1, the power by which finer ones fall, log noise.
    """

    def __init__(
        self, usual: Array, height: Array, columns: NDArray[np.bool_], tilt: float = 0.0
    ) -> None:
        self.tilt, self.width = tilt, usual.shape[1]
        self.bin = max(1, self.width // COLUMNS)
        self.whole = _binned(columns[None].astype(float), self.bin)[0] > 1 - 1e-9
        x = np.arange(self.width, dtype=float)
        self.at = _binned(x[None], self.bin)[0, self.whole]
        self.profile, down = self._profile(usual, height)
        number = np.arange(WAVES + 1)
        self.waves = np.cos(np.pi * number * ((self.at[:, None] + 0.5) / self.width))
        noise = 1.4826 * np.median(np.abs(np.diff(self.profile, 2))) / 6**0.5 + LEAST_NOISE
        self.expected = np.array([np.log(_roughness(down)), SLOPE, np.log(noise)])
        self.take(self.expected)

    def take(self, beam: Array) -> None:
        """Make such a beam and its noise white."""
        self.beam = beam
        self.white = np.linalg.inv(self._spread(beam))
        self.seen = self.white @ self.profile

    def search(self) -> _Place | None:
        """The two cylinders that explain most, on a grid."""
        w = self.width
        step = w / SEARCHED
        radii = np.arange(LEAST_RADIUS * w, w / 2, step)
        best, place = 0.0, None
        for centre in np.arange(AXIS[0] * w, AXIS[1] * w, step):
            inside = radii[radii < min(centre, w - centre) - EDGE]
            if not len(inside):
                continue
            atoms = self.white @ chord((self.at - centre)[:, None], inside[None], self.bin)
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
                radius, bore = inside[two[k]], inside[one[k]]
                best = float(gain[k])
                place = _Place(centre, np.log(self.bin), radius, (radius - bore,))
        return place

    def fit(self, start: _Place) -> _Place:
        """One cylinder in another, or one if that is nearly as likely, and the beam that is likeliest then."""
        walls = [(start.radius * (1 - bore),) for bore in BORES]
        bores = [start, *(start._replace(walls=wall) for wall in walls)]
        tries = [self._nearest(place) for place in bores]
        place = min(tries, key=lambda place: _squares(self._left(place)[0]))
        expected = self.beam
        found, evidence = self._settle(place)
        beam = self.beam
        self.take(expected)
        alone, simpler = self._settle(found._replace(walls=()))
        if simpler > evidence - SECOND:
            return alone
        self.take(beam)
        return found

    def shows(self, place: _Place) -> bool:
        """Whether they are likely beyond doubt, fit into the view, and both their sides are as dark."""
        beam = self.beam
        added = self._evidence(self._adapt(place), place)
        self.take(self.expected)
        added -= self._evidence(self._adapt(None), None)
        self.take(beam)
        if added < CERTAIN or place.radius + EDGE > min(place.centre, self.width - place.centre):
            return False
        darkness, apart = self._sides(place)
        return bool(apart < CHANCE or all(EQUAL[0] < side < EQUAL[1] for side in darkness))

    def standing(self, place: _Place) -> Standing:
        """What was found, and how far all of it may be off."""
        numbers = self._numbers(place)
        cylinders = len(place.radii)
        centre, blur, radius, shade = UNSURE
        prior = np.repeat(
            [centre * self.width, blur, radius * self.width, shade], [1, 1, cylinders, cylinders]
        )
        told = self.white @ derivatives(self.at, numbers)
        covariance = np.linalg.inv(told.T @ told + np.diag(prior**-2.0))
        radii, shades = np.split(numbers[2:], 2)
        return Standing(
            place.centre,
            self.tilt,
            float(np.exp(place.blur)),
            tuple(radii.tolist()),
            tuple(shades.tolist()),
            tuple(np.linalg.cholesky(covariance).ravel().tolist()),
        )

    def tilt_of(self, place: _Place, usual: Array, height: Array) -> float:
        """Columns a row that it leans more, from where the axis stands in the upper and the lower half."""
        middle = len(height) // 2
        halves = (slice(0, middle), slice(middle, None))
        upper, lower = (self.moved(place, usual[half], height[half]) for half in halves)
        tilt = (lower - upper) / (height[middle:].mean() - height[:middle].mean())
        least = LEAST_TILT * self.width / SEARCHED
        return float(tilt) if abs(lower - upper) > least else 0.0

    def moved(self, place: _Place, usual: Array, height: Array) -> float:
        """Where the axis stands in other bands of rows, in columns."""
        seen = self.white @ self._profile(usual, height)[0]
        numbers = self._numbers(place)

        def left(centre: Array) -> Array:
            return np.asarray(seen - self.white @ profile(self.at, np.r_[centre, numbers[1:]]))

        near = place.centre + np.linspace(-1, 1, PLACES) * LEANING * self.width
        start = min(near[:, None], key=lambda centre: _squares(left(centre)))
        return float(least_squares(left, start, diff_step=[1e-3]).x[0])

    def _profile(self, usual: Array, height: Array) -> tuple[Array, Array]:
        """Profiles of bands of rows, across the frame and down."""
        x = np.arange(self.width, dtype=float)
        rows = zip(usual, height, strict=True)
        sheared = np.stack([np.interp(x + self.tilt * y, x, row) for row, y in rows])
        sheared = _binned(sheared, self.bin)[:, self.whole]
        across = np.median(sheared - np.median(sheared, 1)[:, None], 0)
        return across, np.median(sheared - np.median(sheared, 0), 1)

    def _spread(self, beam: Array) -> Array:
        """Lower triangle whose square is the covariance of a beam and its noise `(p, p)`."""
        size, slope, noise = np.exp(beam[0]), beam[1], np.exp(beam[2])
        spread = size * np.maximum(np.arange(WAVES + 1), 1.0) ** -slope
        spread[0] = LEVEL
        covariance = (self.waves * spread**2) @ self.waves.T + noise**2 * np.eye(len(self.at))
        return np.linalg.cholesky(covariance)

    def _shadows(self, place: _Place | None) -> Array:
        """Log shadow of each layer per unit of attenuation `(p, k)`: wall, then bore; of nothing, none."""
        if place is None:
            return np.zeros((len(self.at), 0))
        radii = place.radii
        disks = -2 * radii * chord((self.at - place.centre)[:, None], radii, np.exp(place.blur))
        return disks - np.pad(disks[:, 1:], ((0, 0), (0, 1)))

    def _left(self, place: _Place) -> tuple[Array, Array]:
        """What is left of the profile, white, and attenuation a pixel of each layer; none shines."""
        shadows = self.white @ self._shadows(place)
        attenuation = nnls(shadows, self.seen)[0]
        return self.seen - shadows @ attenuation, attenuation

    def _numbers(self, place: _Place) -> Array:
        """As in `Standing.numbers`: layers as disks in each other's stead."""
        steps = np.diff(self._left(place)[1], prepend=0.0)
        return np.array([place.centre, place.blur, *place.radii, *(-2 * place.radii * steps)])

    def _nearest(self, start: _Place) -> _Place:
        """What leaves least, from `start`."""
        least, most = (np.log(self.bin * blur) for blur in BLUR)
        smallest, wall = LEAST_RADIUS * self.width, LEAST_WALL * self.bin
        walls = len(start.walls)
        low = [0.0, least, smallest, *[wall] * walls]
        high = [self.width, most, self.width, *[self.width / 4] * walls]

        def left(values: Array) -> Array:
            place = _Place.of(values)  # axes are put in the middle of frames, about
            aside = (place.centre / self.width - 0.5) / UNSURE[0]
            return np.append(self._left(place)[0], aside)

        found = least_squares(
            left,
            np.clip(start.values(), np.add(low, 1e-3), np.subtract(high, 1e-3)),
            bounds=(low, high),
            x_scale=np.array([1.0, 0.1, 1.0, *[1.0] * walls]),
            diff_step=np.full(3 + walls, 1e-3),
        )
        return _Place.of(found.x)

    def _settle(self, place: _Place) -> tuple[_Place, float]:
        """Cylinders and beam in turn, and how likely they are in the end (natural log)."""
        for _ in range(ROUNDS):
            place = self._nearest(place)
            self.take(self._adapt(place))
        return self._nearest(place), self._evidence(self.beam, place)

    def _adapt(self, place: _Place | None) -> Array:
        """The likeliest beam beside cylinders, or alone."""
        shadows = self._shadows(place)

        def unlikely(beam: Array) -> float:
            return -self._likelihood(beam, shadows)

        found = minimize(
            unlikely,
            self.beam,
            method="Nelder-Mead",
            options={"maxiter": 150, "xatol": 0.02, "fatol": 0.05},
        )
        return np.asarray(found.x)

    def _evidence(self, beam: Array, place: _Place | None) -> float:
        return self._likelihood(beam, self._shadows(place))

    def _likelihood(self, beam: Array, shadows: Array) -> float:
        """Natural log, up to a constant, with what is expected of a beam."""
        try:
            spread = self._spread(beam)
        except np.linalg.LinAlgError:
            return -np.inf
        white = solve_triangular(spread, np.c_[shadows, self.profile], lower=True)
        left = nnls(white[:, :-1], white[:, -1])[1] if shadows.size else np.linalg.norm(white)
        unlikely = (((beam - self.expected) / SURE) ** 2).sum()
        return float(-(left**2 + unlikely) / 2 - np.log(np.diag(spread)).sum())

    def _sides(self, place: _Place) -> tuple[Array, float]:
        """How dark the edges of either side say it is, over what was found; chi squared of the difference."""
        # Over what it is at the axis, where the sides meet: levels say nothing.
        numbers = self._numbers(place)
        shadow = profile(self.at, numbers) - profile(np.array([place.centre]), numbers)
        right = self.at >= place.centre
        sides = self.white @ np.stack([shadow * ~right, shadow * right], 1)

        def fitted(some: Array) -> tuple[Array, float]:
            size = np.linalg.lstsq(some, self.seen, rcond=None)[0]
            return size, _squares(self.seen - some @ size)

        darkness, least = fitted(sides)
        return darkness, fitted(sides.sum(1, keepdims=True))[1] - least


def _squares(left: Array) -> float:
    return float(left @ left)


def _roughness(down: Array) -> float:
    """Size of the cosines of a beam down the frame, at half period 1; finer ones fall with `SLOPE`."""
    waves = dct(down, norm="ortho") * (2 / len(down)) ** 0.5
    number = np.arange(ROUGH, len(down) // 2)
    return float(np.sqrt(((waves[number] * number**SLOPE) ** 2).mean())) + LEAST_NOISE
