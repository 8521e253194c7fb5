"""Whole scans with exact truth: the sample before the beam, then the detector's noise.

    counts = dark + Poisson( I0(t) b(x, y, t) T(x, y) + a(x, y, t) ) + read noise

Seeds of training and of scans that are kept lie in different streams (`stream`), so no scan that
`simulate` writes can be drawn again in training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.ndimage import shift as spline_shift

from txmcorrect.simulate.beam import (
    DRIFTS,
    MODES,
    Beam,
    Family,
    draw_beam,
    path_scale,
    scale_to_drift,
    wander,
)
from txmcorrect.simulate.fields import Image, Shape, grid_px
from txmcorrect.simulate.records import Records
from txmcorrect.simulate.samples import SAMPLES, Spheres, contrast

Kind = Literal["mosaic-sparse", "mosaic-dense", "tomo", "film"]
References = Literal["none", "stale", "before-after", "fresh"]
STREAMS = {"train": 1, "validate": 2, "scan": 3, "world": 4}
FAMILY_NUMBERS: dict[Family, int] = {"train": 0, "benchmark": 1, "develop": 2}
DARK_LEVEL = 100.0
READ_NOISE = 2.0
FLATS = 10  # exposures of one reference
BROKEN = 2e-4  # of pixels
PIXEL_UM = 0.05


def stream(name: str, *seeds: int) -> np.random.Generator:
    """Random numbers of one purpose: a key of `STREAMS`; they never meet."""
    return np.random.default_rng(np.random.SeedSequence([STREAMS[name], *seeds]))


@dataclass(frozen=True)
class SimulatedScan:
    """A scan and everything that is true about it.

    Attributes
    ----------
    counts : `(n, h, w)` uint16 raw frames. dark : `(m, h, w)` uint16.
    transmission : `(n, h, w)` T. background : `(n, h, w)` expected counts of an empty frame (dark,
    direct light excluded; ring current included). direct : `(h, w)` light that does not scale with T.
    lit : `(h, w)`; current_ma : `(n,)`; jumps : frames at which the illumination jumped.
    bank : `(m, h, w)` float32 mean counts of earlier references (dark included); their currents.
    flats : `(k, h, w)` uint16 references inside the scan; `flats_before` (k,) projections taken
    before each; `flats_current_ma` (k,).
    position_px : `(n, 2)` tile corners (y, x) in `world`. theta : `(n,)` radians.
    volume : `(z, y, x)` attenuation per um.
    Of worlds only: time : `(n,)` when frames were taken, in durations of the scan, and of flats and bank;
    level : `(n,)` log of exposure, current and what no record knows, all included in `background`.
    records : what the scan's files say; without them, exposures and currents as they were.
    choices : what was drawn.
    """

    kind: str
    counts: NDArray[np.uint16]
    dark: NDArray[np.uint16]
    transmission: Image
    background: Image
    direct: Image
    lit: NDArray[np.bool_]
    current_ma: NDArray[np.float64]
    jumps: tuple[int, ...]
    bank: Image
    bank_current_ma: NDArray[np.float64]
    flats: NDArray[np.uint16]
    flats_before: NDArray[np.intp]
    flats_current_ma: NDArray[np.float64]
    position_px: NDArray[np.float64] | None = None
    world: Image | None = None
    grid: tuple[int, int] | None = None
    theta: NDArray[np.float64] | None = None
    volume: Image | None = None
    time: NDArray[np.float64] | None = None
    flats_time: NDArray[np.float64] | None = None
    bank_time: NDArray[np.float64] | None = None
    level: NDArray[np.float64] | None = None
    records: Records | None = None
    choices: dict[str, Any] = field(default_factory=dict)


def simulate_scan(
    kind: Kind = "mosaic-sparse",
    drift: str = "medium",
    counts: float = 5000.0,
    shape: Shape = (256, 256),
    seed: int = 0,
    family: Family = "train",
    references: References = "none",
    frames: int | None = None,
    grid: tuple[int, int] = (4, 4),
    overlap: float = 0.1,
    bank: int = 20,
    jump: bool = False,
    instrument: int | None = None,
) -> SimulatedScan:
    """Simulate a scan; the same arguments give the same scan.

    Parameters
    ----------
    counts : mean counts of an empty lit pixel at full current. frames : projections of a tomogram
    or frames of a film (mosaics have rows x columns). bank : number of earlier references.
    jump : let the illumination jump once by the whole drift. instrument : seed of beam and detector, for
    several scans at one beamline; without it each scan has its own.
    """
    rng = stream("scan", seed, FAMILY_NUMBERS[family])
    log_t, geometry = _sample(rng, kind, shape, family, frames, grid, overlap)
    n = len(log_t)
    own = rng if instrument is None else stream("scan", instrument, FAMILY_NUMBERS[family], 1)
    beam = draw_beam(own, shape, family)
    path, jumps = _path(rng, beam, n, drift, references, jump)
    level = counts / np.exp(beam.log_background(path[:1])[0])[beam.lit].mean()
    current = ring_current(rng, n)
    background = _counts(beam, path, current, level)
    direct = direct_beam(own, shape, counts)
    transmission = np.exp(log_t)
    dark = DARK_LEVEL + own.normal(0, 1, shape)
    broken = own.random(shape) < BROKEN
    stuck = own.choice([0.0, 65535.0], shape)
    expose = _Detector(dark, direct, np.where(broken, stuck, np.nan), rng)
    raw = expose(background * transmission, afterglow=0.002)
    bank_path = _bank_path(rng, path, bank)
    bank_current = rng.uniform(180, 220, bank)
    bank_frames = [
        expose(np.repeat(_counts(beam, p[None], c[None], level), FLATS, 0)).mean(
            0, dtype=np.float32
        )
        for p, c in zip(bank_path, bank_current, strict=True)
    ]
    flat_states, before = _flat_states(path, references, bank_path)
    flat_current = np.full(len(flat_states), 200.0)
    flats = expose(_counts(beam, flat_states, flat_current, level))
    return SimulatedScan(
        kind=kind,
        counts=raw,
        dark=expose(np.zeros((FLATS, *shape), np.float32), lit=False),
        transmission=transmission,
        background=background,
        direct=direct,
        lit=beam.lit & ~broken,
        current_ma=current,
        jumps=jumps,
        bank=np.array(bank_frames, np.float32).reshape(bank, *shape),
        bank_current_ma=bank_current,
        flats=flats,
        flats_before=before,
        flats_current_ma=flat_current,
        **geometry,
    )


def _sample(
    rng: np.random.Generator,
    kind: Kind,
    shape: Shape,
    family: Family,
    frames: int | None,
    grid: tuple[int, int],
    overlap: float,
) -> tuple[Image, dict[str, Any]]:
    """Log transmission `(n, h, w)` and the geometry it was seen in."""
    if kind == "tomo":
        spheres = Spheres(rng, shape, family)
        theta = np.linspace(0, np.pi, frames or 90, endpoint=False)
        log_t = -np.stack([spheres.project(t) for t in theta])
        return log_t, {"theta": theta, "volume": spheres.volume() / PIXEL_UM}
    if kind == "film":  # one spot after another, never the same twice
        long = float(max(shape))
        n = frames or 16
        films = [contrast(rng, SAMPLES["film"](rng, shape, long, family), long) for _ in range(n)]
        return np.stack(films), {}
    return _tiles(rng, kind.removeprefix("mosaic-"), shape, family, grid, overlap)


def _tiles(
    rng: np.random.Generator,
    sample: str,
    shape: Shape,
    family: Family,
    grid: tuple[int, int],
    overlap: float,
) -> tuple[Image, dict[str, Any]]:
    """Cut a world into overlapping tiles, rows from the bottom left, at jittered sub-pixel places."""
    frame = np.array(shape, float)
    step = frame * (1 - overlap)
    margin = np.ceil(frame * max(overlap / 4, 0.01)) + 2
    rows, columns = np.mgrid[: grid[0], : grid[1]]
    order = np.stack([(grid[0] - 1 - rows).ravel(), columns.ravel()], 1)  # bottom row first
    jitter = rng.uniform(-1, 1, (len(order), 2)) * frame * overlap / 4
    position = order * step + margin + jitter
    size = np.ceil((np.array(grid) - 1) * step + frame + 2 * margin).astype(int)
    long = float(max(shape))
    thickness = SAMPLES[sample](rng, (int(size[0]), int(size[1])), long, family)
    log_world = gaussian_filter(contrast(rng, thickness, long), 0.6)
    log_t = np.stack([_crop(log_world, p, shape) for p in position])
    return log_t, {"position_px": position, "world": np.exp(log_world), "grid": grid}


def _crop(world: Image, corner: NDArray[Any], shape: Shape) -> Image:
    """The frame whose first pixel lies at a fractional `corner`, by cubic splines."""
    whole = np.floor(corner).astype(int)
    h, w = shape
    pad = 2
    y0, x0 = np.maximum(whole - pad, 0)
    window = world[y0 : whole[0] + h + pad + 1, x0 : whole[1] + w + pad + 1]
    moved = spline_shift(window, -(corner - [y0, x0]), order=3, mode="nearest")
    return np.asarray(moved[:h, :w], np.float32)


def _path(
    rng: np.random.Generator, beam: Beam, n: int, drift: str, references: References, jump: bool
) -> tuple[NDArray[Any], tuple[int, ...]]:
    """The beam's way through its states, scaled to the drift asked for."""
    path = wander(rng, n) * path_scale(rng, beam)
    if references == "fresh":  # flats and frames see the same beam
        return np.zeros_like(path), ()
    jumps: tuple[int, ...] = ()
    if jump:
        at = int(rng.integers(n // 3, max(2 * n // 3, n // 3 + 1)))
        path[at:] += rng.standard_normal(2 + MODES) * path_scale(rng, beam)
        jumps = (at,)
    return scale_to_drift(beam, path, DRIFTS[drift]), jumps


def _bank_path(rng: np.random.Generator, path: NDArray[Any], bank: int) -> NDArray[Any]:
    """Where the beam was on earlier days: around the scan's start, by about the scan's own drift."""
    spread = np.abs(path).max(0) + 1e-9
    return path[:1] + rng.standard_normal((bank, path.shape[1])) * spread


def _flat_states(
    path: NDArray[Any], references: References, bank_path: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """States of the flats in the scan file, and how many projections were taken before each."""
    n = len(path)
    none = np.empty((0, path.shape[1]))
    extrapolated = path[:1] - 0.7 * (path[-1:] - path[:1])  # an hour earlier, on the same way
    states = {
        "none": none,
        "stale": extrapolated.repeat(FLATS, 0),
        "before-after": np.concatenate([path[:1].repeat(FLATS, 0), path[-1:].repeat(FLATS, 0)]),
        "fresh": path[:1].repeat(2 * FLATS, 0),
    }[references]
    before = np.zeros(len(states), np.intp)
    if references == "before-after":
        before[FLATS:] = n
    return states, before


def ring_current(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Ring current in mA: decay, with a top-up now and then."""
    decay = rng.uniform(0, 0.04) / max(n, 1)
    steps = np.where(rng.random(n) < 1 / max(n, 30), rng.uniform(0.005, 0.03), -decay)
    steps[0] = 0
    return np.asarray(200.0 * np.exp(np.cumsum(steps)))


def _counts(beam: Beam, path: NDArray[Any], current: NDArray[Any], level: float) -> Image:
    scale = (level * current / 200.0).astype(np.float32)[:, None, None]
    if len(path) == 0:
        return np.empty((0, *beam.shape), np.float32)
    return np.asarray(np.exp(beam.log_background(path)) * scale, np.float32)


def direct_beam(rng: np.random.Generator, shape: Shape, counts: float) -> Image:
    """Light past the central stop, in some instruments: a spot of up to 2 % of the counts."""
    y, x = grid_px(shape)
    width = max(shape) * rng.uniform(0.02, 0.06)
    strength = counts * rng.uniform(0, 0.02) * (rng.random() < 0.3)
    return np.asarray(strength * np.exp(-(y**2 + x**2) / (2 * width**2)), np.float32)


class _Detector:
    """Expected light -> recorded uint16 frames."""

    def __init__(self, dark: NDArray[Any], direct: Image, stuck: NDArray[Any], rng: Any):
        """`stuck`: what broken pixels always say, NaN of those that work."""
        self.dark, self.direct, self.stuck, self.rng = dark, direct, stuck, rng

    def __call__(
        self, light: Image, afterglow: float = 0.0, lit: bool = True
    ) -> NDArray[np.uint16]:
        out = np.empty(light.shape, np.uint16)
        for i, frame in enumerate(light):
            expected = frame + (self.direct if lit else 0) + afterglow * light[max(i - 1, 0)]
            noisy = self.rng.poisson(expected) + self.dark
            noisy = noisy + self.rng.normal(0, READ_NOISE, noisy.shape)
            noisy = np.where(np.isnan(self.stuck), noisy, self.stuck)
            out[i] = np.clip(np.rint(noisy), 0, 65535)
        return out
