"""Where tiles lie, before they are corrected: the background is found from their overlaps, too."""

from __future__ import annotations

import logging

from txmcorrect.config import MosaicSettings
from txmcorrect.errors import TxmError
from txmcorrect.mosaicking.arrange import align
from txmcorrect.mosaicking.bad import find_bad
from txmcorrect.mosaicking.plan import Plan
from txmcorrect.mosaicking.source import median_source
from txmcorrect.progress import Stages
from txmcorrect.scan import Scan
from txmcorrect.stitch.align import Alignment

log = logging.getLogger(__name__)

FEWEST = 6  # tiles: the median of fewer holds too much of each


def rough_alignment(
    settings: MosaicSettings, scan: Scan, plan: Plan, keep: int, stages: Stages
) -> Alignment | None:
    """Register the tiles over the median of all; None where that fails.

    A cell of the working grid is what the positions must be good for. An order that these tiles
    contradict is judged once they are corrected.
    """
    if scan.shape[0] < FEWEST:
        return None
    try:
        source = median_source(settings, scan)
        left_out = find_bad(source, plan, stages)
        return align(settings, source, plan, frozenset(left_out), keep, stages)
    except TxmError as error:
        log.info("the tiles are corrected without their overlaps: %s", error)
        return None
