"""Networks as methods that the judge can run, under names that change when what they name does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from txmcorrect.background.estimate import Draw
from txmcorrect.background.methods import METHODS, pair_method
from txmcorrect.baselines.contract import Estimate, Method, Problem
from txmcorrect.errors import ModelError
from txmcorrect.weights import Model, condition_of, load_model

# Source 0 draws one sample with one partner and keeps it; ten evaluations where it takes fifty.
SOURCE0 = Draw(sampler="ddpm", steps=10, samples=1, partners=1)


def candidate(model: Model, draw: Draw, interval: int = 1) -> dict[str, Method]:
    """The pipeline behind `correct` with this model, whatever its condition."""
    name = method_name(model, draw) + ("" if interval == 1 else f"-i{interval}")
    method = METHODS[model.spec.condition]
    full = method(model, draw, interval)
    if draw.samples == 1 or model.spec.condition == "stack":  # its samples weigh its answer
        return {name: full}
    return {name: Pipeline(full, method(model, mean_only(model, draw), interval))}


@dataclass(frozen=True)
class Pipeline:
    """A pipeline with and without its spread: most checks ask for the background alone.

    `background_only` costs a fraction of `full` and finds the same background; without a spread it
    cannot flag what is uncertain.
    """

    full: Method
    background_only: Method

    def __call__(self, problem: Problem) -> Estimate:
        """Everything that the pipeline says."""
        return self.full(problem)


def mean_only(model: Model, draw: Draw) -> Draw:
    """The cheapest draw that gives what the network says: the posterior mean, one evaluation at the
    largest sigma (`estimate.generate`).

    A pair model's background is that to the bit; of several partners the median is taken only if
    there is more than one sample.
    """
    samples = 2 if model.spec.condition == "pair" else 1
    return replace(draw, sampler="ddim", steps=1, samples=samples)


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

    It sees what a model under test of the same condition sees: a pair, and its answers' median over
    the same partners counts, or the window and all references. It has one answer, hence no spread.

    Raises
    ------
    ModelError : the file is no model, or one that diffuses.
    """
    condition = condition_of(str(path))
    model = load_model(path, condition, device)
    if model.spec.target != "mean":
        raise ModelError(
            f"--regression {path}: expected a model trained with `target: mean` "
            f"(configs/pair-regression.yaml), got target {model.spec.target}"
        )
    name = f"unet-regression:{condition}-{model.sha256[:6]}"
    return {name: _without_spread(METHODS[condition](model, mean_only(model, Draw()), 1))}


def _without_spread(method: Method) -> Method:
    """What differs between partners is no spread of a forecast."""

    def single(problem: Problem) -> Estimate:
        return replace(method(problem), sampler=None, std=None)

    return single
