"""Real data: what can be judged without truth, and real backgrounds under simulated samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, median_filter

from txmcorrect import metrics
from txmcorrect.baselines.contract import (
    Array,
    Estimate,
    Flats,
    Image,
    Method,
    NotApplicableError,
    Problem,
    correct,
    log_light,
)
from txmcorrect.judge.checks import null_finding
from txmcorrect.judge.preservation import preservation_finding
from txmcorrect.judge.scenes import FIRST_SEED, Kind, Scene, Truth
from txmcorrect.judge.trial import Finding
from txmcorrect.simulate import SimulatedScan, simulate_scan

LIT_FRACTION = 0.08  # of the median light; darker pixels do not count
NEARLY_EMPTY = 0.5  # of the usual fine structure
SMOOTH_PX = 4.0  # photon noise is averaged out over this before backgrounds are compared


def lit_pixels(frames: Array, dark: Array) -> NDArray[np.bool_]:
    """Pixels `(h, w)` that are lit and neither dead nor hot, from the median of some frames."""
    light = np.median(frames, axis=0) - dark
    around = median_filter(light, 5, mode="nearest")
    works = (light > 0.3 * around) & (light < 3 * np.maximum(around, 1))
    return np.asarray(works & (light > LIT_FRACTION * np.median(light)))


def find_empty(problem: Problem, count: int = 2) -> list[int]:
    """The frames that show least: smallest fine structure relative to the stack's median."""
    return sorted(int(i) for i in np.argsort(fine_structure(problem))[:count])


def fine_structure(problem: Problem) -> NDArray[np.float64]:
    """How much structure of 4-20 pixels each frame shows beside the stack's median, `(n,)`."""
    logs = log_light(problem.frames, problem.dark)
    rest = logs - np.median(logs, axis=0)
    fine = gaussian_filter(rest, (0, 2, 2)) - gaussian_filter(rest, (0, 10, 10))
    return np.asarray(fine[:, problem.lit].std(1), np.float64)


def nearly_empty(problem: Problem, frames: list[int]) -> bool:
    """Whether frames show so much less than the usual frame that they can stand for references."""
    fine = fine_structure(problem)
    return bool(fine[frames].max() < NEARLY_EMPTY * np.median(fine))


def flatness(problem: Problem, estimate: Estimate, frame: int) -> float:
    """Standard deviation over mean of a corrected frame, over lit pixels."""
    values = correct(problem, estimate)[frame][problem.lit]
    return float(values.std() / values.mean())


def judge_raw(method: Method, problem: Problem, seed: int = 0) -> dict[str, Finding]:
    """What raw frames alone can tell: preservation of implants, flatness of the emptiest frames."""
    estimate = method(problem)
    found = {"preservation": preservation_finding(method, problem, estimate, seed)}
    empties = find_empty(problem)
    figures = {f"flatness_{i + 1}": flatness(problem, estimate, i) for i in empties}
    figures |= {
        "flatness_median": float(
            np.median([flatness(problem, estimate, i) for i in range(len(problem.frames))])
        )
    }
    found["flatness"] = Finding(None, figures)
    if len(problem.frames) >= 6 and nearly_empty(problem, empties):
        found["leave-out"] = leave_out(method, problem, empties)
    return found


def leave_out(method: Method, problem: Problem, empties: list[int]) -> Finding:
    """Take the empty frames away; the background of a neighbour must agree with the last of them.

    The two are a frame apart, so drift sets a floor. `raw_drift` is how much the two empty frames
    differ: a method that does worse is worse than dividing by the other empty frame, and fails.
    Figures are robust standard deviations of smoothed log-ratios.
    """
    target = empties[-1]
    kept = [i for i in range(len(problem.frames)) if i not in empties]
    # Of two neighbours the later: tile 14's background is judged on tile 13.
    neighbour = int(np.argmin([abs(i - target) - 0.1 * (i > target) for i in kept]))
    estimate = method(select(problem, kept))
    seen = log_light(problem.frames[empties], problem.dark)
    figures = {
        "leave_out": _robust_difference(estimate.log_background[neighbour], seen[-1], problem.lit),
        "raw_drift": _robust_difference(seen[0], seen[-1], problem.lit),
    }
    return Finding(figures["leave_out"] < figures["raw_drift"], figures)


def _robust_difference(a: Array, b: Array, lit: NDArray[np.bool_]) -> float:
    """Robust standard deviation of the smoothed difference; what little sample there is counts little."""
    smooth = gaussian_filter(np.where(lit, a - b, np.median((a - b)[lit])), SMOOTH_PX)[lit]
    return float(1.4826 * np.median(np.abs(smooth - np.median(smooth))))


def select(problem: Problem, frames: list[int]) -> Problem:
    """The problem restricted to some of its frames."""

    def some(values: Array | None) -> Array | None:
        return None if values is None else values[frames]

    return replace(
        problem,
        frames=problem.frames[frames],
        current_ma=some(problem.current_ma),
        position_px=some(problem.position_px),
        theta=some(problem.theta),
    )


