"""Worlds by kind of drift and of sample: `python tests/bench/families.py [--seeds 3] [--family develop]`.

Every cell is one kind of drift with one kind of sample; references, records, order, detector and
texture are drawn for each world. `correct` runs as a user runs it, with its default and with
`--model none` (the fit alone), beside division by the mean of the flats, by the mean of the bank (exposures
and currents as recorded) and by the median of the stack, and division by the true background, which keeps
the photons' noise. Errors are in percent, of log(result / truth) in cells of 4 x 4 pixels; no gain is
removed. `shape`: rms less each frame's mean. `levels`: deviation of the frames' means. `absolute`: their mean.

Results go to --out after every world; the same command goes on from there. Rows of another commit, and
rows that failed, are run again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections import defaultdict
from itertools import product
from pathlib import Path

import h5py
import numpy as np

from txmcorrect.simulate import draw_world
from txmcorrect.simulate.drifts import DRIFT_KINDS
from txmcorrect.simulate.specimens import SPECIMENS
from txmcorrect.synthesize import write_bank, write_scan

ROOT = Path(__file__).resolve().parents[2]
OUT = Path(__file__).parent / "results" / "families.json"
FIRST_SEED = 70_000  # nothing else uses these
CELL = 4
FIGURES = ("shape", "levels", "absolute")
OURS = {"correct": [], "fit alone": ["--model", "none"]}
PEERS = ("mean flats", "bank mean", "stack median", "true background")
LIMIT_S = 1800


def cells(values, lit):
    """Means of lit pixels `(n, h // CELL, w // CELL)`; cells with an unlit pixel are NaN."""
    n, h, w = values.shape
    h, w = h // CELL * CELL, w // CELL * CELL
    values = np.where(lit, values, np.nan)[:, :h, :w].astype(np.float64)
    return values.reshape(n, h // CELL, CELL, w // CELL, CELL).mean((2, 4))


def errors(result, truth, lit):
    """Figures in percent, see above; None where nothing is left to compare."""
    ratio = cells(result, lit) / cells(truth, lit)
    ratio = ratio[:, np.isfinite(ratio).all(0)]
    if not ratio.size:
        return dict.fromkeys(FIGURES)
    log = 100 * np.log(np.maximum(ratio, 1e-3))
    means = log.mean(1)
    shape = float(np.sqrt(((log - means[:, None]) ** 2).mean()))
    figures = {"shape": shape, "levels": float(means.std()), "absolute": float(means.mean())}
    return {name: round(value, 4) for name, value in figures.items()}


def recorded(exposure, current, m):
    """What is recorded of the light `(m, 1, 1)` of exposures, in any unit; 1 where nothing is."""
    light = np.ones(m)
    for values in (exposure, current):
        light = light if values is None else light * values
    return light[:, None, None]


def peers(scan):
    """Transmission `(n, h, w)` by each peer that has what it needs."""
    dark, says = scan.dark.mean(0), scan.records
    frames = scan.counts - dark
    light = recorded(says.exposure_s, says.current_ma, len(frames))
    found = {
        "stack median": frames / np.maximum(np.median(frames, 0), 1),
        "true background": (frames - scan.direct) / scan.background,
    }
    flats = scan.flats, says.flats_exposure_s, says.flats_current_ma
    bank = scan.bank, says.bank_exposure_s, says.bank_current_ma
    for name, (images, exposure, current) in (("mean flats", flats), ("bank mean", bank)):
        if len(images):
            own = recorded(exposure, current, len(images))
            mean = np.maximum(((images - dark) / own).mean(0), 1e-6)
            found[name] = frames / light / mean
    return found


def run_ours(folder, scan, extra):
    """`txmcorrect correct` on files; figures and verdict, or the error's last line."""
    out = folder / "corrected.h5"
    command = [sys.executable, "-m", "txmcorrect", "correct", str(folder / "scan.h5")]
    command += ["--out", str(out), "--overwrite", "--quiet", *extra]
    if len(scan.bank):
        command += ["--refs", str(folder / "refs.h5")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, cwd=folder)
    except subprocess.TimeoutExpired:
        return {"error": f"more than {LIMIT_S} s"}
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        return {"error": (said or [f"exit {done.returncode}"])[-1][:300]}
    with h5py.File(out) as file:
        result = file["exchange/data"][:]
        verdict = str(file["process/txmcorrect"].attrs.get("verdict", ""))
    return errors(result, scan.transmission, scan.lit) | {
        "verdict": verdict.split(" ")[0].rstrip(":")
    }


