"""What a background does to the reconstructed slices of a tomogram."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from txmcorrect import metrics
from txmcorrect.baselines.contract import Array, correct
from txmcorrect.judge.trial import Finding, Trial
from txmcorrect.recon.fbp import fbp
from txmcorrect.recon.geometry import ParallelBeam

SLICES = 8  # rows that are reconstructed, spread over the middle half of the frame


def check_slices(trial: Trial) -> Finding:
    """Error of reconstructed slices, and contrast-to-noise of the densest tenth of the object.

    Compared with the reconstruction of the true transmission at the same angles, so that only
    noise and background count; the level between objects cannot pass or fail by itself.
    """
    problem, truth = trial.scene.problem, trial.scene.truth
    if problem.theta is None or truth.volume is None:
        return Finding(None)
    h = problem.lit.shape[0]
    rows = np.unique(np.linspace(h // 4, max(3 * h // 4 - 1, h // 4), SLICES).astype(int))
    found = correct(problem, trial.estimate)
    found_slices = reconstruct(found[:, rows], problem.theta)
    ideal = reconstruct(np.where(problem.lit, truth.transmission, 1)[:, rows], problem.theta)
    solid, empty = _regions(truth.volume[rows])
    return Finding(
        None,
        {
            "slice_error": metrics.relative_error(found_slices, ideal),
            "contrast_to_noise": metrics.contrast_to_noise(found_slices, solid, empty),
            "contrast_to_noise_ideal": metrics.contrast_to_noise(ideal, solid, empty),
        },
    )


def reconstruct(transmission: Array, theta: Array) -> NDArray[np.float32]:
    """Filtered back-projection of some rows: `(n, rows, w)` -> `(rows, w, w)` per pixel."""
    line_integral = -np.log(np.maximum(transmission, 1e-3)).astype(np.float32)
    sinograms = torch.from_numpy(np.ascontiguousarray(line_integral.transpose(1, 0, 2)))
    width = sinograms.shape[-1]
    beam = ParallelBeam(torch.from_numpy(np.asarray(theta, np.float64)), width)
    return np.asarray(fbp(beam, width, sinograms).numpy(), np.float32)


def _regions(volume: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The densest tenth of what is not empty, and what is empty within the inscribed circle."""
    side = volume.shape[-1]
    y, x = np.ogrid[:side, :side]
    circle = (y - side / 2) ** 2 + (x - side / 2) ** 2 < (0.48 * side) ** 2
    filled = volume[volume > 0]
    dense = volume >= (np.quantile(filled, 0.9) if len(filled) else np.inf)
    return dense & circle, (volume <= 0) & circle
