"""How an instrument drifts: named kinds, each a process at any times, so that references drift as frames do.

Times are in durations of the scan, which lasts from 0 to 1. All kinds but `still` have a level of their
own that no record knows: jitter of the shutter and a slow walk of 1 %.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from txmcorrect.simulate.beam import MODES, Family, path_scale
from txmcorrect.simulate.light import Light, Motion
from txmcorrect.simulate.processes import (
    JITTERS,
    PROCESSES,
    Times,
    heat,
    sawtooth,
    steps,
    steps_at,
    trend,
)

SHUTTER = (0.001, 0.01)  # rms of the level's jitter
LEVEL_WALK, LEVEL_MEMORY = 0.01, 3.0  # rms, and how long it lasts
MEMORY = (0.1, 3.0)  # durations over which a walk forgets
STEADY_DEPTH, STEADY_PERIOD = (
    (0.0, 0.04),
    (0.5, 20.0),
)  # of the ring current, where it matters little
DECAY_PERIOD, COOLING = (
    (0.3, 2.0),
    (0.1, 0.5),
)  # of `decay`; the optics' lag as a part of the period
HEAT = (0.005, 0.03)  # rms of the shape that follows the heat, between its ends
STRIPE_PX = (0.2, 1.0)  # rms of their way
PAIRS = 4  # of independent states that an amount is measured on
MOST_STRETCH = 50.0


def _scaled(
    light: Light, states: NDArray[np.float64], ends: NDArray[np.float64], amount: float
) -> NDArray[np.float64]:
    """Stretch `states` `(m, 2 + MODES)` until pairs `ends` `(2, p, 2 + MODES)` differ by `amount` (rms)."""
    factor = 1.0
    for _ in range(2):  # the change is nearly proportional to the stretch
        now = light.rms_change(*(ends * factor))
        factor *= min(amount / max(now, 1e-9), MOST_STRETCH)
    return states * factor


def still(
    rng: np.random.Generator, light: Light, times: Times, family: Family, amount: float
) -> Motion:
    """Nothing changes, not even the level."""
    return Motion.still(len(times), light.size)


def trending(
    rng: np.random.Generator, light: Light, times: Times, family: Family, amount: float
) -> Motion:
    """One course from before the scan to after it, 0 to 1 apart by `amount`; earlier days lie about as far."""
    unit = trend(rng, np.append(times, [0.0, 1.0]), family, 2 + MODES)
    states = unit * path_scale(rng, light.beam)
    return _still_but(light, _scaled(light, states[:-2], states[-2:, None], amount))


def white(
    rng: np.random.Generator, light: Light, times: Times, family: Family, amount: float
) -> Motion:
    """No memory: each exposure has scores of its own, of one to three shapes with the scales of real ones.

    `amount` is the rms above 1/8 of the frame of the log ratio of two exposures (`modes.measured_modes`).
    """
    return _jittering(rng, _still_but(light, np.zeros((len(times), 2 + MODES))), family)


def walk(
    rng: np.random.Generator, light: Light, times: Times, family: Family, amount: float
) -> Motion:
    """Shift and broad modes forget within 0.1 to 3 scans (stationary); far apart they differ by `amount`."""
    memory = float(np.exp(rng.uniform(*np.log(MEMORY))))
    scale = path_scale(rng, light.beam)
    states = PROCESSES[family](rng, times, memory, 2 + MODES) * scale
    ends = rng.standard_normal((2, PAIRS, 2 + MODES)) * scale
    return _still_but(light, _scaled(light, states, ends, amount))


def mixed(
    rng: np.random.Generator, light: Light, times: Times, family: Family, amount: float
) -> Motion:
    """A `walk` by `amount`, and `white` jitter beside it."""
    return _jittering(rng, walk(rng, light, times, family, amount), family)


def jumping(
    rng: np.random.Generator, light: Light, times: Times, family: Family, amount: float
) -> Motion:
    """One or two sudden changes within the scan, the first by `amount`; others on earlier days."""
    at = steps_at(rng)
    states, ends = steps(rng, times, at, family, 2 + MODES)
    scale = path_scale(rng, light.beam)
    motion = _still_but(light, _scaled(light, states * scale, ends[:, None] * scale, amount))
    return replace(motion, jumps=np.searchsorted(at, times, side="right"))


def striped(
    rng: np.random.Generator, light: Light, times: Times, family: Family, amount: float
) -> Motion:
    """Stripes of the monochromator, of rms `amount`, move by parts of a pixel over a fixed detector."""
    reach = float(np.exp(rng.uniform(*np.log(STRIPE_PX))))
    course = PROCESSES[family](rng, times, 0.5, 1)[:, 0]
    jitter = JITTERS[family](rng, (len(times), 1))[:, 0]
    motion = _still_but(light, np.zeros((len(times), 2 + MODES)))
    return replace(motion, stripes=reach * (0.9 * course + 0.44 * jitter))


def zooming(
    rng: np.random.Generator, light: Light, times: Times, family: Family, amount: float
) -> Motion:
    """The illumination breathes: its magnification changes by `amount` (rms), about 1 %."""
    memory = float(np.exp(rng.uniform(*np.log(MEMORY))))
    motion = _still_but(light, np.zeros((len(times), 2 + MODES)))
    return replace(motion, zoom=amount * PROCESSES[family](rng, times, memory, 1)[:, 0])


def decaying(
    rng: np.random.Generator, light: Light, times: Times, family: Family, amount: float
) -> Motion:
    """The ring current falls by `amount` between top-ups; optics cool with it, and one shape follows them."""
    period = float(np.exp(rng.uniform(*np.log(DECAY_PERIOD))))
    start, lag = rng.uniform(0, 1), rng.uniform(*COOLING)
    states = np.zeros((len(times), 2 + MODES))
    shape = rng.choice([-1, 1]) * np.exp(rng.uniform(*np.log(HEAT)))
    states[:, 2] = shape * heat(times, family, period, start, lag)
    return replace(
        _still_but(light, states), current=sawtooth(times, family, amount, period, start)
    )


def _still_but(light: Light, states: NDArray[np.float64]) -> Motion:
    return Motion.still(len(states), light.size).moved(states)


def _jittering(rng: np.random.Generator, motion: Motion, family: Family) -> Motion:
    """Scores of the measured modes, new for each exposure."""
    scores = motion.scores.copy()
    scores[:, MODES:] = JITTERS[family](rng, scores[:, MODES:].shape)
    return replace(motion, scores=scores)


Drift = Callable[[np.random.Generator, Light, Times, Family, float], Motion]
DRIFT_KINDS: dict[str, Drift] = {
    "trend": trending,
    "white": white,
    "walk": walk,
    "mixed": mixed,
    "jump": jumping,
    "stripes": striped,
    "zoom": zooming,
    "decay": decaying,
    "still": still,
}
# The amount of each that is drawn, log-uniform: see their docstrings for what it is the amount of.
AMOUNTS: dict[str, tuple[float, float]] = {
    "trend": (0.005, 0.15),
    "white": (0.005, 0.058),
    "walk": (0.005, 0.06),
    "mixed": (0.005, 0.06),
    "jump": (0.005, 0.06),
    "stripes": (0.005, 0.04),
    "zoom": (0.005, 0.015),
    "decay": (0.05, 0.3),
    "still": (1.0, 1.0),
}
JITTERING = ("white", "mixed")


def draw_motion(
    rng: np.random.Generator, kind: str, light: Light, times: Times, family: Family, amount: float
) -> Motion:
    """States at `times` `(m,)` of a drift of `DRIFT_KINDS`, its level and ring current included."""
    motion = DRIFT_KINDS[kind](rng, light, times, family, amount)
    if kind != "decay":
        depth = rng.uniform(*STEADY_DEPTH)
        period = float(np.exp(rng.uniform(*np.log(STEADY_PERIOD))))
        current = sawtooth(times, family, depth, period, rng.uniform(0, 1))
        motion = replace(motion, current=current)
    return motion if kind == "still" else replace(motion, level=draw_levels(rng, times, family))


def draw_levels(rng: np.random.Generator, times: Times, family: Family) -> NDArray[np.float64]:
    """Log levels `(m,)` that records do not know: the shutter's jitter, and a slow walk of 1 %."""
    jitter = float(np.exp(rng.uniform(*np.log(SHUTTER))))
    slow = LEVEL_WALK * PROCESSES[family](rng, times, LEVEL_MEMORY, 1)
    return np.asarray(slow[:, 0] + jitter * JITTERS[family](rng, (len(times), 1))[:, 0])


def draw_change(rng: np.random.Generator, light: Light, amount: float) -> NDArray[np.float64]:
    """State `(2 + MODES,)` whose background differs from that at rest by `amount` (rms of the log ratio)."""
    state = rng.standard_normal((1, 2 + MODES)) * path_scale(rng, light.beam)
    return _scaled(light, state, np.stack([np.zeros_like(state), state]), amount)[0]
