"""`python tests/bench/ct.py [MODEL]`: few views and short arcs, against FBP, SIRT and total variation.

Slices of held-out bodies (faceted grains, which training never shows), projected on a grid twice as
fine and counted in photons, so that nobody inverts his own projector. The competitors' free
parameter (filter, iterations, weight) is chosen for each object with the truth in hand; ours has
none. PSNR with the truth's maximum as range, differences paired by object. With `--volume`: both
planes against slices alone, on whole volumes, projected (`--only` names one of the problems, 20 views are
the default) or with `--noisy` as they are under noise.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from variation import total_variation

from txmcorrect.diffusion.denoiser import Noise
from txmcorrect.diffusion.guidance import GUIDANCE, Measurement
from txmcorrect.diffusion.samplers import SAMPLERS
from txmcorrect.diffusion.schedules import subsequence
from txmcorrect.diffusion.volume import VolumePrior, VolumeSampler
from txmcorrect.metrics import crps_normal
from txmcorrect.physics.operators import Identity
from txmcorrect.recon.fbp import WINDOWS, fbp
from txmcorrect.recon.geometry import ParallelBeam
from txmcorrect.recon.iterative import sirt
from txmcorrect.recon.projector import Projector
from txmcorrect.simulate.bodies import benchmark_body, typical
from txmcorrect.volumes import slice_planes
from txmcorrect.weights import load_model

SIRT_ITERATIONS = (10, 20, 40, 80, 160, 320)
TV_WEIGHTS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
PROBLEMS = {
    "20 views": (20, math.pi),
    "60 views": (60, math.pi),
    "60 views of 120 degrees": (60, 2 * math.pi / 3),
}


def psnr(image, truth):
    """In dB; the range is the truth's maximum."""
    return float(10 * np.log10(truth.max() ** 2 / np.mean((image - truth) ** 2)))


def best(candidates, truth):
    return max((np.asarray(c) for c in candidates), key=lambda image: psnr(image, truth))


def measure(fine, views, arc, counts, seed):
    """Line integrals `(z, n, w)`, their variance, and the projector, from slices twice as fine."""
    size = fine.shape[-1] // 2
    theta = torch.arange(views) * arc / views
    lines = Projector(ParallelBeam(theta, 2 * size), 2 * size).A(torch.from_numpy(fine)) / 2
    light = torch.exp(-lines).reshape(len(fine), views, size, 2).mean(-1)
    drawn = np.random.default_rng([seed, 7]).poisson(counts * light.numpy()).clip(1)
    y = -np.log(drawn / counts).astype(np.float32)
    s2 = torch.from_numpy((1 / drawn).astype(np.float32))
    return torch.from_numpy(y), s2, Projector(ParallelBeam(theta, size), size)


def variation(operator, y, weight):
    return total_variation(operator.A, operator.A_adjoint, y, weight, floor=0.0)[0]


def peers(operator, y, truth):
    """Each with its parameter chosen with the truth in hand."""
    beam, size = operator.beam, operator.size
    # The curve of SIRT is one run, looked at where the candidates end.
    curve, x = [], None
    for last, now in zip((0, *SIRT_ITERATIONS), SIRT_ITERATIONS, strict=False):
        x = sirt(operator, y, now - last, start=x, nonnegative=True)
        curve.append(x[0])
    return {
        "FBP": best([fbp(beam, size, y, f)[0] for f in WINDOWS], truth),
        "SIRT": best(curve, truth),
        "TV": best([variation(operator, y, w) for w in TV_WEIGHTS], truth),
    }


def noisy(truth, level, model, seed):
    """A volume as it is, under noise of `level` times what is typical of it; as `measure`, and its unit."""
    sigma = level * typical(truth)
    y = truth + sigma * np.random.default_rng([seed, 8]).standard_normal(truth.shape)
    seen = torch.from_numpy(y.astype(np.float32))
    scale = typical(y.astype(np.float32)) * model.spec.extra["scale"]
    return seen, torch.full_like(seen, sigma**2), Identity(), scale


def unit_of(operator, y, model):
    """As `tomo --method tpdm` finds it."""
    return typical(sirt(operator, y, 30, nonnegative=True).numpy()) * model.spec.extra["scale"]


def ours(operator, y, s2, model, given, name):
    """Mean and spread of samples of one slice `(1, n, w)`."""
    unit = unit_of(operator, y, model)
    measurement = Measurement(operator, y[:, None] / unit, s2[:, None] / unit**2, 10)
    guided = GUIDANCE[name](slice_planes(model)[0], measurement)
    levels = subsequence(model.spec.sigmas(), given.steps)
    found = []
    for k in range(given.samples):
        noise = Noise(given.sampler_seed, k)
        x = noise.start((1, 1, operator.size, operator.size), float(levels[0]))
        found.append(SAMPLERS[given.sampler](guided, x, levels, noise=noise)[0, 0] * unit)
    drawn = torch.stack(found)
    return drawn.mean(0).numpy(), drawn.std(0).numpy() if len(found) > 1 else None


def volumes(y, s2, operator, unit, model, given, k):
    """One volume by both planes, or with `k` infinite by slices alone; mean of the samples."""

    def agree(x0_hat, sigma, part):
        m = Measurement(operator, y[part][:, None] / unit, s2[part][:, None] / unit**2, 10)
        return m.agree(x0_hat, sigma)

    levels = subsequence(model.spec.sigmas(), given.steps)
    total = 0
    for sample in range(given.samples):
        prior = VolumePrior(*slice_planes(model), k)
        sampler = VolumeSampler(prior, levels, Noise(given.sampler_seed, sample), agree, 16)
        pair = [np.zeros((len(y), given.size, given.size), np.float32) for _ in (0, 1)]
        sampler.start(pair[0])
        total = total + sampler.run(pair) * unit
    return total / given.samples


