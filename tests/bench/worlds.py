"""Judge the correction on scans that our simulator did not draw, beside peers, with no gain removed.

    python tests/bench/worlds.py WORLDS [--seeds 1 2 3 4 5] [--list FILE] [--jobs 2] [--slow] [--out FILE]

WORLDS is a folder with `worlds.py` (make_world, write_world, REFERENCES), `score.py` (score, PEERS,
read_truth, read_scan) and `run.py` (WORLDS, FLOOR); it is used as it is and nothing of it is copied.
A line of the list: a world's name, then options: those of `worlds.py`, and

    --reference-exposure F    references counted F times as long, which their record says
    --reordered               the same world, its frames stored in a random order

Names may end in `/within`: two flats before the first, between every quarter of, and after the last
frame. Lines that end in `# slow` are left out without --slow. The same command goes on where it was
interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import torch
from kept import (
    FIGURES,
    FIT,
    OURS,
    RESULTS,
    Kept,
    columns_of,
    command_line,
    digest,
    median,
    product,
    run_cases,
    run_ours,
    table,
    tell_verdicts,
    verdicts,
)

from txmcorrect import metrics
from txmcorrect.baselines import Flats, NotApplicableError, Problem
from txmcorrect.baselines.external import nabu_pca
from txmcorrect.baselines.two_terms import two_terms
from txmcorrect.baselines.vacuum import fit_to_vacuum
from txmcorrect.judge.tomogram import some_rows
from txmcorrect.recon.fbp import fbp
from txmcorrect.recon.geometry import ParallelBeam

MODULES = (  # what this bench measures with
    "txmcorrect.baselines.external",
    "txmcorrect.baselines.two_terms",
    "txmcorrect.baselines.vacuum",
    "txmcorrect.judge.tomogram",
)
FLOOR = "(true background)"
ORACLE_VACUUM = 0.999  # T that every pixel of a column exceeds in every frame
LEAST_COLUMNS = 8  # beside a sample: fewer hold no two cells
VACUUM_ERROR = 0.005  # of log T: a cell so empty shows the beam
VACUUM_FRACTION = 0.05  # of a frame's lit cells: so many show its level
WITHIN, PAIR_APART = (
    5,
    0.002,
)  # moments of flats within a scan, and their distance in scan durations
LEAST_COUNT = 1e-3  # of a background: keeps the division finite
CIRCLE = 0.48  # of the width: what every projection sees
TOLD = (*FIGURES, "4px", "8px", "16px", "32px", "64px", "128px", "slope", "coarse", "fbp", "fbp_b")
DEFAULTS = {
    "order": "time",
    "stray": 0.0,
    "size": 256,
    "frames": 16,
    "photons": 8e3,
    "metadata": "full",
    "reference_exposure": 1.0,
}


def load_tools(folder):
    """The three modules of the folder, with flats within the scan beside their references."""
    sys.path.insert(0, str(folder))
    tools = SimpleNamespace(**{k: importlib.import_module(k) for k in ("worlds", "score", "run")})
    assert Path(tools.worlds.__file__).parent == Path(folder).resolve(), tools.worlds.__file__
    moments = np.linspace(0, 1, WITHIN)[:, None] + PAIR_APART * np.array([-0.5, 0.5])
    tools.worlds.REFERENCES["within"] = lambda rng: (moments.ravel(), [], False)
    return tools


def read_list(text, slow):
    """Lines of a list of worlds, without comments and, unless asked for, without the slow ones."""
    lines = [line.partition("#") for line in text.strip().splitlines()]
    return [a.strip() for a, _, note in lines if a.strip() and (slow or note.strip() != "slow")]


def parse(line):
    """A world's name and its options."""
    name, *words = line.split()
    parser = argparse.ArgumentParser(add_help=False)
    for key, value in DEFAULTS.items():
        parser.add_argument(f"--{key.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--reordered", action="store_true")
    return name, parser.parse_args(words)


def make(tools, name, given, seed):
    """A world with what we add to it."""
    world = tools.worlds.make_world(
        name, seed, given.size, given.frames, given.photons, given.order, given.stray
    )
    rng = np.random.default_rng([seed, 30])
    if given.reference_exposure != 1:
        for kind in ("white", "bank"):
            world[kind] = expose_less(world[kind], world["offset"], given.reference_exposure, rng)
    return reorder(world, rng) if given.reordered else world


