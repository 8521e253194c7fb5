"""How the background changed through a scan: one robust fit to all its frames.

In the logarithm background and sample add. The background of a frame is a reference plus modes
with weights that change slowly in time; the sample is an outlier. What tells them apart are
`steps` between neighbouring cells at several scales: those of a sample are few and large, or differ
from frame to frame, and at scales where they are many the fit sees their spread and believes them
less. How far it believes a mode follows from how much the frames contradict each other about it; how
large a group of modes is, from the evidence.

Sources: eigen flats, Van Nieuwenhove et al. 2015; derivatives over many images, Weiss 2001; a loss by
reweighting, Holland and Welsch 1977, that all but rejects what is far off, Geman and McClure 1987;
clustered variances, Liang and Zeger 1986.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from txmcorrect.background.evidence import (
    NEW,
    believed,
    contradiction,
    level_apart,
    normal_matrix,
    normals,
    scores,
    usual_size,
    widened,
)
from txmcorrect.background.groups import COURSE, STRAIGHT, Fit, Group, courses, find_size
from txmcorrect.background.jumps import JUMP_SIZE, LEAST_SIDE, Crossing, Smeared, find_jump
from txmcorrect.background.overlaps import Overlap
from txmcorrect.background.steps import Steps

Image = NDArray[np.float32]
Array = NDArray[Any]
More = Callable[[Image], "Group"]  # of the mean change `(h, w)` over the reference

ROUNDS, FREE_ROUNDS = 16, 5  # of reweighting; of these, with the sizes that were expected
STIFF_ROUNDS = 6  # before, of straight courses alone
MOST_JUMPS = 2
ACROSS = 6  # rounds of reweighting of what differs on both sides of a jump
# Times that each frame's own departure is followed: steps far from the fit are all but rejected at first.
FOLLOWED = 2


def fit_drift(
    logs: Image,
    lit: NDArray[np.bool_],
    groups: list[Group],
    overlaps: Sequence[Overlap] = (),
    time: Array | None = None,
    turning: bool = False,
    more: More | None = None,
    referenced: bool = False,
    alike: bool = False,
) -> Fit:
    """Fit the modes of `groups` to frames.

    Parameters
    ----------
    logs : `(n, h, w)` natural log of frames over the reference. lit : `(h, w)`.
    groups : steady ones and others; their sizes, weights and std are filled in.
    overlaps : frames that saw the same sample at two places of the detector. There it drops out of
    the difference, so these are believed as they are.
    time : `(n,)` of each frame, 0 to 1; None: equally far apart.
    turning : the sample turns: it may stand in the same cells in all frames.
    more : makes one more group once it is roughly known how the frames differ from the reference.
    referenced : `logs` are over a reference without any sample. alike : frames in a row show nearly the
    same sample.
    """
    if time is None:
        time = np.linspace(0, 1, len(logs)) if len(logs) > 1 else np.zeros(1)
    given = [(g.size, g.course) for g in groups]
    fit = _Fitting(logs, lit, groups, overlaps, time, turning, referenced, alike)
    fit.run(more)
    if fit.lost:  # what it learnt from cells that only seemed empty would stay
        for group, (size, course) in zip(groups, given, strict=True):
            group.size, group.course = size, course
        fit = _Fitting(logs, lit, groups, overlaps, time, False, referenced, alike)
        fit.run(more)
    jumps, told = tuple(sorted(fit.jumps)), fit.turning
    found = fit.change(), fit.std(), fit.std(len(COURSE))
    return Fit(*found, jumps, told, tuple(fit.groups), fit.course, lit)


class _Fitting:
    """The state of a fit: alternate between steady groups and those that move."""

    def __init__(
        self,
        logs: Image,
        lit: NDArray[np.bool_],
        groups: list[Group],
        overlaps: Sequence[Overlap],
        time: Array,
        turning: bool,
        referenced: bool,
        alike: bool,
    ) -> None:
        self.logs, self.lit = logs, lit
        self.referenced, self.alike = referenced, alike
        self.turning = bool(turning and lit.any())
        self.lost = False
        self.overlaps = overlaps
        self.time = time
        self.course = courses(time)
        self.jumps: tuple[int, ...] = ()
        self.stiff = False
        self.groups: list[Group] = []
        self.seen_twice: list[list[tuple[Array, Array]]] = [[] for _ in overlaps]
        self.steps = Steps(logs, lit, [])
        self._add(groups)

    def _add(self, groups: list[Group]) -> None:
        """Let some more groups have a part, from nothing."""
        for group in groups:
            group.weights = np.zeros((len(group.images), len(group.course)))
            group.std = np.zeros_like(group.weights)
        self.groups += groups
        for overlap, seen in zip(self.overlaps, self.seen_twice, strict=True):
            seen += [overlap.modes(group.images) for group in groups]
        self.steps.add([group.images for group in groups])

    def add_jump(self, jump: int, change: Array) -> None:
        """Let groups jump there that may depart from the reference at once, not those that only bend;
        `change` `(k,)` is that of the `_jumpers`.
        """
        start = 0
        jumpers = self._jumpers()
        std = np.zeros(len(change))
        if self.alike:
            jumpers = [g for g in self.groups if not g.steady]
            change, std = self._across(jump, self._modes(jumpers))
        self.jumps = (*self.jumps, jump)
        self.course = courses(self.time, None, self.jumps)
        for group in self.groups:
            jumper = any(group is g for g in jumpers)
            if group.steady or not (jumper or 0 in group.course):
                continue
            group.course = (*group.course, len(COURSE) + len(self.jumps) - 1)
            group.weights = np.pad(group.weights, ((0, 0), (0, 1)))
            group.std = np.pad(group.std, ((0, 0), (0, 1)))
            if jumper:
                own = slice(start, start + len(group.images))
                group.weights[:, -1], group.std[:, -1] = change[own], std[own]
                start = own.stop

    def _across(self, jump: int, modes: Image) -> tuple[Array, Array]:
        """Change `(k,)` of some modes between the frames on both sides of a jump, and its deviation.

        The sample is nearly the same in them, also where it covers so much that a single frame tells nothing.
        """
        left = self.left()
        pairs = left[jump : jump + LEAST_SIDE] - left[jump - LEAST_SIDE : jump]
        usual = np.median(pairs, 0)  # one of the frames may be odd
        change = np.zeros(len(modes))
        for _ in range(ACROSS):
            belief = self.steps.belief_across(usual - change.astype(np.float32) @ modes)
            weighted = modes * belief
            normal = (weighted @ modes.T).astype(np.float64) + np.eye(len(modes)) / JUMP_SIZE**2
            change = np.linalg.solve(normal, weighted @ usual)
        each = np.linalg.solve(normal, (weighted @ pairs.T).astype(np.float64))
        return change, each.std(1, ddof=1) / np.sqrt(len(pairs))

    def _jumpers(self) -> list[Group]:
        """Groups that tell a jump: those that only jump, as they are few modes; or else all that move."""
        parts = set(range(len(COURSE), len(COURSE) + len(self.jumps)))
        return [g for g in self.groups if set(g.course) <= parts] or [
            g for g in self.groups if not g.steady
        ]

    def run(self, more: More | None) -> None:
        """Fit, look for jumps, fit again; stops where it is not known where a turning sample ends.

        Large jumps are looked for first, while weights may only follow straight lines: whatever bends
        follows a jump near an end of the scan, and hides it.
        """
        self.stiff = True
        self.rounds(STIFF_ROUNDS, STIFF_ROUNDS)
        self._jump(STIFF_ROUNDS // 2)
        if more is not None and not self.lost:
            self._add([more(self.change().mean(0))])
        self.stiff = False
        if not self.jumps:  # from the start: what was learnt while stiff is of no use
            for group in self.groups:
                group.weights[:] = 0
        self.rounds(ROUNDS, FREE_ROUNDS)
        self._jump(ROUNDS // 2)

    def _jump(self, count: int) -> None:
        """Look for jumps, and fit again for so many rounds after each."""
        while len(self.jumps) < MOST_JUMPS and not self.lost:
            found = self.next_jump()
            if found is None:
                break
            self.add_jump(*found)
            self.rounds(count, count if self.stiff else 1)

    def rounds(self, count: int, free: int) -> None:
        moving = [g for g in self.groups if not g.steady and g.course]
        turns = [[g for g in self.groups if g.steady], moving]
        for number in range(count):
            self._find_sample(number >= free, number >= (free + count) // 2)
            if self.lost:
                break
            belief = self.steps.belief(self.left())
            agreed = self._agreed()
            for turn in turns:
                if turn:
                    self._solve(turn, belief, agreed, number >= free)

    def _find_sample(self, late: bool, settled: bool) -> None:
        """Where a sample stands or passes; if it turns, the fit is lost where that is not certain once it
        is good. What passes is told from beams that moved once these have been followed.
        """
        if self.turning:
            self.lost = not self.steps.find_standing(self.logs - self.change()) and late
        elif settled:
            self.steps.find_passing(self.logs - self.change())

    def left(self) -> Image:
        """Residual steps `(n, p)`."""
        left = self.steps.data.copy()
        for group, modes in zip(self.groups, self.steps.modes, strict=True):
            left -= self._course_of(group).astype(np.float32) @ modes
        return left

    def _course_of(self, group: Group) -> Array:
        """Weights at all frames `(n, k)`."""
        return np.asarray(self.course[:, list(group.course)] @ group.weights.T)

    def _modes(self, turn: list[Group]) -> Image:
        """Steps of the modes of some groups, `(k, p)`."""
        pairs = zip(self.groups, self.steps.modes, strict=True)
        return np.concatenate([m for g, m in pairs if any(g is t for t in turn)])

    def _apart(self) -> list[Array]:
        """What the two sides of each overlap still differ by, `(p,)` each."""
        found = []
        for overlap, modes in zip(self.overlaps, self.seen_twice, strict=True):
            course = courses(self.time, overlap.at, self.jumps)
            left = overlap.data.astype(np.float64)
            for group, (one, two) in zip(self.groups, modes, strict=True):
                first, second = course[:, list(group.course)] @ group.weights.T
                left = left - first @ one + second @ two
            found.append(left)
        return found

    def _agreed(self) -> list[Array]:
        """How far each cell of each overlap is believed; edges of what lies a little off count less."""
        left = self._apart()
        if not left:
            return []
        left = [x - np.median(x) for x in left]
        size = usual_size(np.concatenate(left))
        return [believed(x, size) for x in left]

    def _overlapping(
        self, turn: list[Group], parts: list[int], agreed: list[Array]
    ) -> tuple[Array, Array]:
        """Normal matrix `(kq, kq)` and score `(kq,)` of overlaps."""
        k, q = sum(len(g.images) for g in turn), len(parts)
        matrix, score = np.zeros((k, q, k, q)), np.zeros((k, q))
        pieces = zip(self.overlaps, self._seen_apart(turn), agreed, strict=True)
        for overlap, (at, one, two, left), weight in pieces:
            one, two, left, weight = level_apart(one, two, left, weight, overlap.levelled)
            first, second = courses(self.time, at, self.jumps)[:, parts]
            sides = ((one, first), (two, -second))
            for a, course_a in sides:
                score += np.outer((a * weight) @ left, course_a)
                for b, course_b in sides:
                    both = np.outer(course_a, course_b)[None, :, None]
                    matrix += ((a * weight) @ b.T)[:, None, :, None] * both
        return matrix.reshape(k * q, k * q), score.ravel()

    def _solve(self, turn: list[Group], belief: Image, agreed: list[Array], found: bool) -> None:
        """One step of reweighted least squares on some groups; then, their sizes."""
        modes = self._modes(turn)
        score = scores(modes, belief, self.left())
        parts = sorted({c for g in turn for c in g.course if self._follows(c)})
        if not parts:
            return
        course = self.course[:, parts]
        k, q = len(modes), len(parts)
        ends = np.cumsum([0, *(len(g.images) for g in turn)])
        rows = [slice(start, stop) for start, stop in pairwise(ends)]
        kept = [[c in parts for c in g.course] for g in turn]
        columns = [[parts.index(c) for c in g.course if c in parts] for g in turn]
        weights = np.zeros((k, q))
        for group, own, some, those in zip(turn, rows, columns, kept, strict=True):
            weights[own, some] = group.weights[:, those]
        matrix = normal_matrix(modes, belief, course)
        right = matrix @ weights.ravel() + (score.T @ course).ravel()
        expected = (modes**2 @ belief.sum(0)).astype(np.float64)
        trust = contradiction(expected, score) if found else np.full(k, NEW)
        size = np.concatenate([self._expected(g, parts) for g in turn])
        # What steps say of a mode counts as much as it is believed; overlaps and prior count in full.
        free = size > 0
        flat = free.ravel()
        block = np.ix_(flat, flat)
        matrix, right = widened(matrix[block], right[flat], np.repeat(trust, q)[flat])
        if self.overlaps:
            common, pull = self._overlapping(turn, parts, agreed)
            right = right + (common @ weights.ravel() + pull)[flat]
            matrix = matrix + common[block]
        inverse = np.linalg.inv(matrix + np.diag(1 / size[free] ** 2))
        variance = np.zeros((k, q))
        weights[free] = inverse @ right
        variance[free] = np.maximum(np.diag(inverse), 0)
        for group, own, some, those in zip(turn, rows, columns, kept, strict=True):
            group.weights[:, those] = weights[own][:, some]
            group.std[:, those] = np.sqrt(variance[own][:, some])
            if found and any(those):
                find_size(group, size[own][:, some], np.array(those))

    def _expected(self, group: Group, parts: list[int]) -> Array:
        """Prior standard deviations `(k, q)`; 0 where a group has no such part."""
        course = np.append(COURSE, np.ones(len(self.jumps)))
        row = [group.size * course[p] if p in group.course else 0.0 for p in parts]
        return np.tile(row, (len(group.images), 1))

    def _follows(self, part: int) -> bool:
        """Whether weights may follow a part of `COURSE`, or a jump, for now."""
        if part >= len(COURSE):
            return not self.alike  # else it is known from the frames on both sides
        return not self.stiff or part in STRAIGHT

    def next_jump(self) -> tuple[int, Array] | None:
        """The frame before which weights change at once, and by how much, if that explains much more.

        Judged by how each frame departs from the fit, a frame that is odd alone not counting, and by
        overlaps of frames on both sides.
        """
        turn = self._jumpers()
        n = len(self.logs)
        if not turn or n < 2 * LEAST_SIDE:
            return None
        left = self.left()
        if not self.turning:  # what has jumped would look like a sample
            self.steps.forget_passing()
        modes = self._modes(turn)
        normal, pull, own = self._departure(modes, left, left)
        if self.referenced:  # without a reference the sample would be followed as well
            for _ in range(FOLLOWED):
                own = self._departure(modes, left, left - own.astype(np.float32) @ modes)[2]
        images = np.concatenate([g.images for g in turn])[:, self.lit]
        crossing = [Crossing(*pair) for pair in self._seen_apart(turn)]
        followed = sorted({c for g in self.groups for c in g.course if self._follows(c)})
        smeared = Smeared(self.course[:, followed], normal, pull)
        return find_jump(own, images, smeared, crossing, self.jumps, self.stiff)

    def _departure(self, modes: Image, left: Image, believed: Image) -> tuple[Array, Array, Array]:
        """How each frame departs from the fit, `(n, k)`, after its normal matrix and score of some modes.

        `left` `(n, p)` steps; `believed` : what would be left, by which they count.
        """
        belief = self.steps.belief(believed)
        normal, pull = normals(modes, belief), scores(modes, belief, left)
        own = np.linalg.solve(normal + np.eye(len(modes)) / NEW, pull[..., None])[..., 0]
        return normal, pull, own

    def _seen_apart(self, turn: list[Group]) -> Iterator[tuple[Array, Array, Array, Array]]:
        """Of each overlap: places of the two frames, what each sees of some modes, what they differ by."""
        chosen = [any(g is t for t in turn) for g in self.groups]
        for overlap, modes, left in zip(self.overlaps, self.seen_twice, self._apart(), strict=True):
            one, two = (
                np.concatenate([m[side] for m, c in zip(modes, chosen, strict=True) if c])
                for side in (0, 1)
            )
            yield overlap.at, one, two, left

    def change(self) -> Image:
        total = np.zeros(self.logs.shape, np.float32)
        for group in self.groups:
            total += np.tensordot(self._course_of(group), group.images, 1).astype(np.float32)
        return total

    def std(self, first: int = 0) -> Image:
        """Of the parts of courses from `first` on; modes and parts taken for independent."""
        variance = np.zeros(self.logs.shape, np.float32)
        for group in self.groups:
            own = [k for k, part in enumerate(group.course) if part >= first]
            if not own:
                continue
            course = self.course[:, [group.course[k] for k in own]]
            weights = course**2 @ (group.std[:, own] ** 2).T
            variance += np.tensordot(weights, group.shapes(self.lit) ** 2, 1).astype(np.float32)
        return np.sqrt(variance)
