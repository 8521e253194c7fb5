"""Checkpoints with full state, without pickles: weights, their average, AdamW's moments, the step."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from txmcorrect.errors import ModelError
from txmcorrect.weights import load_state, read_tensors, write_tensors


class Average:
    """Exponential moving average of weights; the first steps use a shorter memory."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.state = {name: t.detach().clone() for name, t in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            self.state[name].lerp_(value.to(self.state[name]), 1 - decay)


@dataclass
class State:
    """What a checkpoint holds."""

    model: nn.Module
    average: Average
    optimizer: torch.optim.Optimizer
    step: int = 0

    def save(self, path: Path, settings: dict[str, Any], scaler: dict[str, Any] | None) -> None:
        """Write everything to one safetensors file, atomically."""
        tensors: dict[str, Tensor] = {}
        for prefix, state in (("model", self.model.state_dict()), ("average", self.average.state)):
            tensors |= {f"{prefix}.{name}": t for name, t in state.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": torch.as_tensor(v) for name, v in moments.items()}
        tensors = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
        metadata = {"step": str(self.step), "settings": json.dumps(settings)}
        metadata["scaler"] = json.dumps(scaler)
        write_tensors(path, tensors, metadata)

    def load(self, path: Path) -> dict[str, Any]:
        """Restore everything; returns the gradient scaler's state (None without mixed precision)."""
        tensors, metadata = read_tensors(path)
        if "step" not in metadata:
            raise ModelError(
                f"{path}: expected a checkpoint of `train`, got another safetensors file"
            )
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "adam": {}}
        for name, value in tensors.items():
            prefix, rest = name.split(".", 1)
            parts[prefix][rest] = value
        load_state(self.model, parts["model"], path)
        for name, value in parts["average"].items():
            self.average.state[name].copy_(value)
        state = self.optimizer.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["adam"].items():
            index, entry = name.split(".", 1)
            moments.setdefault(int(index), {})[entry] = value
        self.optimizer.load_state_dict({**state, "state": moments})
        self.step = int(metadata["step"])
        scaler: dict[str, Any] = json.loads(metadata["scaler"])
        return scaler


def saved_settings(path: Path) -> dict[str, Any]:
    """Settings that a checkpoint was made with."""
    settings: dict[str, Any] = json.loads(read_tensors(path)[1].get("settings", "{}"))
    return settings
