"""A large mosaic through the command: peak memory, time, positions.

    python tests/bench/mosaic_big.py --grid 19x19 --side 1024 --memory 2 --folder FOLDER

Tiles of a dense world under a beam that drifts, photon noise of 5,000 counts, stage jitter of 1 % of
the frame, overlap of 10 %; made tile by tile, without any reference. The command runs in a process of
its own, whose peak memory is what is printed. Files stay in FOLDER, so that the picture can be looked at.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
from scipy.ndimage import gaussian_filter

from txmcorrect.config import MosaicSettings
from txmcorrect.mosaic import run
from txmcorrect.stitch.layout import grid_cells, parse_tile_configuration

OVERLAP, JITTER, COUNTS = 0.1, 0.01, 5000
PERIOD = 4096  # of the world, far beyond the jitter


def world():
    """Grains of several sizes as an attenuation, `(PERIOD, PERIOD)`; it goes on where it ends."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((PERIOD, PERIOD)).astype(np.float32)
    out = np.zeros_like(noise)
    for width, size in ((3, 0.02), (12, 0.05), (48, 0.08)):
        grains = gaussian_filter(noise, width, mode="wrap")
        out += size * (grains > grains.std())
    return out


def positions(grid, side):
    cells = grid_cells(grid, "rows,bottom-left")
    rng = np.random.default_rng(1)
    found = cells * side * (1 - OVERLAP) + rng.normal(0, JITTER * side, (len(cells), 2))
    return np.rint(found - found.min(0)).astype(int)


def write_tiles(path, grid, side):
    """The mosaic as HDF5, a frame at a time."""
    absorbed, places = world(), positions(grid, side)
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:side, :side] / side - 0.5
    fixed = 1 + 0.02 * gaussian_filter(rng.standard_normal((side, side)), 1.5)
    with h5py.File(path, "w") as file:
        data = file.create_dataset(
            "exchange/data", (len(places), side, side), np.uint16, chunks=(1, side, side)
        )
        file["exchange/data_dark"] = np.full((1, side, side), 100, np.uint16)
        for i, (top, left) in enumerate(places):
            t = i / len(places)
            beam = np.exp(-((y - 0.2 * t) ** 2 + (x + 0.1 * np.sin(7 * t)) ** 2) / 0.7) * fixed
            rows = np.arange(top, top + side) % PERIOD
            columns = np.arange(left, left + side) % PERIOD
            clean = COUNTS * beam * np.exp(-absorbed[np.ix_(rows, columns)])
            data[i] = rng.poisson(clean) + 100


def job(path, out, grid, memory):
    began = time.perf_counter()
    result = run(MosaicSettings(scans=[path], out=out, grid=grid, memory=memory, overwrite=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(result.message)
    print(f"peak {peak:.0f} MiB, {time.perf_counter() - began:.0f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", default="19x19")
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--memory", type=float, default=2, help="GiB")
    parser.add_argument("--folder", type=Path, default=Path("bench/big"))
    parser.add_argument("--job", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    grid = tuple(int(part) for part in given.grid.split("x"))
    path, out = given.folder / "tiles.h5", given.folder / "mosaic.tif"
    if given.job:
        job(path, out, grid, int(given.memory * 2**30))
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    write_tiles(path, grid, given.side)
    subprocess.run([sys.executable, __file__, *sys.argv[1:], "--job"], check=True)
    text = (given.folder / "TileConfiguration.registered.txt").read_text()
    found = np.array(list(parse_tile_configuration(text).values()))
    off = found - positions(grid, given.side)[: len(found)]
    off = np.hypot(*(off - off.mean(0)).T)
    print(
        f"{len(found)} tiles placed; off by {np.median(off):.2f} px (median), {off.max():.2f} (most)"
    )


if __name__ == "__main__":
    main()
