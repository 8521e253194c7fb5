"""`python tests/bench/study.py`: conditioning x guidance x noise level, one table and one figure.

The study of source 4 (CDM4MI) on transmission images: small networks of one size, data and length
denoise held-out objects. Conditioned networks see the noisy frame (targets eps, x0 and v; DDPM and
DDIM; classifier-free guidance from 0 to 3), a regression is asked for the mean at once, and a prior
that never saw a noisy frame is guided by it (DMPS, DDNM, DPS) or asked once. Trains what is missing;
the same command goes on where it stopped.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from txmcorrect.config import TrainSettings, load_settings
from txmcorrect.diffusion.denoiser import Noise, with_guidance, within
from txmcorrect.diffusion.guidance import GUIDANCE, Measurement
from txmcorrect.diffusion.samplers import SAMPLERS
from txmcorrect.diffusion.schedules import subsequence
from txmcorrect.metrics import crps_normal, psnr
from txmcorrect.physics import Identity
from txmcorrect.restoring.prior import load_prior, patch_prior
from txmcorrect.simulate.objects import draw_transmission
from txmcorrect.train import run as train

SIGMAS = (0.05, 0.1, 0.2)
SCALES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
NETWORKS = {
    "eps": ("denoise", "eps", 0.15),
    "x0": ("denoise", "x0", 0.15),
    "v": ("denoise", "v", 0.15),
    "regression": ("denoise", "mean", 0.0),
    "prior": ("sample", "v", 0.0),
}
# EDM's levels hardly ever show a network the largest sigma, where x0 = x - sigma eps needs it most.
AS_SOURCE = {"schedule": "linear", "levels": "even"}


def model_of(name, given):
    """Train a network of the study, or go on with it."""
    condition, target, dropped = NETWORKS[name]
    base = load_settings(TrainSettings, {"config": Path("configs/study.yaml")})
    diffusion = {"target": target, "uncon_ratio": dropped}
    if target == "mean":
        diffusion |= {"schedule": "const", "timesteps": 2}
    elif condition == "denoise":
        diffusion |= AS_SOURCE
    dataset = {"condition": condition, "pad": 16 if condition == "sample" else 0}
    settings = base.model_copy(
        update={
            "out": given.folder / name,
            "steps": given.train_steps or base.steps,
            "quiet": True,
            "diffusion": base.diffusion.model_copy(update=diffusion),
            "dataset": base.dataset.model_copy(update=dataset),
        }
    )
    print(name, train(settings).message, flush=True)
    return load_prior(str(given.folder / name / "model.safetensors"), "cpu")


def draw(denoise, cond, model, sampler, given):
    """Samples `(k, 1, h, w)` of one frame."""
    levels = subsequence(model.spec.sigmas(), given.steps)
    noise = Noise(0, shared=False)
    x = noise.start((given.samples, 1, given.size, given.size), float(levels[0]))
    return SAMPLERS[sampler](denoise, x, levels, cond, noise=noise)


def conditioned(model, y, sigma, sampler, scale, given):
    prior = with_guidance(patch_prior(model, 2**30, "fixed"), scale)
    prior = within(prior, float(y.min()), float(y.max()))  # as `restore` does
    cond = torch.cat([y, torch.full_like(y, sigma)], 1).expand(given.samples, -1, -1, -1)
    return draw(prior, cond, model, sampler, given)


def regression(model, y, sigma):
    cond = torch.cat([y, torch.full_like(y, sigma)], 1)
    level = model.spec.sigmas()[-1]
    return patch_prior(model, 2**30, "fixed")(torch.zeros_like(y), level, cond, Noise().step(0))


def guided(model, y, sigma, name, sampler, given):
    measurement = Measurement(Identity(), y, sigma**2)
    prior = GUIDANCE[name](patch_prior(model, 2**30, "fixed"), measurement)
    return draw(prior, None, model, sampler, given)


def restore(models, y, sigma, given):
    """All methods on one frame `(1, 1, h, w)`, in the priors' units."""
    out = {"regression": regression(models["regression"], y, sigma)}
    out["prior, asked once"] = patch_prior(models["prior"], 2**30, "average")(
        y, torch.tensor(sigma), None, Noise().step(0)
    )
    for name in GUIDANCE:
        out[f"prior, {name}"] = guided(models["prior"], y, sigma, name, "ddpm", given)
    for name in ("eps", "x0", "v"):
        for sampler in ("ddpm", "ddim"):
            for scale in SCALES if sampler == "ddim" else (1.0,):
                label = f"{name}, {sampler}, {scale:g}"
                out[label] = conditioned(models[name], y, sigma, sampler, scale, given)
    return out


