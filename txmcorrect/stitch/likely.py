"""How slowly the beam changes from tile to tile: of some ways, the one that overlaps make likeliest.

Simulated beams drift slowly, and what one tile's overlaps tell helps its neighbours. Of a real mosaic the
fields of tiles taken one after the other had nothing in common (independent fields foretell overlaps that
were left out to 4.2 %, slow ones to 4.75 %, none at all to 4.6 %); taken to drift slowly, tiles were pulled
5 % off along their overlaps, and steps could be seen. So this is asked of the overlaps themselves.

Source: choice by the evidence, MacKay 1992.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from txmcorrect.stitch.fields import Smoothness, broad_model, huber, in_time, solve
from txmcorrect.stitch.seam import Seam

Array = NDArray[Any]

# Correlation of the fields of tiles taken one after the other -> what to call it.
KEPT = {
    0.9: "drifts slowly from tile to tile",
    0.5: "drifts from tile to tile",
    0.0: "changes with every tile",
}
MOST_TILES = 16  # neighbours that are asked: the cost grows with their cube


def likely(seams: Sequence[Seam], n: int, shape: tuple[int, int]) -> Smoothness:
    """The smoothness whose `kept` has the highest evidence; as it is by default where nothing overlaps.

    Parameters
    ----------
    seams : of all overlapping pairs. n : tiles. shape : frame (h, w).
    """
    prior = Smoothness()
    index = _neighbours(seams, n)
    place = {tile: k for k, tile in enumerate(index.tolist())}
    inner = [
        replace(s, first=place[s.first], second=place[s.second])
        for s in seams
        if {s.first, s.second} <= place.keys()
    ]
    if not inner:
        return prior
    model = broad_model(inner, len(index), shape, prior)
    # What even fields that are free to change cannot explain is a misplaced edge.
    penalty = model.penalty(prior, np.eye(len(index)))
    free = solve(model.design, model.ratio, model.precision, penalty)
    weight = model.precision * huber(model.ratio - model.design @ free)
    normal = (model.design.T @ model.design.multiply(weight[:, None])).toarray()
    right = model.design.T @ (weight * model.ratio)

    def evidence(kept: float) -> float:
        """Log likelihood of the overlaps whatever the fields are, but for what is the same for all."""
        tiles = in_time(index, kept)
        factor = scipy.linalg.cho_factor(normal + model.penalty(prior, tiles).toarray())
        fitted = float(right @ scipy.linalg.cho_solve(factor, right))
        known = math.prod(model.own) * np.linalg.slogdet(tiles.toarray())[1]
        return (fitted + known) / 2 - np.log(np.diag(factor[0])).sum()

    return replace(prior, kept=max(KEPT, key=evidence))


def _neighbours(seams: Sequence[Seam], n: int) -> Array:
    """Numbers of tiles around the middle one, as overlaps link them, in their order."""
    beside: dict[int, list[int]] = {}
    for seam in seams:
        beside.setdefault(seam.first, []).append(seam.second)
        beside.setdefault(seam.second, []).append(seam.first)
    if not beside:
        return np.zeros(0, np.intp)
    found = [min(beside, key=lambda tile: abs(tile - n // 2))]
    for tile in found:
        found += [other for other in sorted(beside[tile]) if other not in found]
        if len(found) >= MOST_TILES:
            break
    return np.sort(np.array(found[:MOST_TILES], np.intp))
