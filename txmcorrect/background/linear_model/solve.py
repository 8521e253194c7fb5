"""Weights of all components in all frames, and how sure they are: one reweighted solve.

A frame is seen through steps between neighbouring cells at several scales (`steps.Steps`), each believed by
a mixture of widths, and through the levels of cells that no sample reaches, where these are known. A weight
is an offset, a slow walk and a jitter without memory; how large each is follows from the evidence, from
where the references put it (EM, Dempster et al. 1977). Jitter is eliminated frame by frame, so that the
solve stays as large as components times functions of time, however long the scan is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from txmcorrect.background.evidence import believed, usual_size
from txmcorrect.background.linear_model.components import Components, apart_from
from txmcorrect.background.linear_model.scale_mixture import ScaleMixture
from txmcorrect.background.linear_model.time_basis import WAVES, time_basis
from txmcorrect.background.overlaps import Overlap
from txmcorrect.background.spectrum import images_of, modes_of
from txmcorrect.background.steps import BESIDE, COVERED, SCALES, Steps, steps_of

Image = NDArray[np.float32]
Array = NDArray[Any]

ROUNDS = 14  # of reweighting
FOLLOWED = 8  # for frames that follow what others taught
ALONE = 4  # of these, before cells without a sample are looked for
LEARNT = 2  # rounds before sizes follow the evidence
# Steps of both directions and of several scales share their cells: each tells a quarter of what it seems to.
# Twelve simulated dense scans and films: 2, 4, 8 give errors of 0.88, 0.85, 0.85 %.
REPEATED = 4.0
# Beside overlaps, in which the sample drops out, steps of a sample that looks like drift do harm: on a
# simulated dense mosaic with a bank 2.0 % of error became 1.1, and with 40 in place of 8 1.05.
REPEATED_BESIDE_OVERLAPS = 8.0
SCORE_NOISE = 1e-7  # variance of a flat's own weight, beside its jitter
MANY = 0.5  # of the frames, in which cells without a sample are certain: then vacuum shows broad changes
SURROGATES = 4
LIKE_ITSELF = 0.3  # of a component's power that is left in a surrogate once it is made independent
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
    images : `(k, h, w)`. weights, variance : `(n, k)`. vacuum : `(h, w)` cells that no sample reaches in
    any frame, or `(n, h, w)`; None where none are known. sizes : of each group, in order.
    """

    images: Image
    weights: Array
    variance: Array
    vacuum: NDArray[np.bool_] | None
    sizes: tuple[Sizes, ...]
    solver: _Solver | None = None

    @property
    def sees_vacuum(self) -> bool:
        """Whether cells without a sample are certain, in all frames or in many."""
        steps = None if self.solver is None else self.solver.steps
        return self.vacuum is not None or (steps is not None and steps.certain.mean() >= MANY)

    @classmethod
    def nothing(cls, count: int, shape: tuple[int, ...]) -> Solution:
        """The mean flat as it is, for `count` frames."""
        none = np.zeros((count, 0))
        return cls(np.zeros((0, *shape), np.float32), none, none, None, ())

    def extended(
        self,
        chosen: Array,
        every: Array,
        count: int,
        time: Array,
        logs: Callable[[Array], Image],
        batch: int,
        vacuum_level: Array | None = None,
    ) -> Solution:
        """The same for all `count` frames: those `chosen` were fitted, the rest of `every` follow what was
        learnt.

        `time`, `vacuum_level` `(count,)`; `logs` gives frames over the mean flat. Frames that are in
        neither, as they show nothing, take the offset and the walk.
        """
        assert self.solver is not None
        basis = time_basis(time)
        weights = basis @ self.solver.theta.T
        variance = np.tile(self.solver.slow_variance, (count, 1))
        weights[chosen], variance[chosen] = self.weights, self.variance
        rest = np.setdiff1d(every, chosen)
        for start in range(0, len(rest), batch):
            some = rest[start : start + batch]
            own = None if vacuum_level is None else vacuum_level[some]
            weights[some], variance[some] = self.solver.follow(logs(some), basis[some], own)
        return Solution(self.images, weights, variance, self.vacuum, self.sizes)

    def change(self, frames: Array) -> Image:
        """Log background over the mean flat `(b, h, w)` of frames `(b,)`."""
        return np.tensordot(self.weights[frames], self.images, 1).astype(np.float32)

    def deviation(self, frames: Array, rng: np.random.Generator) -> Image:
        """A draw of what `std` is the deviation of, `(b, h, w)`; of all frames alike, whichever are asked."""
        weights = np.sqrt(self.variance) * rng.standard_normal(self.weights.shape)
        return np.tensordot(weights[frames], self.images, 1).astype(np.float32)

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
    overlaps: Sequence[Overlap] = (),
    vacuum_level: Array | None = None,
    tolerance: float = np.inf,
) -> Solution:
    """Find the weights of components in frames.

    Parameters
    ----------
    logs : `(n, h, w)` natural log of frames over the mean flat. lit : `(h, w)`.
    time : `(n,)` of frames, 0 to 1; flat_time : `(m,)` of the flats that groups have scores of.
    turning : the sample turns, so that what stands beside it stays empty in all frames. overlaps : pairs of
    frames that show the same sample at two places of the detector. vacuum_level : `(n,)` where vacuum is
    expected in `logs`, within `tolerance`; None: nothing is known of it.
    """
    solver = _Solver(
        logs,
        lit,
        groups,
        time,
        flat_time,
        turning,
        seen_twice(overlaps, groups),
        vacuum_level,
        tolerance,
    )
    for number in range(ROUNDS):
        if number >= ALONE:
            solver.find_vacuum()
        solver.round(number >= LEARNT)
    return solver.solution()


