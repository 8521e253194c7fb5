"""`python tests/bench/ablation.py`: position channels, and patches against whole images.

Trains small priors of slices of 64 pixels that differ in one thing at a time, on all objects and on
few, and judges each on held-out slices: noise taken off in one evaluation, and 20 views. Differences
are paired by object. The same command goes on where it stopped.
"""

import argparse
import json
import math
from pathlib import Path

import ct
import numpy as np
import torch

from txmcorrect.config import TrainSettings, load_settings
from txmcorrect.diffusion.denoiser import Noise
from txmcorrect.simulate.bodies import SCALE, benchmark_body, typical
from txmcorrect.train import run as train
from txmcorrect.volumes import slice_planes
from txmcorrect.weights import load_model

# Patches, whether they know where they lie, and how many different images there are.
WHOLE = 96  # the image with its border
PRIORS = {
    "patches": ((32,), True, None),
    "patches, no position": ((32,), False, None),
    "whole": ((WHOLE,), True, None),
    "patches, few": ((32,), True, 40),
    "patches, few, no position": ((32,), False, 40),
    "whole, few": ((WHOLE,), True, 40),
}


def prior_of(name, given):
    """Train one, or go on with it. Every step sees as many pixels: whole images come in threes."""
    patches, position, images = PRIORS[name]
    base = load_settings(TrainSettings, {"config": Path("configs/ablation.yaml")})
    data = {"patches": patches, "position": position, "images": images}
    settings = base.model_copy(
        update={
            "out": given.folder / name.replace(", ", "-").replace(" ", "-"),
            "batch": base.batch if patches[0] < WHOLE else max(1, base.batch * 32**2 // WHOLE**2),
            "steps": given.train_steps or base.steps,
            "quiet": True,
            "dataset": base.dataset.model_copy(update=data | {"size": patches[0]}),
        }
    )
    print(name, train(settings).message, flush=True)
    return load_model(settings.out / "model.safetensors", "slice")


def judge(model, given):
    """PSNR by object: denoised in one evaluation, and from 20 views."""
    rows = []
    for index in range(given.objects):
        body = benchmark_body(given.seed, index, (128, 128))
        fine = body.axial(6.4, 128)[None]
        truth = fine[0].reshape(64, 2, 64, 2).mean((1, 3)) * 2
        unit = typical(truth) * SCALE
        z = np.random.default_rng([given.seed, index]).standard_normal(truth.shape)
        x = torch.from_numpy((truth / unit + 0.5 * z).astype(np.float32))[None, None]
        axial = slice_planes(model)[0]
        with torch.no_grad():
            clean = axial(x, torch.tensor(0.5), None, Noise().step(0))[0, 0].numpy() * unit
            y, s2, operator = ct.measure(fine * 2, 20, math.pi, 5000, index)
            found, _ = ct.ours(operator, y, s2, model, given, "ddnm")
        rows.append({"denoise": ct.psnr(clean, truth), "20 views": ct.psnr(found, truth)})
    return rows


def lead(a, b, task):
    """Mean paired difference in dB and its standard error."""
    d = np.array([x[task] - y[task] for x, y in zip(a, b, strict=True)])
    return [round(float(d.mean()), 2), round(float(d.std(ddof=1) / len(d) ** 0.5), 2)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--objects", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--train-steps", type=int)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--sampler", default="ddpm")
    parser.add_argument("--sampler-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("bench/ablation.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    scores = {name: judge(prior_of(name, given), given) for name in PRIORS}
    found = {
        name: {t: lead(scores["patches"], rows, t) for t in rows[0]}
        for name, rows in scores.items()
    }
    means = {
        n: {t: round(float(np.mean([r[t] for r in rows])), 2) for t in rows[0]}
        for n, rows in scores.items()
    }
    print(json.dumps({"dB": means, "patches ahead by": found}, indent=1))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"dB": means, "patches ahead by": found}, indent=1))
