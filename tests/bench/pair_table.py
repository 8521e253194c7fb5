"""The pair model against what it must beat, on simulated scans it was not trained on.

    python tests/bench/pair_table.py [--model FILE] [--scans 10] [--write README.md]

Ten scans of medium drift, four kinds in turn, 5,000 counts, ring current recorded, no reference for
anyone but the two columns that say so. PSNR (data range 1, lit pixels) is taken after one gain per
scan, as the scale is relative without a reference; log rms is the noise-free error of the log
background, level of each frame removed. A mean of the pair holds half of the frame's own noise, and
cancels it: where the sample is faint its PSNR exceeds that of the true background.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from txmcorrect.api import Draw, estimate_array, load_model
from txmcorrect.baselines import PEERS, oracle
from txmcorrect.judge.scenes import problem_of, truth_of
from txmcorrect.simulate import simulate_scan

KINDS = ("mosaic-sparse", "mosaic-dense", "tomo", "film")
FIRST_SEED = 500
METHODS = {
    "none": "no correction",
    "pair-mean": "mean of the pair",
    "pair-smoothed": "smoothed mean of the pair",
    "model": "**pair model**",
    "stack-median": "median of the stack",
    "stale": "stale reference",
    "oracle": "true background",
}
START, END = "<!-- table: pair -->", "<!-- end of table -->"


def score(log_background, problem, truth):
    """PSNR in dB after one gain, and log rms in percent."""
    lit = problem.lit
    light = problem.frames - problem.dark - truth.additive
    found = (light / np.exp(log_background))[:, lit]
    true = truth.transmission[:, lit]
    gain = (found * true).sum() / (true**2).sum()
    psnr = -10 * np.log10(np.mean((found / gain - true) ** 2))
    error = (log_background - truth.log_background)[:, lit]
    return float(psnr), float(100 * np.sqrt(error.var(1).mean()))


def leak(log_background, problem, truth):
    """Slope of the background's error on the frame's own sample, both without their means."""
    error = (log_background - truth.log_background)[:, problem.lit]
    sample = np.log(np.maximum(truth.transmission, 0.05))[:, problem.lit]
    error, sample = (a - a.mean(1, keepdims=True) for a in (error, sample))
    return float((error * sample).sum() / max((sample**2).sum(), 1e-12))


def run_scan(number, model, draw, settle=15, first_seed=FIRST_SEED):
    """All methods on scan `number`."""
    kind = KINDS[number % len(KINDS)]
    scan = simulate_scan(
        kind, "medium", 5000, seed=first_seed + number, references="stale", frames=16, bank=0
    )
    problem, truth = problem_of(scan), truth_of(scan)
    bare = problem.without("stale")
    background = estimate_array(
        scan.counts, problem.dark, model, draw, settle=settle, current_ma=scan.current_ma
    )
    logs = {"model": np.stack([background.log_background(i) for i in range(len(scan.counts))])}
    for name in METHODS:
        if name not in ("model", "oracle"):
            logs[name] = PEERS[name](problem if name == "stale" else bare).log_background
    logs["oracle"] = oracle(truth.log_background)(problem).log_background
    scores = {name: score(log, problem, truth) for name, log in logs.items()}
    return {
        "kind": kind,
        "seed": first_seed + number,
        "verdict": background.verdict().word,
        "leak": leak(logs["model"], problem, truth),
        "scores": scores,
    }


def ahead(row, place):
    """Whether the model is better than no correction and both means; place 0: PSNR, 1: log rms."""
    sign = 1 if place == 0 else -1
    ours = sign * row["scores"]["model"][place]
    return all(
        ours > sign * row["scores"][n][place] for n in ("none", "pair-mean", "pair-smoothed")
    )


def table(rows):
    """Markdown: PSNR per scan and method, then the mean log rms."""
    lines = ["| scan (seed) | " + " | ".join(METHODS.values()) + " | verdict |"]
    lines.append("|---" * (len(METHODS) + 2) + "|")
    for row in rows:
        cells = " | ".join(f"{row['scores'][name][0]:.1f}" for name in METHODS)
        lines.append(f"| {row['kind']} ({row['seed']}) | {cells} | {row['verdict']} |")
    means = " | ".join(f"{np.mean([r['scores'][n][0] for r in rows]):.1f}" for n in METHODS)
    errors = " | ".join(f"{np.mean([r['scores'][n][1] for r in rows]):.2f} %" for n in METHODS)
    lines += [f"| mean PSNR, dB | {means} | |", f"| mean log rms | {errors} | |"]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--scans", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--settle", type=int, default=15)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = load_model(options.model, "pair")
    draw = Draw(steps=options.steps, samples=options.samples)
    rows = []
    for number in range(options.scans):
        rows.append(run_scan(number, model, draw, options.settle, options.first_seed))
        print(json.dumps(rows[-1]), flush=True)
    text = table(rows)
    text += "\n\nAhead of no correction and of both means of the pair: "
    for place, name in enumerate(("PSNR", "log rms")):
        text += f"in {sum(ahead(r, place) for r in rows)} of {len(rows)} scans by {name}, "
    text += (
        f"leak of the sample into the background: slope {np.mean([r['leak'] for r in rows]):+.3f}."
    )
    print(text)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    if options.write:
        page = options.write.read_text()
        before, rest = page.split(START)
        after = rest.split(END)[1]
        options.write.write_text(f"{before}{START}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
