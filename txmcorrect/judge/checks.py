"""The checks: each runs a method, measures, and can fail it.

No flatness counts without preservation: a method that erases the sample is perfectly flat.
"""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from txmcorrect import metrics
from txmcorrect.baselines.contract import (
    Array,
    Estimate,
    Method,
    NotApplicableError,
    Problem,
    correct,
)
from txmcorrect.baselines.references import no_correction
from txmcorrect.judge.failures import LEAST_FRAMES, failure_places, plant_failures
from txmcorrect.judge.scenes import KEPT_EVERY, Scene, with_wrong_bank
from txmcorrect.judge.trial import Finding, Trial, background_only, log_error
from txmcorrect.memo import remembered

GAIN = 0.005  # absolute gain error of a method that vouches for its scale
NULL_EXCESS = 0.003  # rms of what is not shot noise in an octave of a corrected flat
NULL_RATIO = (0.8, 1.25)  # power over shot noise: below, noise was smoothed away; above, added
SWAP = 0.003  # rms change of log b when the neighbours show other samples
LEAK = 0.01  # slope of log b on the neighbours' log T, octave by octave
COVERAGE = (0.85, 0.95)  # share of truth in mean +- 1.645 sd, 0.90 wanted
FLAGGED = 0.9  # recall and precision of flags on planted failures
SAMPLES = 16  # draws that a spread is judged by
PIXELS = 2048  # of a frame, for coverage and CRPS


def photon_noise(scene: Scene) -> NDArray[np.float64]:
    """Relative photon noise of an empty frame at its mean light, `(n,)`."""
    light = np.exp(scene.truth.log_background)[:, scene.problem.lit].mean(1)
    return np.asarray(1 / np.sqrt(np.maximum(light, 1)))


def check_quality(trial: Trial) -> Finding:
    """Images and background against truth; never passes or fails by itself."""
    scene, lit, estimate = trial.scene, trial.lit, trial.estimate
    error = log_error(estimate, scene)
    per_frame = error[:, lit].mean(1)
    found = correct(scene.problem, estimate)
    matched = found * np.exp(np.float32(per_frame.mean()))
    truth = scene.truth.transmission
    figures = {
        "psnr": metrics.psnr(found, truth, lit),
        "psnr_scaled": metrics.psnr(matched, truth, lit),
        "ssim": metrics.ssim(matched, truth, lit),
        "mae": metrics.mae(matched, truth, lit),
        "relative_gain": float(per_frame.std()),
        "log_rms": float(np.sqrt(np.mean(metrics.log_rms(error, lit) ** 2))),
        "flatness_raw": float(np.sqrt(np.mean(_drift_left(scene) ** 2))),
    }
    figures |= {f"rms_{band}": rms for band, rms in metrics.band_rms(error, lit).items()}
    if scene.problem.position_px is not None:
        figures["seams"] = metrics.seam_rms(matched, scene.problem.position_px, lit)
    return Finding(None, figures)


def _drift_left(scene: Scene) -> Array:
    """Shape of the true background per frame: what no correction leaves."""
    return metrics.log_rms(scene.truth.log_background, scene.problem.lit)


def check_gain(trial: Trial) -> Finding:
    """Absolute level, demanded of those that vouch for it."""
    gain = float(log_error(trial.estimate, trial.scene)[:, trial.lit].mean())
    passed = abs(gain) < GAIN if trial.estimate.scale == "absolute" else None
    return Finding(passed, {"absolute_gain": gain})


def check_null(trial: Trial) -> Finding:
    """Flats passed as a scan come out as shot noise, octave by octave."""
    scene = trial.scene.emptied
    estimate = background_only(trial.method)(scene.problem)
    corrected = correct(scene.problem, estimate)
    variance = np.exp(-scene.truth.log_background[:, trial.lit]).mean()
    return null_finding(corrected, trial.lit, float(variance))


def null_finding(corrected: Array, lit: NDArray[np.bool_], variance: float) -> Finding:
    """Compare corrected flats `(n, h, w)` with white noise of relative `variance` per pixel."""
    level = corrected[:, lit].mean(1)[:, None, None]
    power = {k: float(v.mean()) for k, v in metrics.band_power(corrected / level, lit).items()}
    octave, names = metrics.octave_index((lit.shape[0], lit.shape[1]))
    figures: dict[str, float] = {}
    passed = True
    for j, name in enumerate(names):
        modes = int((octave == j).sum())
        shot = variance * modes / octave.size
        excess = float(np.sqrt(max(power[name] - shot, 0)))
        ratio = power[name] / shot if modes else float("nan")
        figures |= {f"excess_{name}": excess, f"ratio_{name}": ratio}
        counted = modes * len(corrected) >= 400  # the ratio of fewer modes says little
        too_smooth = counted and ratio < NULL_RATIO[0]
        passed &= not too_smooth and (excess < NULL_EXCESS or ratio < NULL_RATIO[1])
    return Finding(passed, figures)


