"""Networks as methods that the judge can run, under names that change when what they name does."""

from __future__ import annotations

from pathlib import Path

from txmcorrect.background.estimate import Draw
from txmcorrect.background.methods import METHODS, pair_method
from txmcorrect.baselines import Method
from txmcorrect.errors import ModelError
from txmcorrect.weights import Model, load_model

# Source 0 draws one sample with one partner and keeps it; ten evaluations where it takes fifty.
SOURCE0 = Draw(sampler="ddpm", steps=10, samples=1, partners=1)


def candidate(model: Model, draw: Draw, interval: int = 1) -> dict[str, Method]:
    """The pipeline behind `correct` with this model, whatever its condition."""
    name = method_name(model, draw) + ("" if interval == 1 else f"-i{interval}")
    return {name: METHODS[model.spec.condition](model, draw, interval)}


def method_name(model: Model, draw: Draw) -> str:
    """A name that changes whenever the model or the way it is sampled does."""
    kind = f"{model.spec.condition}-{model.sha256[:6]}"
    partners = f"-p{draw.partners}" if model.spec.condition == "pair" else ""
    return f"model:{kind}-{draw.sampler}{draw.steps}x{draw.samples}{partners}"


def source0(model: Model) -> dict[str, Method]:
    """A pair model sampled as source 0 does: one sample of every frame, as it comes."""
    return {f"source0:{model.sha256[:6]}": pair_method(model, SOURCE0, settle_keys=1)}


def regression(path: Path, device: str) -> dict[str, Method]:
    """A U-Net trained to say the mean at once: source 4's comparison (`configs/pair-regression.yaml`).

    It sees the partners that the model under test sees, and its answers' median counts likewise.

    Raises
    ------
    ModelError : the file is no model of the pair condition, or one that diffuses.
    """
    model = load_model(path, "pair", device)
    if model.spec.target != "mean":
        raise ModelError(
            f"--regression {path}: expected a model trained with `target: mean` "
            f"(configs/pair-regression.yaml), got target {model.spec.target}"
        )
    draw = Draw(steps=1)
    return {f"unet-regression:{model.sha256[:6]}": pair_method(model, draw)}
