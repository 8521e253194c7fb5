"""Benchmark scenes: a problem together with what is true about it.

Scenes come from the simulator's benchmark family, whose beams and phantoms training never draws,
and from its stream of scans, which training never reads.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from txmcorrect.baselines.contract import Array, Flats, Image, Problem
from txmcorrect.simulate import SimulatedScan, simulate_scan

Kind = Literal["mosaic-sparse", "mosaic-dense", "tomo", "film"]
Drift = Literal["slow", "medium", "fast"]
References = Literal["bank+stale", "before-after", "stale", "none", "fresh"]
KEPT_EVERY = 4  # frames keep their sample when others' are swapped
FIRST_SEED = 900_000  # benchmark seeds start here
FRAMES = {"tomo": 32, "film": 16}  # mosaics have 4 x 4


@dataclass(frozen=True)
class Setting:
    """One cell of the benchmark: what is imaged, how the beam drifts, what references exist."""

    kind: Kind = "mosaic-sparse"
    drift: Drift = "medium"
    counts: float = 5000.0
    references: References = "bank+stale"
    shape: tuple[int, int] = (256, 256)

    @property
    def name(self) -> str:
        """Name of the cell, fit for a file."""
        h, w = self.shape
        return f"{self.kind}_{self.drift}_{self.counts:.0f}_{self.references}_{h}x{w}"


@dataclass(frozen=True)
class Truth:
    """What no method may see.

    Attributes
    ----------
    transmission : `(n, h, w)`. log_background : `(n, h, w)` natural log of the counts of an empty
    frame. additive : `(h, w)` light that does not scale with transmission. volume : `(z, y, x)` 1/um.
    """

    transmission: Image
    log_background: Image
    additive: Image
    volume: Image | None = None


@dataclass(frozen=True)
class Scene:
    """A problem and its truth; `name` and `seed` say which. Variants are made once for all methods."""

    name: str
    seed: int
    problem: Problem
    truth: Truth

    @cached_property
    def emptied(self) -> Scene:
        """The same beam without any sample: flats passed as a scan."""
        return expose(self, np.ones_like(self.truth.transmission))

    @cached_property
    def swapped(self) -> Scene:
        """Other samples in all frames but every fourth: turned over, and rolled by half a frame."""
        transmission = self.truth.transmission.copy()
        others = np.arange(len(transmission)) % KEPT_EVERY != 0
        half = transmission.shape[-1] // 2
        transmission[others] = np.roll(transmission[others, ::-1], half, axis=-1)
        return expose(self, transmission)


def simulated_scene(setting: Setting, seed: int) -> Scene:
    """Simulate one scene; `seed` counts from 0 within the benchmark."""
    stored = "stale" if setting.references == "bank+stale" else setting.references
    scan = simulate_scan(
        setting.kind,
        setting.drift,
        setting.counts,
        setting.shape,
        seed=FIRST_SEED + seed,
        family="benchmark",
        references=stored,
        frames=FRAMES.get(setting.kind),
        bank=20 if setting.references == "bank+stale" else 0,
    )
    return Scene(setting.name, seed, problem_of(scan), truth_of(scan))


def problem_of(scan: SimulatedScan) -> Problem:
    """What of a simulated scan a method may see."""
    early = scan.flats_before == 0
    first, last = (_flats(scan, chosen) for chosen in (early, ~early))
    between = last is not None
    bank = Flats(scan.bank, scan.bank_current_ma) if len(scan.bank) else None
    return Problem(
        frames=scan.counts.astype(np.float32),
        dark=scan.dark.mean(0, dtype=np.float32),
        lit=scan.lit,
        current_ma=scan.current_ma,
        stale=None if between else first,
        before=first if between else None,
        after=last,
        bank=bank,
        position_px=scan.position_px,
        theta=scan.theta,
    )


def _flats(scan: SimulatedScan, chosen: NDArray[np.bool_]) -> Flats | None:
    if not chosen.any():
        return None
    return Flats(scan.flats[chosen].astype(np.float32), scan.flats_current_ma[chosen])


def truth_of(scan: SimulatedScan) -> Truth:
    """What is true about a simulated scan."""
    background = np.log(np.maximum(scan.background, 1e-3)).astype(np.float32)
    return Truth(scan.transmission, background, scan.direct, scan.volume)


def expose(scene: Scene, transmission: Array) -> Scene:
    """Put other samples into the same beam, with the noise that the recorded frames have.

    The noise of each pixel is kept and rescaled as Poisson noise scales, so that two exposures
    differ by their samples and by nothing else.
    """
    truth, problem = scene.truth, scene.problem
    background = np.exp(truth.log_background)
    was = background * truth.transmission + truth.additive
    now = background * transmission + truth.additive
    noise = problem.frames - problem.dark - was
    frames = problem.dark + now + noise * np.sqrt(np.maximum(now, 1e-3) / np.maximum(was, 1e-3))
    return replace(
        scene,
        problem=replace(problem, frames=frames.astype(np.float32)),
        truth=replace(truth, transmission=transmission.astype(np.float32)),
    )


def with_wrong_bank(scene: Scene) -> Scene:
    """The same scene with the bank of another instrument: its own, turned by 180 degrees."""
    bank = scene.problem.bank
    assert bank is not None
    turned = Flats(bank.counts[:, ::-1, ::-1].copy(), bank.current_ma)
    return replace(scene, problem=replace(scene.problem, bank=turned))


def describe(setting: Setting) -> dict[str, Any]:
    """The setting as JSON can hold it."""
    return {**asdict(setting), "shape": list(setting.shape)}
