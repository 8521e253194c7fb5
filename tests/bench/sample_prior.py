"""Train a small patch prior of samples: `python tests/bench/sample_prior.py OUT --minutes 3`.

Position-aware patches (PaDIS) of simulated transmission images, `x0 = (T - 1) / SCALE`, so that
vacuum, and the border around every image, is 0. Noise levels are log-normal, as EDM draws them.
"""

import argparse
import time
from pathlib import Path

import torch

from txmcorrect.diffusion.denoiser import Noise
from txmcorrect.diffusion.loss import denoising_loss
from txmcorrect.diffusion.patches import draw_patches
from txmcorrect.restoring.prior import PAD, SCALE, sample_spec
from txmcorrect.simulate.objects import draw_transmission
from txmcorrect.weights import save_model

SIDE, OBJECTS = 128, 160


def objects(seed, count):
    """`(count, 1, SIDE, SIDE)` normalised images."""
    drawn = [draw_transmission(seed, i, (SIDE, SIDE)) for i in range(count)]
    return (torch.stack([torch.from_numpy(t) for t in drawn])[:, None] - 1) / SCALE


def train(
    out, minutes, batch=16, lr=2e-3, seed=0, position=True, sizes=(32, 64), shares=(0.85, 0.15)
):
    torch.manual_seed(seed)
    images, spec = objects(seed, OBJECTS), sample_spec()
    model = spec.build()
    average = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-4)
    end, step, losses = time.monotonic() + 60 * minutes, 0, []
    while time.monotonic() < end:
        left = (end - time.monotonic()) / (60 * minutes)
        optimizer.param_groups[0]["lr"] = (
            lr * min(1, (step + 1) / 50) * max(0.02, min(1, 1.6 * left))
        )
        noise = Noise(seed, shared=False).step(step)
        g = noise.generator(1)
        chosen = images[torch.randint(len(images), (batch,), generator=g)]
        x0, where = draw_patches(
            _turned(chosen, g), generator=g, sizes=sizes, shares=shares, pad=PAD
        )
        where = where if position else torch.zeros_like(where)
        place = (torch.rand(1, generator=g) + torch.arange(batch) / batch) % 1
        sigma = torch.exp(1.2 * torch.special.ndtri(place.clamp(1e-3, 1 - 1e-3)) - 0.5)
        loss = denoising_loss(
            model, model.preconditioning, x0, where, sigma, noise.normal_like(x0),
            torch.ones(batch), torch.ones_like(x0[:, :1]),
        )  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(0.99, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            average[name].lerp_(value, 1 - decay)
        losses.append(loss.item())
        if step % 50 == 0:
            print(step, sum(losses[-50:]) / 50, flush=True)
    save_model(Path(out), average, sample_spec(steps=step))
    print(f"{step} steps, {sum(p.numel() for p in model.parameters())} parameters: {out}")


def _turned(images, generator):
    turn, flip = torch.randint(4, (1,), generator=generator), torch.rand(1, generator=generator)
    images = torch.rot90(images, int(turn), (-2, -1))
    return images.flip(-1) if flip < 0.5 else images


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--no-position", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    train(given.out, given.minutes, position=not given.no_position)
