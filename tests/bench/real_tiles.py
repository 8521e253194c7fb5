"""The bundled pair model on a folder of real tiles: flatness, and whether the sample is preserved.

    python tests/bench/real_tiles.py TILES [--empty 8 12] [--model FILE]

Flatness is the standard deviation of the corrected tiles named by --empty (frame numbers), and that
of the tile divided by the median of all tiles. Preservation implants disks of known contrast into
the raw tiles, corrects again, and regresses the change of the log transmission on what was
implanted: 1 is right, 0 is erased.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from txmcorrect.api import estimate_array, load_model
from txmcorrect.formats import open_scan


def disks(shape, diameter, contrast, rng):
    """Log transmission `(h, w)` of soft-edged disks, covering about a tenth of the frame."""
    h, w = shape
    y, x = np.mgrid[:h, :w]
    image = np.zeros(shape, np.float32)
    for _ in range(max(1, int(0.1 * h * w / (np.pi * diameter**2 / 4)))):
        cy, cx = rng.uniform(0, h), rng.uniform(0, w)
        r = np.hypot(y - cy, x - cx)
        edge = 1 / (1 + np.exp(np.clip((r - diameter / 2) / 0.5, -40, 40)))
        image = np.where(edge > 0.01, np.log(contrast) * edge, image)
    return image.astype(np.float32)


def log_backgrounds(frames, model):
    background = estimate_array(frames, model=model)
    logs = np.stack([background.log_background(i) for i in range(len(frames))])
    return logs, background


def slope(change, implant, lit):
    """Least-squares slope over lit pixels, both without their means."""
    change, implant = change[lit], implant[lit]
    change, implant = change - change.mean(), implant - implant.mean()
    return float((change * implant).sum() / (implant**2).sum())


def preservation(frames, before, lit, model, diameter, contrast, every):
    """Median slope over the tiles that were given an implant: every `every`-th."""
    rng = np.random.default_rng(diameter)
    implants = np.zeros(frames.shape, np.float32)
    for i in range(0, len(frames), every):
        implants[i] = disks(frames.shape[1:], diameter, contrast, rng)
    after, _ = log_backgrounds(frames * np.exp(implants), model)
    # log T' - log T = implant - (log b' - log b)
    changes = implants - (after - before)
    slopes = [slope(changes[i], implants[i], lit) for i in range(0, len(frames), every)]
    return float(np.median(slopes)), float(np.min(slopes)), float(np.max(slopes))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tiles", type=Path)
    parser.add_argument("--empty", type=int, nargs="*", default=[8, 12])
    parser.add_argument("--model", default="bundled")
    options = parser.parse_args()
    scan = open_scan(options.tiles)
    frames = scan.projections.read(0, scan.shape[0]).astype(np.float32)
    model = load_model(options.model, "pair")
    before, background = log_backgrounds(frames, model)
    lit = background.lit
    median = np.median(frames, axis=0)
    print(json.dumps({"verdict": str(background.verdict())}))
    for i in options.empty:
        flat = {
            "raw": frames[i],
            "over median of all": frames[i] / np.maximum(median, 1),
            "pair model": frames[i] / np.exp(before[i]),
        }
        figures = {k: f"{100 * v[lit].std() / v[lit].mean():.2f} %" for k, v in flat.items()}
        print(json.dumps({"frame": i, "flatness": figures}), flush=True)
    for diameter in (4, 16, 64, 256):
        for contrast in (0.9, 1.1):
            middle, low, high = preservation(frames, before, lit, model, diameter, contrast, 4)
            row = {"diameter_px": diameter, "T": contrast, "slope": round(middle, 3)}
            print(json.dumps({**row, "range": [round(low, 3), round(high, 3)]}), flush=True)


if __name__ == "__main__":
    main()
