"""The prior of samples that restores: `x0 = (T - 1) / SCALE`, vacuum and the border are 0."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from txmcorrect.diffusion.denoiser import Denoiser
from txmcorrect.diffusion.patches import Assembly, PatchPrior, patches_within
from txmcorrect.simulate.objects import SCALE
from txmcorrect.weights import Model, ModelSpec, condition_of, load_model

PAD, PATCH = 16, 64
CONDITION = "sample"
# Priors of transmission, of attenuation, and a denoiser that sees the noisy transmission.
KINDS = ("sample", "sinogram", "slice", "denoise")


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

    `name` is a file, `bundled` (the prior of samples that ships), or the kind of a model that ships.

    Raises
    ------
    ModelError : it is of something else, or none ships with this version.
    """
    if name in KINDS:
        return load_model("bundled", name, device)
    kind = CONDITION if name == "bundled" else condition_of(name)
    return load_model(name, kind if kind in KINDS else CONDITION, device)


def patch_prior(model: Model, memory: int, assembly: Assembly = "random") -> Denoiser:
    """Denoiser of whole frames within a memory budget in bytes."""
    patch, pad = model.spec.size, int(model.spec.extra["pad"])
    position = model.spec.condition != "denoise"
    batch = patches_within(memory, patch)
    return PatchPrior(model.denoiser, patch, pad, assembly, batch, position)


def of_attenuation(model: Model, unit: float) -> Model:
    """The same prior of slices for data whose typical attenuation is `unit`."""
    extra = {**model.spec.extra, "scale": model.spec.extra["scale"] * unit, "vacuum": 0.0}
    return replace(model, spec=replace(model.spec, extra=extra))


def to_prior(values: Tensor, model: Model) -> Tensor:
    """Transmission (or attenuation) to what the prior sees: vacuum is 0."""
    scale: float = model.spec.extra["scale"]
    return (values - vacuum(model)) / scale


def from_prior(x0: Tensor, model: Model) -> Tensor:
    """Back to transmission (or attenuation)."""
    scale: float = model.spec.extra["scale"]
    return x0 * scale + vacuum(model)


def vacuum(model: Model) -> float:
    """Value where there is nothing: 1 of transmission, 0 of attenuation."""
    return float(model.spec.extra.get("vacuum", 0.0 if model.spec.condition == "slice" else 1.0))
