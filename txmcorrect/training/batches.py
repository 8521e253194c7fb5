"""Training batches, each a pure function of (settings, index): resuming changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from txmcorrect.background.base import find_base
from txmcorrect.background.conditions import LOG_SCALE, Basis, pair_condition
from txmcorrect.background.known import Known, level_with
from txmcorrect.background.stack import Stack, stack_condition
from txmcorrect.background.windows import joined, make_stack
from txmcorrect.config import DataSettings, TrainSettings
from txmcorrect.diffusion.patches import draw_patches
from txmcorrect.simulate.bodies import LOWEST, draw_plane
from txmcorrect.simulate.bodies import SCALE as PLANE_SCALE
from txmcorrect.simulate.bodies import SIDES as PLANES
from txmcorrect.simulate.draws import PairBatch, draw_pairs
from txmcorrect.simulate.objects import SCALE, SIDES, draw_objects, draw_sinogram
from txmcorrect.simulate.scans import stream
from txmcorrect.simulate.stacks import DrawnScan, draw_scans
from txmcorrect.training.harvest import Harvest

UNLIT_WEIGHT = 0.05  # unlit corners teach little; without any weight they would be arbitrary
PATCHES_PER_IMAGE = 8  # drawing an image takes longer than training on eight patches of it
# Channels that a prior's network sees besides x: where patches lie, which plane; or the noisy frame
# and its noise.
PRIORS = {"sample": 2, "slice": 3, "sinogram": 2, "denoise": 2}
# Scales that a target departs from the base, of a pair and of a stack: few depart by more, and they
# would rule the loss.
MOST_PAIR, MOST_STACK = 10.0, 5.0


@dataclass(frozen=True)
class TrainBatch:
    """What the network is shown and should say.

    `x0` `(b, 1, h, w)` residual of the log background, `cond` `(b, c, h, w)`, `weight`
    `(b, 1, h, w)`; `scale` `(b,)` of the residual in natural log; `views` `(b, 2, h, w)` two images
    relative to the base, natural log, to look at.
    """

    x0: Tensor
    cond: Tensor
    weight: Tensor
    scale: Tensor
    views: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.x0, self.cond, self.weight, self.scale, self.views

    def part(self, rank: int, world: int) -> TrainBatch:
        """The share of one process."""
        return TrainBatch(*(t[rank::world] for t in self.tensors))

    def to(self, device: torch.device) -> TrainBatch:
        return TrainBatch(*(t.to(device) for t in self.tensors))

    def split(self, parts: int) -> list[TrainBatch]:
        """Micro-batches."""
        chunks = [t.chunk(parts) for t in self.tensors]
        return [TrainBatch(*piece) for piece in zip(*chunks, strict=True)]


def make_batch(drawn: PairBatch) -> TrainBatch:
    """Pairs of frames and truth -> batch."""
    frames, background = torch.from_numpy(drawn.frames), torch.from_numpy(drawn.background)
    photons, lit = torch.from_numpy(drawn.photons), torch.from_numpy(drawn.lit)
    cond, basis = pair_condition(frames[:, 0], frames[:, 1], photons)
    logs = LOG_SCALE * cond[:, :2]
    return TrainBatch(
        _target(basis, background, lit, MOST_PAIR),
        cond,
        _weight(basis, lit),
        basis.scale,
        logs - logs.mean(1, keepdim=True),
    )


def make_stack_batch(scans: list[DrawnScan]) -> TrainBatch:
    """Scans with references and truth -> batch of all their targets."""
    stack = joined([_make_stack(scan) for scan in scans])
    truth = torch.from_numpy(np.concatenate([s.background[s.targets] for s in scans]))
    lit = torch.from_numpy(np.stack([s.lit for s in scans for _ in s.targets]))
    cond, basis = stack_condition(stack)
    scale = basis.scale[:, None, None, None]
    return TrainBatch(
        _target(basis, truth, lit, MOST_STACK),
        cond,
        _weight(basis, lit),
        basis.scale,
        scale * cond[:, :2].sinh(),
    )


def _make_stack(scan: DrawnScan) -> Stack:
    known = known_of(scan)
    return make_stack(known, find_base(known), scan.targets)


def make_prior_batch(settings: TrainSettings, index: int, purpose: str) -> TrainBatch:
    """Patches that know where they lie in their image (PaDIS); few images give all of a batch.

    `slice` is also told which plane it is, `denoise` sees the patch with noise instead.
    """
    data, batch = settings.dataset, settings.batch
    rng = stream(purpose, settings.seed, index, 6)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    images = -(-batch // PATCHES_PER_IMAGE)
    size = torch.multinomial(torch.tensor(data.shares), 1, generator=generator)
    cut = []
    for k in range(images):
        number = index * images + k
        if data.images is not None and purpose == "train":
            number %= data.images
        image, marks = _draw_image(settings, number, purpose)
        count = min(PATCHES_PER_IMAGE, batch - k * PATCHES_PER_IMAGE)
        patches, where = draw_patches(
            torch.cat([image, marks]).expand(count, -1, -1, -1),
            generator=generator,
            sizes=(data.patches[int(size)],),
            shares=(1.0,),
            pad=data.pad,
        )
        told = where if data.position else torch.zeros_like(where)
        cut.append((patches[:, :1], torch.cat([patches[:, 1:], told], 1)))
    x0, cond = (torch.cat(parts) for parts in zip(*cut, strict=True))
    scale = torch.full((batch,), scale_of(data.condition))
    if data.condition == "denoise":
        low, high = np.log(data.noise)
        level = torch.rand(batch, 1, 1, 1, generator=generator) * (high - low) + low
        sigma = level.exp() / SCALE
        noisy = x0 + sigma * torch.randn(x0.shape, generator=generator)
        cond = torch.cat([noisy, sigma.expand_as(x0)], 1)
    return TrainBatch(x0, cond, torch.ones_like(x0), scale, scale[0] * x0.expand(-1, 2, -1, -1))


def smallest_image(data: DataSettings) -> int:
    """Shortest side of a prior's training image, its border included."""
    low, high = data.sides or (PLANES if data.condition == "slice" else SIDES)
    if data.condition == "slice":
        return (low if low == high else min(low, LOWEST)) + 2 * data.pad
    return round((0.4 if data.condition == "sinogram" else 0.6) * low) + 2 * data.pad


