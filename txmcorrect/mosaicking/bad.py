"""Tiles that cannot take part: without light, shown twice, given up by the correction."""

from __future__ import annotations

import hashlib
import logging

import numpy as np

from txmcorrect.errors import FlatFieldError
from txmcorrect.mosaicking.plan import Plan
from txmcorrect.mosaicking.source import DARK_TILE, Source
from txmcorrect.progress import Stages

log = logging.getLogger(__name__)


def find_bad(source: Source, plan: Plan, stages: Stages) -> dict[int, str]:
    """Tiles without light, tiles that show what another one shows, tiles the correction gave up."""
    bad = dict(plan.left_out)
    seen: dict[str, int] = {}
    level = np.zeros(source.scan.shape[0])
    for i in range(len(level)):
        raw = np.ascontiguousarray(source.scan.projections.read(i, i + 1)[0])
        level[i] = float(np.median(raw[source.lit], overwrite_input=False))
        digest = hashlib.sha256(raw.tobytes()).hexdigest()
        if digest in seen:
            bad.setdefault(i, f"the same frame as {plan.names[seen[digest]]}")
        seen.setdefault(digest, i)
        stages("checking", i + 1, len(level))
    for dark in np.flatnonzero(level < DARK_TILE * np.median(level)).tolist():
        bad[dark] = "no light"
    for given_up in np.flatnonzero(source.unusable).tolist():
        bad.setdefault(given_up, "unusable")
    for i, why in sorted(bad.items()):
        log.warning("%s is left out: %s", plan.names[i], why)
    if len(level) - len(bad) < 2:
        raise FlatFieldError(
            f"{source.scan.path}: expected at least two usable tiles, got {len(level) - len(bad)}"
        )
    return bad
