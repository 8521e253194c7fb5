"""Weights of all components in all frames, and how sure they are: one reweighted solve.

A frame is seen through steps between neighbouring cells at several scales (`steps.Steps`), each believed by a
mixture of widths, and through the levels of cells that no sample reaches, where these are known. A weight
is an offset, a slow walk and a jitter without memory; how large each is follows from the evidence, from where the
references put it (EM, Dempster et al. 1977). Jitter is eliminated frame by frame, so that the solve stays as large as
components times functions of time, however long the scan is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from txmcorrect.background.linear_model.components import Components
from txmcorrect.background.linear_model.scale_mixture import ScaleMixture
from txmcorrect.background.linear_model.time_basis import WAVES, time_basis
from txmcorrect.background.steps import BESIDE, COVERED, SCALES, Steps

Image = NDArray[np.float32]
Array = NDArray[Any]

ROUNDS = 14  # of reweighting
ALONE = 4  # of these, before cells without a sample are looked for
LEARNT = 2  # rounds before sizes follow the evidence
# Steps of both directions and of several scales share their cells: each tells half of what it seems to.
REPEATED = 2.0
SCORE_NOISE = 1e-7  # variance of a flat's own weight, beside its jitter
NOTHING = 1e-14  # variance of what is not there


@dataclass
class Sizes:
    """Variances of the weights of one group, `(k,)` each: offset, each wave of the walk, jitter."""

    offset: Array
    walk: Array
    jitter: Array


@dataclass(frozen=True)
class Solution:
    """What was found of `n` frames.

    Attributes
    ----------
    images : `(k, h, w)`. weights, variance : `(n, k)`. vacuum : `(h, w)` cells that no sample reaches in any frame,
    or `(n, h, w)`; None where none are known. sizes : of each group, in order.
    """

    images: Image
    weights: Array
    variance: Array
    vacuum: NDArray[np.bool_] | None
    sizes: tuple[Sizes, ...]

    def change(self, frames: Array) -> Image:
        """Log background over the mean flat `(b, h, w)` of frames `(b,)`."""
        return np.tensordot(self.weights[frames], self.images, 1).astype(np.float32)

    def std(self, frames: Array) -> Image:
        """Deviation `(b, h, w)` of that, weights taken for independent."""
        return np.sqrt(np.tensordot(self.variance[frames], self.images**2, 1)).astype(np.float32)


def solve(
    logs: Image,
    lit: NDArray[np.bool_],
    groups: Sequence[Components],
    time: Array,
    flat_time: Array | None = None,
    turning: bool = False,
) -> Solution:
    """Find the weights of components in frames.

    Parameters
    ----------
    logs : `(n, h, w)` natural log of frames over the mean flat. lit : `(h, w)`.
    time : `(n,)` of frames, 0 to 1; flat_time : `(m,)` of the flats that groups have scores of.
    turning : the sample turns, so that what stands beside it stays empty in all frames.
    """
    solver = _Solver(logs, lit, groups, time, flat_time, turning)
    for number in range(ROUNDS):
        if number >= ALONE:
            solver.find_vacuum()
        solver.round(number >= LEARNT)
    return solver.solution()


@dataclass
class _Solver:
    logs: Image
    lit: NDArray[np.bool_]
    groups: Sequence[Components]
    time: Array
    flat_time: Array | None
    turning: bool
    mixtures: dict[int, ScaleMixture] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.images = np.concatenate([g.images for g in self.groups])
        self.steps = Steps(self.logs, self.lit, [self.images])
        n, k = len(self.logs), len(self.images)
        self.basis = time_basis(self.time)
        self.weights, self.variance = np.zeros((2, n, k))
        self.sizes = [
            Sizes(g.offset * g.variance, g.walk * g.variance, g.jitter * g.variance)
            for g in self.groups
        ]
        self.expected = [Sizes(s.offset, s.walk, s.jitter) for s in self.sizes]
        self.vacuum: NDArray[np.bool_] | None = None

    def find_vacuum(self) -> None:
        """Find cells that no sample reaches, by what is left of the frames."""
        left = self.logs - np.tensordot(self.weights, self.images, 1).astype(np.float32)
        self.vacuum = None
        if not self.turning:
            self.steps.find_passing(left)
        elif self.steps.find_standing(left):
            self.vacuum = self.steps.empty
        else:
            self.steps.forget_standing()
        self.mixtures.pop(len(SCALES), None)

    def precisions(self, left: Image) -> Image:
        """How far each residual step `(n, p)` is believed."""
        steps = self.steps
        beside = np.broadcast_to(steps.beside, left.shape)
        out = np.zeros_like(left)
        for kind in range(len(SCALES) + 1):
            own = steps.scale == kind
            distant = kind < len(SCALES) and SCALES[kind][1] > 1
            if not own.any() or (distant and not steps.certain.any()):
                continue
            mixture = self.mixtures.setdefault(kind, ScaleMixture())
            belief = mixture.precisions(left[:, own], ~beside[:, own])
            out[:, own] = np.where(steps.certain[:, None], belief, 0) if distant else belief
        return np.where(beside, (COVERED if steps.beside.ndim > 1 else BESIDE) * out, out)

    def round(self, learn: bool) -> None:
        """Reweight, solve for all weights, and let sizes follow."""
        modes = self.steps.modes[0]
        left = self.steps.data - self.weights.astype(np.float32) @ modes
        belief = self.precisions(left) / np.float32(REPEATED)
        n, k, q = len(left), len(modes), self.basis.shape[1]
        known = self._known()
        offset, walk, jitter = (
            np.concatenate([getattr(s, part) for s in self.sizes]) * known
            for part in ("offset", "walk", "jitter")
        )
        prior = np.concatenate([offset[:, None], np.repeat(walk[:, None], q - 1, 1)], 1)
        matrix = np.diag(1 / np.maximum(prior.ravel(), NOTHING))
        right = np.zeros(k * q)
        normals, pulls, conditional = [], [], []
        free = np.diag(1 / np.maximum(jitter, NOTHING))
        for weight, own, mine, at in zip(belief, left, self.weights, self.basis, strict=True):
            normal = ((modes * weight) @ modes.T).astype(float)
            pull = normal @ mine + (modes * weight) @ own
            inner = np.linalg.inv(normal + free)
            reduced = normal - normal @ inner @ normal  # with the jitter eliminated
            matrix += np.kron(reduced, np.outer(at, at))
            right += np.kron(pull - normal @ (inner @ pull), at)
            normals.append(normal), pulls.append(pull), conditional.append(inner)
        self._flats(matrix, right, jitter)
        covariance = np.linalg.inv(matrix)
        theta = (covariance @ right).reshape(k, q)
        square = np.zeros(k)
        blocks = covariance.reshape(k, q, k, q)
        for t, at in enumerate(self.basis):
            slow = theta @ at
            own = conditional[t] @ (pulls[t] - normals[t] @ slow)
            shared = np.einsum("iqjr,q,r->ij", blocks, at, at)
            echo = conditional[t] @ normals[t]
            carried = np.eye(k) - echo
            spread = carried @ shared @ carried.T + conditional[t]
            square += own**2 + np.diag(conditional[t] + echo @ shared @ echo.T)
            self.weights[t], self.variance[t] = slow + own, np.diag(spread)
        if learn:
            self._learn(theta, np.diag(covariance).reshape(k, q), square)

    def _known(self) -> Array:
        """1 for components that count, else 0, `(k,)`."""
        hidden = self.turning and self.vacuum is None
        return np.concatenate(
            [np.full(len(g.images), float(not (hidden and g.mistakable))) for g in self.groups]
        )

    def _flats(self, matrix: Array, right: Array, jitter: Array) -> None:
        """Let the scan's own flats say where weights were before and after it; offsets are the frames' alone."""
        if self.flat_time is None:
            return
        at = time_basis(self.flat_time)
        at[:, 0] = 0
        q, start = at.shape[1], 0
        for group in self.groups:
            if group.scores is not None:
                for j, scores in enumerate(group.scores.T, start):
                    own = slice(j * q, (j + 1) * q)
                    precision = 1 / (jitter[j] + SCORE_NOISE)
                    matrix[own, own] += precision * at.T @ at
                    right[own] += precision * at.T @ scores
            start += len(group.images)

    def _learn(self, theta: Array, variance: Array, square: Array) -> None:
        """Sizes from expected squares; what is expected counts as `strength` weights more."""
        start = 0
        n = len(self.weights)
        for group, expected, sizes in zip(self.groups, self.expected, self.sizes, strict=True):
            own = slice(start, start + len(group.images))
            start = own.stop
            if not self._known()[own].all():
                continue
            seen = theta[own] ** 2 + variance[own]

            def mixed(
                prior: Array, total: Array, count: int, strength: float = group.strength
            ) -> Array:
                return np.asarray((strength * prior + total) / (strength + count))

            sizes.offset = mixed(expected.offset, seen[:, 0], 1)
            sizes.walk = mixed(expected.walk, seen[:, 1:].sum(1), WAVES)
            if group.jitter > 0:
                sizes.jitter = mixed(expected.jitter, square[own], n)

    def solution(self) -> Solution:
        return Solution(self.images, self.weights, self.variance, self.vacuum, tuple(self.sizes))
