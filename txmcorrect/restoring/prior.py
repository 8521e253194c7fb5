"""The prior of samples that restores: `x0 = (T - 1) / SCALE`, vacuum and the border are 0."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from txmcorrect.diffusion.denoiser import Denoiser
from txmcorrect.diffusion.patches import Assembly, PatchPrior, patches_within
from txmcorrect.simulate.objects import SCALE
from txmcorrect.weights import Model, ModelSpec, condition_of, load_model

PAD, PATCH = 16, 64
CONDITION = "sample"
KINDS = ("sample", "sinogram", "denoise")  # priors of transmission, and a denoiser that sees it


def sample_spec(**extra: Any) -> ModelSpec:
    """Shape of the small patch prior: position channels only, on transmission."""
    network: dict[str, Any] = {
        "channels": 24,
        "multipliers": (1, 2, 3),
        "blocks": 1,
        "attention": (),
        "patch": 2,
    }
    return ModelSpec(
        network,
        CONDITION,
        2,
        PATCH,
        schedule="karras",
        domain="transmission",
        extra={"pad": PAD, "scale": SCALE, **extra},
    )


def load_prior(name: str, device: str | torch.device) -> Model:
    """Load a prior of transmission images, or a denoiser that sees them.

    Raises
    ------
    ModelError : it is of something else, or none ships with this version.
    """
    kind = CONDITION if name == "bundled" else condition_of(name)
    return load_model(name, kind if kind in KINDS else CONDITION, device)


def patch_prior(model: Model, memory: int, assembly: Assembly = "random") -> Denoiser:
    """Denoiser of whole frames within a memory budget in bytes."""
    patch, pad = model.spec.size, int(model.spec.extra["pad"])
    position = model.spec.condition != "denoise"
    batch = patches_within(memory, patch)
    return PatchPrior(model.denoiser, patch, pad, assembly, batch, position)


def to_prior(transmission: Tensor, model: Model) -> Tensor:
    """Transmission to what the prior sees."""
    scale: float = model.spec.extra["scale"]
    return (transmission - 1) / scale


def from_prior(x0: Tensor, model: Model) -> Tensor:
    """Back to transmission."""
    scale: float = model.spec.extra["scale"]
    return x0 * scale + 1
