"""Score a corrected scan against the truth that `simulate` wrote, frame by frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from txmcorrect import metrics
from txmcorrect.background.quality import REMARKS
from txmcorrect.errors import FormatError
from txmcorrect.formats.corrected import Corrected, read_result
from txmcorrect.judge.tomogram import reconstruct, slice_figures, some_rows
from txmcorrect.scan import Array

PHOTON_FACTOR = 3.0  # a frame is bad if its background's error exceeds this many times photon noise


@dataclass(frozen=True)
class TruthScores:
    """Scores of a scan; arrays have one entry per frame, `shown` is the worst frame's images."""

    psnr: NDArray[np.float64]
    psnr_scaled: NDArray[np.float64]
    ssim: NDArray[np.float64]
    mae: NDArray[np.float64]
    gain: NDArray[np.float64]
    log_rms: NDArray[np.float64]
    flatness_raw: NDArray[np.float64]
    photon_noise: NDArray[np.float64]
    flagged: NDArray[np.bool_]
    bands: dict[str, float]
    scale: str
    verdict: str
    seams: float = float("nan")
    slices: dict[str, float] = field(default_factory=dict)
    shown: dict[str, Array] = field(default_factory=dict, repr=False)

    @property
    def bad(self) -> NDArray[np.bool_]:
        """Frames whose background is wrong by more than three times the photon noise."""
        return np.asarray(self.log_rms > PHOTON_FACTOR * self.photon_noise)

    def summary(self) -> dict[str, float]:
        """One number for each figure, over all frames."""

        def rms(values: Array) -> float:
            return float(np.sqrt(np.mean(values**2)))

        mean_gain = float(self.gain.mean())
        hits = int((self.bad & self.flagged).sum())
        return (
            {
                "psnr_db": float(self.psnr.mean()),
                "psnr_scaled_db": float(self.psnr_scaled.mean()),
                "ssim": float(self.ssim.mean()),
                "mae": float(self.mae.mean()),
                "background_error_percent": 100 * rms(self.log_rms),
                "uncorrected_percent": 100 * rms(self.flatness_raw),
                "photon_noise_percent": 100 * rms(self.photon_noise),
                "absolute_gain_percent": 100 * mean_gain,
                "relative_gain_percent": 100 * float(self.gain.std()),
                "seams_percent": 100 * self.seams,
                "bad_frames": float(self.bad.sum()),
                "flag_recall": hits / int(self.bad.sum()) if self.bad.any() else float("nan"),
                "flag_precision": hits / int(self.flagged.sum())
                if self.flagged.any()
                else float("nan"),
            }
            | {f"background_error_{k}px_percent": 100 * v for k, v in self.bands.items()}
            | self.slices
        )


class _Lazy:
    """Frames of a result, one at a time, divided by one factor."""

    def __init__(self, result: Corrected, factor: float) -> None:
        self.result, self.factor = result, factor
        self.shape = result.shape

    def __getitem__(self, frame: int) -> Array:
        return np.asarray(self.result.transmission.read(frame, frame + 1)[0] * self.factor)


def score_result(
    result_path: Path, truth_path: Path, progress: Callable[[int, int], None] | None = None
) -> TruthScores:
    """Compare a result with its truth; two frames are in memory at a time.

    Raises
    ------
    FormatError : the truth is not one that `simulate` wrote, or belongs to another scan.
    """
    with read_result(result_path) as result, _open_truth(truth_path) as file:
        truth = file["truth"]
        n, h, w = result.shape
        if truth["background"].shape != (n, h, w):
            raise FormatError(
                f"{truth_path}: expected truth of {n} frames of {h}x{w} as in {result_path.name}, "
                f"got {truth['background'].shape}; score the whole scan, not a part of it"
            )
        return _score(result, truth, progress)


def _open_truth(path: Path) -> h5py.File:
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise FormatError(f"{path}: expected a truth file written by simulate ({error})") from None
    if "truth/background" not in file:
        file.close()
        raise FormatError(f"{path}: expected /truth/background as simulate writes it, got none")
    return file


def _score(
    result: Corrected, truth: h5py.Group, progress: Callable[[int, int], None] | None
) -> TruthScores:
    n = result.shape[0]
    lit = result.lit & truth["lit"][()].astype(bool)
    gain = np.array([_log_error(result, truth, i)[lit].mean() for i in range(n)])
    factor = float(np.exp(gain.mean()))
    rows: list[dict[str, float]] = []
    power: list[dict[str, Array]] = []
    worst, shown = -1.0, {}
    for i in range(n):
        error = _log_error(result, truth, i)
        row, images = _score_frame(result, truth, i, error, lit, factor)
        rows.append(row)
        power.append(metrics.band_power(error[None], lit))
        if row["log_rms"] > worst:
            worst, shown = row["log_rms"], images
        if progress:
            progress(i + 1, n)
    column = {k: np.array([r[k] for r in rows]) for k in rows[0]}
    bands = {k: float(np.sqrt(np.mean([p[k] for p in power]))) for k in power[0]}
    seams = float("nan")
    if "position_px" in truth:
        lazy: Any = _Lazy(result, factor)
        seams = metrics.seam_rms(lazy, truth["position_px"][()], lit)
    slices, images = _score_slices(result, truth, lit, factor)
    return TruthScores(
        **column,
        gain=gain,
        flagged=_distrusted(result),
        bands=bands,
        scale=result.scale,
        verdict=result.verdict,
        seams=seams,
        slices=slices,
        shown=shown | images,
    )


