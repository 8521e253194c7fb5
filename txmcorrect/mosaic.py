"""`mosaic`: tiles to one image.

correct -> find bad tiles -> positions -> background from overlaps -> blend -> pyramid, layout, report
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from txmcorrect.background.correction import correct_scan, open_for
from txmcorrect.background.quality import UNUSABLE
from txmcorrect.background.survey import mean_frame, read_counts
from txmcorrect.config import CorrectSettings, MosaicSettings
from txmcorrect.errors import FlatFieldError, GeometryError, OutputError, TxmError
from txmcorrect.formats.corrected import read_result
from txmcorrect.formats.ome import read_level, write_pyramid
from txmcorrect.progress import Stages
from txmcorrect.report.mosaic import MosaicSummary, PairLine, mosaic_report
from txmcorrect.result import Result
from txmcorrect.scan import Frames, Scan
from txmcorrect.stitch import layout as layouts
from txmcorrect.stitch.align import Alignment, Tiles, align_grid, align_listed, convincing
from txmcorrect.stitch.blend import blend_strips, feather, mosaic_shape
from txmcorrect.stitch.overlap import (
    Refinement,
    Seam,
    Smoothness,
    measure_seam,
    refine,
    seam_figure,
)
from txmcorrect.stitch.place import Placement
from txmcorrect.stitch.preserve import IMPLANT_PX, implants, recovered_slopes
from txmcorrect.stitch.recent import Recent
from txmcorrect.stitch.register import feature

log = logging.getLogger(__name__)
Array = NDArray[Any]

NOT_TRUSTED = 3
DARK_TILE = 0.05  # of the median signal: such a tile saw no beam
MEDIAN_FRAMES = 64  # frames that a median flat is made of
LIT_SHARE = 0.3  # of the median of a median flat
BLOCK = 1 / 64  # of a frame: pixels over which tiles are compared
PREVIEW_PX = 1600
BELIEVED = 0.25  # weight below which a pair was given up
FEWEST = 0.5  # of the pairs of a direction: with fewer that agree, the order is doubted
LIKELY = 0.75  # of the pairs that convince in the best order: with fewer, an order is refused


@dataclass(frozen=True)
class Source:
    """Transmission of all tiles, and what is known about it."""

    scan: Scan
    frames: Frames
    lit: NDArray[np.bool_]
    scale: str
    verdict: str
    unusable: NDArray[np.bool_]


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
        source = open_source(settings, scan, path, out, stages, files)
        return stitch(settings, source, plan, out, stages)


# --- where tiles are expected --------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What is known of the layout: `cells` `(n, 2)` of a grid, or `positions` `(n, 2)` px.

    `left_out`: tile -> why it cannot take part. `stage`: the positions are a stage's, whose axes may
    point either way.
    """

    names: tuple[str, ...]
    cells: layouts.Cells | None
    positions: layouts.Points | None
    left_out: dict[int, str]
    stage: bool = False


def plan_layout(settings: MosaicSettings, scan: Scan) -> Plan:
    """Find out where tiles are expected: --layout, --grid, the file, or a layout in the folder.

    Raises
    ------
    GeometryError : a single tile, a grid that does not fit, or nothing known at all.
    """
    n = scan.shape[0]
    names = scan.names or tuple(f"tile_{i + 1:04d}" for i in range(n))
    layouts.parse_order(settings.order)
    if n < 2:
        raise GeometryError(f"{scan.path}: expected at least two tiles, got {n}; nothing to stitch")
    if settings.layout is not None:
        return _listed_plan(settings.layout, names)
    grid = settings.grid or scan.mosaic_shape
    if grid is not None:
        if grid[0] * grid[1] != n:
            raise GeometryError(
                f"{scan.path}: a grid of {grid[0]}x{grid[1]} has {grid[0] * grid[1]} tiles, "
                f"got {n}{_gap(names)}; give the right --grid, or the places with --layout"
            )
        return Plan(names, layouts.grid_cells(grid, settings.order), None, {})
    nearby = scan.path / "TileConfiguration.txt"
    if scan.path.is_dir() and nearby.is_file():
        return _listed_plan(nearby, names)
    pixel_nm = settings.pixel_size_nm or scan.optics.pixel_size_nm
    if scan.position_um is not None and pixel_nm is not None and np.ptp(scan.position_um) > 0:
        return Plan(names, None, scan.position_um * 1000 / pixel_nm, {}, stage=True)
    raise GeometryError(
        f"{scan.path}: expected rows and columns or stage positions in the file, found none; "
        "give --grid ROWSxCOLUMNS or --layout TileConfiguration.txt"
    )


