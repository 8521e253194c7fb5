"""`python tests/bench/restore.py MODEL [--objects 10]`: restoration against classical methods.

Held-out simulated objects of the benchmark family, the same noisy data for every method, PSNR with
data range 1, differences paired by object. The competitors' free parameter is chosen per object
with the truth in hand; ours has none.
"""

import argparse
import json
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import zoom
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle, wiener
from variation import total_variation

from txmcorrect.config import RestoreSettings
from txmcorrect.metrics import crps_normal, psnr
from txmcorrect.physics import BlockMean, gaussian_kernel, separable_blur
from txmcorrect.restoring.draw import denoise_frame, restore_frame
from txmcorrect.restoring.prior import load_prior, patch_prior
from txmcorrect.restoring.problem import pose
from txmcorrect.simulate.objects import draw_transmission

CPU = torch.device("cpu")
TV_WEIGHTS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
NLM_H = (0.6, 0.8, 1.0, 1.3)
BM3D_SIGMA = (0.7, 0.85, 1.0, 1.2)
LUCY_ITERATIONS = (5, 10, 20, 40, 80, 160, 320)
WIENER_BALANCE = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
INVERSE_TV = (1e-4, 3e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2)

try:
    from bm3d import bm3d as block_matching
except ImportError:  # its licence allows research only: installed by hand, `pip install bm3d`
    block_matching = None


def best(candidates, truth):
    """The candidate nearest to the truth."""
    return max(candidates, key=lambda image: psnr(image, truth))


def nlm(y, truth, sigma):
    options = {"patch_size": 5, "patch_distance": 6, "fast_mode": True, "sigma": sigma}
    return best([denoise_nl_means(y, h=h * sigma, **options) for h in NLM_H], truth)


def tv(y, truth):
    return best([denoise_tv_chambolle(y, weight=w) for w in TV_WEIGHTS], truth)


def collaborative(y, truth, sigma):
    """BM3D; told several strengths of the noise around the true one."""
    return best([block_matching(y, sigma_psd=k * sigma) for k in BM3D_SIGMA], truth)


def lucy(operator, y, truth):
    """Richardson-Lucy with the operator that made the data, mirrored ends included, from a flat start."""
    y = y.clamp(min=1e-6)
    even = operator.A_adjoint(torch.ones_like(y)).clamp(min=1e-6)
    x, found = torch.full_like(even, float(y.mean())), []
    for iteration in range(1, LUCY_ITERATIONS[-1] + 1):
        x = x * operator.A_adjoint(y / operator.A(x).clamp(min=1e-6)) / even
        if iteration in LUCY_ITERATIONS:
            found.append(x[0, 0].numpy())
    return best(found, truth)


def wiener_of(y, kernel, truth):
    """Wiener filter with a Laplacian prior, the frame mirrored beyond its ends."""
    r = 2 * len(kernel)
    wide = np.pad(y, r, mode="symmetric")
    top = float(np.abs(wide).max())
    found = [wiener(wide / top, kernel, b, clip=False) * top for b in WIENER_BALANCE]
    return best([image[r:-r, r:-r] for image in found], truth)


def inverse_tv(operator, y, truth):
    return best(
        [total_variation(operator.A, operator.A_adjoint, y, w)[0, 0].numpy() for w in INVERSE_TV],
        truth,
    )


def spectrum(image):
    """Mean power `(bins,)` by spatial frequency, from 0.1 to 0.5 cycles a pixel: texture."""
    centred = (image - image.mean()) * np.outer(*(np.hanning(n) for n in image.shape))
    power = np.abs(np.fft.fft2(centred)) ** 2
    k = np.hypot(np.fft.fftfreq(image.shape[0])[:, None], np.fft.fftfreq(image.shape[1]))
    edges = np.linspace(0.1, 0.5, 9)
    return np.array([power[(k >= a) & (k < b)].mean() for a, b in pairwise(edges)])


def texture(image, truth):
    """Distance of two spectra in dB: mean over frequencies, either way counting."""
    ratio = spectrum(image) / np.maximum(spectrum(truth), 1e-9)
    return float(np.abs(10 * np.log10(ratio)).mean())


def ours(y, prior, model, seed=0, restore=restore_frame, **more):
    """Restored mean, spread and seconds."""
    settings = RestoreSettings(scan=Path("-"), seed=seed, quiet=True, **more)
    start = time.perf_counter()
    with torch.no_grad():
        found = restore(settings, prior, model, pose(settings, y, model, CPU))
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
    if block_matching is not None:
        images["BM3D"] = collaborative(y, truth, sigma)
    scores = {}
    if given.regression:
        net = load_prior(given.regression, CPU)
        images["regression"], _, _ = ours(
            y, patch_prior(net, 2**30, "average"), net, restore=denoise_frame, noise=noise
        )
        scores["MAE of regression"] = float(np.abs(images["regression"] - truth).mean())
    if given.samples:
        mean, std, _ = ours(
            y, priors[0], model, noise=noise, steps=given.steps, samples=given.samples
        )
        images[f"mean of {given.samples}"] = mean
        images["one sample"], _, _ = ours(
            y, priors[0], model, seed=1, noise=noise, steps=given.steps, samples=1
        )
        scores["CRPS"] = crps_normal(truth, mean, std)
    images["one evaluation"], _, _ = ours(y, priors[1], model, noise=noise, sampler="mean")
    scores["MAE of one evaluation"] = float(np.abs(images["one evaluation"] - truth).mean())
    scores |= {f"texture of {name}, dB": texture(x, truth) for name, x in images.items()}
    return images, scores


def deblurring(truth, rng, priors, model, given, level):
    profile = gaussian_kernel(level).sum(0)
    blur = separable_blur(profile, profile, truth.shape)
    y = blur.A(torch.from_numpy(truth)[None, None])
    y = y + 0.01 * torch.from_numpy(rng.standard_normal(truth.shape).astype(np.float32))
    measured = y[0, 0].numpy()
    images = {
        "input": measured,
        "Wiener": wiener_of(measured, gaussian_kernel(level).numpy(), truth),
        "Richardson-Lucy": lucy(blur, y, truth),
        "TV": inverse_tv(blur, y, truth),
    }
    more = {"task": "deblur", "psf": level, "noise": "0.01"}
    return images | guided(measured, priors, model, given, more), {}


def superresolving(truth, rng, priors, model, given, level):
    operator = BlockMean((level, level))
    y = operator.A(torch.from_numpy(truth)[None, None])
    y = y + 0.005 * torch.from_numpy(rng.standard_normal(y.shape).astype(np.float32))
    coarse = y[0, 0].numpy()
    images = {
        "bicubic": zoom(coarse, level, order=3, mode="nearest", grid_mode=True),
        "nearest": np.kron(coarse, np.ones((level, level))),
        "TV": inverse_tv(operator, y, truth),
    }
    more = {"task": "superres", "factor": level, "noise": "0.005"}
    return images | guided(coarse, priors, model, given, more), {}


def guided(y, priors, model, given, more):
    """Means of samples by each method of guidance that is asked for."""
    more = {**more, "steps": given.steps, "samples": max(given.samples, 2)}
    return {name: ours(y, priors[0], model, guidance=name, **more)[0] for name in given.guidance}


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
    parser.add_argument("--regression", help="model of configs/denoise-regression.yaml")
    parser.add_argument("--out", type=Path, help="JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = run(given)
    if given.out:
        given.out.write_text(json.dumps(found, indent=1))
