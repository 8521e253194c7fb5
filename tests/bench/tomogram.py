"""What a correction does to slices: `python tests/bench/tomogram.py [--seeds 3] [--model FILE]`.

Simulated tomograms under medium drift, with references before and after the scan and a bank of old
ones. Every method corrects the same frames; slices are reconstructed by filtered back-projection and
compared with those of the true transmission. `error` : relative, over that of the oracle, which knows
the background and keeps the noise. `rings` : rms over the radius of the azimuthal mean of what is
wrong, broad errors removed, in percent of the sample's mean attenuation. `sphere_D` : attenuation of
a planted sphere of diameter D over the true one.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import uniform_filter1d

from txmcorrect import metrics
from txmcorrect.background.estimate import Draw
from txmcorrect.background.methods import METHODS
from txmcorrect.baselines import PEERS, correct, oracle
from txmcorrect.judge.scenes import Scene, expose, problem_of, truth_of
from txmcorrect.judge.tomogram import plant_spheres, project_spheres, regions, some_rows
from txmcorrect.recon.fbp import fbp
from txmcorrect.recon.geometry import ParallelBeam
from txmcorrect.recon.stripes import remove_stripes
from txmcorrect.simulate import simulate_scan
from txmcorrect.weights import load_model

FIRST_SEED = 40_000  # neither training nor the judge's benchmark uses these
BROAD = 15  # pixels of radius; wider errors are no rings
STRIPES = 9
PEER_NAMES = ("interpolated", "eigen-flats", "robust-eigen-flats", "bank-mean")


def make_scene(seed: int, frames: int, shape: tuple[int, int], counts: float) -> Scene:
    """One tomogram with all references there may be."""
    scan = simulate_scan(
        "tomo",
        "medium",
        counts,
        shape,
        seed=FIRST_SEED + seed,
        family="benchmark",
        references="before-after",
        frames=frames,
        bank=20,
    )
    return Scene("tomo", seed, problem_of(scan), truth_of(scan))


def slices(transmission: np.ndarray, theta: np.ndarray, stripes: int = 0) -> np.ndarray:
    """Reconstruct rows `(n, rows, w)` to `(rows, w, w)`, without stripes where asked."""
    integrals = torch.from_numpy(-np.log(np.maximum(transmission, 1e-3)).astype(np.float32))
    sinograms = integrals.transpose(0, 1).contiguous()
    if stripes:
        sinograms = remove_stripes(sinograms, stripes)
    width = sinograms.shape[-1]
    return fbp(ParallelBeam(torch.from_numpy(theta), width), width, sinograms).numpy()


def ring_rms(wrong: np.ndarray) -> float:
    """Rms over the radius of the azimuthal mean of `(z, w, w)`, less what is broad."""
    along = np.arange(wrong.shape[-1]) - (wrong.shape[-1] - 1) / 2
    radius = np.hypot(along[:, None], along[None]).round().astype(int)
    inside = radius < 0.45 * wrong.shape[-1]
    count = np.maximum(np.bincount(radius[inside]), 1)
    found = []
    for image in wrong:
        mean = np.bincount(radius[inside], image[inside]) / count
        fine = mean - uniform_filter1d(mean, BROAD, mode="nearest")
        found.append(np.sqrt(np.average(fine**2, weights=count)))
    return float(np.mean(found))


def methods(model: str) -> dict[str, tuple[object, int]]:
    """Each method with the width of its stripe filter."""
    found: dict[str, tuple[object, int]] = {name: (PEERS[name], 0) for name in PEER_NAMES}
    found["interpolated + stripe filter"] = (PEERS["interpolated"], STRIPES)
    found["eigen-flats + stripe filter"] = (PEERS["eigen-flats"], STRIPES)
    for condition, origin in (("pair", "bundled"), ("stack", model)):
        loaded = load_model(origin, condition, "cpu")
        found[condition] = (METHODS[condition](loaded, Draw(), 1), 0)
    return found


def score(scene: Scene, known: dict[str, tuple[object, int]]) -> dict[str, dict[str, float]]:
    """Figures of all methods on one scene."""
    lit = scene.problem.lit
    h, w = lit.shape
    theta = np.asarray(scene.problem.theta, np.float64)
    spheres = plant_spheres((h, w))
    heights = [round(s.centre[0] + (h - 1) / 2) for s in spheres]
    rows = some_rows(h)
    shadow = np.exp(-project_spheres(spheres, (h, w), theta))
    planted = expose(scene, scene.truth.transmission * shadow)
    both = [(s.problem, s.truth.transmission) for s in (scene, planted)]
    truths = [np.where(lit, t, 1) for _, t in both]
    ideal = slices(truths[0][:, rows], theta)
    wanted = [slices(t[:, heights], theta) for t in truths]
    level = float(ideal[ideal > 0.2 * ideal.max()].mean())
    all_of_them = {"oracle": (oracle(scene.truth.log_background, scene.truth.additive), 0), **known}
    figures = {}
    for name, (method, stripes) in all_of_them.items():
        frames = [correct(problem, method(problem)) for problem, _ in both]
        found = slices(frames[0][:, rows], theta, stripes)
        without, with_them = (slices(f[:, heights], theta, stripes) for f in frames)
        figures[name] = {
            "slice_error": metrics.relative_error(found, ideal),
            "rings_percent": 100 * ring_rms(found - ideal) / level,
        }
        for k, sphere in enumerate(spheres):
            inside, _ = regions(sphere, w)
            gained = float((with_them[k] - without[k])[inside].mean())
            truth = float((wanted[1][k] - wanted[0][k])[inside].mean())
            figures[name][f"sphere_{2 * sphere.radius:.0f}"] = gained / truth
    for row in figures.values():
        row["error_over_oracle"] = row["slice_error"] / figures["oracle"]["slice_error"]
    return figures


def main() -> None:
    """Print means over seeds, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=180)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--height", type=int, default=96)
    parser.add_argument("--counts", type=float, default=5000)
    parser.add_argument("--model", default="bundled", help="the stack model")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    known = methods(given.model)
    collected: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in range(given.seeds):
        scene = make_scene(seed, given.frames, (given.height, given.size), given.counts)
        for name, row in score(scene, known).items():
            for figure, value in row.items():
                collected[name][figure].append(value)
        table = {
            name: {figure: round(float(np.mean(values)), 4) for figure, values in row.items()}
            for name, row in collected.items()
        }
        print(f"after {seed + 1} of {given.seeds} tomograms")
        for name, row in table.items():
            print(f"  {name:30s}", "  ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
    if given.out is not None:
        given.out.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
