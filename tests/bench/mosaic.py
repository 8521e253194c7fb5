"""Simulated mosaics through `mosaic` and through peers: positions, seams, image error.

    python tests/bench/mosaic.py --seeds 2 --size 256 --out bench-mosaic.json

Methods: backgrounds of the bundled models (pairs; stacks without a reference and with a stale one, that
see where tiles overlap once these were registered over their median), the median of the tiles, one
stale reference, and the true backgrounds (the oracle), each with and without what overlaps add; all
stitched alike. Peers of
other packages come in where `make mosaic-peers` made their environments (or where --ashlar,
--multiview and --basic name an interpreter): they get flattened tiles (BaSiC's flat field, or else the
stale reference) and nominal places, and write the positions they found as JSON, `[[y, x], ...]`;
their tiles are then blended as ours are. The same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile

from txmcorrect.api import estimate_array, load_model
from txmcorrect.background.estimate import Draw
from txmcorrect.background.methods import METHODS
from txmcorrect.baselines import external
from txmcorrect.baselines.contract import Flats, Problem
from txmcorrect.metrics import psnr
from txmcorrect.mosaicking.seams import compare_tiles
from txmcorrect.mosaicking.source import lit_area
from txmcorrect.simulate import simulate_scan
from txmcorrect.stitch.align import JITTER, Tiles, align_grid, believed_pairs
from txmcorrect.stitch.blend import blend_strips, feather
from txmcorrect.stitch.layout import grid_cells, grid_neighbours
from txmcorrect.stitch.overlap import refine
from txmcorrect.stitch.recent import Recent
from txmcorrect.stitch.register import NARROWEST_PX, feature, overlap_slices
from txmcorrect.stitch.seam import seam_figure

GRID = (4, 4)
FEATURES = 0.1  # px: a pair whose shift can be known so well, one standard deviation, has features
BASES = ["oracle", "stack, stale", "stack", "pair", "median", "stale"]
PEERS = {
    "ashlar": """
import sys, json, numpy as np
from ashlar import fileseries, reg
folder, positions, overlap = sys.argv[1], sys.argv[2], float(sys.argv[3])
reader = fileseries.FileSeriesReader(folder, pattern='tile_{series:2}.tif', overlap=overlap,
    width=4, height=4, layout='raster', direction='horizontal')
aligner = reg.EdgeAligner(reader, max_shift=float(sys.argv[4]), filter_sigma=1)
aligner.run()
json.dump(np.asarray(aligner.positions).tolist(), open(positions, 'w'))
""",
    "multiview": """
