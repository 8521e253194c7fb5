"""Training batches, each a pure function of (settings, index): resuming changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from txmcorrect.background.conditions import pair_condition, residual
from txmcorrect.config import TrainSettings
from txmcorrect.simulate.draws import PairBatch, draw_pairs
from txmcorrect.training.harvest import Harvest

UNLIT_WEIGHT = 0.05  # unlit corners teach little; without any weight they would be arbitrary


@dataclass(frozen=True)
class TrainBatch:
    """`x0` `(b, 1, h, w)` residual of the log background, `cond` `(b, c, h, w)`, `weight` `(b, 1, h, w)`."""

    x0: Tensor
    cond: Tensor
    weight: Tensor

    def part(self, rank: int, world: int) -> TrainBatch:
        """The share of one process."""
        return TrainBatch(*(t[rank::world] for t in (self.x0, self.cond, self.weight)))

    def to(self, device: torch.device) -> TrainBatch:
        return TrainBatch(*(t.to(device) for t in (self.x0, self.cond, self.weight)))

    def split(self, parts: int) -> list[TrainBatch]:
        """Micro-batches."""
        chunks = [t.chunk(parts) for t in (self.x0, self.cond, self.weight)]
        return [TrainBatch(*piece) for piece in zip(*chunks, strict=True)]


def make_batch(drawn: PairBatch) -> TrainBatch:
    """Frames and truth -> what the network is shown and should say."""
    frames, background = torch.from_numpy(drawn.frames), torch.from_numpy(drawn.background)
    photons = torch.from_numpy(drawn.photons)
    cond, base, level = pair_condition(frames[:, 0], frames[:, 1], photons)
    lit = torch.from_numpy(drawn.lit).float()
    weight = lit + UNLIT_WEIGHT * (1 - lit)
    return TrainBatch(residual(background, base, level)[:, None], cond, weight[:, None])


class Batches(Dataset[TrainBatch]):
    """Batch number `index` of a training, from the simulator, from real frames, or both."""

    def __init__(self, settings: TrainSettings, purpose: str = "train"):
        self.settings, self.purpose = settings, purpose
        data = settings.dataset
        self.harvest = Harvest(settings.data, data, purpose) if settings.data else None

    def __len__(self) -> int:
        return self.settings.steps

    def __getitem__(self, index: int) -> TrainBatch:
        settings, data = self.settings, self.settings.dataset
        if self.harvest and self.harvest.turn(settings.seed, index):
            return make_batch(self.harvest.draw(settings.seed, index, settings.batch))
        return make_batch(
            draw_pairs(
                settings.seed,
                index,
                settings.batch,
                data.size,
                data.counts,
                data.brightness if data.augment else 0.0,
                data.contrast if data.augment else 0.0,
                self.purpose,
            )
        )