def run_world(seed, family, drift, sample, size, frames, counts):
    """One row: what was drawn, and figures of all methods."""
    cell = list(DRIFT_KINDS).index(drift) * len(SPECIMENS) + SPECIMENS.index(sample)
    scan = draw_world(
        seed,
        family,
        index=cell,
        drift=drift,
        sample=sample,
        shape=(size, size),
        frames=frames,
        counts=counts,
    )
    methods = {
        name: errors(result, scan.transmission, scan.lit) for name, result in peers(scan).items()
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scan(folder / "scan.h5", scan)
        write_bank(folder / "refs.h5", scan)
        for method, extra in OURS.items():
            methods[method] = run_ours(folder, scan, extra)
    told = ("references", "records", "order", "detector", "texture", "amount", "strength", "bank")
    return {"choices": {name: scan.choices[name] for name in told}, "methods": methods}


def commit():
    """The commit measured, `+` for changes that are not in it."""
    git = ["git", "-C", str(ROOT)]
    said = [
        subprocess.run([*git, *words], capture_output=True, text=True).stdout.strip()
        for words in (
            ["rev-parse", "--short", "HEAD"],
            ["status", "--porcelain", "--", "txmcorrect", "tests/bench/families.py"],
        )
    ]
    return (said[0] or "unknown") + ("+" if said[1] else "")


def machine():
    """Kind of processor and how many of them."""
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def load(path):
    return json.loads(path.read_text())["rows"] if path.exists() else {}


def store(path, rows, given):
    """Replace the results at once, so that an interruption leaves the old or the new ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "command": shlex.join(["python", "tests/bench/families.py", *sys.argv[1:]]),
        "commit": given.commit,
        "machine": machine(),
        "seeds": list(range(FIRST_SEED, FIRST_SEED + given.seeds)),
        "rows": rows,
    }
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)


def done(row, now):
    """Whether a row is of this commit and nothing in it failed."""
    return (
        row is not None
        and row["commit"] == now
        and not any("error" in figures for figures in row["methods"].values())
    )


def middle(rows, method, figure):
    """Median over rows of a figure's size, as text."""
    values = [
        abs(row["methods"][method][figure])
        for row in rows
        if row["methods"].get(method, {}).get(figure) is not None
    ]
    return f"{np.median(values):7.2f}" if values else "      -"


def table(rows, by):
    """Medians of shape / levels / |absolute|, a line for each value of `by`."""
    groups = defaultdict(list)
    for row in rows.values():
        groups[row.get(by) or row["choices"][by]].append(row)
    methods = [*OURS, *PEERS]
    lines = [f"{by:14s}" + "".join(f"{name:>25s}" for name in methods)]
    for name, some in groups.items():
        parts = ["/".join(middle(some, m, f) for f in FIGURES) for m in methods]
        lines.append(f"{name:14s}" + "".join(f"{part:>25s}" for part in parts))
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--counts", type=float, default=5000)
    parser.add_argument("--family", default="develop", choices=["train", "develop", "benchmark"])
    parser.add_argument("--drifts", nargs="+", default=list(DRIFT_KINDS), choices=DRIFT_KINDS)
    parser.add_argument("--samples", nargs="+", default=list(SPECIMENS), choices=SPECIMENS)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    given.commit = commit()
    rows = load(given.out)
    seeds = range(FIRST_SEED, FIRST_SEED + given.seeds)
    try:
        for seed, drift, sample in product(seeds, given.drifts, given.samples):
            scene = (given.family, drift, sample, given.size, given.frames, given.counts, seed)
            key = "/".join(map(str, scene))
            if done(rows.get(key), given.commit):
                continue
            row = run_world(
                seed, given.family, drift, sample, given.size, given.frames, given.counts
            )
            rows[key] = {"drift": drift, "sample": sample, "seed": seed, "commit": given.commit}
            rows[key] |= row
            store(given.out, rows, given)
            print(key, json.dumps(row["methods"]["correct"]), flush=True)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    for by in ("drift", "sample", "references"):
        print("\n" + table(rows, by))


if __name__ == "__main__":
    main()