@dataclass(frozen=True)
class SeenTwice:
    """Two frames `(2,)` where they overlap: `data` `(p,)` log of the first over the second; what either
    sees of the components, `(k, p)` each.
    """

    frames: tuple[int, int]
    data: Array
    one: Array
    two: Array

    def apart(self, weights: Array) -> Array:
        """What the sides still differ by `(p,)`, with weights `(n, k)` of all frames."""
        first, second = self.frames
        return self.data - weights[first] @ self.one + weights[second] @ self.two


def seen_twice(overlaps: Sequence[Overlap], groups: Sequence[Components]) -> tuple[SeenTwice, ...]:
    """Overlaps as the solve needs them; those of frames that are not fitted are left out."""
    images = np.concatenate([g.images for g in groups])
    found = []
    for overlap in overlaps:
        first, second = overlap.at.round().astype(int).tolist()
        if np.abs(overlap.at - overlap.at.round()).max() < 1e-6 and first != second:
            found.append(SeenTwice((first, second), overlap.data, *overlap.modes(images)))
    return tuple(found)


@dataclass
class _Solver:
    logs: Image
    lit: NDArray[np.bool_]
    groups: Sequence[Components]
    time: Array
    flat_time: Array | None
    turning: bool
    overlaps: Sequence[SeenTwice] = ()
    vacuum_level: Array | None = None
    tolerance: float = np.inf
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
        self.surrogates: dict[bytes, list[tuple[Image, NDArray[np.bool_]]]] = {}
        self.vacuum: NDArray[np.bool_] | None = None
        self.theta, self.slow_variance = np.zeros((k, self.basis.shape[1])), np.zeros(k)

    def follow(self, logs: Image, basis: Array, level: Array | None) -> tuple[Array, Array]:
        """Weights and variance `(b, k)` of other frames `(b, h, w)`: theirs is the jitter, all else is
        known.
        """
        other = replace(self, logs=logs, overlaps=(), vacuum_level=level, mixtures={})
        other.basis, other.theta, other.sizes = basis, self.theta, self.sizes
        other.vacuum, other.steps = None, Steps(logs, self.lit, [self.images])
        other.weights = basis @ self.theta.T
        for number in range(FOLLOWED):
            if number >= ALONE and not self.turning:
                other.find_vacuum()
            elif self.vacuum is not None:
                other.steps.set_standing(self.vacuum)
                other.vacuum = self.vacuum
                other.mixtures.pop(len(SCALES), None)
            normals, pulls, conditional = other.normal_equations()
            for t, at in enumerate(basis):
                slow = self.theta @ at
                own = conditional[t] @ (pulls[t] - normals[t] @ slow)
                other.weights[t] = slow + own
                other.variance[t] = np.diag(conditional[t]) + self.slow_variance
        return other.weights, other.variance

    def find_vacuum(self) -> None:
        """Find cells that no sample reaches, by what is left of the frames."""
        left = self.logs - np.tensordot(self.weights, self.images, 1).astype(np.float32)
        self.vacuum = None
        if not self.turning:
            self.steps.find_passing(left, self.vacuum_level, self.tolerance)
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

    def _prior(self) -> tuple[Array, Array, Array]:
        """Variances `(k,)` of offset, of each wave of the walk, and of jitter."""
        known = self._known()
        parts = [
            np.concatenate([getattr(s, part) for s in self.sizes]) * known
            for part in ("offset", "walk", "jitter")
        ]
        return parts[0], parts[1], parts[2]

    def normal_equations(self) -> tuple[list[Array], list[Array], list[Array]]:
        """Of each frame: normal matrix `(k, k)`, pull `(k,)`, covariance `(k, k)` of the jitter given the
        rest.
        """
        modes = self.steps.modes[0]
        left = self.steps.data - self.weights.astype(np.float32) @ modes
        repeated = REPEATED_BESIDE_OVERLAPS if self.overlaps else REPEATED
        belief = self.precisions(left) / np.float32(repeated)
        free = np.diag(1 / np.maximum(self._prior()[2], NOTHING))
        near = self.steps.scale < len(SCALES)
        self.contradiction = self._contradiction(belief[:, near], left[:, near])
        trust = 1 / np.sqrt(self.contradiction)
        normals: list[Array] = []
        pulls: list[Array] = []
        for weight, own, mine in zip(belief, left, self.weights, strict=True):
            weighted = modes * weight
            normal = (weighted[:, near] @ modes[:, near].T).astype(float) * np.outer(trust, trust)
            pull = (weighted[:, near] @ own[near]).astype(float) * trust**2
            normal += (weighted[:, ~near] @ modes[:, ~near].T).astype(float)
            pull += (weighted[:, ~near] @ own[~near]).astype(float)
            normals.append(normal)
            pulls.append(normal @ mine + pull)
        conditional = [np.linalg.inv(normal + free) for normal in normals]
        return normals, pulls, conditional

    def round(self, learn: bool) -> None:
        """Reweight, solve for all weights, and let sizes follow."""
        normals, pulls, conditional = self.normal_equations()
        offset, walk, jitter = self._prior()
        k, q = len(offset), self.basis.shape[1]
        prior = np.concatenate([offset[:, None], np.repeat(walk[:, None], q - 1, 1)], 1)
        matrix = np.diag(1 / np.maximum(prior.ravel(), NOTHING))
        right = np.zeros(k * q)
        self._flats(matrix, right, jitter)
        settle = self._jointly if self.overlaps else self._one_by_one
        variance, square = settle(matrix, right, normals, pulls, conditional)
        if learn:
            self._learn(self.theta, variance, square)

    def _one_by_one(
        self,
        matrix: Array,
        right: Array,
        normals: list[Array],
        pulls: list[Array],
        conditional: list[Array],
    ) -> tuple[Array, Array]:
        """Solve for offset and walk with the jitter of each frame eliminated, then for that.

        `matrix` `(kq, kq)`, `right` `(kq,)`: the prior's. Returns the variance of offset and walk `(k, q)`
        and the expected square of the jitter, summed over frames, `(k,)`.
        """
        n, k, q = len(normals), len(pulls[0]), self.basis.shape[1]
        for normal, pull, inner, at in zip(normals, pulls, conditional, self.basis, strict=True):
            reduced = normal - normal @ inner @ normal
            matrix += np.kron(reduced, np.outer(at, at))
            right += np.kron(pull - normal @ (inner @ pull), at)
        covariance = np.linalg.inv(matrix)
        self.theta = (covariance @ right).reshape(k, q)
        blocks = covariance.reshape(k, q, k, q)
        square, self.slow_variance = np.zeros(k), np.zeros(k)
        for t, at in enumerate(self.basis):
            slow = self.theta @ at
            own = conditional[t] @ (pulls[t] - normals[t] @ slow)
            shared = np.einsum("iqjr,q,r->ij", blocks, at, at)
            echo = conditional[t] @ normals[t]
            carried = np.eye(k) - echo
            spread = carried @ shared @ carried.T + conditional[t]
            square += own**2 + np.diag(conditional[t] + echo @ shared @ echo.T)
            self.slow_variance += np.diag(shared) / n
            self.weights[t], self.variance[t] = slow + own, np.diag(spread)
        return np.diag(covariance).reshape(k, q), square

    def _jointly(
        self,
        matrix: Array,
        right: Array,
        normals: list[Array],
        pulls: list[Array],
        conditional: list[Array],
    ) -> tuple[Array, Array]:
        """The same where overlaps tie frames together: for everything at once."""
        n, k, q = len(normals), len(pulls[0]), self.basis.shape[1]
        slow = k * q
        whole, pull = np.zeros((slow + n * k,) * 2), np.zeros(slow + n * k)
        whole[:slow, :slow], pull[:slow] = matrix, right
        own = [slice(slow + t * k, slow + (t + 1) * k) for t in range(n)]

        def tie(first: int, second: int, normal: Array) -> None:
            """Add what weights of two frames have to do with each other."""
            one, two = self.basis[first], self.basis[second]
            whole[:slow, :slow] += np.kron(normal, np.outer(one, two))
            whole[:slow, own[second]] += np.kron(normal, one[:, None])
            whole[own[first], :slow] += np.kron(normal, two[None])
            whole[own[first], own[second]] += normal

        def push(frame: int, value: Array) -> None:
            pull[:slow] += np.kron(value, self.basis[frame])
            pull[own[frame]] += value

        for t in range(n):
            tie(t, t, normals[t])
            push(t, pulls[t])
            whole[own[t], own[t]] += np.diag(1 / np.maximum(self._prior()[2], NOTHING))
        for seen, belief in zip(self.overlaps, self._agreement(), strict=True):
            share = belief / belief.sum()  # levels are taken out: others settle them
            sides = [x - (x @ share)[:, None] for x in (seen.one, -seen.two)]
            data = seen.data - seen.data @ share
            for first, one in zip(seen.frames, sides, strict=True):
                push(first, (one * belief) @ data)
                for second, two in zip(seen.frames, sides, strict=True):
                    tie(first, second, (one * belief) @ two.T)
        covariance = np.linalg.inv(whole)
        found = covariance @ pull
        self.theta = found[:slow].reshape(k, q)
        variance = np.diag(covariance)
        square, self.slow_variance = np.zeros(k), np.zeros(k)
        blocks = covariance[:slow, :slow].reshape(k, q, k, q)
        for t, at in enumerate(self.basis):
            shared = np.einsum("iqir,q,r->i", blocks, at, at)
            cross = np.einsum("iqi,q->i", covariance[:slow, own[t]].reshape(k, q, k), at)
            self.weights[t] = self.theta @ at + found[own[t]]
            self.variance[t] = np.maximum(shared + 2 * cross + variance[own[t]], 0)
            square += found[own[t]] ** 2 + variance[own[t]]
            self.slow_variance += shared / n
        return variance[:slow].reshape(k, q), square

    def _agreement(self) -> list[Array]:
        """How far each place of each overlap is believed, `(p,)`; edges a little off count less."""
        left = [x.apart(self.weights) for x in self.overlaps]
        left = [x - np.median(x) for x in left]
        size = usual_size(np.concatenate(left))
        return [believed(x, size) for x in left]

    def _known(self) -> Array:
        """1 for components that count, else 0, `(k,)`."""
        seen = self.vacuum is not None if self.turning else self.steps.certain.mean() >= MANY
        hidden = not (seen or self.overlaps)
        return np.concatenate(
            [np.full(len(g.images), float(not (g.mistakable and hidden))) for g in self.groups]
        )

    def _contradiction(self, belief: Image, left: Image) -> Array:
        """How much more than chance steps of the sample agree with images like the components, `(k,)`, 1
        at least.

        Steps of one object point the same way. A surrogate of a component, less what components express,
        has nothing of the background in it, and as much of the sample as the component itself.
        """
        active = self._known() > 0
        if active.tobytes() not in self.surrogates:
            self.surrogates[active.tobytes()] = self._surrogates(active)
        ratio = np.ones((SURROGATES, len(self.images)))
        for i, (modes, kept) in enumerate(self.surrogates[active.tobytes()]):
            score = (belief * left) @ modes.T
            expected = belief @ (modes**2).T
            ratio[i] = (score**2).sum(0) / np.maximum(expected.sum(0), 1e-30)
            ratio[i][~kept] = np.nan
        told = np.isfinite(ratio).any(0)
        found = np.ones(len(self.images))
        if told.any():
            found[told] = np.nanmean(ratio[:, told], 0)
            found[~told] = np.median(found[told])
        return np.maximum(found, 1.0)

    def _surrogates(self, active: NDArray[np.bool_]) -> list[tuple[Image, NDArray[np.bool_]]]:
        """Steps of images with the components' spectrum and other phases, `(k, p)`, and which are new
        beside the `active`.

        The cosine modes of a component keep their size and get random signs (surrogate data, Theiler et
        al. 1992).
        """
        power = (self.images[:, self.lit] ** 2).sum(1)
        rng = np.random.default_rng(0)  # the same for every scan of this shape
        modes = np.stack([modes_of(np.where(self.lit, image, 0)) for image in self.images])
        found = []
        for _ in range(SURROGATES):
            signs = rng.choice(np.array([-1, 1], np.float32), self.lit.shape)
            other = np.stack([images_of(m * signs) for m in modes]).astype(np.float32)
            other = apart_from(other, self.images[active], self.lit)
            kept = (other[:, self.lit] ** 2).sum(1) > LIKE_ITSELF * power
            found.append((steps_of(other)[:, self.steps.seen].astype(np.float32), kept))
        return found

    def _flats(self, matrix: Array, right: Array, jitter: Array) -> None:
        """Let the scan's own flats say where weights were before and after it; offsets are the frames'
        alone.
        """
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
        if self.turning and self.vacuum is None:
            return  # a sample that covers the field and turns slowly would be learnt as drift
        start, n = 0, len(self.weights)
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
        return Solution(
            self.images, self.weights, self.variance, self.vacuum, tuple(self.sizes), self
        )
