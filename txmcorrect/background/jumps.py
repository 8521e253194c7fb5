"""Where all frames depart from a fit from some moment on: jumps of the illumination.

Seen by what each frame says for itself on both sides, by overlaps of frames on both sides, and, where
the fit has smeared a jump over all frames, by what is left of it in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from txmcorrect.background.evidence import believed, contradiction, level_apart, usual_size

Array = NDArray[Any]

JUMP_EVIDENCE = 40.0  # chi squared beyond twice the number of modes
LEAST_JUMP = 0.02  # rms, natural log
# While a fit may only follow straight lines, fast drifts look like jumps of up to 3 %, but of no more;
# what is larger needs no more than twice the number of modes, and more than what bends.
LEAST_STIFF_JUMP = 0.04
BENDS = (2, 3)  # half periods
JUMP_SIZE = 5.0  # of a mode, over what is expected of drifts
LEAST_POWER = 0.1  # of a step that no course can follow
MEDIAN_VARIANCE = 1.57  # of a median over that of a mean
LEAST_SIDE, BESIDE = 3, 5  # frames before and after a jump that are compared: at least, at most


class Crossing:
    """What one overlap says of a jump between its frames."""

    def __init__(self, at: Array, one: Array, two: Array, left: Array) -> None:
        self.at = at
        left = left - np.median(left)
        weight = believed(left, usual_size(left))
        one, two, left, weight = level_apart(one, two, left, weight, False)
        self.square = [[(a * weight) @ b.T for b in (one, two)] for a in (one, two)]
        self.pull = [(a * weight) @ left for a in (one, two)]

    def add_to(self, matrix: Array, score: Array, jump: int) -> None:
        """Add the normal equations of the change at `jump`, in place."""
        share = np.where(self.at > jump - 0.5, 1.0, 0.0) * (1, -1)
        for a in (0, 1):
            score += share[a] * self.pull[a]
            for b in (0, 1):
                matrix += share[a] * share[b] * self.square[a][b]


class Smeared:
    """All frames against a fit: courses `(n, q)` that it can follow, normal matrices `(n, k, k)` and
    scores `(n, k)`.
    """

    def __init__(self, course: Array, normal: Array, score: Array) -> None:
        self.basis = np.linalg.qr(course)[0]
        self.normal, self.score = normal, score
        self.expected = np.einsum("nkk->k", normal)

    def change(self, jump: int) -> tuple[Array, float]:
        """Change `(k,)` at a jump that no course can follow, and its evidence."""
        return self._other(np.where(np.arange(len(self.score)) >= jump, 1.0, 0.0))

    def bend(self) -> float:
        """Evidence of the cosine that would explain most of what no course can follow."""
        time = np.linspace(0, 1, len(self.score))
        return max(self._other(np.cos(np.pi * k * time))[1] for k in BENDS)

    def _other(self, course: Array) -> tuple[Array, float]:
        """Change `(k,)` with another course `(n,)`, and its evidence."""
        step = course - self.basis @ (self.basis.T @ course)
        power = float(step @ step)
        if power < LEAST_POWER:
            return np.zeros(self.score.shape[1]), 0.0
        pull = step @ self.score
        trust = contradiction(self.expected, self.score - np.outer(step, pull) / power)
        matrix = np.einsum("n,nkl->kl", step**2, self.normal)
        change = np.linalg.solve(matrix + np.diag(1 / (trust + 1e-12)), pull)
        return change, float((trust * pull) @ change)


def find_jump(
    own: Array,
    images: Array,
    smeared: Smeared,
    crossing: Sequence[Crossing],
    known: tuple[int, ...],
    stiff: bool = False,
) -> tuple[int, Array] | None:
    """The first frame after a jump, and the change `(k,)` of modes, if that explains much more.

    Parameters
    ----------
    own : `(n, k)` how each frame departs from the fit. images : `(k, p)` modes where there is light.
    known : jumps found before. stiff : the fit could only follow straight lines.
    """
    n = len(own)
    usual = 1.4826 * np.median(np.abs(own - np.median(own, 0)), 0) + 1e-6
    enough = 2 * len(images) + JUMP_EVIDENCE
    if stiff:
        enough = max(2 * len(images), smeared.bend())
    least = LEAST_STIFF_JUMP if stiff else LEAST_JUMP
    best: tuple[float, int, Array] | None = None
    taken = (0, *known, n)
    for jump in range(1, n):
        if min(abs(jump - t) for t in taken) < LEAST_SIDE:
            continue
        change, precision = _beside(own, usual, jump)
        score, matrix = precision * change, np.diag(precision + 1 / JUMP_SIZE**2)
        for pair in crossing:
            pair.add_to(matrix, score, jump)
        change = np.linalg.solve(matrix, score)
        evidence = float(score @ change)
        other, its_evidence = smeared.change(jump)
        if its_evidence > evidence:
            change, evidence = other, its_evidence
        large = float((change @ images).std()) > least
        if large and evidence > enough and (best is None or evidence > best[0]):
            best = (evidence, jump, change)
    return None if best is None else (_first_after(own, usual, best[1], taken), best[2])


def _beside(own: Array, usual: Array, jump: int) -> tuple[Array, Array]:
    """Change `(k,)` between the medians of some frames on both sides, and its precision.

    `own` `(n, k)`: how each frame departs from the fit; `usual` `(k,)` by how much.
    """
    after, before = own[jump : jump + BESIDE], own[max(jump - BESIDE, 0) : jump]
    variance = usual**2 * MEDIAN_VARIANCE * (1 / len(after) + 1 / len(before))
    return np.median(after, 0) - np.median(before, 0), 1 / variance


def _first_after(own: Array, usual: Array, jump: int, taken: tuple[int, ...]) -> int:
    """Where near `jump` the frames change sides: medians do not say, as they bear odd frames."""
    around = np.arange(max(jump - BESIDE, 0), min(jump + BESIDE, len(own)))
    sides = (np.median(own[around[around < jump]], 0), np.median(own[around[around >= jump]], 0))
    apart = [(np.abs(own[around] - side) / usual).sum(1) for side in sides]
    choices = [j for j in around if min(abs(int(j) - t) for t in taken) >= LEAST_SIDE]
    return int(min(choices, key=lambda j: apart[0][around < j].sum() + apart[1][around >= j].sum()))