def slices(model, given):
    table = {}
    for problem, (views, arc) in PROBLEMS.items():
        if given.only and given.only not in problem:
            continue
        rows, more, seconds = [], [], {}
        for index in range(given.objects):
            body = benchmark_body(given.seed, index, (2 * given.size, 2 * given.size))
            fine = body.axial(0.1 * given.size, 2 * given.size)[None]
            truth = fine[0].reshape(given.size, 2, given.size, 2).mean((1, 3)) * 2
            y, s2, operator = measure(fine * 2, views, arc, given.counts, index)
            images = peers(operator, y, truth) if not given.no_peers else {}
            for name in given.guidance:
                start = time.perf_counter()
                images[name], std = ours(operator, y, s2, model, given, name)
                seconds[name] = seconds.get(name, 0) + time.perf_counter() - start
                if std is not None:
                    more.append({f"CRPS {name}": crps_normal(truth, images[name], std)})
            rows.append({method: psnr(image, truth) for method, image in images.items()})
            if given.pictures and index < 3:
                draw(
                    Path(given.pictures) / f"{problem.replace(' ', '-')}-{index}.png", truth, images
                )
        table[problem] = summarise(rows, given.guidance)
        table[problem]["seconds"] = {k: round(v / given.objects, 2) for k, v in seconds.items()}
        print(problem, json.dumps(table[problem]), flush=True)
    return table


def summarise(rows, names):
    """Mean PSNR; each of ours also with its mean paired lead over the peers and standard error."""
    out = {}
    for method in rows[0]:
        values = np.array([row[method] for row in rows])
        out[method] = {"dB": round(float(values.mean()), 2)}
        if method in names:
            for peer in [m for m in rows[0] if m not in names]:
                lead = values - np.array([row[peer] for row in rows])
                error = lead.std(ddof=1) / len(lead) ** 0.5 if len(lead) > 1 else math.nan
                out[method][f"over {peer}"] = [round(float(lead.mean()), 2), round(float(error), 2)]
    return out


def stacks(model, given):
    """Both planes against slices alone: 3D PSNR, and error of the differences between slices."""
    rows = []
    views, arc = PROBLEMS[given.only or "20 views"]
    for index in range(given.objects):
        body = benchmark_body(given.seed, index, (2 * given.depth, 2 * given.size))
        fine = body.volume(2 * given.depth, 2 * given.size) * 2
        fine = fine.reshape(given.depth, 2, 2 * given.size, -1).mean(1)
        truth = fine.reshape(given.depth, given.size, 2, given.size, 2).mean((2, 4))
        if given.noisy:
            y, s2, operator, unit = noisy(truth, given.noisy, model, index)
        else:
            y, s2, operator = measure(fine, views, arc, given.counts, index)
            unit = unit_of(operator, y[len(y) // 2 :][:1], model)
        row = {}
        for name, k in (("slices alone", 1e9), ("both planes", given.turns)):
            found = volumes(y, s2, operator, unit, model, given, k)
            steps = np.diff(found, axis=0) - np.diff(truth, axis=0)
            row[name] = {
                "dB": psnr(found, truth),
                "slice to slice": float(np.sqrt(np.mean(steps**2)) / truth.max()),
            }
        rows.append(row)
        print(index, json.dumps(row), flush=True)
    a, b = ([row[name] for row in rows] for name in ("slices alone", "both planes"))
    lead = np.array([y["dB"] - x["dB"] for x, y in zip(a, b, strict=True)])
    factor = np.array(
        [x["slice to slice"] / y["slice to slice"] for x, y in zip(a, b, strict=True)]
    )
    n = len(rows) ** 0.5
    return {
        "dB": [round(float(np.mean([r["dB"] for r in side])), 2) for side in (a, b)],
        "lead of both planes, dB": [float(lead.mean()), float(lead.std(ddof=1) / n)],
        "slice to slice, factor": [float(factor.mean()), float(factor.std(ddof=1) / n)],
    }


def draw(path, truth, images):
    """Truth and results side by side."""
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(3 * (len(images) + 1), 3.2), layout="constrained")
    axes = figure.subplots(1, len(images) + 1)
    for axis, (name, image) in zip(axes, {"truth": truth, **images}.items(), strict=True):
        axis.imshow(image, cmap="gray", vmin=0, vmax=truth.max())
        axis.set_title(name if name == "truth" else f"{name} {psnr(image, truth):.1f} dB")
        axis.axis("off")
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="bundled")
    parser.add_argument("--objects", type=int, default=10)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--counts", type=float, default=5000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--turns", type=float, default=2.0)
    parser.add_argument("--sampler", default="ddpm")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--sampler-seed", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--guidance", nargs="+", default=["ddnm"])
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--volume", action="store_true")
    parser.add_argument("--noisy", type=float, help="of what is typical; volumes")
    parser.add_argument("--pictures", help="folder")
    parser.add_argument("--out", type=Path, help="JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        loaded = load_model(given.model, "slice")
        found = stacks(loaded, given) if given.volume else slices(loaded, given)
    print(json.dumps(found))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1))