def expose_less(counts, offset, share, rng):
    """Frames of a shorter exposure, by thinning: each photon counts with the probability `share`."""
    photons = np.maximum(np.round(counts - offset), 0).astype(np.int64)
    thinned = np.round(rng.binomial(photons, share) + offset)
    return np.where(counts == 0, 0, thinned).astype(counts.dtype)  # dead pixels stay dead


def reorder(world, rng):
    """The same frames, stored in another order than they were taken in."""
    n = len(world["data"])
    order, out = rng.permutation(n), dict(world)
    for key in ("data", "transmission", "background", "level"):
        out[key] = world[key][order]
    for key in ("time", "current"):  # of frames and references alike
        out[key] = np.r_[np.asarray(world[key])[:n][order], np.asarray(world[key])[n:]]
    out["extra"] = {
        key: value[order] if np.ndim(value) and len(value) == n else value
        for key, value in world["extra"].items()
    }
    return out


def write(tools, scan, world, given, seed):
    """The scan, its truth and its bank, with the records of what we added."""
    tools.worlds.write_world(scan, world, given.metadata, seed)
    n, share = len(world["data"]), given.reference_exposure
    refs = scan.with_suffix(".refs.h5")
    with h5py.File(scan, "r+") as file:
        flats = file.get("process/acquisition/flat_fields/flat_exposure_time")
        if share != 1 and flats is not None:
            flats[...] *= share
        times = world["time"][n : n + len(world["white"])]
        if ((times > 0) & (times < 1)).any() and not given.reordered:
            before = np.searchsorted(world["time"][:n], times)
            file["process/acquisition/flat_fields/projections_before"] = before
    if refs.exists() and share != 1:
        with h5py.File(refs, "r+") as file:
            exposure = file.get("measurement/instrument/detector/exposure_time")
            if exposure is not None:
                exposure[...] *= share
    return refs if refs.exists() else None


def interpolated(scan, world):
    """Background of each frame between the two moments of flats that enclose it, by time."""
    times, n = scan["time_white"], len(scan["frames"])
    if scan["own"] is None or not ((times > 0) & (times < 1)).any():
        return None
    moments = np.unique(np.round(times, 2))
    means = np.stack([scan["own"][np.abs(times - t) < PAIR_APART].mean(0) for t in moments])
    at = np.clip(
        np.interp(world["time"][:n], moments, np.arange(len(moments))), 0, len(moments) - 1
    )
    low = np.minimum(at.astype(int), len(moments) - 2)
    share = (at - low)[:, None, None]
    return (1 - share) * means[low] + share * means[low + 1]


def vacuum_columns(truth):
    """Pixels `(h, w)` of columns that the sample never reaches.

    Taken from the truth (T above 0.999 in every frame): whoever fits there gets every benefit.
    """
    empty = (truth["transmission"] > ORACLE_VACUUM).all(0) | (truth["lit"] == 0)
    return np.broadcast_to(empty.all(0), empty.shape)


def more_peers(scan, truth, turns):
    """Peers beside those of `score.py`: name, and log background or why there is none."""
    flats = [group for group in (scan["own"], scan["bank"]) if group is not None]
    if not flats:
        return
    counts = np.concatenate(flats).astype(np.float32)
    dark = np.zeros(counts.shape[1:], np.float32)
    problem = Problem(scan["frames"].astype(np.float32), dark, scan["lit"], bank=Flats(counts))
    vacuum = vacuum_columns(truth) if turns else None
    if vacuum is not None and vacuum[0].sum() < LEAST_COLUMNS:
        vacuum = None
    methods = {"two terms": two_terms(vacuum), "nabu PCA": nabu_pca}
    if vacuum is not None:
        methods["columns"] = fit_to_vacuum(vacuum)
    for name, method in methods.items():
        try:
            yield name, np.exp(method(problem).log_background)
        except NotApplicableError as reason:
            yield name, str(reason)