def scale_of(condition: str) -> float:
    """What a unit of a prior's x0 is worth."""
    return PLANE_SCALE if condition == "slice" else SCALE


def _draw_image(settings: TrainSettings, number: int, purpose: str) -> tuple[Tensor, Tensor]:
    """Training image `(1, h, w)` and what a prior is told besides, `(0 or 1, h, w)`."""
    kind, sides = settings.dataset.condition, settings.dataset.sides or SIDES
    if kind == "slice":
        plane, which = draw_plane(settings.seed, number, purpose, settings.dataset.sides or PLANES)
        image = torch.from_numpy(plane)
        return image, torch.full_like(image, which)
    draw = draw_sinogram if kind == "sinogram" else draw_objects
    image = torch.from_numpy(draw(settings.seed, number, purpose, sides))
    return image, image[:0]


def known_of(scan: DrawnScan) -> Known:
    """What `correct` would know about a drawn scan."""
    at_zero = np.exp(-scan.flat_exposure) if scan.flats_known else 1.0
    flats = [
        None if f is None else (f * at_zero).astype(np.float32) for f in (scan.before, scan.after)
    ]
    bank = None
    if scan.bank is not None:
        gain = scan.bank_exposure if scan.flats_known else 0.0 * scan.bank_exposure
        bank = (scan.bank * np.exp(-gain)[:, None, None]).astype(np.float32)
        if not scan.flats_known:
            bank = level_with(bank, flats[0])
    return Known(
        frames=scan.frames,
        usable=np.ones(len(scan.frames), bool),
        log_exposure=scan.log_exposure if scan.frames_known else None,
        photons=scan.photons,
        before=flats[0],
        after=flats[1],
        place=scan.place,
        bank=bank,
        absolute=scan.flats_known,
        turning=scan.turning,
    )


def _target(basis: Basis, background: Tensor, lit: Tensor, most: float) -> Tensor:
    """What the network should generate, `(b, 1, h, w)`; without light the base stands."""
    wanted = basis.residual(background.clamp_min(1e-3).log()).clamp(-most, most)
    return torch.where(lit & (basis.trust > 0), wanted, 0)[:, None]


def _weight(basis: Basis, lit: Tensor) -> Tensor:
    """Weight of pixels `(b, 1, h, w)`: as far as the answer is used, and where there is light at all.

    A steep rim that drifts takes a frame's edge pixels into the dark: their logarithms are off by
    many scales, always to the same side, and would teach the network to darken every rim.
    """
    used = lit.float() * basis.trust
    return (used + UNLIT_WEIGHT * (1 - used))[:, None]


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
        if data.condition in PRIORS:
            return make_prior_batch(settings, index, self.purpose)
        real = self.harvest
        if real is not None and not real.turn(settings.seed, index):
            real = None
        if data.condition == "stack":
            return make_stack_batch(self._scans(index, real))
        if real is not None:
            return make_batch(real.draw(settings.seed, index, settings.batch))
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

    def _scans(self, index: int, real: Harvest | None) -> list[DrawnScan]:
        settings, data = self.settings, self.settings.dataset
        if real is not None:
            return real.draw_scans(settings.seed, index, settings.batch)
        return draw_scans(
            settings.seed,
            index,
            settings.batch,
            data.size,
            data.counts,
            data.contrast if data.augment else 0.0,
            self.purpose,
        )
