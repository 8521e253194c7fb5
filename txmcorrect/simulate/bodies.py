"""Bodies in three dimensions: attenuation at any point, so that planes of them can be drawn alone.

A body turns about the upright axis in the middle of the frame. Lengths are pixels, points are
`(z, y, x)` from its middle. Training shows grains from ellipsoids to rounded boxes; the development
family has pinched ones, the benchmark family faceted ones, which training never shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from txmcorrect.simulate.beam import Family
from txmcorrect.simulate.fields import Image, Shape
from txmcorrect.simulate.scans import stream

STREAM = 0x0B2  # keeps these bodies apart from all other streams
SCALE = 0.5  # of a body's typical attenuation (`typical`), per unit of a prior's x0
SIDES = (64, 256)  # pixels across the bodies that training planes are cut from
LOWEST = 32
WAVES = 32
TRIES = 4  # planes of a body with nothing in them teach little
AXIAL, UPRIGHT = 0.0, 1.0  # the two planes, as the network is told

Points = NDArray[np.float32]


@dataclass(frozen=True)
class Grain:
    """A superellipsoid (`normals` None) or a crystal: `turn` `(3, 3)` brings points into its axes.

    `power` 2 is an ellipsoid, large ones are boxes with round edges, those below 1 are pinched stars.
    """

    centre: NDArray[np.float64]
    turn: NDArray[np.float64]
    axes: NDArray[np.float64]
    mu: float
    hollow: bool
    normals: NDArray[np.float64] | None
    power: float = 2.0

    def add(self, out: Points, z: Points, y: Points, x: Points) -> None:
        """Add its attenuation in place at points that broadcast to the shape of `out`."""
        reach = 1.8 * float(self.axes.max()) + 1
        near = [np.abs(p - c) < reach for p, c in zip((z, y, x), self.centre, strict=True)]
        where = np.nonzero(near[0] & near[1] & near[2])
        if not where[0].size:
            return
        p = np.stack([np.broadcast_to(a, out.shape)[where] for a in (z, y, x)], -1)
        u = (p - self.centre) @ self.turn.T / self.axes
        r = self._radius(u)
        thin = float(self.axes.min())
        inside = np.clip((1 - r) * thin + 0.5, 0, 1)
        if self.hollow:
            inside = inside - 0.9 * np.clip((0.8 - r) * thin + 0.5, 0, 1)
        out[where] += np.float32(self.mu) * inside.astype(np.float32)

    def _radius(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far points `(n, 3)` in its axes are out `(n,)`: 1 on the surface."""
        if self.normals is not None:
            return np.asarray((u @ self.normals.T).max(-1))
        if self.power == 2:
            return np.asarray(np.linalg.norm(u, axis=-1))
        return np.asarray((np.abs(u) ** self.power).sum(-1) ** (1 / self.power))


@dataclass(frozen=True)
class Body:
    """Grains and tissue in a capillary, or bare grains.

    `radius` of the capillary (0: none) and of its bore; `waves` `(k, 4)`: wave vector and phase of
    the plane waves that make up the tissue's field.
    """

    radius: float
    bore: float
    mu_wall: float
    mu_bore: float
    tissue: float
    waves: NDArray[np.float64]
    grains: tuple[Grain, ...]

    def at(self, z: Points, y: Points, x: Points) -> Points:
        """Attenuation at points whose coordinates broadcast."""
        shape = np.broadcast_shapes(z.shape, y.shape, x.shape)
        rho = np.sqrt(y**2 + x**2)
        filled = np.clip(self.bore - rho + 0.5, 0, 1)
        wall = np.clip(self.radius - rho + 0.5, 0, 1) - filled
        out = np.asarray(np.broadcast_to(self.mu_wall * wall + self.mu_bore * filled, shape))
        out = out.astype(np.float32)
        if self.tissue:
            out += np.float32(self.tissue) * (filled * self._field(z, y, x)).astype(np.float32)
        for grain in self.grains:
            grain.add(out, z, y, x)
        return out

    def _field(self, z: Points, y: Points, x: Points) -> Points:
        """Cells with membranes where a smooth field crosses zero."""
        total = np.zeros(np.broadcast_shapes(z.shape, y.shape, x.shape), np.float32)
        for kz, ky, kx, phase in self.waves:
            total += np.cos(kz * z + ky * y + kx * x + phase).astype(np.float32)
        total *= (2 / len(self.waves)) ** 0.5
        found: Points = 0.6 + 0.25 * np.tanh(total) + 0.5 * np.exp(-((total / 0.25) ** 2))
        return found

    def axial(self, z: float, width: int) -> Image:
        """Slice `(width, width)` across the axis at height z."""
        x = _axis(width)
        return self.at(np.full((1, 1), z, np.float32), x[:, None], x[None])

    def upright(self, y: float, height: int, width: int) -> Image:
        """Plane `(height, width)` through the axis' direction, y from it."""
        return self.at(_axis(height)[:, None], np.full((1, 1), y, np.float32), _axis(width)[None])

    def volume(self, height: int, width: int) -> NDArray[np.float32]:
        """Return all slices, `(z, y, x)`."""
        return np.stack([self.axial(float(z), width) for z in _axis(height)])

    def level(self, height: int, width: int) -> float:
        """Typical attenuation (`typical`), from every third pixel of five slices."""
        x, z = _axis(width)[::3], height * np.linspace(-0.4, 0.4, 5, dtype=np.float32)
        return typical(self.at(z[:, None, None], x[:, None], x[None]))


