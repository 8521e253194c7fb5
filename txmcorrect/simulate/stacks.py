"""Training items of the `stack` condition: short scans with whatever references they may have.

A batch is a pure function of (seed, index). Each scan follows one beam on its way through one
world; several of its frames serve as targets, each with the frames around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from txmcorrect.scan import LEAST_TURN
from txmcorrect.simulate.beam import MODES, Beam, draw_beam, path_scale, scale_to_drift, wander
from txmcorrect.simulate.draws import ASPECTS
from txmcorrect.simulate.fields import Image, Shape
from txmcorrect.simulate.samples import SAMPLES, Spheres, contrast
from txmcorrect.simulate.scans import FLATS, stream

TARGETS = 8  # of one scan
MOST_FRAMES = 14
DRIFT = (0.005, 0.25)  # over the whole scan, of which the drawn frames may be a part
SAMPLE_SHARES = {"sparse": 0.4, "dense": 0.25, "film": 0.15, "turning": 0.2}
REFERENCE_SHARES = {
    "none": 0.25,
    "stale": 0.24,
    "before-after": 0.2,
    "bank+stale": 0.2,
    "bank": 0.06,
    "fresh": 0.05,
}
LEAST_BANK, MOST_BANK = 3, 20  # references
JUMP_SHARE = 0.07  # of scans
EMPTY_SHARE = 0.06  # of frames: no sample
WRONG_BANK = 0.1  # of banks: another instrument's


@dataclass(frozen=True)
class DrawnScan:
    """One simulated scan on the working grid; counts are means per pixel without dark.

    `frames`, `background` `(n, h, w)`; `lit` `(h, w)`; `log_exposure` `(n,)` of exposure x current;
    `place` `(n,)` from the first reference (0) to the last (1); `photons` per count and pixel.
    `before`, `after` `(h, w)` or None and `bank` `(k, h, w)` or None, at log exposures
    `flat_exposure` and `bank_exposure` `(k,)`. `frames_known`: exposures of frames are recorded;
    `flats_known`: those of references as well. `turning`: the sample turns. `targets`: frames to learn
    from.
    """

    frames: Image
    background: Image
    lit: NDArray[np.bool_]
    log_exposure: NDArray[np.float64]
    place: NDArray[np.float64]
    photons: float
    before: Image | None
    after: Image | None
    bank: Image | None
    flat_exposure: float
    bank_exposure: NDArray[np.float64]
    frames_known: bool
    flats_known: bool
    turning: bool
    targets: NDArray[np.intp]


@dataclass(frozen=True)
class Course:
    """Log backgrounds `(m, h, w)` of a scan's `frames`, and of its `before`, `after` and `bank` where it has
    them; `lit` `(h, w)`; `place` `(n,)` of the frames between first and last.
    """

    logs: dict[str, Image]
    lit: NDArray[np.bool_]
    place: NDArray[np.float64]


def draw_scans(
    seed: int,
    index: int,
    batch: int,
    size: int,
    counts: tuple[float, float] = (50.0, 20000.0),
    contrast_spread: float = 0.1,
    purpose: str = "train",
) -> list[DrawnScan]:
    """Scans of batch number `index`, `batch` targets in all, with a long side of `size` pixels."""
    rng = stream(purpose, seed, index, 4)
    aspect = ASPECTS[rng.integers(len(ASPECTS))]
    shape = max(2, round(size * aspect[0])), max(2, round(size * aspect[1]))
    return [_draw_scan(rng, shape, counts, contrast_spread, share) for share in shares_of(batch)]


def shares_of(batch: int) -> list[int]:
    """Targets of each scan of a batch."""
    return [min(TARGETS, batch - start) for start in range(0, batch, TARGETS)]


def _draw_scan(
    rng: np.random.Generator,
    shape: Shape,
    counts: tuple[float, float],
    contrast_spread: float,
    targets: int,
) -> DrawnScan:
    n, kind = draw_kind(rng)
    course = _draw_course(rng, shape, n, kind)
    log_t, turning = draw_samples(rng, shape, n, contrast_spread)
    return expose(rng, course, log_t, turning, counts, targets)


def draw_kind(rng: np.random.Generator) -> tuple[int, str]:
    """How many frames a scan has, and which of `REFERENCE_SHARES`."""
    n = int(rng.integers(2, MOST_FRAMES + 1)) if rng.random() < 0.3 else MOST_FRAMES
    return n, str(rng.choice(list(REFERENCE_SHARES), p=list(REFERENCE_SHARES.values())))


def draw_length(rng: np.random.Generator, n: int) -> int:
    """Frames of the whole scan that `n` frames are a part of, or all of."""
    return n if rng.random() < 0.6 else int(n * rng.uniform(1, 6))


def _draw_course(rng: np.random.Generator, shape: Shape, n: int, kind: str) -> Course:
    """A simulated beam on its way."""
    beam = draw_beam(rng, shape)
    path, start = _path(rng, beam, n, kind)
    states = {"frames": path[start : start + n], **reference_states(rng, path, kind)}
    logs = {name: beam.log_background(s) for name, s in states.items()}
    if "bank" in logs and rng.random() < WRONG_BANK:
        logs["bank"] = _wrong(rng, logs["bank"], shape)
    return Course(logs, beam.lit, places(start, n, len(path)))


def places(start: int, n: int, total: int) -> NDArray[np.float64]:
    """Where frames `start` to `start + n` lie in a scan of `total`, from 0 to 1."""
    return np.arange(start, start + n) / max(total - 1, 1)


def expose(
    rng: np.random.Generator,
    course: Course,
    log_t: Image,
    turning: bool,
    counts: tuple[float, float],
    targets: int,
) -> DrawnScan:
    """Frames and references in photons; exposures may be recorded or not."""
    logs, lit, n = course.logs, course.lit, len(log_t)
    if rng.random() < 0.5:  # the only mirror a background may take: it is tied to the detector
        logs = {name: x[:, ::-1] for name, x in logs.items()}
        lit = lit[::-1]
    level = np.exp(rng.uniform(*np.log(counts))) / np.exp(logs["frames"][0])[lit].mean()
    photons = float(rng.choice([1.0, 4.0, 16.0]))
    exposure = _exposures(rng, n)
    flat_exposure = float(rng.normal(0, 0.05))
    bank_exposure = rng.normal(0, 0.05, len(logs.get("bank", ())))

    def light(name: str, at: Any) -> Image:
        return np.exp(logs[name]) * (level * np.exp(at)).astype(np.float32)

    def record(expected: Image, exposures: int = 1) -> Image:
        shots = photons * exposures
        return (rng.poisson(expected * shots) / shots).astype(np.float32)

    background = light("frames", exposure[:, None, None])
    stray = level * rng.uniform(0, 0.004)  # what dark subtraction and afterglow leave
    flats = {
        name: record(light(name, np.float64(flat_exposure)), FLATS)[0]
        for name in ("before", "after")
        if name in logs
    }
    bank = record(light("bank", bank_exposure[:, None, None]), FLATS) if "bank" in logs else None
    known = rng.random() < 0.6
    return DrawnScan(
        frames=record(background * np.exp(log_t) + np.float32(stray)),
        background=background,
        lit=lit,
        log_exposure=exposure,
        place=course.place,
        photons=photons,
        before=flats.get("before"),
        after=flats.get("after"),
        bank=bank,
        flat_exposure=flat_exposure,
        bank_exposure=bank_exposure,
        frames_known=known,
        flats_known=known and rng.random() < 0.9,
        turning=turning,
        targets=rng.permutation(np.arange(max(n, targets)) % n)[:targets],
    )


def _path(rng: np.random.Generator, beam: Beam, n: int, kind: str) -> tuple[NDArray[Any], int]:
    """States of a whole scan, maybe with a jump, and where the `n` frames drawn from it begin."""
    total = draw_length(rng, n)
    path = wander(rng, total) * path_scale(rng, beam)
    if rng.random() < JUMP_SHARE:
        path[int(rng.integers(1, total)) :] += rng.standard_normal(2 + MODES) * path_scale(
            rng, beam
        )
    drift = float(np.exp(rng.uniform(*np.log(DRIFT))))
    if kind == "fresh":
        drift = float(rng.choice([1e-4, 3e-3]))
    path = scale_to_drift(beam, path, drift, iterations=2)
    return path, int(rng.integers(0, total - n + 1))


def reference_states(
    rng: np.random.Generator, path: NDArray[Any], kind: str
) -> dict[str, NDArray[Any]]:
    """States of the references of a scan along `path`."""
    first, last = path[:1], path[-1:]
    states = {}
    if kind in ("stale", "bank+stale"):  # from earlier on the same way, or from about there
        spread = np.abs(path).max(0) * rng.uniform(0, 0.5)
        earlier = first - rng.uniform(0, 1.2) * (last - first)
        states["before"] = earlier + rng.standard_normal(earlier.shape) * spread
    if kind in ("before-after", "fresh"):
        states["before"] = first
    if kind == "before-after" or (kind == "fresh" and rng.random() < 0.5):
        states["after"] = last
    if kind in ("bank", "bank+stale"):
        spread = (np.abs(path).max(0) + 1e-9) * rng.uniform(0.5, 1.5)
        count = int(rng.integers(LEAST_BANK, MOST_BANK + 1))
        states["bank"] = first + rng.standard_normal((count, path.shape[1])) * spread
    return states


def _wrong(rng: np.random.Generator, bank: Image, shape: Shape) -> Image:
    """Log of another instrument's bank: this one turned, or the first one's drift elsewhere."""
    if rng.random() < 0.5:
        return bank[:, ::-1, ::-1]
    other = draw_beam(rng, shape).log_background(np.zeros((1, 2 + MODES)))
    return bank - bank[:1] + other


def draw_samples(
    rng: np.random.Generator, shape: Shape, n: int, contrast_spread: float
) -> tuple[Image, bool]:
    """Log transmission `(n, h, w)`: views of one world, some empty, or one object that turns; and
    whether it does. `contrast_spread`: of the logarithm of its strength.
    """
    log_t, turning = _views(rng, shape, n)
    return log_t * np.float32(np.exp(contrast_spread * rng.standard_normal())), turning


def _views(rng: np.random.Generator, shape: Shape, n: int) -> tuple[Image, bool]:
    kind = str(rng.choice(list(SAMPLE_SHARES), p=list(SAMPLE_SHARES.values())))
    if kind == "turning":
        spheres = Spheres(rng, shape, "train")
        step = np.exp(rng.uniform(np.log(0.005), np.log(0.5)))
        first = rng.uniform(0, 2 * np.pi)
        views = [-spheres.project(first + step * i) for i in range(n)]
        return np.stack(views), bool(step * (n - 1) > LEAST_TURN)
    side = int(2.2 * max(shape))
    long = max(shape) * float(np.exp(rng.uniform(np.log(0.7), np.log(2.0))))
    world = contrast(rng, SAMPLES[kind](rng, (side, side), long, "train"), long)
    still = rng.random() < 0.05  # a film of time: the same place throughout
    corners = rng.integers(0, [side - s + 1 for s in shape], (n, 2))
    views = []
    for y, x in corners[:1].repeat(n, 0) if still else corners:
        view = world[y : y + shape[0], x : x + shape[1]]
        views.append(view * np.float32(still or rng.random() > EMPTY_SHARE))
    return np.stack(views), False


def _exposures(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Log exposure x ring current `(n,)`: decay, top-ups, now and then other exposure times."""
    steps = -rng.uniform(0, 0.003) * np.ones(n)
    steps[rng.random(n) < 0.08] = rng.uniform(0.005, 0.03)
    changed = rng.normal(0, 0.3, n) * (rng.random(n) < 0.2) * (rng.random() < 0.1)
    return np.asarray(np.cumsum(steps) + changed)