def slices(transmission, extra):
    """Slices `(k, w, w)` of some rows, about the true axis."""
    rows = some_rows(transmission.shape[1])
    logs = -np.log(np.maximum(transmission[:, rows], LEAST_COUNT)).astype(np.float32)
    sinograms = torch.from_numpy(np.ascontiguousarray(logs.transpose(1, 0, 2)))
    theta = torch.from_numpy(np.deg2rad(np.asarray(extra["theta"], np.float64)))
    beam = ParallelBeam(theta, logs.shape[-1], float(extra["axis_px"]))
    return fbp(beam, logs.shape[-1], sinograms).numpy()


def ideal(scan, truth):
    """Frames over their true background: what is left is photon noise."""
    return (scan["frames"] - truth["additive"]) / truth["background"]


def make_judge(tools, truth, scan, extra):
    """Figures of a corrected scan; of tomograms also the errors of slices in per cent.

    `fbp` : against slices of the true transmission; `fbp_b` : against those of the frames over their
    true background, which have the same noise, so that the background's errors alone are left.
    """
    turns = "theta" in extra
    if turns:
        wanted = slices(truth["transmission"], extra)
        same_noise = slices(np.where(truth["lit"] > 0, ideal(scan, truth), 1.0), extra)
        along = np.arange(wanted.shape[-1]) - (wanted.shape[-1] - 1) / 2
        circle = np.hypot(along[:, None], along) < CIRCLE * len(along)

    def judge(result):
        figures = tools.score.score(result, truth)
        if turns:
            whole = np.where(truth["lit"] > 0, np.nan_to_num(result, nan=1.0), 1.0)
            found = slices(whole, extra)
            for key, other in (("fbp", wanted), ("fbp_b", same_noise)):
                figures[key] = 100 * metrics.relative_error(found[:, circle], other[:, circle])
        return figures

    return judge


def shows_vacuum(tools, truth):
    """Whether the middle frame of a scan shows its beam in at least a twentieth of its cells."""
    lit = truth["lit"] > 0
    light = tools.score.blocks(np.where(lit, truth["background"], 0.0), tools.score.CELL)
    through = np.where(lit, truth["background"] * truth["transmission"], 0.0)
    seen = tools.score.blocks(through, tools.score.CELL)
    usable = light > 0
    logs = np.log(np.where(usable, seen, 1) / np.where(usable, light, 1))
    empty = ((np.abs(logs) < VACUUM_ERROR) & usable).sum((1, 2)) / usable.sum((1, 2))
    return bool(np.median(empty) >= VACUUM_FRACTION)


