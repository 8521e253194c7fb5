"""`python tests/bench/guidance.py [table|cost|steps|memory ...]`: what guidance and patches cost and do.

`table`: bias and spread of each method under each sampler on a Gaussian prior whose posterior is
known (the table of `diffusion/guidance.py` and of the README). `cost`: time of a guided step, DMPS
against DPS, taken in turns. `steps`: DMPS with 50 evaluations against the full schedule. `memory`:
peak of patches against the whole image at 1024 pixels, and a 2048-pixel frame drawn from patches,
each in a process of its own.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from restore import ours
from test_guidance import SAMPLERS, bias_and_spread, operators, smooth

from txmcorrect.diffusion.denoiser import Noise
from txmcorrect.diffusion.guidance import GUIDANCE, Measurement
from txmcorrect.diffusion.samplers import ddpm
from txmcorrect.diffusion.schedules import subsequence
from txmcorrect.metrics import psnr
from txmcorrect.physics import Identity, gaussian_kernel, separable_blur
from txmcorrect.restoring.prior import load_prior, patch_prior
from txmcorrect.simulate.objects import draw_transmission
from txmcorrect.volumes import PATCHES

TASKS = ("denoise", "inpaint", "blur", "superres", "fourier")


def table(given):
    """Rows of `error of the mean / spread` in units of the posterior's deviation."""
    rows = {}
    print(f"| | {' | '.join(SAMPLERS)} |\n|---|{'---|' * len(SAMPLERS)}")
    for task in TASKS:
        for name, guide in GUIDANCE.items():
            cells = []
            for sampler in SAMPLERS.values():
                bias, spread = bias_and_spread(
                    smooth(), operators()[task], guide, sampler, given.batch
                )
                cells.append(f"{float(bias):.2f} / {float(spread):.2f}")
            rows[f"{task}, {name}"] = cells
            print(f"| {task}, {name} | {' | '.join(cells)} |", flush=True)
    return rows


def cost(given):
    """Seconds a step, whole network and solver, the two in turns; and calls of the network."""
    model = load_prior(given.model, "cpu")
    truth = torch.from_numpy(draw_transmission(5, 0, (128, 128)) - 1)[None, None] * 4
    measurement = Measurement(Identity(), truth, 0.16)
    spent, calls = {"dmps": [], "dps": []}, {"dmps": [], "dps": []}
    for _ in range(given.repeats):
        for name in spent:
            count = [0, 0]

            prior = patch_prior(model, 2**30)

            def network(x, sigma, cond, step, count=count, prior=prior):
                count[0] += 1
                if x.requires_grad:
                    x.register_hook(lambda g: count.__setitem__(1, count[1] + 1))
                return prior(x, sigma, cond, step)

            guided = GUIDANCE[name](network, measurement)
            start = time.process_time()
            with torch.no_grad():
                guided(truth, torch.tensor(0.5), None, Noise().step(0))
            spent[name].append(time.process_time() - start)
            calls[name] = count
    found = {name: float(np.median(s)) for name, s in spent.items()}
    return {
        "seconds of processor a step": found,
        "ratio": found["dmps"] / found["dps"],
        "calls forward, backward": calls,
    }


def steps(given):
    """PSNR of DMPS (mean of two samples) with 50 evaluations and with all levels."""
    model = load_prior(given.model, "cpu")
    prior = patch_prior(model, 2**30)
    profile = gaussian_kernel(1.5).sum(0)
    rows = []
    for index in range(given.objects):
        truth = draw_transmission(given.seed, index, (64, 64), "benchmark")
        rng = np.random.default_rng([given.seed, index])
        blur = separable_blur(profile, profile, truth.shape)
        blurred = blur.A(torch.from_numpy(truth)[None, None])[0, 0].numpy()
        z = rng.standard_normal(truth.shape).astype(np.float32)
        row = {}
        for task, y, more in (
            ("denoise", truth + 0.1 * z, {"noise": "0.1"}),
            ("deblur", blurred + 0.01 * z, {"task": "deblur", "psf": 1.5, "noise": "0.01"}),
        ):
            for count in (25, 50, given.full):
                found = ours(y, prior, model, guidance="dmps", steps=count, samples=2, **more)[0]
                row[f"{task}, {count}"] = psnr(found, truth)
        rows.append(row)
        print(index, json.dumps(row), flush=True)
    return {name: round(float(np.mean([r[name] for r in rows])), 2) for name in rows[0]}


def peak(kind, size, levels):
    """Peak MiB over what is there before, of drawing a frame with few levels: memory is the same."""
    torch.set_num_threads(1)
    model = load_prior("bundled", "cpu")
    noise = Noise()
    with torch.no_grad():
        whole = kind == "whole"
        prior = patch_prior(model, 2**29 if not whole else 2**40)
        if whole:
            prior = type(prior)(prior.denoise, 10**6, prior.pad, "fixed", 1)
        else:
            prior = type(prior)(prior.denoise, prior.patch, prior.pad, "random", PATCHES)
        chosen = subsequence(model.spec.sigmas(), levels)
        x = noise.start((1, 1, size, size), float(chosen[0]))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        found = ddpm(prior, x, chosen, noise=noise)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "peak over start, MiB": (after - before) // 1024,
        "peak of the process, MiB": after // 1024,
        "seconds": round(time.perf_counter() - start, 1),
        "deviation": round(float(found.std()), 3),
    }


def memory(given):
    out = {}
    context = multiprocessing.get_context("spawn")
    for kind, size in (("patches", 1024), ("whole", 1024), ("patches", 2048)):
        with context.Pool(1) as pool:
            out[f"{kind}, {size}"] = pool.apply(peak, (kind, size, given.levels))
        print(kind, size, out[f"{kind}, {size}"], flush=True)
    return out


PARTS = {"table": table, "cost": cost, "steps": steps, "memory": memory}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS))
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--batch", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--objects", type=int, default=3)
    parser.add_argument("--seed", type=int, default=4000)
    parser.add_argument("--full", type=int, default=1000)
    parser.add_argument("--levels", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: PARTS[name](given) for name in given.parts}
    print(json.dumps(found, indent=1))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1))
