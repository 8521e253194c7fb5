"""The background of a whole scan: fields at key frames, a fixed pattern, a brightness for each frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from txmcorrect.background.conditions import spread_out
from txmcorrect.background.estimate import Conditions
from txmcorrect.background.quality import REMEMBERED, UNREFERENCED, Verdict, judge_run
from txmcorrect.formats.corrected import key_weights
from txmcorrect.team import Pieces

Image = NDArray[np.float32]


class Images(Protocol):
    """Images `(..., h, w)` taken one at a time."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Image: ...


@dataclass(frozen=True)
class Background:
    """The background of a whole scan, at any frame.

    Attributes
    ----------
    keys : `(k,)` frame numbers; jumps : first frames after jumps.
    fields, std : `(k, h', w')` log counts on the working grid and their spread.
    details : fine log patterns `(c, h, w)`, one stack for each part of the scan with a background of its own
    (an energy): what stays, then what moves; shares : `(k, c)` how much of each is in a key frame.
    part : `(k,)` which of them a key frame belongs to. factor : bin of the working grid.
    amplitude, flag : `(n,)`; lit : `(h, w)`; dark : `(h, w)`.
    grain : photon noise of the details, rms of the log.
    conditions : what the model sees of a frame, to draw more samples with.
    notes : doubts about all frames; remarks : what else is worth saying, and costs no trust.
    referenced : whether references of the scan, or given with it, show the background's shape; remembered :
    likeness of those that the model remembers, if they did; standing : what was taken for a sample that
    stands in all frames, in words.
    """

    keys: NDArray[np.intp]
    jumps: NDArray[np.intp]
    fields: NDArray[np.float32]
    std: NDArray[np.float32]
    details: Images
    shares: NDArray[np.float64]
    factor: int
    amplitude: NDArray[np.float64]
    flag: NDArray[np.uint32]
    lit: NDArray[np.bool_]
    dark: Image
    scale: str
    notes: tuple[str, ...] = ()
    referenced: bool = True
    remembered: float = 0.0
    standing: str = ""
    leak: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    conditions: Conditions | None = field(default=None, repr=False)
    part: NDArray[np.intp] | None = None
    grain: float = 0.0
    remarks: tuple[str, ...] = ()

    def key_image(self, key: int) -> Image:
        """Log background `(h, w)` of key frame number `key`, at native resolution."""
        return self.native(self.fields[key]) + self._detail(key, self.shares[key])

    def key_std(self, key: int) -> Image:
        """Spread `(h, w)` of the log background of key frame number `key`."""
        return np.hypot(self.native(self.std[key]), np.float32(self.grain))

    def log_background(self, frame: int) -> Image:
        """Log background `(h, w)` of a frame, amplitude included."""
        return self.interpolated(frame) + np.float32(np.log(self.amplitude[frame]))

    def interpolated(self, frame: int) -> Image:
        """Log background `(h, w)` of a frame without its amplitude: linear between key images."""
        left, right, t = key_weights(self.keys, self.jumps, frame)
        if left == right:
            return self.key_image(left)
        field, share = ((1 - t) * x[left] + t * x[right] for x in (self.fields, self.shares))
        return self.native(field.astype(np.float32)) + self._detail(left, share)

    def verdict(self) -> Verdict:
        blind: tuple[str, ...] = ()
        if not self.referenced:
            blind = (REMEMBERED if self.remembered else UNREFERENCED,)
        if self.standing:
            blind = (*blind, self.standing)
        found = judge_run(self.flag, self.scale, (*self.notes, *blind))
        return replace(found, why="; ".join([found.why, *self.remarks]))

    def native(self, small: Image) -> Image:
        """A field `(h', w')` of the working grid at native resolution `(h, w)`."""
        h, w = self.lit.shape
        return spread_out(torch.from_numpy(small)[None], self.factor, (h, w))[0].numpy()

    def _detail(self, key: int, shares: NDArray[np.float64]) -> Image:
        """Fine pattern `(h, w)` in the part of a key frame: so much of each."""
        images = self.details[0 if self.part is None else int(self.part[key])]
        detail = images[0]
        for image, share in zip(images[1:], shares[1:], strict=False):
            detail = detail + np.float32(share) * image
        return detail


@dataclass(frozen=True)
class KeyImages:
    """Key images of a background, made when asked for."""

    background: Background
    spread: bool = False

    def __len__(self) -> int:
        return len(self.background.keys)

    def __getitem__(self, index: int, /) -> Image:
        background = self.background
        return background.key_std(index) if self.spread else background.key_image(index)


