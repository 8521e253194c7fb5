"""Real tiles through the correction and the refinement: seams, and whether the sample survives.

    python tests/bench/mosaic_real.py TILES REGISTERED --grid 4x4 [--bases median pair]

REGISTERED is the TileConfiguration.registered.txt that `mosaic` wrote. Disks of known contrast are
multiplied into the raw tiles, at the same place of the sample in every tile that shows it; all is
corrected and refined again, and the change of the log transmission is regressed on what was
implanted: 1 is right, 0 is erased. Seams: mean |log ratio| of blocks over the overlaps, each pair's
gain removed, over all pairs and over those whose overlap shows something (band-passed log
correlation of at least 0.5).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from txmcorrect.api import estimate_array, load_model
from txmcorrect.formats import open_scan
from txmcorrect.mosaicking.seams import compare_tiles
from txmcorrect.mosaicking.source import lit_area
from txmcorrect.stitch.layout import grid_cells, grid_neighbours, parse_tile_configuration
from txmcorrect.stitch.overlap import refine
from txmcorrect.stitch.register import band_pass, overlap_slices
from txmcorrect.stitch.seam import seam_figure


def by_median(raw, _):
    flat = np.median(raw, axis=0)
    return np.repeat(np.log(np.maximum(flat, 1))[None], len(raw), 0), flat > 0.3 * np.median(flat)


def by_model(raw, model):
    background = estimate_array(raw, model=model)
    logs = np.stack([background.log_background(i) for i in range(len(raw))])
    return logs, background.lit


BASES = {"median": by_median, "pair": by_model}


def finished(raw, base, model, pairs, positions, lit=None):
    """Log transmission after correction and refinement; seams before and after."""
    logs, known = BASES[base](raw, model)
    if lit is None:
        lit, _ = lit_area(np.exp(np.median(logs, axis=0)), known)
    log_t = np.where(lit, np.log(np.maximum(raw, 1)) - logs, 0).astype(np.float32)
    before = compare_tiles(np.exp(log_t), pairs, positions, lit)
    fix = refine(before, len(raw), raw.shape[1:])
    log_t -= np.stack([fix.log_background(i) for i in range(len(raw))])
    return log_t, lit, before, compare_tiles(np.exp(log_t), pairs, positions, lit)


def disks(positions, shape, diameter, contrast, seed):
    """Log change `(n, h, w)` of disks fixed to the sample, a tenth of it covered."""
    rng = np.random.default_rng(seed)
    size = positions.max(0) + shape
    centres = rng.uniform(0, size, (max(1, int(0.1 * size.prod() / (np.pi * diameter**2 / 4))), 2))
    y, x = np.indices(shape)
    out = np.zeros((len(positions), *shape), np.float32)
    for tile, corner in zip(out, positions, strict=True):
        for cy, cx in centres - corner:
            if -diameter < cy < shape[0] + diameter and -diameter < cx < shape[1] + diameter:
                r = np.hypot(y - cy, x - cx)
                edge = 1 / (1 + np.exp(np.clip((r - diameter / 2) / 0.5, -40, 40)))
                tile[:] = np.where(edge > 0.01, np.log(contrast) * edge, tile)
    return out


def slopes(change, implant, lit):
    found = []
    for c, d in zip(change, implant, strict=True):
        c, d = c[lit] - c[lit].mean(), d[lit] - d[lit].mean()
        if (d**2).sum() > 0:
            found.append(float((c * d).sum() / (d**2).sum()))
    return [round(float(v), 3) for v in (np.median(found), min(found), max(found))]


def telling(log_t, lit, pairs, positions):
    """Pairs whose overlaps correlate by 0.5 or more."""
    found = []
    for i, j in pairs:
        y, x = np.rint(positions[j] - positions[i]).astype(int)
        a, b = overlap_slices((int(y), int(x)), lit.shape)
        both = lit[a] & lit[b]
        mask = both.astype(np.float32)
        if both.sum() > 200:
            one, two = (
                band_pass(log * mask, mask, (2, 12))[both] for log in (log_t[i][a], log_t[j][b])
            )
            if np.corrcoef(one, two)[0, 1] >= 0.5:
                found.append((i, j))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tiles", type=Path)
    parser.add_argument("registered", type=Path)
    parser.add_argument("--grid", default="4x4")
    parser.add_argument("--order", default="rows,bottom-left")
    parser.add_argument("--bases", nargs="+", default=["median", "pair"], choices=list(BASES))
    parser.add_argument("--sizes", nargs="+", type=int, default=[4, 16, 64, 256])
    given = parser.parse_args()
    scan = open_scan(given.tiles)
    raw = scan.projections.read(0, scan.shape[0]).astype(np.float32)
    listed = parse_tile_configuration(given.registered.read_text())
    positions = np.array([listed[name] for name in scan.names])
    rows, columns = (int(s) for s in given.grid.split("x"))
    pairs = grid_neighbours(grid_cells((rows, columns), given.order))
    for base in given.bases:
        model = load_model("bundled", "pair") if base == "pair" else None
        log_t, lit, before, after = finished(raw, base, model, pairs, positions)
        chosen = set(telling(log_t, lit, pairs, positions))
        row = {"base": base, "before": seam_figure(before), "after": seam_figure(after)}
        row["telling pairs"] = len(chosen)
        for name, seams in (("before", before), ("after", after)):
            own = [s for s in seams if (s.first, s.second) in chosen]
            row[f"{name}, telling"] = seam_figure(own)
        print(json.dumps(row), flush=True)
        for size in given.sizes:
            for contrast in (0.9, 1.1):
                implant = disks(positions, raw.shape[1:], size, contrast, size)
                again = finished(raw * np.exp(implant), base, model, pairs, positions, lit)[0]
                figures = slopes(again - log_t, implant, lit)
                print(json.dumps({"disk_px": size, "T": contrast, "slope": figures}), flush=True)


if __name__ == "__main__":
    main()
