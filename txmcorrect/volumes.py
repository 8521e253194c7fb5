"""Volumes drawn from two perpendicular priors, kept in files: larger than memory, and resumable."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from txmcorrect.diffusion.denoiser import Denoiser, Step
from txmcorrect.diffusion.patches import PatchPrior
from txmcorrect.diffusion.volume import Volume, VolumeSampler
from txmcorrect.simulate.bodies import AXIAL, UPRIGHT
from txmcorrect.stream import disk_errors
from txmcorrect.weights import Model

PATCHES = 16  # a network call; fixed, so that no result depends on a memory budget
Report = Callable[[str, int, int], None]


def slice_planes(model: Model) -> tuple[Denoiser, Denoiser]:
    """Priors of planes across and along the axis, both from a model of slices."""
    return plane(model, AXIAL), plane(model, UPRIGHT)


def plane(model: Model, which: float = AXIAL) -> Denoiser:
    """Prior of one kind of plane; a model of slices is told `which`, others know one kind only."""
    prior = PatchPrior(model.denoiser, model.spec.size, int(model.spec.extra["pad"]), batch=PATCHES)
    if model.spec.condition != "slice":
        return prior

    def denoise(x: Tensor, sigma: Tensor, cond: Tensor | None, step: Step) -> Tensor:
        return prior(x, sigma, torch.full_like(x[:1], which), step)

    return denoise


@dataclass(frozen=True)
class Draws:
    """Finished volumes `(z, y, x)`, memory-mapped."""

    volumes: list[Volume]

    def mean(self, slices: slice) -> Volume:
        """Mean of some slices."""
        return np.asarray(np.mean([v[slices] for v in self.volumes], 0), np.float32)

    def std(self, slices: slice) -> Volume | None:
        """Spread of some slices; None where there is one draw only."""
        if len(self.volumes) < 2:
            return None
        return np.asarray(np.std([v[slices] for v in self.volumes], 0, ddof=1), np.float32)


def draw_volumes(
    folder: Path,
    shape: tuple[int, int, int],
    samplers: list[VolumeSampler],
    report: Report,
) -> Draws:
    """Draw a volume with each sampler; what an earlier run left in `folder` is gone on with.

    Two copies of a volume lie in files, and a note says how many moves the sampler has made. A kill
    in the middle of a move costs that move: its input is intact. Of a finished volume one copy
    stays.

    Raises
    ------
    OutputError : the disk is full.
    """
    total = sum(len(sampler.moves) for sampler in samplers)
    before = 0
    found = []
    for number, sampler in enumerate(samplers):
        states = _Mapped(folder, f"draw-{number}", shape)
        count = len(sampler.moves)

        def after_move(done: int, states: _Mapped = states, before: int = before) -> None:
            states.record(done)
            report("volume", before + done, total)

        done = states.done
        if done is None:
            pair = states.create()
            sampler.start(pair[0])
            states.record(done := 0)
        if done < count:
            sampler.run(states.pair(), done, after_move)
        found.append(states.keep(count % 2))
        before += count
    return Draws(found)


def claim(path: Path, size: int) -> None:
    """Make a file of `size` bytes to be mapped, in one go: a map that finds no space kills the process.

    Raises
    ------
    OutputError : the disk is full.
    """
    with disk_errors(path), path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)


class _Mapped:
    """Two copies of a volume in files, and the number of moves made."""

    def __init__(self, folder: Path, name: str, shape: tuple[int, int, int]) -> None:
        self.paths = [folder / f"{name}-{i}.f4" for i in (0, 1)]
        self.note, self.shape = folder / f"{name}.json", shape
        self._pair: tuple[np.memmap, np.memmap] | None = None

    @property
    def done(self) -> int | None:
        """Moves made, None if there is nothing."""
        return int(json.loads(self.note.read_text())["moves"]) if self.note.exists() else None

    def create(self) -> tuple[Volume, Volume]:
        """Make the files."""
        size = 4 * int(np.prod(self.shape))
        for path in self.paths:
            claim(path, size)
        return self.pair()

    def pair(self) -> tuple[Volume, Volume]:
        """Both copies, mapped."""
        if self._pair is None:
            first, second = (np.memmap(p, "<f4", "r+", shape=self.shape) for p in self.paths)
            self._pair = first, second
        return self._pair

    def record(self, moves: int) -> None:
        """Note that `moves` are made, once their result is on the disk."""
        for copy in self._pair or ():
            copy.flush()
        beside = self.note.with_suffix(".tmp")
        with disk_errors(beside):
            beside.write_text(json.dumps({"moves": moves}))
            os.replace(beside, self.note)

    def keep(self, which: int) -> Volume:
        """Drop the copy that is not the result."""
        self._pair = None
        self.paths[1 - which].unlink(missing_ok=True)
        return np.memmap(self.paths[which], "<f4", "r", shape=self.shape)