def judge_flats(method: Method, flats: Flats, dark: Image, lit: NDArray[np.bool_]) -> Finding:
    """Real flats passed as a scan: every second one is a frame, the others are references.

    Detectors count in units of their own, so the noise is measured: on differences of successive
    frames in the finest octave, which drift does not reach.
    """
    if len(flats.counts) < 4:
        raise NotApplicableError(f"expected at least 4 references, got {len(flats.counts)}")
    taken, kept = (
        Flats(flats.counts[i::2], None if flats.current_ma is None else flats.current_ma[i::2])
        for i in (1, 0)
    )
    problem = Problem(taken.counts, dark, lit, taken.current_ma, stale=kept, bank=kept)
    corrected = correct(problem, method(problem))
    return null_finding(corrected, lit, _noise_variance(problem))


def _noise_variance(problem: Problem) -> float:
    """Relative variance of a pixel's noise, from the finest octave of differences."""
    logs = log_light(problem.frames, problem.dark)
    octave, names = metrics.octave_index((logs.shape[1], logs.shape[2]))
    power = metrics.band_power(np.diff(logs, axis=0), problem.lit)[names[0]].mean()
    return float(power / 2 * octave.size / (octave == 0).sum())


def leave_one_out(
    methods: Mapping[str, Method], flats: Flats, dark: Image, lit: NDArray[np.bool_]
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Predict each reference from the others; what is left is drift that a method cannot know.

    Returns
    -------
    For each method the rms per reference `(m,)` of the smoothed log-ratio's shape (`error`), and
    of its level (`gain`, absolute scales only, NaN otherwise); methods that cannot run are absent.
    """
    m = len(flats.counts)
    out: dict[str, dict[str, NDArray[np.float64]]] = {}
    for name, method in methods.items():
        error, gain = np.full(m, np.nan), np.full(m, np.nan)
        try:
            for i in range(m):
                error[i], gain[i] = _predict(method, flats, dark, lit, i)
        except NotApplicableError:
            continue
        out[name] = {"error": error, "gain": gain}
    return out


def _predict(
    method: Method, flats: Flats, dark: Image, lit: NDArray[np.bool_], target: int
) -> tuple[float, float]:
    m = len(flats.counts)
    others = [i for i in range(m) if i != target]

    def pick(index: list[int]) -> Flats:
        return Flats(
            flats.counts[index], None if flats.current_ma is None else flats.current_ma[index]
        )

    problem = Problem(
        frames=flats.counts[[target]],
        dark=dark,
        lit=lit,
        current_ma=pick([target]).current_ma,
        stale=pick([others[max(target - 1, 0)]]),
        before=pick([target - 1]) if 0 < target < m - 1 else None,
        after=pick([target + 1]) if 0 < target < m - 1 else None,
        bank=pick(others),
    )
    estimate = method(problem)
    ratio = log_light(flats.counts[target], dark) - estimate.log_background[0]
    level = float(np.median(ratio[lit]))
    smooth = gaussian_filter(np.where(lit, ratio, level), SMOOTH_PX)[lit]
    return float(smooth.std()), level if estimate.scale == "absolute" else float("nan")


def implanted_scene(
    name: str,
    kind: Kind,
    first: Image,
    last: Image | None,
    lit: NDArray[np.bool_],
    seed: int,
    flats: int = 10,
) -> Scene:
    """Real backgrounds under simulated samples: a truth that no simulator of beams had a hand in.

    Parameters
    ----------
    first, last : `(h, w)` light (dark subtracted) of two real references or empty frames; the
        background drifts from one to the other, in its smooth part only, because the rest of their
        difference is photon noise. Without a last one the drift is a simulated medium one.
    """
    h, w = first.shape
    sample = simulate_scan(
        kind, "medium", 1e3, (h, w), seed=FIRST_SEED + seed, family="benchmark", bank=0, frames=16
    )
    n = len(sample.transmission)
    base = np.log(np.maximum(first, 1.0))
    if last is None:
        drift = _simulated_drift(sample)
    else:
        way = gaussian_filter(np.where(lit, np.log(np.maximum(last, 1.0)) - base, 0), 8.0)
        drift = np.linspace(0, 1, n)[:, None, None] * way
    log_background = (base + drift).astype(np.float32)
    rng = np.random.default_rng(np.random.SeedSequence([FIRST_SEED, seed]))
    dark = np.zeros((h, w), np.float32)
    frames = rng.poisson(np.exp(log_background) * sample.transmission).astype(np.float32)
    current = np.full(n, 200.0)
    problem = Problem(
        frames=frames,
        dark=dark,
        lit=lit,
        current_ma=current,
        stale=_exposed(rng, log_background[:1], flats),
        position_px=sample.position_px,
        theta=sample.theta,
    )
    truth = Truth(sample.transmission, log_background, np.zeros((h, w), np.float32), sample.volume)
    return Scene(name, seed, problem, truth)


def _simulated_drift(sample: SimulatedScan) -> Array:
    """Log change of a simulated beam's shape since its first frame, `(n, h, w)`."""
    change = np.log(sample.background / sample.background[0])
    change -= change[:, sample.lit].mean(1)[:, None, None]
    return np.clip(np.where(sample.lit, change, 0), -0.3, 0.3)


def _exposed(rng: np.random.Generator, log_background: Image, count: int) -> Flats:
    counts = rng.poisson(np.exp(log_background).repeat(count, 0)).astype(np.float32)
    return Flats(counts, np.full(count, 200.0))