def typical(slices: NDArray[np.float32]) -> float:
    """Mean attenuation weighted by itself: that of the matter, however little there is of it."""
    total = float(slices.sum(dtype=np.float64))
    return float((slices.astype(np.float64) ** 2).sum()) / total if total > 0 else 1.0


def draw_body(rng: np.random.Generator, height: int, width: int, family: Family) -> Body:
    """Draw what fits a frame of `height` x `width` pixels."""
    kind = rng.choice(3, p=(0.6, 0.25, 0.15))  # grains in a capillary, tissue, bare grains
    radius = 0.5 * width * rng.uniform(0.5, 0.95)
    bore = radius * rng.uniform(0.88, 0.98)
    unit = 1 / width  # so that lines through the body integrate to about 1
    grains = _draw_grains(rng, bore, height, unit, family, few=kind == 1)
    waves = np.zeros((0, 4))
    if kind == 1:
        period = width * np.exp(rng.uniform(np.log(0.06), np.log(0.4)))
        direction = rng.standard_normal((WAVES, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        length = 2 * np.pi / period * rng.uniform(0.6, 1.4, (WAVES, 1))
        waves = np.hstack([direction * length, rng.uniform(0, 2 * np.pi, (WAVES, 1))])
    return Body(
        radius=0.0 if kind == 2 else radius,
        bore=-1.0 if kind == 2 else bore,
        mu_wall=unit * rng.uniform(0.1, 0.8),
        mu_bore=unit * rng.uniform(0.0, 0.2),
        tissue=unit * rng.uniform(0.4, 1.2) if kind == 1 else 0.0,
        waves=waves,
        grains=tuple(grains),
    )


def draw_plane(
    seed: int, index: int, purpose: str = "train", sides: tuple[int, int] = SIDES
) -> tuple[Image, float]:
    """Normalised plane `(1, h, w)` of a training body and which one it is, `AXIAL` or `UPRIGHT`.

    A pure function of its arguments; `sides` are the range of widths, and
    equal ones mean squares. The typical attenuation is known to a quarter, as it is from a
    first reconstruction.
    """
    rng = stream(purpose, seed, index, 7)
    width = round(float(np.exp(rng.uniform(*np.log(sides)))))
    height = max(LOWEST, round(width * float(np.exp(rng.uniform(np.log(0.25), np.log(1.2))))))
    if sides[0] == sides[1]:
        height = width
    body = draw_body(rng, height, width, "train")
    level = SCALE * body.level(height, width) * np.exp(0.25 * rng.standard_normal())
    plane = AXIAL if rng.random() < 0.5 else UPRIGHT
    for _ in range(TRIES):
        at = float(rng.uniform(-0.5, 0.5))
        if plane == AXIAL:
            image = body.axial(at * height, width)
        else:
            image = body.upright(at * width * float(rng.uniform(0.3, 1)), height, width)
        if image.any():
            break
    return np.asarray(image[None] / np.float32(level), np.float32), plane


def benchmark_body(seed: int, index: int, shape: Shape) -> Body:
    """Body number `index` to judge by, for frames of `shape`: faceted grains."""
    rng = np.random.default_rng(np.random.SeedSequence([STREAM, seed, index]))
    return draw_body(rng, shape[0], shape[1], "benchmark")


def _draw_grains(
    rng: np.random.Generator, bore: float, height: int, unit: float, family: Family, few: bool
) -> list[Grain]:
    count = int(rng.integers(3, 12)) if few else int(rng.integers(20, 70))
    largest = 0.35 if family == "train" else 0.28
    size = bore * np.exp(rng.uniform(np.log(0.05), np.log(largest), count))
    distance = np.sqrt(rng.uniform(0, 1, count)) * np.maximum(bore - size, 0)
    turn = rng.uniform(0, 2 * np.pi, count)
    z = rng.uniform(-0.6, 0.6, count) * height
    common = rng.uniform(0.3, 1.5)  # most grains of a body are of one stuff
    powers = np.full(count, 2.0)
    if family == "train":  # half are ellipsoids
        powers = np.exp(np.maximum(rng.uniform(-1, 1, count), 0) * np.log(4)) * 2
    elif family == "develop":
        powers = rng.uniform(0.6, 0.9, count)
    grains = []
    for k in range(count):
        mu = common * rng.uniform(0.9, 1.1) if rng.random() < 0.6 else rng.uniform(0.2, 2)
        grains.append(
            Grain(
                centre=np.array(
                    [z[k], distance[k] * np.sin(turn[k]), distance[k] * np.cos(turn[k])]
                ),
                turn=np.linalg.qr(rng.standard_normal((3, 3)))[0],
                axes=size[k] * rng.uniform(0.6, 1, 3),
                mu=unit * float(mu),
                hollow=bool(rng.random() < 0.2),
                normals=_facets(rng) if family == "benchmark" else None,
                power=float(powers[k]),
            )
        )
    return grains


def _facets(rng: np.random.Generator) -> NDArray[np.float64]:
    """Outward normals `(k, 3)` of a crystal's faces, all touching the unit sphere."""
    n = rng.standard_normal((int(rng.integers(3, 6)), 3))
    n /= np.linalg.norm(n, axis=1, keepdims=True)
    return np.concatenate([n, -n])


def _axis(n: int) -> Points:
    """Pixel centres from the middle."""
    return np.asarray(np.arange(n) - (n - 1) / 2, np.float32)