def judge_world(command, tools, line, seed):
    """All columns of one world and seed."""
    name, given = parse(line)
    world = make(tools, name, given, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.h5"
        refs = write(tools, path, world, given, seed)
        truth = tools.score.read_truth(path.with_suffix(".truth.h5"))
        scan = tools.score.read_scan(path, refs, truth)
        judge = make_judge(tools, truth, scan, world["extra"])
        columns = run_ours(command, path, folder, judge, refs)
    for kind in ("own", "bank"):  # peers are told what the file says of exposures
        if scan[kind] is not None:
            scan[kind] = scan[kind] / given.reference_exposure
    columns[FLOOR] = judge(ideal(scan, truth))
    peers = {key: peer(scan) for key, peer in tools.score.PEERS.items()}
    peers["interpolated"] = interpolated(scan, world)
    peers |= dict(more_peers(scan, truth, "theta" in world["extra"]))
    for key, background in peers.items():
        if isinstance(background, str):
            columns[key] = {"error": background}
        elif background is not None:
            columns[key] = judge(scan["frames"] / np.maximum(background, LEAST_COUNT))
    still = name.split("/")[1] == "still"
    return {
        "world": line,
        "seed": seed,
        "bare": name.endswith("/none"),
        "shows vacuum": still or shows_vacuum(tools, truth),
        "columns": columns,
    }


def best_peer(rows, names):
    """The peer of least median shape among those that every row has."""
    usable = [n for n in names if all("shape" in r["columns"].get(n, {}) for r in rows)]
    return min(usable, key=lambda n: median(rows, n, "shape"), default="")


def compare(tools, rows, ours, names):
    """One world against its best peer, by the rules of `run.py`; None where the run failed."""
    best = best_peer(rows, names)
    if not best or any("error" in r["columns"].get(ours, {"error": ""}) for r in rows):
        return None
    mine, peer = ([median(rows, c, f) for f in FIGURES] for c in (ours, best))
    floor, least = median(rows, FLOOR, "shape"), tools.run.FLOOR
    excess = [np.sqrt(max(v[0] ** 2 - floor**2, least**2)) for v in (mine, peer)]
    loses = mine[1] > peer[1] + 0.3 or mine[2] > peer[2] + 0.3
    return {
        "best": best,
        "ratio": float(excess[0] / excess[1]),
        "behind": bool(mine[0] > 1.05 * peer[0] + 0.1),
        "levels behind": bool(loses and not rows[0]["bare"]),
    }


def summarise(tools, worlds, ours):
    """What a column adds up to over `worlds`, rows by line; against simple peers and against all."""
    rows = [row for group in worlds.values() for row in group]
    every = [n for n in columns_of(rows) if n not in (OURS, FIT, FLOOR)]
    found = {"verdicts": verdicts(rows, ours)}
    showing = [r for r in rows if r["shows vacuum"]]
    found["verdicts where vacuum shows or nothing moves"] = verdicts(showing, ours)
    for kind, names in (("simple peers", list(tools.score.PEERS)), ("all peers", every)):
        each = {line: compare(tools, group, ours, names) for line, group in worlds.items()}
        ratios = [c["ratio"] for c in each.values() if c]
        found[f"against {kind}"] = {
            "ratio": float(np.exp(np.mean(np.log(ratios)))) if ratios else None,
            "failed": [line for line, c in each.items() if c is None],
            "behind": [line for line, c in each.items() if c and c["behind"]],
            "levels behind": [line for line, c in each.items() if c and c["levels behind"]],
        }
    return found


def tell(tools, worlds, summary):
    """Print every table, then what they add up to."""
    for line, rows in worlds.items():
        simple = best_peer(rows, list(tools.score.PEERS))
        told = [f for f in TOLD if any(f in c for r in rows for c in r["columns"].values())]
        print("\n".join(table(line, rows, told, mark=simple)))
        said = {
            name: [r["columns"][name].get("verdict", "error") for r in rows] for name in (OURS, FIT)
        }
        for name, words in said.items():
            print(f"  {name} said: " + " | ".join(w.split(":")[0].split(" (")[0] for w in words))
        print()
    for name, found in summary.items():
        print(f"{name}: {tell_verdicts(found['verdicts'])}")
        showing = found["verdicts where vacuum shows or nothing moves"]
        print(f"  where vacuum shows or nothing moves: {tell_verdicts(showing)}")
        for kind in ("simple peers", "all peers"):
            against = found[f"against {kind}"]
            ratio = "-" if against["ratio"] is None else f"{against['ratio']:.2f}"
            print(f"  shape beyond photon noise over the best of {kind}, geometric mean: {ratio}")
            for what in ("behind", "levels behind", "failed"):
                lines = against[what]
                print(
                    f"    {what}: {len(lines)} of {len(worlds)}"
                    + ": " * bool(lines)
                    + "; ".join(lines)
                )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("worlds", type=Path, help="folder with worlds.py, score.py, run.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--list", type=Path, help="lines of worlds; else those of run.py")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--executable", default="", help="another txmcorrect than this checkout's")
    parser.add_argument("--slow", action="store_true", help="lines that are marked as slow, too")
    parser.add_argument("--out", type=Path, default=RESULTS / "worlds.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    tools = load_tools(given.worlds.resolve())
    lines = tools.run.WORLDS if given.list is None else given.list.read_text().splitlines()
    lines = read_list("\n".join(lines), given.slow)
    kept = Kept(given.out, digest(given.executable, MODULES, given.worlds.glob("*.py")))
    kept.begin(command_line(), list="run.py" if given.list is None else given.list.name)
    command = product(given.executable)
    cases = [
        (f"{line} @ {seed}", (command, tools, line, seed)) for line in lines for seed in given.seeds
    ]
    status = run_cases(kept, cases, judge_world, given.jobs)
    rows = [kept.rows[key] for key, _ in cases if key in kept.rows]
    worlds = {line: [r for r in rows if r["world"] == line] for line in lines}
    worlds = {line: group for line, group in worlds.items() if group}
    if not worlds:
        return status
    summary = {name: summarise(tools, worlds, name) for name in (OURS, FIT)}
    kept.save(summary=summary)
    tell(tools, worlds, summary)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