def _score_slices(
    result: Corrected, truth: h5py.Group, lit: NDArray[np.bool_], factor: float
) -> tuple[dict[str, float], dict[str, Array]]:
    """Slices of a tomogram against those of its true transmission; nothing where it is none."""
    if "volume" not in truth:
        return {}, {}
    rows = some_rows(lit.shape[0])
    n = result.shape[0]
    found, true = np.ones((2, n, len(rows), lit.shape[1]), np.float32)
    for i in range(n):
        found[i][lit[rows]] = factor * result.transmission.read(i, i + 1)[0][rows][lit[rows]]
        true[i][lit[rows]] = truth["transmission"][i][rows][lit[rows]]
    theta = truth["theta"][()]
    slices, ideal = (reconstruct(stack, theta) for stack in (found, true))
    middle = len(rows) // 2
    images = {"slice found": slices[middle], "slice of the truth": ideal[middle]}
    return slice_figures(slices, ideal, truth["volume"][rows]), images


def _distrusted(result: Corrected) -> NDArray[np.bool_]:
    """Frames whose flags are more than remarks."""
    remarks = {flag.name.lower() for flag in REMARKS if flag.name}
    kept = sum(1 << bit for bit, name in enumerate(result.flag_names) if name not in remarks)
    return np.asarray((result.flag & np.uint32(kept)) != 0)


def _log_error(result: Corrected, truth: h5py.Group, frame: int) -> Array:
    true = np.log(np.maximum(truth["background"][frame], 1e-3))
    return np.asarray(np.log(np.maximum(result.background(frame), 1e-3)) - true)


def _score_frame(
    result: Corrected,
    truth: h5py.Group,
    frame: int,
    error: Array,
    lit: NDArray[np.bool_],
    factor: float,
) -> tuple[dict[str, float], dict[str, Array]]:
    """Figures of one frame, and its images in case it turns out to be the worst."""
    true, background = truth["transmission"][frame], truth["background"][frame]
    found = result.transmission.read(frame, frame + 1)[0]
    light = np.maximum(background[lit], 1e-3)
    row = {
        "psnr": metrics.psnr(found, true, lit),
        "psnr_scaled": metrics.psnr(found * factor, true, lit),
        "ssim": metrics.ssim(found * factor, true, lit),
        "mae": metrics.mae(found * factor, true, lit),
        "log_rms": float(metrics.log_rms(error, lit)),
        "flatness_raw": float(np.log(light).std()),
        "photon_noise": float(1 / np.sqrt(light.mean())),
    }
    images = {
        "raw": found * result.background(frame),
        "corrected": found * factor,
        "truth": true,
        "error": np.where(lit, error - error[lit].mean(), np.nan),
        "frame": np.array(frame),
    }
    return row, images


def draw_scores(scores: TruthScores) -> Figure:
    """Worst frame: raw, corrected, truth, background error; and the error frame by frame."""
    figure = Figure((11, 6.2), layout="constrained")
    grid = figure.add_gridspec(2, 4)
    true = scores.shown["truth"]
    low, high = np.quantile(true, [0.01, 0.99])
    frame = int(scores.shown["frame"])
    pictures: list[tuple[str, str, dict[str, Any]]] = [
        ("raw", f"raw, frame {frame} (worst)", {"cmap": "gray"}),
        ("corrected", "corrected", {"cmap": "gray", "vmin": low - 0.05, "vmax": high + 0.05}),
        ("truth", "truth", {"cmap": "gray", "vmin": low - 0.05, "vmax": high + 0.05}),
        ("error", "log background error (%)", {"cmap": "RdBu", "vmin": -5, "vmax": 5}),
    ]
    for column, (name, title, style) in enumerate(pictures):
        axis = figure.add_subplot(grid[0, column])
        image = scores.shown[name] * (100 if name == "error" else 1)
        picture = axis.imshow(image, interpolation="nearest", aspect="auto", **style)
        figure.colorbar(picture, ax=axis, shrink=0.8)
        axis.set_title(title, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    _draw_course(figure.add_subplot(grid[1, :3]), scores)
    bands = figure.add_subplot(grid[1, 3])
    error = [_drawn(v) for v in scores.bands.values()]
    bands.plot(list(scores.bands), error, marker="o")
    bands.set_ylim(min(error) / 2, 2 * max(error))  # before the scale: values may be the same
    bands.set(xlabel="wavelength (pixels)", ylabel="background error (%)", yscale="log")
    bands.tick_params(axis="x", rotation=60)
    return figure


def draw_slices(scores: TruthScores) -> Figure | None:
    """The middle slice, found and from the true transmission, and their difference; None without."""
    if not scores.slices:
        return None
    found, true = scores.shown["slice found"], scores.shown["slice of the truth"]
    low, high = np.quantile(true, [0.002, 0.998])
    half = (high - low) / 4
    figure = Figure((11, 3.8), layout="constrained")
    axes = figure.subplots(1, 3)
    pictures = [("found", found, low, high), ("truth", true, low, high)]
    pictures.append(("found - truth", found - true, -half, half))
    for axis, (title, image, least, most) in zip(axes, pictures, strict=True):
        picture = axis.imshow(image, cmap="gray", vmin=least, vmax=most, interpolation="nearest")
        figure.colorbar(picture, ax=axis, shrink=0.8)
        axis.set_title(f"middle slice, {title}", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    return figure


def _draw_course(axis: Any, scores: TruthScores) -> None:
    frames = np.arange(len(scores.log_rms))
    error = _drawn(scores.log_rms)
    axis.plot(frames, error, marker=".", label="background error")
    axis.plot(frames, 100 * scores.photon_noise, "--", label="photon noise of a pixel")
    axis.plot(frames[scores.flagged], error[scores.flagged], "rx", label="flagged")
    axis.set(xlabel="frame", ylabel="%", yscale="log")
    axis.legend(fontsize=8)


def _drawn(error: Any) -> Any:
    """Per cent, floored so that a perfect value can stand on a logarithmic axis."""
    return 100 * np.maximum(error, 1e-6)