def check_neighbours(trial: Trial) -> Finding:
    """Other samples in the neighbouring frames must not change a frame's background.

    `swap` is the rms change of log b in the frames that keep their sample; `leak_*` its slope,
    octave by octave, on what changed in log T one, two or three frames away, the worst of these.
    The beam and the noise stay, so nothing but leakage shows. Nobody is told where tiles lie: with
    other samples they no longer agree where they overlap.
    """
    scene, method = trial.scene.swapped, background_only(trial.method)
    before, after = trial.estimate, method(scene.problem.without("position_px"))
    if trial.scene.problem.position_px is not None:
        before = method(trial.scene.problem.without("position_px"))
    change = (after.log_background - before.log_background)[::KEPT_EVERY]
    rms = float(np.sqrt(np.mean(metrics.log_rms(change, trial.lit) ** 2)))
    leaks: dict[str, float] = {}
    effect = _modes(change, trial.lit)
    for cause in _causes(trial.scene):
        for name, value in _leaks(effect, cause, trial.lit).items():
            leaks[name] = max(leaks.get(name, 0.0), value, key=abs)
    worst = max((abs(v) for v in leaks.values()), default=0.0)
    return Finding(rms < SWAP and worst < LEAK, {"swap": rms, "leak": worst} | leaks)


@remembered()
def _causes(scene: Scene) -> list[Array]:
    """Modes of what changed in log T one, two and three frames away from each kept frame."""
    distances = range(1, min(KEPT_EVERY, len(scene.problem.frames)))
    changes = (_neighbour_change(scene, scene.swapped, distance) for distance in distances)
    return [_modes(change, scene.problem.lit) for change in changes]


def _neighbour_change(before: Scene, after: Scene, distance: int) -> Array:
    """Change of the mean log T of the frames `distance` before and after each kept frame."""
    was, now = (np.log(np.maximum(s.truth.transmission, 1e-3)) for s in (before, after))
    change, n = now - was, len(now)
    means = []
    for kept in range(0, n, KEPT_EVERY):
        near = [i for i in (kept - distance, kept + distance) if 0 <= i < n]
        means.append(change[near].mean(0) if near else np.zeros_like(change[0]))
    return np.stack(means)


def _leaks(effect: Array, sample: Array, lit: NDArray[np.bool_]) -> dict[str, float]:
    """Slope of effect on cause, both as modes, in every octave in which the cause is not negligible."""
    octave, names = metrics.octave_index((lit.shape[0], lit.shape[1]))
    leaks = {}
    for j, name in enumerate(names):
        x, y = sample[:, octave == j], effect[:, octave == j]
        if np.sqrt((x**2).sum() / (lit.sum() * len(x))) > 1e-3:
            leaks[f"leak_{name}"] = metrics.slope(x, y)
    return leaks


def _modes(image: Array, lit: NDArray[np.bool_]) -> Array:
    centred = np.where(lit, image - image[:, lit].mean(1)[:, None, None], 0)
    return np.asarray(scipy.fft.dctn(centred, axes=(1, 2), norm="ortho"))


def check_wrong_bank(trial: Trial) -> Finding:
    """A bank of another instrument is flagged, and never worse than no bank."""
    if trial.scene.problem.bank is None:
        return Finding(None)
    wrong_scene = with_wrong_bank(trial.scene)
    wrong = trial.method(wrong_scene.problem)
    if np.array_equal(wrong.log_background, trial.estimate.log_background):
        return Finding(None)  # the method does not look at banks
    without = _best_without_bank(trial.method, trial.scene.problem)
    rms, rms_without = (
        float(np.sqrt(np.mean(metrics.log_rms(log_error(e, trial.scene), trial.lit) ** 2)))
        for e in (wrong, without)
    )
    flagged = float(np.mean(wrong.flags))
    figures = {"wrong_bank": rms, "no_bank": rms_without, "flagged": flagged}
    return Finding(flagged >= 0.5 and rms <= 1.05 * rms_without, figures)


def _best_without_bank(method: Method, problem: Problem) -> Estimate:
    """What the method does without a bank, or nothing at all where it needs one."""
    try:
        return background_only(method)(problem.without("bank"))
    except NotApplicableError:
        return no_correction(problem)


