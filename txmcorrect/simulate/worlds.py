"""Worlds: scans that draw from everything real beamlines do, as named choices that are drawn or fixed.

Three families share no generator. Networks learn on `train`, choices are made on `develop`, results
are quoted on `benchmark`:

| | train | develop | benchmark |
|---|---|---|---|
| memory (walk, zoom, stripes, levels) | Ornstein-Uhlenbeck | random smooth waves | led between knots |
| jitter (white, shutter) | Gaussian | heavy tails (Laplace) | bounded (uniform) |
| trend | line and smooth random walk (`wander`) | polynomial | warming up, and breathing |
| jumps | to new states | overshoot and settle | between two states |
| current between top-ups | linear | exponential | root-like |
| broad shapes | smooth Gaussian fields | Zernike polynomials | Gabor bumps |
| finer bands of jitter | Gaussian | streaked | scattered points |
| speckle | band of noise | interference | equal grains |
| stripes | noise | dark lines with wings | bands of one level |
| envelope | hump, ring, plane | tent, saddle | lobes |
| mottle | power law | ridges | cells |
| scratches | zero crossings | straight lines | borders of cells |
| particles | ellipsoids, shells | cushions | facets |
| tissue | membranes | round cells | network of ridges |
| film | smooth grains | terraces | two levels |
| spheres | of all sizes | of one size | of middle sizes |

What all share is physics or plain: pixel gain, columns, dust, the aperture's edge, fibres, capillaries, and
how thickness becomes contrast.

Each choice, the instrument, its drift, the sample and the noise have random streams of their own: a
choice that is fixed changes nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from txmcorrect.simulate.beam import Family
from txmcorrect.simulate.choices import Choices, Streams, choose
from txmcorrect.simulate.drifts import JITTERING, draw_change, draw_motion
from txmcorrect.simulate.fields import Image
from txmcorrect.simulate.light import Light, Motion, draw_light
from txmcorrect.simulate.processes import Times
from txmcorrect.simulate.records import EXPOSURE_S, FULL_MA, record
from txmcorrect.simulate.references import (
    AFTER_BURST,
    REFERENCE_KINDS,
    draw_bank_times,
)
from txmcorrect.simulate.scans import (
    BROKEN,
    DARK_LEVEL,
    FLATS,
    PIXEL_UM,
    READ_NOISE,
    SimulatedScan,
    direct_beam,
)
from txmcorrect.simulate.specimens import draw_specimen

AFTERGLOW = 0.002  # of the frame before


@dataclass(frozen=True)
class Exposures:
    """All exposures of a world, in the order of time within frames, flats and bank.

    Attributes
    ----------
    time : `(m,)`; background : `(m, h, w)` expected counts of empty frames, without dark and direct light.
    level : `(m,)` log of all that scales an exposure; current_ma, exposure_s : `(m,)` as they were.
    jumps : `(m,)` sudden changes before each. frames, flats : how many; the rest are the bank's.
    """

    time: Times
    background: Image
    level: NDArray[np.float64]
    current_ma: NDArray[np.float64]
    exposure_s: NDArray[np.float64]
    jumps: NDArray[np.intp]
    frames: int
    flats: int

    @property
    def parts(self) -> tuple[slice, slice, slice]:
        """Where frames, flats and bank lie."""
        within = self.frames + self.flats
        return slice(0, self.frames), slice(self.frames, within), slice(within, None)


@dataclass(frozen=True)
class World:
    """A scan before any noise; `log_t` `(n, h, w)` and `geometry` in the order of time."""

    choices: dict[str, Any]
    family: Family
    light: Light
    exposures: Exposures
    log_t: Image
    geometry: dict[str, Any]
    order: NDArray[np.intp]  # times of the frames as they lie in the file


def draw_world(
    seed: int,
    family: Family = "train",
    purpose: str = "scan",
    index: int = 0,
    **choices: Unpack[Choices],
) -> SimulatedScan:
    """Draw a scan of any kind; the same arguments give the same scan.

    Parameters
    ----------
    purpose : `train`, `validate` or `scan`, which never meet. index : of several worlds of one seed.
    choices : what is fixed; everything else is drawn (`Choices`).
    """
    streams = Streams(seed, family, purpose, index)
    return expose(streams, world_of(streams, family, choices))


def world_of(streams: Streams, family: Family, given: Choices) -> World:
    """All of a world but its noise, for those who add their own."""
    made = choose(streams, given)
    light = draw_light(
        streams("instrument"),
        made["shape"],
        family,
        made["texture"],
        made["detector"],
        _jitter_of(made),
        made["amount"] if made["drift"] == "stripes" else 0.0,
    )
    log_t, geometry = draw_specimen(
        streams("specimen"),
        made["sample"],
        made["shape"],
        made["frames"],
        family,
        made["strength"],
        made["grid"],
        made["overlap"],
        PIXEL_UM if made["volume"] else None,
    )
    n = made["frames"]
    shuffled = made["order"] == "shuffled"
    order = streams("permutation").permutation(n) if shuffled else np.arange(n)
    exposures = _exposures(streams, family, made, light)
    return World(made, family, light, exposures, log_t, geometry, order.astype(np.intp))


def _jitter_of(made: dict[str, Any]) -> tuple[int, float] | None:
    """Rank and broad rms of what is white, if anything is."""
    if made["drift"] not in JITTERING:
        return None
    return made["rank"], made["amount" if made["drift"] == "white" else "jitter"]


def _exposures(streams: Streams, family: Family, made: dict[str, Any], light: Light) -> Exposures:
    """Draw when exposures were taken, what the beam was then, and how bright."""
    n = made["frames"]
    flat_times = REFERENCE_KINDS[made["references"]](streams("references"), n)
    bank_times = draw_bank_times(streams("bank_times"), made["bank"])
    times = np.concatenate([(np.arange(n) + 0.5) / n, flat_times, bank_times])
    rng = streams("drift_course")
    motion = draw_motion(rng, made["drift"], light, times, family, made["amount"])
    if made["references"] == "burst":
        motion = _after_the_burst(streams("burst"), light, motion, times)
    logs = light.log_background(motion)
    exposure = np.full(len(times), EXPOSURE_S)
    exposure[n : n + len(flat_times)] *= made["flats_exposure"]
    level = motion.level + motion.current + np.log(exposure / EXPOSURE_S)
    full = made["counts"] / np.exp(logs[0])[light.beam.lit].mean()
    scale = (full * np.exp(level - level[0])).astype(np.float32)
    current = FULL_MA * np.exp(motion.current)
    counts = np.exp(logs, out=logs)
    counts *= scale[:, None, None]
    return Exposures(times, counts, level, current, exposure, motion.jumps, n, len(flat_times))


def _after_the_burst(
    rng: np.random.Generator, light: Light, motion: Motion, times: Times
) -> Motion:
    """The beam moves and changes shape by `AFTER_BURST` once the flats are taken."""
    change = draw_change(rng, light, AFTER_BURST)
    return motion.moved((times >= 0)[:, None] * change)


def _jumps(before: NDArray[np.intp], order: str) -> tuple[int, ...]:
    """Frames at which the beam had jumped; of shuffled ones nobody can say."""
    if order == "shuffled":
        return ()
    return tuple(int(i) + 1 for i in np.flatnonzero(np.diff(before)))


class _Camera:
    """Expected counts -> recorded ones, with dark, read noise and broken pixels."""

    def __init__(self, rng: np.random.Generator, made: dict[str, Any]):
        shape = made["shape"]
        patterned = made["detector"] == "pattern"
        self.dark = DARK_LEVEL + rng.normal(0, 1, shape).astype(np.float32) * patterned
        self.direct = direct_beam(rng, shape, made["counts"]) * np.float32(patterned)
        self.broken = (rng.random(shape) < BROKEN) & patterned
        self.stuck = rng.choice([0.0, 65535.0], int(self.broken.sum()))

    def __call__(self, rng: np.random.Generator, expected: Image) -> NDArray[np.uint16]:
        out = np.empty(expected.shape, np.uint16)
        for i, frame in enumerate(expected):
            noisy = rng.poisson(frame) + self.dark
            noisy += READ_NOISE * rng.standard_normal(frame.shape, dtype=np.float32)
            noisy[self.broken] = self.stuck
            out[i] = np.clip(np.rint(noisy), 0, 65535)
        return out


def expose(streams: Streams, world: World) -> SimulatedScan:
    """Record a world: photon and read noise, afterglow, and what its files say."""
    seen, made, order = world.exposures, world.choices, world.order
    frames, flats, bank = (seen.background[part] for part in seen.parts)
    times = [seen.time[part] for part in seen.parts]
    camera = _Camera(streams("camera"), made)
    noise = streams("noise")
    transmission = np.exp(world.log_t)
    light = frames * transmission
    glow = np.float32(AFTERGLOW) * np.concatenate([light[:1], light[:-1]])
    counts = camera(noise, light + camera.direct + glow)
    currents = [seen.current_ma[part] for part in seen.parts]
    exposures = [seen.exposure_s[part] for part in seen.parts]
    currents[0], exposures[0] = currents[0][order], exposures[0][order]
    geometry = {
        name: values[order] if name in ("theta", "position_px") else values
        for name, values in world.geometry.items()
    }
    dark = camera(noise, np.zeros((FLATS, *made["shape"]), np.float32))
    return SimulatedScan(
        kind=made["sample"],
        counts=counts[order],
        dark=dark,
        transmission=transmission[order],
        background=frames[order],
        direct=camera.direct,
        lit=world.light.beam.lit & ~camera.broken,
        current_ma=currents[0],
        jumps=_jumps(seen.jumps[: seen.frames], made["order"]),
        bank=camera(noise, bank + camera.direct).astype(np.float32),
        bank_current_ma=currents[2],
        flats=camera(noise, flats + camera.direct),
        flats_before=np.searchsorted(times[0], times[1]).astype(np.intp),
        flats_current_ma=currents[1],
        time=times[0][order],
        flats_time=times[1],
        bank_time=times[2],
        level=seen.level[: seen.frames][order],
        records=record(made["records"], exposures, currents),
        choices={**made, "family": world.family},
        **geometry,
    )