def score(found, truth, scale):
    """PSNR of the mean and of one sample, CRPS where there are samples."""
    images = 1 + scale * found[:, 0].numpy()
    scores = {"mean": psnr(images.mean(0), truth), "one": psnr(images[0], truth)}
    if len(images) > 1:
        scores["CRPS"] = crps_normal(truth, images.mean(0), images.std(0, ddof=1))
    return scores


def study(given):
    models = {name: model_of(name, given) for name in NETWORKS}
    scale = float(models["prior"].spec.extra["scale"])
    table = {}
    for sigma in SIGMAS:
        rows = []
        for index in range(given.objects):
            truth = draw_transmission(given.seed, index, (given.size, given.size), "benchmark")
            rng = np.random.default_rng([given.seed, index])
            y = (truth + sigma * rng.standard_normal(truth.shape) - 1).astype(np.float32) / scale
            with torch.no_grad():
                found = restore(models, torch.from_numpy(y)[None, None], sigma / scale, given)
            rows.append({name: score(x, truth, scale) for name, x in found.items()})
        table[str(sigma)] = {
            name: {
                k: round(float(np.mean([row[name][k] for row in rows])), 5) for k in rows[0][name]
            }
            for name in rows[0]
        }
        print(sigma, json.dumps(table[str(sigma)]), flush=True)
    return table


def figure(table, path):
    """PSNR of the mean of samples against the guidance scale, a panel for each noise level."""
    sheet = Figure(figsize=(4.4 * len(table), 4.2), layout="constrained")
    for axis, (sigma, row) in zip(sheet.subplots(1, len(table)), table.items(), strict=True):
        for name, colour in (("eps", "C0"), ("x0", "C1"), ("v", "C2")):
            line = [row[f"{name}, ddim, {s:g}"]["mean"] for s in SCALES]
            axis.plot(SCALES, line, "o-", color=colour, label=f"sees the frame, {name}, DDIM")
            ddpm = row[f"{name}, ddpm, 1"]["mean"]
            axis.plot([1.0], [ddpm], "x", color=colour, ms=9, label=f"{name}, DDPM")
        for name, style in (
            ("regression", "k-"),
            ("prior, asked once", "k--"),
            ("prior, ddnm", "C3--"),
            ("prior, dps", "C4--"),
            ("prior, dmps", "C5--"),
        ):
            axis.plot(SCALES[::5], [row[name]["mean"]] * 2, style, lw=1, label=name)
        axis.set_title(f"noise {sigma}")
        axis.set_xlabel("guidance scale")
        # Without the frame (scale 0) a network knows nothing: that point is named, not drawn to scale.
        axis.set_ylim(max(v["mean"] for v in row.values()) - 12, None)
    sheet.axes[0].set_ylabel("PSNR of the mean of samples, dB")
    sheet.axes[-1].legend(fontsize=6, loc="lower right")
    sheet.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/study"))
    parser.add_argument("--objects", type=int, default=10)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--train-steps", type=int)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("bench/study.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    found = study(given)
    given.out.write_text(json.dumps(found, indent=1))
    figure(found, given.out.with_suffix(".png"))