class StoredDetails:
    """Fixed patterns of many parts, read back where they were stored; one is kept at hand."""

    def __init__(self, stores: Sequence[Pieces]) -> None:
        self._stores = stores
        self._last: tuple[int, Image] | None = None

    def __len__(self) -> int:
        return len(self._stores)

    def __getitem__(self, index: int, /) -> Image:
        last = self._last  # threads may come together: each looks at one state
        if last is None or last[0] != index:
            last = self._last = (index, self._stores[index].get("moving", 0)["details"])
        return last[1]


def join(backgrounds: Sequence[Background], details: Images) -> Background:
    """Backgrounds of consecutive parts of a scan as one; nothing is interpolated between parts.

    A pixel is lit where it is lit in all parts; `details` are theirs, in order.
    """
    lengths = [len(b.amplitude) for b in backgrounds]
    starts = np.cumsum([0, *lengths[:-1]])
    first = backgrounds[0]

    def shifted(name: str) -> NDArray[np.intp]:
        return np.concatenate(
            [getattr(b, name) + s for b, s in zip(backgrounds, starts, strict=True)]
        )

    most = max(b.shares.shape[1] for b in backgrounds)
    shares = [np.pad(b.shares, ((0, 0), (0, most - b.shares.shape[1]))) for b in backgrounds]

    def together(name: str) -> NDArray[np.float32]:
        return np.concatenate([getattr(b, name) for b in backgrounds])

    return replace(
        first,
        keys=shifted("keys"),
        jumps=np.union1d(shifted("jumps"), starts[1:]).astype(np.intp),
        fields=together("fields"),
        std=together("std"),
        details=details,
        shares=np.concatenate(shares),
        amplitude=np.concatenate([b.amplitude for b in backgrounds]),
        flag=np.concatenate([b.flag for b in backgrounds]),
        lit=np.logical_and.reduce([b.lit for b in backgrounds]),
        scale="; ".join(dict.fromkeys(b.scale for b in backgrounds)),
        notes=tuple(dict.fromkeys(note for b in backgrounds for note in b.notes)),
        remarks=tuple(dict.fromkeys(remark for b in backgrounds for remark in b.remarks)),
        referenced=all(b.referenced for b in backgrounds),
        remembered=min(b.remembered for b in backgrounds),
        standing="; ".join(dict.fromkeys(b.standing for b in backgrounds if b.standing)),
        leak=np.concatenate([b.leak for b in backgrounds]),
        conditions=None,
        grain=max(b.grain for b in backgrounds),
        part=np.repeat(np.arange(len(backgrounds)), [len(b.keys) for b in backgrounds]),
    )


def cut(background: Background, start: int) -> Background:
    """The background of the frames from `start` on, which becomes frame 0.

    Where none of them is a key frame, the last one before stands for them all.
    """
    first = min(int(np.searchsorted(background.keys, start)), len(background.keys) - 1)
    jumps = background.jumps[background.jumps > start] - start
    return replace(
        background,
        keys=np.maximum(background.keys[first:] - start, 0),
        jumps=jumps,
        fields=background.fields[first:],
        std=background.std[first:],
        shares=background.shares[first:],
        amplitude=background.amplitude[start:],
        flag=background.flag[start:],
        leak=background.leak[first:],
        conditions=None,
        part=None,
    )


def divide_frame(
    frame: Image,
    background: Background,
    number: int,
    scale_roi: tuple[int, int, int, int] | None = None,
) -> float:
    """Turn counts above dark `(h, w)` into transmission, in place; unlit and dead pixels become 1.

    With `scale_roi`, `(y0, y1, x0, x1)` known to be empty, the frame's brightness is what makes it 1
    there; otherwise it is the background's. Returns the brightness.
    """
    amplitude = float(background.amplitude[number])
    frame /= np.exp(background.interpolated(number))
    if scale_roi is not None:
        y0, y1, x0, x1 = scale_roi
        inside = frame[y0:y1, x0:x1][background.lit[y0:y1, x0:x1]]
        amplitude = float(np.nanmean(inside)) if inside.size else 1.0
        if not (np.isfinite(amplitude) and amplitude > 0):
            amplitude = 1.0
    frame /= np.float32(amplitude)
    frame[~background.lit | ~np.isfinite(frame)] = 1.0
    return amplitude
