"""Training items from a user's own frames and references.

For pairs source 0's recipe: two sample transmissions and one reference are drawn independently; samples
are turned, mirrored and cropped; a reference is tied to the detector and is only mirrored upside down.
For stacks the beam is on its way between references (`measured`), before the user's samples or simulated ones.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from txmcorrect.config import DataSettings
from txmcorrect.errors import FormatError
from txmcorrect.simulate.beam import LIT_FRACTION
from txmcorrect.simulate.draws import PairBatch
from txmcorrect.simulate.scans import stream
from txmcorrect.simulate.stacks import (
    EMPTY_SHARE,
    LEAST_BANK,
    MOST_BANK,
    DrawnScan,
    draw_kind,
    draw_samples,
    expose,
    shares_of,
)
from txmcorrect.training.measured import MOST_USED, draw_measured_course, log_references
from txmcorrect.weights import Beams

SPLITS = {"train": "train", "validate": "validation"}
OWN_SAMPLES = 0.5  # of stacks; the others are simulated, which know how to turn
LEAST_TRANSMISSION = 1e-3


def furthest_apart(items: NDArray[np.float32], most: int) -> list[int]:
    """Up to `most` rows of `(k, p)`, each the one furthest from those before, from the usual one on.

    Of many references taken at one moment one will do. Source: Gonzalez 1985.
    """
    middle = np.median(items, 0)
    chosen = [int(((items - middle) ** 2).sum(1).argmin())]
    distance = ((items - items[chosen[0]]) ** 2).sum(1)
    while len(chosen) < min(most, len(items)):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, ((items - items[chosen[-1]]) ** 2).sum(1))
    return chosen


class Harvest:
    """A training set written by `prepare`; frames are read when drawn."""

    def __init__(self, path: Path, data: DataSettings, purpose: str):
        self.path, self.data, self.purpose = path, data, purpose
        self.groups = self._find_groups()

    def _find_groups(self) -> list[str]:
        """Names of groups that hold both transmissions and references of one shape."""
        split = SPLITS[self.purpose]
        found: list[str] = []
        try:
            with h5py.File(self.path, "r") as file:
                file.visititems(
                    lambda name, item: (
                        found.append(name)
                        if isinstance(item, h5py.Group)
                        and {"transmission", "reference"} <= set(item)
                        else None
                    )
                )
        except OSError as error:
            raise FormatError(
                f"--data {self.path}: expected a training set of `prepare` ({error})"
            ) from None
        groups = [name for name in found if split in name.split("/")]
        if not groups and self.purpose == "train":
            raise FormatError(
                f"--data {self.path}: no group '{split}' with transmission and reference"
            )
        return sorted(groups)

    def turn(self, seed: int, index: int) -> bool:
        """Whether batch `index` comes from here rather than from the simulator."""
        return bool(self.groups) and stream(self.purpose, seed, index, 1).random() < self.data.real

    def draw(self, seed: int, index: int, batch: int) -> PairBatch:
        """Batch `index`: pairs of samples under one reference, with photon noise."""
        rng = stream(self.purpose, seed, index, 2)
        with h5py.File(self.path, "r") as file:
            group = file[self.groups[rng.integers(len(self.groups))]]
            samples, references = group["transmission"], group["reference"]
            items = [self._pair(rng, samples, references) for _ in range(batch)]
        frames, background, lit, photons = zip(*items, strict=True)
        return PairBatch(
            np.stack(frames), np.stack(background), np.stack(lit), np.array(photons, np.float32)
        )

    def beams(self) -> Beams:
        """References to remember, as `Model` has them: the `MOST_BANK` of each shape that differ most."""
        found: dict[tuple[int, ...], list[NDArray[np.float32]]] = {}
        with h5py.File(self.path, "r") as file:
            for name in self.groups:
                references = file[name]["reference"]
                for k in range(len(references)):
                    image = self._fit(np.asarray(references[k], np.float32))
                    found.setdefault(image.shape, []).append(image)
        beams = []
        for images in found.values():
            if len(images) < LEAST_BANK:
                continue
            logs, lit = log_references(np.stack(images))
            beams.append(logs[furthest_apart(logs[:, lit], MOST_BANK)])
        return tuple(beams)

    def draw_scans(self, seed: int, index: int, batch: int) -> list[DrawnScan]:
        """Batch `index` of the stack condition, `batch` targets in all."""
        rng = stream(self.purpose, seed, index, 7)
        with h5py.File(self.path, "r") as file:
            group = file[self.groups[rng.integers(len(self.groups))]]
            samples, references = group["transmission"], group["reference"]
            return [self._scan(rng, samples, references, share) for share in shares_of(batch)]

    def _scan(
        self,
        rng: np.random.Generator,
        samples: h5py.Dataset,
        references: h5py.Dataset,
        targets: int,
    ) -> DrawnScan:
        data = self.data
        n, kind = draw_kind(rng)
        chosen = rng.permutation(len(references))[:MOST_USED]
        empty = np.stack([self._fit(np.asarray(references[k], np.float32)) for k in chosen])
        course = draw_measured_course(rng, empty, n, kind)
        shape, turning = course.lit.shape, False
        if rng.random() < OWN_SAMPLES:
            log_t = np.stack([self._view(rng, samples, shape) for _ in range(n)])
        else:
            spread = data.contrast if data.augment else 0.0
            log_t, turning = draw_samples(rng, shape, n, spread)
        return expose(rng, course, log_t, turning, data.counts, targets)

    def _view(
        self, rng: np.random.Generator, samples: h5py.Dataset, shape: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """Log transmission `(h, w)` of one of the samples, or of none."""
        if rng.random() < EMPTY_SHARE:
            return np.zeros(shape, np.float32)
        sample = np.asarray(samples[rng.integers(len(samples))], np.float32)
        return np.log(
            np.maximum(self._vary(rng, sample, shape, brightness=0.0), LEAST_TRANSMISSION)
        )

    def _pair(
        self, rng: np.random.Generator, samples: h5py.Dataset, references: h5py.Dataset
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], np.float32]:
        reference = self._fit(np.asarray(references[rng.integers(len(references))], np.float32))
        if self.data.augment and rng.random() < 0.5:
            reference = reference[::-1]
        views = [
            self._vary(
                rng,
                np.asarray(samples[rng.integers(len(samples))], np.float32),
                reference.shape,
                self.data.brightness,
            )
            for _ in range(2)
        ]
        lit = reference > LIT_FRACTION * np.median(reference)
        level = np.exp(rng.uniform(*np.log(self.data.counts)))
        background = np.maximum(reference, 0) * (level / max(float(reference[lit].mean()), 1e-6))
        photons = np.float32(rng.choice([1.0, 4.0, 16.0]))
        frames = rng.poisson(np.maximum(background * np.stack(views), 0) * photons) / photons
        return frames.astype(np.float32), background.astype(np.float32), lit, photons

    def _fit(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring a stored frame to the model's working grid by binning."""
        factor = -(-max(image.shape) // self.data.size)
        small = F.avg_pool2d(torch.from_numpy(image)[None, None], factor, ceil_mode=True)
        return small[0, 0].numpy()

    def _vary(
        self,
        rng: np.random.Generator,
        sample: NDArray[np.float32],
        shape: tuple[int, ...],
        brightness: float,
    ) -> NDArray[np.float32]:
        """Turn, mirror, crop (scale 0.5-1, ratio 3/4-4/3), resize, change brightness and contrast."""
        if self.data.augment:
            sample = np.rot90(sample, int(rng.integers(4)))
            sample = sample[:: rng.choice([1, -1]), :: rng.choice([1, -1])]
            area, ratio = rng.uniform(0.5, 1), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            h, w = sample.shape
            ch, cw = (
                min(h, round(h * (area / ratio) ** 0.5)),
                min(w, round(w * (area * ratio) ** 0.5)),
            )
            y, x = rng.integers(h - ch + 1), rng.integers(w - cw + 1)
            sample = sample[y : y + ch, x : x + cw]
        tensor = torch.from_numpy(np.ascontiguousarray(sample))[None, None]
        resized = F.interpolate(tensor, size=shape, mode="bilinear", antialias=True)[0, 0].numpy()
        if not self.data.augment:
            return resized
        gain = np.exp(brightness * rng.standard_normal())
        power = np.exp(self.data.contrast * rng.standard_normal())
        return (gain * np.maximum(resized, LEAST_TRANSMISSION) ** power).astype(np.float32)
