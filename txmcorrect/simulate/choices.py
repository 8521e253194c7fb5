"""What a world is made of: each choice drawn from random numbers of its own, or fixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypedDict, get_args

import numpy as np

from txmcorrect.simulate.beam import Family
from txmcorrect.simulate.drifts import AMOUNTS, DRIFT_KINDS
from txmcorrect.simulate.fields import Shape
from txmcorrect.simulate.light import Detector, Texture
from txmcorrect.simulate.records import CURRENTS
from txmcorrect.simulate.references import BANK, REFERENCE_KINDS
from txmcorrect.simulate.scans import FAMILY_NUMBERS, STREAMS, stream
from txmcorrect.simulate.specimens import SPECIMENS, STRENGTH, grid_of

COUNTS = (50.0, 20000.0)
MOST_COUNTS = (
    14000.0  # that a longer exposure of references may reach; brighter places lie far above
)
FRAMES, SHAPE = 16, (256, 256)
BANK_SHARE = 0.3  # of scans that have a bank beside other references
LONGER = (0.4, 2.5)  # exposure of references over that of frames, where it differs
SHARES = {"no pattern": 0.2, "speckle": 0.3, "no texture": 0.15, "shuffled": 0.3, "longer": 0.25}
RANKS = [1, 2, 2, 3, 3]
OVERLAP = (0.05, 0.2)
Order = Literal["time", "shuffled"]


class Choices(TypedDict, total=False):
    """What `draw_world` may be told; what it is not told is drawn.

    drift, amount : of `DRIFT_KINDS`, and by how much (`AMOUNTS`). jitter : broad rms of what is white in
    `mixed`; rank : of what is white. order : `shuffled` frames lie in the file in any order. records : of
    `CURRENTS`. flats_exposure : of references, over that of frames. sample : of `SPECIMENS`. strength :
    absorption at its strongest place. detector, texture : of the instrument. references : of
    `REFERENCE_KINDS`. bank : references of earlier days. counts : of an empty lit pixel. frames, shape,
    grid, overlap : of the scan; the grid of tiles follows from the frames and the other way round.
    volume : draw that of a tomogram.
    """

    drift: str
    amount: float
    jitter: float
    rank: int
    order: Order
    records: str
    flats_exposure: float
    sample: str
    strength: float
    detector: Detector
    texture: Texture
    references: str
    bank: int
    counts: float
    frames: int
    shape: Shape
    grid: tuple[int, int]
    overlap: float
    volume: bool


def _log_uniform(low: float, high: float) -> Callable[[np.random.Generator], float]:
    return lambda rng: float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _one_of(values: Any) -> Callable[[np.random.Generator], Any]:
    values = list(values)
    return lambda rng: values[int(rng.integers(len(values)))]


def _rather(share: float, one: Any, other: Any) -> Callable[[np.random.Generator], Any]:
    return lambda rng: one if rng.random() < share else other


# Drawn in this order from streams of their own; those below depend on them.
DRAWN: dict[str, Callable[[np.random.Generator], Any]] = {
    "drift": _one_of(DRIFT_KINDS),
    "rank": _one_of(RANKS),
    "jitter": _log_uniform(*AMOUNTS["white"]),
    "order": _rather(SHARES["shuffled"], "shuffled", "time"),
    "records": _one_of(CURRENTS),
    "sample": _one_of(SPECIMENS),
    "strength": _log_uniform(*STRENGTH),
    "detector": _rather(SHARES["no pattern"], "none", "pattern"),
    "texture": lambda rng: str(
        rng.choice(
            get_args(Texture),
            p=[
                1 - SHARES["speckle"] - SHARES["no texture"],
                SHARES["speckle"],
                SHARES["no texture"],
            ],
        )
    ),
    "references": _one_of(REFERENCE_KINDS),
    "counts": _log_uniform(*COUNTS),
    "overlap": lambda rng: float(rng.uniform(*OVERLAP)),
    "volume": lambda rng: False,
    "shape": lambda rng: SHAPE,
}


class Streams:
    """Random numbers of each purpose of one world."""

    def __init__(self, seed: int, family: Family, purpose: str, index: int):
        self.key = (STREAMS[purpose], FAMILY_NUMBERS[family], seed, index)

    def __call__(self, name: str) -> np.random.Generator:
        return stream("world", *self.key, int.from_bytes(name.encode()[:7], "big"))


def choose(streams: Streams, given: Choices) -> dict[str, Any]:
    """Fill in what was not given."""
    made: dict[str, Any] = {
        name: given[name] if name in given else draw(streams(name))  # type: ignore[literal-required]
        for name, draw in DRAWN.items()
    }
    unknown = set(given) - set(Choices.__annotations__)
    if unknown:
        raise TypeError(f"expected choices of {sorted(Choices.__annotations__)}, got {unknown}")
    made["amount"] = given.get("amount", _log_uniform(*AMOUNTS[made["drift"]])(streams("amount")))
    if "grid" in given and "frames" not in given:
        made["frames"] = given["grid"][0] * given["grid"][1]
    else:
        made["frames"] = given.get("frames", FRAMES)
    made["grid"] = given.get("grid", grid_of(made["frames"]))
    some = streams("bank")
    count = int(some.integers(*BANK, endpoint=True))
    has_bank = made["references"] == "bank" or some.random() < BANK_SHARE
    made["bank"] = given.get("bank", count if has_bank else 0)
    drawn = streams("flats_exposure")
    longer = drawn.random() < SHARES["longer"] and made["records"] != "none"
    factor = min(_log_uniform(*LONGER)(drawn), max(MOST_COUNTS / made["counts"], 1.0))
    made["flats_exposure"] = given.get("flats_exposure", factor if longer else 1.0)
    return made