import sys, json, numpy as np, tifffile, pathlib
from multiview_stitcher import msi_utils, param_utils, registration, spatial_image_utils as si
folder, positions, overlap = sys.argv[1], sys.argv[2], float(sys.argv[3])
files = sorted(pathlib.Path(folder).glob('tile_*.tif'))
views = []
for k, file in enumerate(files):
    image = tifffile.imread(file).astype('float32')
    h, w = image.shape
    y, x = (k // 4) * h * (1 - overlap), (k % 4) * w * (1 - overlap)
    sim = si.get_sim_from_array(image[None, None], dims=['t', 'c', 'y', 'x'],
        scale={'y': 1, 'x': 1}, translation={'y': y, 'x': x}, transform_key='stage')
    views.append(msi_utils.get_msim_from_sim(sim, scale_factors=[]))
params = registration.register(views, transform_key='stage', new_transform_key='found',
    reg_channel_index=0)
found = []
for k, view in enumerate(views):
    sim = msi_utils.get_sim_from_msim(view)
    affine = np.asarray(si.get_affine_from_sim(sim, 'found')).squeeze()
    origin = si.get_origin_from_sim(sim, asarray=True)
    found.append((affine[:2, :2] @ origin + affine[:2, 2]).tolist())
json.dump(found, open(positions, 'w'))
""",
}


def backgrounds(scan, name):
    """Background of each frame as a method would have it, `(n, h, w)` counts above dark."""
    raw = scan.counts - scan.dark.mean(0)
    if name == "oracle":
        return scan.background
    if name.startswith("stack"):
        return stack_background(scan, name)
    if name == "pair":
        made = estimate_array(raw, model=load_model("bundled", "pair"))
        return np.exp(np.stack([made.log_background(i) for i in range(len(raw))]))
    if name == "BaSiC":
        problem = Problem(scan.counts.astype(np.float32), scan.dark.mean(0), scan.lit)
        return np.exp(external.basic(problem).log_background)
    if name == "stale":
        return np.repeat((scan.flats - scan.dark.mean(0)).mean(0)[None], len(raw), 0)
    return np.repeat(np.median(raw, 0)[None], len(raw), 0)


def stack_background(scan, name):
    """As `mosaic` has it: tiles are registered over their median first."""
    median = backgrounds(scan, "median")
    tiles = np.where(scan.lit, (scan.counts - scan.dark.mean(0)) / np.maximum(median, 1), 1)
    rough = registered(tiles.astype(np.float32), scan.lit).positions
    stale = Flats(scan.flats.astype(np.float32), scan.flats_current_ma)
    problem = Problem(
        scan.counts.astype(np.float32),
        scan.dark.mean(0),
        scan.lit,
        current_ma=scan.current_ma,
        stale=stale if name == "stack, stale" else None,
        position_px=rough,
    )
    method = METHODS["stack"](load_model("bundled", "stack"), Draw(), 1)
    return np.exp(method(problem).log_background)


def registered(tiles, lit):
    """Where the tiles of a grid lie."""
    features = Recent(lambda i: feature(tiles[i], lit), 16)
    cells = grid_cells(GRID, "rows,bottom-left")
    return align_grid(Tiles(features, tiles.shape[1:]), cells)


def stitched(scan, transmission, positions, refining):
    """Blend at the positions given; the image and the seam figure."""
    n, h, w = transmission.shape
    cells = grid_cells(GRID, "rows,bottom-left")
    pairs = [(i, j) for i in range(n) for j in range(n) if _adjacent(cells, i, j)]

    def seams(tiles):
        return compare_tiles(tiles, pairs, positions, scan.lit)

    tiles = transmission
    if refining:
        fix = refine(seams(tiles), n, (h, w))
        tiles = np.stack([tiles[i] * np.exp(-fix.log_background(i)) for i in range(n)])
    strips = blend_strips(lambda i: tiles[i], feather(scan.lit, h / 10), positions, list(range(n)))
    return np.concatenate([s for _, s in strips]), seam_figure(seams(tiles))


def _adjacent(cells, i, j):
    return tuple(cells[j] - cells[i]) in ((0, 1), (1, 0))


def image_psnr(image, scan, positions):
    """Against the true world, after the one gain that a relative scale leaves open."""
    offset = np.rint((scan.position_px - positions).mean(0)).astype(int)
    margin = max(scan.lit.shape)  # a mosaic whose tiles lie wrong may reach far beyond the world
    world = np.pad(scan.world, margin, constant_values=np.nan)
    top, left = offset + margin
    truth = world[top : top + image.shape[0], left : left + image.shape[1]]
    image = image[: truth.shape[0], : truth.shape[1]]
    both = np.isfinite(image) & np.isfinite(truth)
    gain = np.exp(np.mean(np.log(np.maximum(truth[both], 0.05) / np.maximum(image[both], 0.05))))
    return psnr(image[both][None] * gain, truth[both][None])


def position_error(found, truth):
    """Largest distance in px after the mean is removed."""
    difference = np.asarray(found) - truth
    return float(np.hypot(*(difference - difference.mean(0)).T).max())


def pair_errors(found, truth, pairs):
    """How far off each of some pairs lies, px."""
    off = found.positions - truth
    return [float(np.hypot(*(off[j] - off[i]))) for i, j in pairs]


def with_features(scan, pairs):
    """Pairs whose true overlap shows enough: no unbiased estimate could be off by less than FEATURES."""
    return [pair for pair in pairs if shift_bound(scan, *pair) <= FEATURES]


def shift_bound(scan, first, second):
    """Cramer-Rao bound of a pair's shift, px, where it is known least: true slopes, photon noise of both.

    Source: Robinson and Milanfar 2004.
    """
    h, w = scan.lit.shape
    shift = np.rint(scan.position_px[second] - scan.position_px[first]).astype(int)
    if np.any(np.array((h, w)) - np.abs(shift) < NARROWEST_PX):
        return np.inf
    one, two = overlap_slices(shift, (h, w))
    top, left = np.rint(scan.position_px[first] - scan.position_px.min(0)).astype(int)
    world = np.maximum(scan.world[top : top + h, left : left + w], 0.02)
    slope = np.stack(np.gradient(np.log(world)))[(slice(None), *one)]
    light = [scan.background[first][one], scan.background[second][two]]
    variance = sum(1 / np.maximum(b * world[one], 1) for b in light)
    known = (scan.lit[one] & scan.lit[two]) / variance
    information = np.einsum("iyx,jyx,yx->ij", slope, slope, known)
    return float(np.linalg.eigvalsh(information)[0].clip(1e-12) ** -0.5)


def peer_positions(name, python, tiles, overlap):
    """Positions a peer finds in flattened tiles, laid out in rows from the top for it."""
    cells = grid_cells(GRID, "rows,bottom-left")
    order = np.lexsort((cells[:, 1], cells[:, 0]))
    reach = 2 * JITTER * max(tiles.shape[1:])
    with tempfile.TemporaryDirectory() as folder:
        for k, tile in enumerate(order):
            image = np.clip(tiles[tile] * 20000, 0, 65535).astype(np.uint16)
            tifffile.imwrite(Path(folder) / f"tile_{k:02d}.tif", image)
        out = Path(folder) / "found.json"
        given = [folder, str(out), str(overlap), str(reach)]
        done = subprocess.run(
            [python, "-c", PEERS[name], *given], capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(name, "failed:", (done.stderr.strip().splitlines() or ["no message"])[-1])
            return None
        found = np.array(json.loads(out.read_text()))
    positions = np.empty_like(found)
    positions[order] = found
    return positions - positions.min(0)


def one_cell(kind, overlap, seed, size, peers, bases):
    scan = simulate_scan(
        kind, "medium", 5000, (size, size), seed, "benchmark", "stale", None, GRID, overlap, 0
    )
    # As `mosaic` does: the rim of the beam is left out, for every method alike.
    scan = replace(scan, lit=lit_area(backgrounds(scan, "median")[0], scan.lit)[0])
    raw = scan.counts - scan.dark.mean(0)
    truth = scan.position_px
    shown = with_features(scan, grid_neighbours(grid_cells(GRID, "rows,bottom-left")))
    rows = []

    def judge(method, tiles, positions, refining):
        image, seam = stitched(scan, tiles, positions, refining)
        rows.append(
            {
                "method": method,
                "position_px": position_error(positions, truth),
                "seam": seam,
                "psnr": image_psnr(image, scan, positions),
            }
        )

    for name in bases:
        t = np.where(scan.lit, raw / np.maximum(backgrounds(scan, name), 1), 1).astype(np.float32)
        if name != "BaSiC":
            placed = registered(t, scan.lit)
            believed = believed_pairs(placed.used, placed.placement)
            for refining in (False, True):
                judge(name + " + overlaps" * refining, t, placed.positions, refining)
                rows[-1]["pairs_px"] = pair_errors(placed, truth, believed)
                rows[-1]["features_px"] = pair_errors(placed, truth, shown)
        for peer, python in peers.items() if name in ("BaSiC", "stale") else ():
            positions = peer_positions(peer, python, t, overlap)
            if positions is not None:
                judge(f"{name} + {peer}", t, positions, False)
    return [{"kind": kind, "overlap": overlap, "seed": seed, **row} for row in rows]


def _pairs(rows, key):
    """Of some pairs: how many, how far off in the median and at most, px."""
    found = [x for row in rows for x in row.get(key, [])]
    return f"{len(found)}: {np.median(found):.2f} {max(found):.2f}" if found else "0"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--overlaps", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--bases", nargs="+", default=BASES)
    parser.add_argument("--out", type=Path, default=Path("bench-mosaic.json"))
    parser.add_argument("--ashlar", help="Python that has ashlar")
    parser.add_argument("--multiview", help="Python that has multiview-stitcher")
    given = parser.parse_args()
    peers = {n: p for n in PEERS if (p := getattr(given, n)) is not None}
    bases = given.bases + (["BaSiC"] if external.is_available("basic") and peers else [])
    rows = json.loads(given.out.read_text()) if given.out.exists() else []
    done = {(r["kind"], r["overlap"], r["seed"]) for r in rows}
    for seed in range(given.first, given.first + given.seeds):
        for overlap in given.overlaps:
            for kind in ("mosaic-sparse", "mosaic-dense"):
                if (kind, overlap, seed) not in done:
                    rows += one_cell(kind, overlap, seed, given.size, peers, bases)
                    given.out.write_text(json.dumps(rows, indent=1))
    print(
        f"{'kind':14} {'overlap':>7} {'method':24} {'max px':>7} {'seam':>7} {'PSNR':>6}  "
        "pairs with features (median, max px)  believed"
    )
    for kind, overlap, method in dict.fromkeys(
        (r["kind"], r["overlap"], r["method"]) for r in rows
    ):
        own = [r for r in rows if (r["kind"], r["overlap"], r["method"]) == (kind, overlap, method)]
        figures = [np.median([r[k] for r in own]) for k in ("position_px", "seam", "psnr")]
        print(
            f"{kind:14} {overlap:7.2f} {method:24} "
            f"{figures[0]:7.2f} {figures[1]:7.4f} {figures[2]:6.2f}  "
            f"{_pairs(own, 'features_px'):36} {_pairs(own, 'pairs_px')}"
        )


if __name__ == "__main__":
    main()