def _gap(names: Sequence[str]) -> str:
    """The first number missing in numbered file names, as a hint."""
    digits = ["".join(c if c.isdigit() else " " for c in name).split() for name in names]
    numbers = [int(d[-1]) for d in digits if d]
    if len(numbers) < len(names) or not numbers:
        return ""
    missing = sorted(set(range(min(numbers), max(numbers) + 1)) - set(numbers))
    return f" (number {missing[0]} is missing)" if len(missing) == 1 else ""


def _listed_plan(path: Path, names: tuple[str, ...]) -> Plan:
    try:
        listed = layouts.parse_tile_configuration(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise GeometryError(f"--layout {path}: expected a readable text file ({error})") from None
    known = [name for name in names if name in listed]
    if len(known) < 2:
        raise GeometryError(
            f"--layout {path}: expected the names of the tiles ({names[0]}, ...), "
            f"got {next(iter(listed))}, ..."
        )
    absent = sorted(set(listed) - set(names))
    if absent:
        log.warning("%s: no tile for %s; its place stays empty", path, ", ".join(absent))
    places = np.array([listed.get(name, listed[known[0]]) for name in names], float)
    unknown = {i: "not in the layout" for i, name in enumerate(names) if name not in listed}
    return Plan(names, None, places, unknown)


# --- transmission --------------------------------------------------------------------------------


def open_source(
    settings: MosaicSettings, scan: Scan, path: Path, out: Path, stages: Stages, files: ExitStack
) -> Source:
    """Transmission of the tiles: as it is, over the median of all, or corrected by the model."""
    if scan.corrected_by == "txmcorrect" and not settings.force:
        return _corrected_source(scan, path, files)
    if settings.flats == "median":
        return _median_source(settings, scan)
    # What only the mosaic depends on must not make the tiles be corrected again.
    own = {"format", "out", "out_dir", "overwrite"}
    names = set(CorrectSettings.model_fields) - own
    corrected = out.with_name(f"{out.stem}.tiles.h5")
    wanted = CorrectSettings(**settings.model_dump(include=names), overwrite=settings.overwrite)
    if not _is_same_run(wanted, corrected, path):
        correct_scan(wanted, path, corrected, stages)
    return _corrected_source(scan, corrected, files)


def _is_same_run(settings: CorrectSettings, corrected: Path, raw: Path) -> bool:
    """Tell whether an earlier run has already corrected these tiles with these settings."""
    files = [raw, *raw.iterdir()] if raw.is_dir() else [raw]
    if not corrected.exists():
        return False
    if corrected.stat().st_mtime < max(f.stat().st_mtime for f in files):
        return False
    with read_result(corrected) as stored:
        changing = {"scans", "out", "out_dir", "overwrite"}
        given = settings.model_dump(mode="json", exclude=changing)
        return {k: v for k, v in stored.options.items() if k not in changing} == given


def _corrected_source(scan: Scan, path: Path, files: ExitStack) -> Source:
    result = files.enter_context(read_result(path))
    bad = (result.flag & UNUSABLE) != 0
    return Source(scan, result.transmission, result.lit, result.scale, result.verdict, bad)


@dataclass(frozen=True)
class FlatFrames:
    """Raw frames over a flat: `(n, h, w)` transmission, 1 where the flat is dark."""

    source: Frames
    dark: Array
    flat: Array
    lit: NDArray[np.bool_]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.source.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    def read(self, start: int, stop: int) -> Array:
        counts = read_counts(self.source, start, stop, self.dark)
        flat = np.where(self.lit, self.flat, 1)
        return np.where(self.lit, counts / flat, 1).astype(np.float32)


def _median_source(settings: MosaicSettings, scan: Scan) -> Source:
    """Divide by the median of all tiles; what their sample has in common goes with it."""
    n = scan.shape[0]
    dark = np.zeros(scan.shape[1:], np.float32)
    if scan.darks is not None and scan.darks.shape[0]:
        dark = mean_frame(scan.darks)
    chosen = np.unique(np.linspace(0, n - 1, MEDIAN_FRAMES).round().astype(int))
    stack = np.concatenate([read_counts(scan.projections, i, i + 1, dark) for i in chosen])
    level = np.median(stack, axis=(1, 2))
    used = level > DARK_TILE * np.median(level)
    if not used.any() or np.median(level) <= 0:
        raise FlatFieldError(f"{scan.path}: expected tiles with light, found none")
    flat = np.median(stack[used], axis=0)
    lit = flat > LIT_SHARE * np.median(flat)
    frames = FlatFrames(scan.projections, dark, flat.astype(np.float32), lit)
    verdict = "CHECK: divided by the median of the tiles, no model"
    return Source(scan, frames, lit, "relative", verdict, np.zeros(n, bool))


# --- tiles that cannot take part -----------------------------------------------------------------


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


# --- stitching -----------------------------------------------------------------------------------


def stitch(
    settings: MosaicSettings, source: Source, plan: Plan, out: Path, stages: Stages
) -> Result:
    """Place, refine, blend and write."""
    left_out = find_bad(source, plan, stages)
    n, h, w = source.frames.shape
    good = [i for i in range(n) if i not in left_out]
    keep = max(4, int(settings.memory / 4 / (h * w * 16)))
    tiles = Recent(lambda i: source.frames.read(i, i + 1)[0], keep)
    alignment = align(settings, source, plan, frozenset(left_out), keep, stages)
    positions = alignment.positions
    pairs = [p for p in alignment.pairs if not set(p) & set(left_out)]

    def compare(read: Any) -> list[Seam]:
        return compare_tiles(read, pairs, positions, source.lit)

    before = compare(tiles)
    smoothness = Smoothness(shared=1e-6, own=1e-6) if settings.no_refine else Smoothness()
    refinement = refine(before, n, (h, w), smoothness)

    def refined(index: int) -> Array:
        return np.asarray(tiles[index] * np.exp(-refinement.log_background(index)), np.float32)

    after = compare(Recent(refined, keep))
    slopes = preservation(tiles, compare, refinement, positions, smoothness)
    strips = blend_strips(
        refined, feather(source.lit, feather_px(positions, pairs, (h, w))), positions, good
    )
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
    if alignment.steps is not None:
        across, down = alignment.steps
        facts["overlap found"] = f"{w - across[1]:.0f} px across, {h - down[0]:.0f} px down"
    verdict = judge(source.verdict, plan, alignment, left_out)
    small = read_level(out, PREVIEW_PX)
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


def align(
    settings: MosaicSettings,
    source: Source,
    plan: Plan,
    skip: frozenset[int],
    keep: int,
    stages: Stages,
) -> Alignment:
    """Place the tiles; refuse an order that the tiles contradict.

    Raises
    ------
    GeometryError : another order of the grid agrees far better.
    """
    _, h, w = source.frames.shape
    features = Recent(lambda i: feature(source.frames.read(i, i + 1)[0], source.lit), keep)
    tiles = Tiles(features, (h, w))

    def progress(done: int, total: int) -> None:
        stages("registering", done, total)

    if plan.cells is None:
        assert plan.positions is not None
        places = _oriented(tiles, plan.positions) if plan.stage else plan.positions
        return align_listed(tiles, places, skip, progress)
    overlap = None if settings.overlap == "auto" else float(settings.overlap)
    alignment = align_grid(tiles, plan.cells, overlap, skip, progress)
    if _doubtful(alignment, plan.cells):
        _check_order(settings.order, tiles, plan.cells)
    return alignment


def _doubtful(alignment: Alignment, cells: layouts.Cells) -> bool:
    """Tell whether few pairs agree along rows or along columns: rows may still be right alone."""
    weights = alignment.placement.weights
    agree = {
        (m.first, m.second) for m, w in zip(alignment.used, weights, strict=True) if w > BELIEVED
    }
    for axis in (0, 1):
        own = [p for p in alignment.pairs if cells[p[0]][axis] != cells[p[1]][axis]]
        if sum(p in agree for p in own) < FEWEST * len(own):
            return True
    return False


def _oriented(tiles: Tiles, positions: layouts.Points) -> layouts.Points:
    """Turn a stage's axes the way the tiles agree best; unchanged where they do not say."""
    signs = [np.array([y, x], float) for y in (1, -1) for x in (1, -1)]
    places = [positions * sign for sign in signs]
    cells = [layouts.cells_of(p, tiles.shape) for p in places]
    found = [0 if c is None else convincing(tiles, c) for c in cells]
    best = int(np.argmax(found))
    if found[best] == 0:
        log.warning("the tiles do not say which way the stage's axes point: taken as they are")
    return places[best]


def _check_order(order: str, tiles: Tiles, cells: layouts.Cells) -> None:
    """Compare the order asked for with all others."""
    rows, columns = (int(c) + 1 for c in cells.max(0))
    orders = [f"{way},{corner}" for way in layouts.WAYS for corner in layouts.CORNERS]
    found = {o: convincing(tiles, layouts.grid_cells((rows, columns), o)) for o in orders}
    own = convincing(tiles, cells)
    best = max(orders, key=lambda o: found[o])
    if found[best] >= 2 + own and own < LIKELY * found[best]:
        raise GeometryError(
            f"--order {order}: neighbours agree in {own} of the pairs tried, with --order {best} "
            f"in {found[best]}; give that order, or --layout"
        )


def compare_tiles(
    read: Any, pairs: Sequence[tuple[int, int]], positions: Array, lit: NDArray[np.bool_]
) -> list[Seam]:
    """Log ratios over the overlaps of all pairs."""
    block = max(4, round(max(lit.shape) * BLOCK))
    found = []
    for i, j in pairs:
        y, x = np.rint(positions[j] - positions[i]).astype(int)
        seam = measure_seam((i, j), (read[i], read[j]), (int(y), int(x)), lit, block)
        if seam is not None:
            found.append(seam)
    return found


def preservation(
    tiles: Recent[Array],
    compare: Any,
    refinement: Refinement,
    positions: Array,
    smoothness: Smoothness,
) -> list[tuple[int, float]]:
    """What the refinement leaves of known disks, size by size: the slope of found on true."""
    shape = refinement.shape
    rows = []
    for size in (s for s in IMPLANT_PX if s <= min(shape) / 2):
        disks = implants(positions, shape, size)
        changed = Recent(partial(_implanted, tiles, disks), tiles.keep)
        again = refine(compare(changed), len(positions), shape, smoothness)
        rows.append((size, recovered_slopes(disks, refinement, again, len(positions))))
    return rows


def _implanted(tiles: Recent[Array], disks: Callable[[int], Array], index: int) -> Array:
    return np.asarray(tiles[index] * np.exp(disks(index)), np.float32)


def feather_px(positions: Array, pairs: Sequence[tuple[int, int]], shape: tuple[int, int]) -> float:
    """Width over which tiles fade: the usual overlap."""
    if not pairs:
        return 1.0
    shifts = np.abs(np.array([positions[j] - positions[i] for i, j in pairs]))
    overlap = (np.array(shape) - shifts).min(1)
    return float(max(np.median(overlap), 2.0))


def _counted(
    strips: Iterator[tuple[int, Array]], height: int, stages: Stages
) -> Iterator[tuple[int, Array]]:
    for top, strip in strips:
        yield top, strip
        stages("blending", min(top + len(strip), height), height)


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
    held = set()
    for match, weight in zip(alignment.used, alignment.placement.weights, strict=True):
        if weight > BELIEVED:
            held |= {match.first, match.second}
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
