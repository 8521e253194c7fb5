"""`python tests/bench/finetune.py [--out FOLDER]`: what `prepare` and `train --init bundled` gain a beamline.

Instruments of the benchmark family, whose textures training never draws. Of each there are four scans with
a reference and earlier references to learn from, and other scans to be judged by: background error in per
cent (without noise, mean removed), of the bundled weights, of the bundled weights with all those references
given as a bank (`--refs`), and of those trained on, which get nothing but the scan. All else is alike.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from txmcorrect import prepare, train
from txmcorrect.background.estimate import Draw
from txmcorrect.background.methods import METHODS
from txmcorrect.baselines.contract import Flats
from txmcorrect.config import PrepareSettings, TrainSettings, load_settings
from txmcorrect.judge.scenes import Scene, problem_of, truth_of
from txmcorrect.judge.trial import log_error
from txmcorrect.simulate import simulate_scan
from txmcorrect.synthesize import write_bank, write_scan
from txmcorrect.weights import load_model

LEARNT = ("mosaic-sparse", "mosaic-dense", "film", "mosaic-sparse")
JUDGED = tuple(
    (kind, references)
    for kind in ("mosaic-sparse", "mosaic-dense", "film", "tomo")
    for references in ("none", "stale")
)
WAYS = ("bundled", "with --refs", "trained on")
SIDE, COUNTS, DRIFT = 256, 5000, "medium"


def scan_of(instrument, seed, kind, references, bank):
    return simulate_scan(
        kind,
        DRIFT,
        COUNTS,
        (SIDE, SIDE),
        seed,
        "benchmark",
        references,
        bank=bank,
        instrument=instrument,
    )


def learn(folder, instrument, config, minutes):
    """The weights that training on the instrument's own frames and references gives; these references; and
    seconds it took.
    """
    raw, refs = folder / "raw", folder / "refs"
    for path in (raw, refs):
        path.mkdir(parents=True, exist_ok=True)
    flats, currents = [], []
    for k, kind in enumerate(LEARNT):
        scan = scan_of(instrument, 100 * instrument + k, kind, "stale", 5)
        write_scan(raw / f"{k}.h5", scan)
        write_bank(refs / f"{k}.h5", scan)
        flats += [scan.bank, scan.flats]
        currents += [scan.bank_current_ma, scan.flats_current_ma]
    began = time.monotonic()
    data, out = folder / "data.h5", folder / "run"
    prepare.run(PrepareSettings(raw=raw, refs=refs, out=data, overwrite=True, quiet=True))
    train.run(
        load_settings(
            TrainSettings,
            {"config": config, "data": data, "out": out, "max_minutes": minutes, "quiet": True},
        )
    )
    bank = Flats(np.concatenate(flats).astype(np.float32), np.concatenate(currents))
    return out / "model.safetensors", bank, time.monotonic() - began


def judge(model, instrument, k, bank=None):
    """Error of one scan in per cent, and the share of pixels within intervals of 90 %."""
    kind, references = JUDGED[k]
    scan = scan_of(instrument, 100 * instrument + 50 + k, kind, references, 0)
    scene = Scene(kind, k, replace(problem_of(scan), bank=bank), truth_of(scan))
    estimate = METHODS[model.spec.condition](model, Draw(), 1)(scene.problem)
    error = log_error(estimate, scene)
    lit = scan.lit
    apart = error[:, lit] - error[:, lit].mean(1, keepdims=True)
    inside = float("nan")
    if estimate.std is not None:
        inside = float((np.abs(apart) < 1.645 * estimate.std[:, lit]).mean())
    return 100 * float(np.sqrt((apart**2).mean())), inside


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench/finetune"))
    parser.add_argument("--config", type=Path, default=Path("configs/finetune.yaml"))
    parser.add_argument("--instruments", type=int, default=3)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--minutes", type=float)
    given = parser.parse_args()
    condition = load_settings(TrainSettings, {"config": given.config}).dataset.condition
    bundled, rows = load_model("bundled", condition), []
    for instrument in range(given.first, given.first + given.instruments):
        folder = given.out / f"{condition}-{instrument}"
        path, bank, seconds = learn(folder, instrument, given.config, given.minutes)
        own = load_model(path, condition)
        for k, (kind, references) in enumerate(JUDGED):
            ways = [(bundled, None), (bundled, bank), (own, None)]
            found = [judge(model, instrument, k, given_bank) for model, given_bank in ways]
            rows.append([instrument, kind, references, seconds, *found])
            print(
                f"{instrument} {kind} {references}: "
                + ", ".join(
                    f"{name} {error:.2f} % (covered {covered:.2f})"
                    for name, (error, covered) in zip(WAYS, found, strict=True)
                )
                + f"; {seconds:.0f} s",
                flush=True,
            )
    (given.out / f"{condition}.json").write_text(json.dumps(rows))
    for references in ("none", "stale"):
        chosen = [[error for error, _ in r[4:]] for r in rows if r[2] == references]
        usual = np.exp(np.log(chosen).mean(0))
        print(
            f"{references}, geometric mean of {len(chosen)} scans: "
            + ", ".join(f"{name} {error:.2f} %" for name, error in zip(WAYS, usual, strict=True))
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