def check_flags(trial: Trial) -> Finding:
    """Planted failures are flagged, and little else.

    A frame is bad if it is spoilt, or if its background's shape error exceeds three times the
    photon noise.
    """
    if len(trial.scene.problem.frames) < LEAST_FRAMES:
        return Finding(None)
    scene, spoilt = _spoilt(trial.scene)
    estimate = trial.method(scene.problem)
    bad = metrics.log_rms(log_error(estimate, scene), trial.lit) > 3 * photon_noise(scene)
    bad |= spoilt
    flags = estimate.flags
    hits = int((bad & flags).sum())
    recall = hits / int(bad.sum())
    precision = hits / int(flags.sum()) if flags.any() else float("nan")
    figures = {"recall": recall, "precision": precision, "bad_frames": float(bad.sum())}
    figures |= {f"flagged_{k}": float(flags[i]) for k, i in failure_places(len(flags)).items()}
    return Finding(recall >= FLAGGED and precision >= FLAGGED, figures)


@remembered()
def _spoilt(scene: Scene) -> tuple[Scene, NDArray[np.bool_]]:
    return plant_failures(scene, scene.seed)


def check_calibration(trial: Trial) -> Finding:
    """Truth lies within mean +- 1.645 sd in nine cases of ten; also for the slowest modes.

    Of the shape, frame by frame: the level has checks of its own. `crps` and `crps_slow` are in
    units of the log background, the latter per mode of rms 1 over the frame. A method that states no
    spread is a forecast of a single value: its CRPS is its mean absolute error.
    """
    estimate, truth, lit = trial.estimate, trial.scene.truth.log_background, trial.lit
    if estimate.sampler is not None:
        return _sampled_calibration(estimate.sampler(SAMPLES), truth, lit)
    if estimate.std is None:
        return Finding(None, _point_scores(estimate.log_background, truth, lit))
    mean, std = estimate.log_background[:, lit], estimate.std[:, lit]
    mean, shape = (x - x.mean(1, keepdims=True) for x in (mean, truth[:, lit]))
    figures = {
        "coverage": metrics.coverage(shape, mean, std),
        "crps": metrics.crps_normal(shape, mean, std),
    }
    return Finding(_covers(figures["coverage"]), figures)


def _point_scores(found: Array, truth: Array, lit: NDArray[np.bool_]) -> dict[str, float]:
    """CRPS of a forecast without spread, in the pixels and modes that `_sampled_calibration` takes."""
    error = _without_level(found - truth, lit)
    return {
        "crps": float(np.abs(error[:, lit][:, :: _stride(lit)]).mean()),
        "crps_slow": float(np.abs(_slow_modes(error, lit)).mean()),
    }


def _stride(lit: NDArray[np.bool_]) -> int:
    """Every how many lit pixels one is looked at."""
    return max(1, int(lit.sum()) // PIXELS)


def _sampled_calibration(samples: Array, truth: Array, lit: NDArray[np.bool_]) -> Finding:
    """Coverage and CRPS of `samples` `(k, n, h, w)`, in pixels and in the slowest modes."""
    pixels: list[tuple[Array, Array]] = []
    modes: list[tuple[Array, Array]] = []
    some = np.flatnonzero(lit)[:: _stride(lit)]
    for i, true in enumerate(truth):
        drawn, shape = _without_level(samples[:, i], lit), _without_level(true, lit)
        pixels.append((drawn.reshape(len(drawn), -1)[:, some], shape.ravel()[some]))
        modes.append((_slow_modes(drawn, lit), _slow_modes(shape, lit)))
    figures: dict[str, float] = {}
    for name, parts in (("", pixels), ("_slow", modes)):
        drawn = np.concatenate([d for d, _ in parts], 1)
        shape = np.concatenate([t for _, t in parts])
        mean, std = drawn.mean(0), drawn.std(0, ddof=1)
        figures[f"coverage{name}"] = metrics.coverage(shape, mean, std)
        figures[f"crps{name}"] = metrics.crps_samples(shape, drawn)
    passed = _covers(figures["coverage"]) and _covers(figures["coverage_slow"])
    return Finding(passed, figures)


def _covers(share: float) -> bool:
    return COVERAGE[0] <= share <= COVERAGE[1]


def _without_level(images: Array, lit: NDArray[np.bool_]) -> Array:
    # In double precision: a million single ones lose a percent of their mean when they are added one by one.
    level = images[..., lit].mean(-1, dtype=np.float64)[..., None, None]
    return np.asarray(images - level, np.float64)


def _slow_modes(images: Array, lit: NDArray[np.bool_], side: int = 4) -> Array:
    """The slowest cosine modes of each image, `(..., h, w)` -> `(..., 15)`, as rms over the frame."""
    modes = scipy.fft.dctn(np.where(lit, images, 0), axes=(-2, -1), norm="ortho")
    slow = modes[..., :side, :side] / np.sqrt(lit.size)
    return np.asarray(slow.reshape(*slow.shape[:-2], -1)[..., 1:])
