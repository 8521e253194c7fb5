"""`mosaic`: tiles to one image.

rough positions -> correct -> bad tiles -> positions -> overlaps -> blend -> pyramid, layout, report
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from txmcorrect.background.correction import open_for
from txmcorrect.config import MosaicSettings
from txmcorrect.errors import OutputError, TxmError
from txmcorrect.formats.ome import read_level, write_pyramid
from txmcorrect.mosaicking.arrange import align
from txmcorrect.mosaicking.bad import find_bad
from txmcorrect.mosaicking.plan import Plan, plan_layout
from txmcorrect.mosaicking.rough import rough_alignment
from txmcorrect.mosaicking.seams import compare_tiles, feather_px, preservation
from txmcorrect.mosaicking.source import Source, looks_at_overlaps, open_source
from txmcorrect.progress import Stages
from txmcorrect.report.mosaic import MosaicSummary, PairLine, mosaic_report
from txmcorrect.result import Result
from txmcorrect.scan import Scan
from txmcorrect.stitch import layout as layouts
from txmcorrect.stitch.align import Alignment, believed_pairs
from txmcorrect.stitch.blend import blend_strips, feather, mosaic_shape
from txmcorrect.stitch.fields import Smoothness
from txmcorrect.stitch.groups import groups_of
from txmcorrect.stitch.likely import KEPT
from txmcorrect.stitch.overlap import refine
from txmcorrect.stitch.place import Placement
from txmcorrect.stitch.recent import Recent
from txmcorrect.stitch.seam import Seam, seam_figure

log = logging.getLogger(__name__)
Array = NDArray[Any]

NOT_TRUSTED = 3
PREVIEW_PX = 1600
GAINS_ONLY = Smoothness(shared_size=1e-6, own_size=1e-6, near_size=1e-6, gain=0.1)


def run(settings: MosaicSettings) -> Result:
    """Correct, register and blend the tiles of one scan.

    Raises
    ------
    TxmError : see `errors`; nothing half-written is left.
    """
    if len(settings.scans) != 1:
        raise TxmError(
            f"expected one mosaic (a file, or a folder of tiles), got {len(settings.scans)}; "
            "run the command once for each"
        )
    path = settings.scans[0]
    out = settings.out or path.absolute().parent / (path.absolute().stem + ".mosaic.tif")
    if out.exists() and not settings.overwrite:
        raise OutputError(f"{out} exists; replace it with --overwrite, or choose another --out")
    scan = open_for(settings, path)
    plan = plan_layout(settings, scan)
    with Stages(settings.quiet, "tiles") as stages, ExitStack() as files:
        keep = tiles_in(settings.memory, scan)
        rough = None
        if looks_at_overlaps(settings, scan):
            rough = rough_alignment(settings, scan, plan, keep, stages)
        corners = None if rough is None else rough.positions
        source = open_source(settings, scan, path, out, stages, files, corners)
        return stitch(settings, source, plan, out, stages, rough)


def stitch(
    settings: MosaicSettings,
    source: Source,
    plan: Plan,
    out: Path,
    stages: Stages,
    rough: Alignment | None = None,
) -> Result:
    """Place, refine, blend and write."""
    left_out = find_bad(source, plan, stages)
    n, h, w = source.frames.shape
    good = [i for i in range(n) if i not in left_out]
    keep = tiles_in(settings.memory, source.scan)
    tiles = Recent(lambda i: source.frames.read(i, i + 1)[0], keep)
    alignment = align(settings, source, plan, frozenset(left_out), keep, stages, rough)
    positions = alignment.positions
    pairs = [p for p in alignment.pairs if not set(p) & set(left_out)]

    def compare(read: Any, chosen: Sequence[tuple[int, int]]) -> list[Seam]:
        return compare_tiles(read, chosen, positions, source.lit)

    before = compare(tiles, pairs)
    refinement = refine(before, n, (h, w), GAINS_ONLY if settings.no_refine else None)

    def refined(index: int) -> Array:
        return np.asarray(tiles[index] * np.exp(-refinement.log_background(index)), np.float32)

    after = compare(Recent(refined, keep), pairs)
    slopes = preservation(tiles, compare, before, refinement, positions)
    weight = feather(source.lit, feather_px(positions, pairs, (h, w))) * np.minimum(source.light, 1)
    multiband = settings.blend == "multiband"
    strips = blend_strips(refined, weight, positions, good, multiband=multiband)
    shape = mosaic_shape(positions, (h, w))
    strips = _counted(strips, shape[0], stages)
    pixel_nm = settings.pixel_size_nm or source.scan.optics.pixel_size_nm
    pixel_um = None if pixel_nm is None else pixel_nm / 1000
    write_pyramid(out, strips, shape, pixel_um, out.stem, settings.overwrite)
    registered = out.with_name("TileConfiguration.registered.txt")
    kept_names = [plan.names[i] for i in good]
    registered.write_text(layouts.format_tile_configuration(kept_names, positions[good]))
    facts = {
        "tiles": f"{n} of {h} x {w}, {len(left_out)} left out",
        "mosaic": f"{shape[0]} x {shape[1]} pixels",
        "pairs": f"{len(alignment.used)} of {len(alignment.pairs)} say where their tiles lie",
        "stage": f"off by {alignment.placement.jitter_px:.1f} px a tile",
        "seams before": f"{seam_figure(before):.4f}",
        "seams after": f"{seam_figure(after):.4f} (mean |log ratio| of blocks in the overlaps)",
    }
    if not settings.no_refine:
        facts["beam"] = KEPT[refinement.smoothness.kept]
    most = refinement.most_near
    if most is not None:
        tile, change = most
        facts["tiles contradict each other"] = (
            f"by up to {200 * np.expm1(change):.1f} % ({plan.names[tile]}); near the overlaps they were "
            "brought to agree half-way"
        )
    if alignment.steps is not None:
        across, down = alignment.steps
        facts["overlap found"] = f"{w - across[1]:.0f} px across, {h - down[0]:.0f} px down"
    verdict = judge(source.verdict, plan, alignment, left_out)
    small = read_level(out, PREVIEW_PX)
    if holes := uncovered(small, shape[0] / small.shape[0]):
        facts["not covered"] = holes
    summary = MosaicSummary(
        title=f"mosaic: {source.scan.path.name}",
        verdict=verdict,
        scale=source.scale,
        raw=raw_mosaic(source, positions, good, small.shape[1] / shape[1]),
        corrected=small,
        names=plan.names,
        positions=positions,
        sigma_px=alignment.placement.sigma_px,
        shape=(h, w),
        pairs=pair_lines(alignment),
        left_out=left_out,
        facts=facts,
        preservation=slopes,
        options=settings.model_dump(mode="json", exclude_none=True),
    )
    page, preview = mosaic_report(out.with_suffix(".html"), out.with_suffix(".png"), summary)
    code = NOT_TRUSTED if settings.strict and not verdict.startswith("TRUSTED") else 0
    message = f"{out}: {verdict}; seams {facts['seams after']}"
    return Result((out, preview, page, registered), message, code)


def tiles_in(memory: int, scan: Scan) -> int:
    """How many tiles are held at a time."""
    _, h, w = scan.shape
    return max(4, int(memory / 4 / (h * w * 16)))


def uncovered(small: Array, scale: float) -> str:
    """Holes inside a small image of the mosaic, `scale` pixels each; empty if there are none."""
    label, count = scipy.ndimage.label(np.isnan(small))
    edges = np.concatenate([label[0], label[-1], label[:, 0], label[:, -1]])
    inner = np.setdiff1d(np.arange(1, count + 1), edges)
    if len(inner) == 0:
        return ""
    area = np.isin(label, inner).sum() * scale**2
    return f"{len(inner)} places, {area:.0f} pixels, where no tile has light; left blank"


def _counted(
    strips: Iterator[tuple[int, Array]], height: int, stages: Stages
) -> Iterator[tuple[int, Array]]:
    for top, strip in strips:
        yield top, strip
        stages("blending", min(top + len(strip), height), height)


def linked(alignment: Alignment) -> set[int]:
    """The largest group of tiles that believed pairs link to each other; others hang on the stage.

    Columns that hold together while nothing says how far apart they are are several groups.
    """
    believed = believed_pairs(alignment.used, alignment.placement)
    if not believed:
        return set()
    group = groups_of(len(alignment.positions), believed)
    return set(np.flatnonzero(group == np.bincount(group).argmax()).tolist())


def pair_lines(alignment: Alignment) -> list[PairLine]:
    """Pairs for the report, weak ones with weight 0."""
    placement: Placement = alignment.placement
    lines = [
        PairLine(m.first, m.second, residual, max(float(weight), 1e-3), m.correlation)
        for m, residual, weight in zip(
            alignment.used, placement.residuals, placement.weights, strict=True
        )
    ]
    return lines + [PairLine(i, j, np.zeros(2), 0.0, 0.0) for i, j in alignment.weak]


def raw_mosaic(source: Source, positions: Array, good: list[int], scale: float) -> Array:
    """A small image of the raw tiles at the same places, over their median."""
    step = max(1, round(1 / scale))
    _, h, w = source.frames.shape

    def shrink(image: Array) -> Array:
        rows, columns = h // step * step, w // step * step
        blocks = image[:rows, :columns].reshape(rows // step, step, columns // step, step)
        return np.asarray(blocks.mean((1, 3)), np.float32)

    level = np.median(source.scan.projections.read(good[0], good[0] + 1)[0][source.lit])

    def read(index: int) -> Array:
        raw = source.scan.projections.read(index, index + 1)[0].astype(np.float32)
        return shrink(raw / np.float32(max(level, 1.0)))

    weight = (shrink(source.lit.astype(np.float32)) > 0.5).astype(np.float32)
    strips = blend_strips(read, weight, np.floor(positions / step), good)
    return np.concatenate([strip for _, strip in strips])


def judge(correction: str, plan: Plan, alignment: Alignment, left_out: dict[int, str]) -> str:
    """The correction's verdict, lowered where tiles are missing or hang on the stage alone."""
    held = linked(alignment)
    loose = [n for i, n in enumerate(plan.names) if i not in held and i not in left_out]
    doubts = []
    if left_out:
        doubts.append(
            "left out: " + ", ".join(f"{plan.names[i]} ({w})" for i, w in sorted(left_out.items()))
        )
    if loose:
        doubts.append("placed by the stage alone: " + ", ".join(loose))
    if not doubts:
        return correction
    word, _, reason = correction.partition(" ")
    word = "CHECK" if word.rstrip(":") == "TRUSTED" else word.rstrip(":")
    return f"{word} ({'; '.join(doubts)})" + (f" {reason}" if reason else "")
