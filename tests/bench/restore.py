"""`python tests/bench/restore.py MODEL [--objects 10]`: restoration against classical methods.

Held-out simulated objects of the benchmark family, the same noisy data for every method, PSNR with
data range 1, differences paired by object. The competitors' free parameter is chosen per object
with the truth in hand; ours has none.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import zoom
from skimage.restoration import (
    denoise_nl_means,
    denoise_tv_chambolle,
    richardson_lucy,
    unsupervised_wiener,
)

from txmcorrect.config import RestoreSettings
from txmcorrect.metrics import crps_normal, psnr
from txmcorrect.physics import BlockMean, gaussian_kernel, separable_blur
from txmcorrect.restoring.draw import restore_frame
from txmcorrect.restoring.prior import load_prior, patch_prior
from txmcorrect.restoring.problem import pose
from txmcorrect.simulate.objects import draw_transmission

CPU = torch.device("cpu")
TV_WEIGHTS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
NLM_H = (0.6, 0.8, 1.0, 1.3)


def best(candidates, truth):
    """The candidate nearest to the truth."""
    return max(candidates, key=lambda image: psnr(image, truth))


def nlm(y, truth, sigma):
    options = {"patch_size": 5, "patch_distance": 6, "fast_mode": True, "sigma": sigma}
    return best([denoise_nl_means(y, h=h * sigma, **options) for h in NLM_H], truth)


def tv(y, truth):
    return best([denoise_tv_chambolle(y, weight=w) for w in TV_WEIGHTS], truth)


def ours(y, prior, model, seed=0, **more):
    """Restored mean, spread and seconds."""
    settings = RestoreSettings(scan=Path("-"), seed=seed, quiet=True, **more)
    start = time.perf_counter()
    with torch.no_grad():
        found = restore_frame(settings, prior, model, pose(settings, y, model, CPU))
    std = None if found.std is None else found.std.numpy()
    return found.mean.numpy(), std, time.perf_counter() - start


def denoising(truth, rng, priors, model, given, level):
    kind, amount = level
    if kind == "gaussian":
        y, sigma, noise = truth + amount * rng.standard_normal(truth.shape), amount, str(amount)
    else:
        y, sigma, noise = (
            rng.poisson(truth * amount) / amount,
            (truth.mean() / amount) ** 0.5,
            "poisson",
        )
    images = {"input": y, "NLM": nlm(y, truth, sigma), "TV": tv(y, truth)}
    images["one evaluation"], _, _ = ours(y, priors[1], model, noise=noise, sampler="mean")
    scores = {}
    if given.samples:
        mean, std, _ = ours(
            y, priors[0], model, noise=noise, steps=given.steps, samples=given.samples
        )
        images[f"mean of {given.samples}"] = mean
        scores["CRPS"] = crps_normal(truth, mean, std)
        scores["MAE of one evaluation"] = float(np.abs(images["one evaluation"] - truth).mean())
    return images, scores


def deblurring(truth, rng, priors, model, given, level):
    profile = gaussian_kernel(level).sum(0)
    blur = separable_blur(profile, profile, truth.shape)
    y = blur.A(torch.from_numpy(truth)[None, None])[0, 0].numpy()
    y = y + 0.01 * rng.standard_normal(truth.shape).astype(np.float32)
    kernel, top = gaussian_kernel(level).numpy(), float(y.max())
    images = {
        "input": y,
        "Wiener": unsupervised_wiener(y / top, kernel, rng=0)[0] * top,
        "Richardson-Lucy": best(
            [richardson_lucy(y / top, kernel, n, clip=False) * top for n in (5, 10, 20)], truth
        ),
    }
    more = {"task": "deblur", "psf": level, "noise": "0.01", "steps": given.steps, "samples": 2}
    for name in given.guidance:
        images[name], _, _ = ours(y, priors[0], model, guidance=name, **more)
    return images, {}


def superresolving(truth, rng, priors, model, given, level):
    y = BlockMean((level, level)).A(torch.from_numpy(truth)[None, None])[0, 0].numpy()
    y = y + 0.005 * rng.standard_normal(y.shape).astype(np.float32)
    images = {
        "bicubic": zoom(y, level, order=3, mode="nearest", grid_mode=True),
        "nearest": np.kron(y, np.ones((level, level))),
    }
    more = {
        "task": "superres",
        "factor": level,
        "noise": "0.005",
        "steps": given.steps,
        "samples": 2,
    }
    for name in given.guidance:
        images[name], _, _ = ours(y, priors[0], model, guidance=name, **more)
    return images, {}


TASKS = {
    "denoise, gaussian 0.05": (denoising, ("gaussian", 0.05)),
    "denoise, gaussian 0.1": (denoising, ("gaussian", 0.1)),
    "denoise, gaussian 0.2": (denoising, ("gaussian", 0.2)),
    "denoise, 50 counts": (denoising, ("poisson", 50.0)),
    "deblur 1.5": (deblurring, 1.5),
    "superres x2": (superresolving, 2),
    "superres x4": (superresolving, 4),
}


def run(given):
    model = load_prior(given.model, CPU)
    prior = patch_prior(model, 2**30, given.assembly)
    smooth = patch_prior(model, 2**30, "average")  # as `--sampler mean` takes it
    table = {}
    for name, (task, level) in TASKS.items():
        if given.only and given.only not in name:
            continue
        rows, scores = [], []
        for index in range(given.objects):
            truth = draw_transmission(given.seed, index, (given.size, given.size), "benchmark")
            rng = np.random.default_rng([given.seed, index])
            images, more = task(truth, rng, (prior, smooth), model, given, level)
            rows.append({method: psnr(image, truth) for method, image in images.items()})
            scores.append(more)
        table[name] = summarise(rows, scores)
        print(name, json.dumps(table[name]), flush=True)
    return table


def summarise(rows, scores):
    """Mean PSNR of each method, and the others' mean paired difference from the last."""
    last = list(rows[0])[-1]
    out = {}
    for method in rows[0]:
        values = np.array([row[method] for row in rows])
        gain = np.array([row[last] - row[method] for row in rows])
        error = gain.std(ddof=1) / len(rows) ** 0.5 if len(rows) > 1 else float("nan")
        out[method] = [round(float(v), 2) for v in (values.mean(), gain.mean(), error)]
    for score in scores[0]:
        out[score] = round(float(np.mean([s[score] for s in scores])), 4)
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--objects", type=int, default=10)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--samples", type=int, default=4, help="for denoising; 0 leaves them out")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--only", default="", help="tasks whose name contains this")
    parser.add_argument("--assembly", default="random")
    parser.add_argument("--guidance", nargs="+", default=["dmps", "ddnm"])
    parser.add_argument("--out", type=Path, help="JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = run(given)
    if given.out:
        given.out.write_text(json.dumps(found, indent=1))
