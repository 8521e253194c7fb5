"""Judge the correction on real references with known samples multiplied in, and on real tiles as they are.

    python tests/bench/real.py DATA [--jobs 2] [--only WORDS] [--seeds 1] [--out FILE]

Some of an instrument's references are held out, a known sample is multiplied into their counts, the
others are the scan's references; no metadata but the flats' place where a case says `ends`. The
truth of the background is the held-out reference itself, photon by photon, so its noise cancels. How a
sample is multiplied in: of each photon the sample keeps (T <= 1) it is drawn whether it came through,
where the gain was measured (variance over mean of differences of references in the finest scale);
without a gain, and where T > 1, counts are multiplied, noise and all. What each case did is told in
its row's `notes`.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
from kept import (
    FIT,
    OURS,
    RESULTS,
    RUNS,
    Kept,
    columns_of,
    command_line,
    correct,
    digest,
    median,
    product,
    read_result,
    run_cases,
    run_ours,
    table,
    tell_verdicts,
    verdicts,
)
from real_tiles import disks

from txmcorrect.baselines import PEERS, Flats, NotApplicableError, Problem
from txmcorrect.baselines import correct as divide
from txmcorrect.baselines.variation import eigen_flats_of
from txmcorrect.formats import open_scan
from txmcorrect.judge.outside import Known, cell_sums, score
from txmcorrect.judge.recorded import find_empty, lit_pixels
from txmcorrect.metrics import slope
from txmcorrect.mosaicking.seams import compare_tiles
from txmcorrect.simulate import simulate_scan
from txmcorrect.stitch.layout import grid_cells, grid_neighbours, parse_tile_configuration
from txmcorrect.stitch.seam import seam_figure

MODULES = (  # what this bench measures with
    "txmcorrect.baselines",
    "txmcorrect.baselines.variation",
    "txmcorrect.judge.outside",
    "txmcorrect.judge.recorded",
    "txmcorrect.mosaic",
    "txmcorrect.simulate",
)
SAMPLES = ("sparse", "dense", "film", "opaque")
OPAQUE_T = 0.06  # mean transmission of a frame of the opaque film
FIRST_SEED = 60_000  # of samples; neither training nor another bench uses these
LEAST_SIDE = 64  # pixels that a sample is drawn on before it is cut to a tiny frame
MOST_FRAMES = 16
IMPLANTED = ((4, 16, 64, 256), (8, 32, 128))  # diameters of disks, in two corrections
CONTRASTS = (0.9, 1.1)
LEAST_T = 1e-3  # keeps logarithms finite
TILE_GRID = "4x4"
NEARLY_EMPTY = ("9", "13")  # tiles of the real mosaic, counted from 1
TOLD = (
    "shape",
    "levels",
    "absolute",
    "4px",
    "8px",
    "16px",
    "32px",
    "64px",
    "128px",
    "slope",
    "coarse",
)


@dataclass(frozen=True)
class Source:
    """Real exposures of the open beam: some stand for frames, others are references.

    Attributes
    ----------
    held : `(n, h, w)` counts; flats : `(m, h, w)`; darks : `(d, h, w)` or None.
    gain : counts a photon, 0 where it cannot be measured. first : how many flats came before the frames,
    None where the scan does not say. apart : taken apart in time, so nothing tells the absolute level.
    """

    name: str
    held: np.ndarray
    flats: np.ndarray
    darks: np.ndarray | None
    gain: float
    first: int | None = None
    apart: bool = False
    notes: str = ""

    @property
    def dark(self) -> np.ndarray:
        none = np.zeros(self.held.shape[1:])
        return none if self.darks is None else self.darks.mean(0, dtype=np.float64)


def measured_gain(flats, dark):
    """Counts a photon: variance over mean, from second differences in time and along rows."""
    light = flats.astype(np.float64) - dark
    twice = np.diff(np.diff(light, axis=0), axis=2)
    return float(twice.var() / 4 / light.mean())


# ---- what lies in the folder ---------------------------------------------------------------------
def bursts(name, flats, darks, notes=""):
    """Every second reference as a frame; and the middle ones between those at both ends."""
    dark = 0.0 if darks is None else darks.mean(0, dtype=np.float64)
    gain = measured_gain(flats, dark)
    few = some(flats[1::2])
    yield Source(f"{name}/burst", few, flats[::2], darks, gain, notes=notes)
    third = max(len(flats) * 3 // 10, 1)
    ends = np.r_[flats[:third], flats[-third:]]
    yield Source(f"{name}/ends", some(flats[third:-third]), ends, darks, gain, third, notes=notes)


def some(frames):
    """At most sixteen of the frames, evenly chosen."""
    return frames[np.unique(np.linspace(0, len(frames) - 1, MOST_FRAMES).astype(int))]


def ssrl(data):
    """A real microscope: ten references at each of two energies, 28 minutes apart."""
    read = {}
    for energy in ("8324", "8354"):
        with h5py.File(data / f"ssrl/flats_{energy}eV.h5") as file:
            read[energy] = file["exchange/data"][()]
    notes = "darks not recorded, taken as zero"
    for energy, flats in read.items():
        yield from bursts(f"ssrl/{energy}", flats, None, notes)
    for one, other in (("8324", "8354"), ("8354", "8324")):
        gain = measured_gain(read[other], 0.0)
        said = f"{notes}; energies left out, as one instrument 28 minutes apart"
        yield Source(
            f"ssrl/{one}>{other}", read[other], read[one], None, gain, apart=True, notes=said
        )


def k11(data):
    """A fast tomogram of tiny frames: fifty flats before and fifty after."""
    with h5py.File(data / "k11/k11-18014.nxs") as file:
        key = np.ravel(file["entry/instrument/imaging/image_key"][()])
    with h5py.File(data / "k11/k11-18014/k11-18014-imaging.h5") as file:
        frames = file["entry/detector/detector"]
        flats, darks = (frames[np.flatnonzero(key == kind)] for kind in (1, 2))
    half = len(flats) // 2
    yield from bursts("k11", flats[:half], darks)
    gain = measured_gain(flats, darks.mean(0))
    yield Source("k11/across", some(flats[half:]), flats[:half], darks, gain, apart=True)


def tooth(data):
    with h5py.File(data / "tooth.h5") as file:
        yield from bursts("tooth", file["exchange/data_white"][()], file["exchange/data_dark"][()])


def tiles(data):
    """Two tiles that are nearly empty: each as the reference of the other."""
    scan = open_scan(data / "lm_mosaic_4x4")
    frames = scan.projections.read(0, scan.shape[0])
    one, other = (frames[int(k) - 1 : int(k)] for k in NEARLY_EMPTY)
    gain = measured_gain_of_two(one[0], other[0])
    notes = "what little sample the tiles show counts as beam; darks not recorded, taken as zero"
    yield Source("lm/9>13", other, one, None, gain, notes=notes)
    yield Source("lm/13>9", one, other, None, gain, notes=notes)


def measured_gain_of_two(one, other):
    """Counts a photon from two exposures: a robust spread, since what they show differs."""
    difference = np.diff(one.astype(np.float64) - other, axis=1)
    spread = 1.4826 * np.median(np.abs(difference - np.median(difference)))
    return float(spread**2 / 4 / np.mean([one, other]))


def chip(data):
    """One real exposure, split in two; all that differs is photon noise."""
    (group,) = open_scan(data / "xradia/test_chip00.xrm").flats
    counts = group.frames.read(0, 1).astype(np.int64)
    half = np.random.default_rng(FIRST_SEED).binomial(counts, 0.5)
    notes = "one exposure split by binomial thinning, a count taken for a photon; nothing drifts"
    yield Source("chip/split", half, counts - half, None, 1.0, notes=notes)


KINDS: dict[str, tuple[str, Callable]] = {
    "ssrl": ("ssrl/flats_8324eV.h5", ssrl),
    "k11": ("k11/k11-18014.nxs", k11),
    "tooth": ("tooth.h5", tooth),
    "lm": ("lm_mosaic_4x4", tiles),
    "chip": ("xradia/test_chip00.xrm", chip),
}


# ---- samples ------------------------------------------------------------------------------------
def draw_sample(kind, shape, seed):
    """Transmission `(n, h, w)` of our simulator's benchmark family; the beam it draws is not used."""
    n, h, w = shape
    drawn = (max(h, LEAST_SIDE), max(w, LEAST_SIDE))
    side = int(np.ceil(np.sqrt(n)))
    of = "film" if kind in ("film", "opaque") else f"mosaic-{kind}"
    geometry = {"frames": n} if of == "film" else {"grid": (side, side)}
    scan = simulate_scan(
        of, "slow", 100.0, drawn, seed=FIRST_SEED + seed, family="benchmark", bank=0, **geometry
    )
    top, left = (drawn[0] - h) // 2, (drawn[1] - w) // 2
    t = scan.transmission[:n, top : top + h, left : left + w].astype(np.float64)
    return OPAQUE_T * t / t.mean((1, 2), keepdims=True) if kind == "opaque" else t


def multiply(source, transmission, rng):
    """Counts `(n, h, w)` of the held exposures behind a sample, in the type that they were stored in."""
    light = source.held - source.dark
    through = light * transmission
    if source.gain > 0:
        photons = np.maximum(np.floor(light / source.gain), 0).astype(np.int64)
        rest = light - photons * source.gain  # less than a photon, or below the dark
        kept = rng.binomial(photons, np.minimum(transmission, 1))
        drawn = source.gain * kept + rest * transmission
        through = np.where(transmission <= 1, drawn, through)
    counts = source.dark + through
    kind = source.held.dtype
    if kind.kind in "iu":
        counts = np.round(counts)
        return np.clip(counts, 0, 65535).astype(np.uint16)
    return counts.astype(kind)


def realised(source, counts):
    """Transmission that the counts stand for, photon by photon, so that noise cancels."""
    light = source.held - source.dark
    return np.where(light > 0, (counts - source.dark) / np.where(light > 0, light, 1), 1.0)


# ---- one case -----------------------------------------------------------------------------------
def write_scan(path, source, counts):
    """A Data Exchange file; of metadata only the flats' place, where the source knows it."""
    with h5py.File(path, "w") as file:
        file["exchange/data"] = counts
        flats = source.flats
        file["exchange/data_white"] = flats.astype(np.uint16) if flats.dtype.kind in "iu" else flats
        if source.darks is not None:
            file["exchange/data_dark"] = source.darks
        if source.first is not None:
            before = np.where(np.arange(len(flats)) < source.first, 0, len(counts))
            file["process/acquisition/flat_fields/projections_before"] = before


def peers_of(source):
    """Methods by the names of the tables, and the references that each may use."""
    methods = {
        "mean flats": PEERS["bank-mean"],
        "eigen flats 1": eigen_flats_of(1),
        "eigen flats 3": eigen_flats_of(3),
        "stack median": PEERS["stack-median"],
    }
    if source.first is not None:
        methods["before/after"] = PEERS["interpolated"]
    return methods


def problem_of(source, counts, lit):
    flats = source.flats.astype(np.float32)
    problem = Problem(counts.astype(np.float32), source.dark.astype(np.float32), lit)
    if source.first is None:
        return replace(problem, bank=Flats(flats))
    before, after = Flats(flats[: source.first]), Flats(flats[source.first :])
    return replace(problem, bank=Flats(flats), before=before, after=after)


def expected_floor(source, lit):
    """Rms error in per cent that the noise of the held-out references alone leaves in a cell."""
    light = cell_sums(np.where(lit, source.held - source.dark, 0.0))
    seen = light[light > 0]
    return 100 * float(np.sqrt(np.mean(max(source.gain, 0.0) / seen)))


def judge_case(command, source, kind, seed):
    """All columns of one source and sample."""
    rng = np.random.default_rng([FIRST_SEED, seed, *f"{source.name}/{kind}".encode()])
    counts = multiply(source, draw_sample(kind, source.held.shape, seed), rng)
    lit = lit_pixels(source.held.astype(np.float64), source.dark)
    known = Known(realised(source, counts), source.held - source.dark, lit)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.h5"
        write_scan(path, source, counts)
        columns = run_ours(command, path, folder, lambda result: score(result, known))
    problem = problem_of(source, counts, lit)
    for name, method in peers_of(source).items():
        bank = problem if name == "before/after" else problem.without("before", "after")
        try:
            columns[name] = score(divide(problem, method(bank)), known)
        except NotApplicableError as reason:
            columns[name] = {"error": str(reason)}
    noise = (
        f"gain {source.gain:.3g} counts a photon"
        if source.gain > 0
        else "counts multiplied, noise and all"
    )
    return {
        "case": f"{source.name} {kind}",
        "seed": seed,
        "bare": source.apart,
        "frames": len(counts),
        "references": len(source.flats),
        "noise of the truth": expected_floor(source, lit),
        "notes": "; ".join(v for v in (noise, source.notes) if v),
        "columns": columns,
    }


# ---- real frames as they are --------------------------------------------------------------------
def registered(command, folder, work):
    """Corners `(n, 2)` of a folder's tiles and pairs of neighbours, as the mosaic places them."""
    command = [*command, "mosaic", str(folder), "--grid", TILE_GRID]
    command += ["--order", "rows,bottom-left", "--flats", "median", "--quiet"]
    subprocess.run([*command, "--out", str(work / "mosaic.tif")], check=True, capture_output=True)
    listed = parse_tile_configuration((work / "TileConfiguration.registered.txt").read_text())
    rows, columns = (int(s) for s in TILE_GRID.split("x"))
    pairs = grid_neighbours(grid_cells((rows, columns), "rows,bottom-left"))
    return listed, pairs


def judge_tiles(command, data, seed):
    """Overlaps, flatness and implants of real tiles; nothing is known of their truth."""
    folder = data / "lm_mosaic_4x4"
    scan = open_scan(folder)
    frames = scan.projections.read(0, scan.shape[0]).astype(np.float32)
    dark = np.zeros(frames.shape[1:], np.float32)
    problem = Problem(frames, dark, lit_pixels(frames, dark))
    known = [implant(frames.shape, sizes, turn, seed) for turn, sizes in enumerate(IMPLANTED)]
    stacks = [frames, *(np.round(frames * np.exp(change)) for _, change in known)]
    results = {}
    with tempfile.TemporaryDirectory() as work:
        listed, pairs = registered(command, folder, Path(work))
        for name, options in RUNS.items():
            results[name] = correct_all(command, Path(work), stacks, options)
    median_of = PEERS["stack-median"]
    problems = [replace(problem, frames=stack.astype(np.float32)) for stack in stacks]
    results["stack median"] = [divide(p, median_of(p)) for p in problems]
    corners = np.array([listed[name] for name in scan.names])
    columns = {}
    for name, found in results.items():
        if isinstance(found, dict):
            columns[name] = found
        else:
            plain, *changed = (np.maximum(v, LEAST_T) for v in found)
            columns[name] = plain_figures(problem, plain, corners, pairs)
            columns[name] |= contrast_kept(problem.lit, plain, changed, known)
    return {"case": "lm/as it is", "seed": seed, "bare": True, "columns": columns}


def implant(shape, sizes, turn, seed):
    """Frames with the size of their disks, every second from `turn`, and log change `(n, h, w)`."""
    rng = np.random.default_rng([FIRST_SEED, seed, turn])
    change, frames = np.zeros(shape, np.float32), {}
    for k, (size, contrast) in enumerate(itertools.product(sizes, CONTRASTS)):
        frames[2 * k + turn] = size
        change[2 * k + turn] = disks(shape[1:], size, contrast, rng)
    return frames, change


def correct_all(command, work, stacks, options):
    """Transmission of each stack by the command; what went wrong where it failed."""
    found = []
    for counts in stacks:
        path, out = work / "tiles.h5", work / "tiles.corrected.h5"
        out.unlink(missing_ok=True)
        with h5py.File(path, "w") as file:
            file["exchange/data"] = counts.astype(np.uint16)
        said = correct(command, path, out, *options)
        if "error" in said:
            return said
        found.append(read_result(out))
    return found


def plain_figures(problem, plain, corners, pairs):
    """Disagreement of overlaps and deviation of the two emptiest tiles, in per cent."""
    figures = {
        "overlap": 100 * float(seam_figure(compare_tiles(plain, pairs, corners, problem.lit)))
    }
    for i in find_empty(problem):
        values = plain[i][problem.lit]
        figures[f"flat_{i + 1}"] = 100 * float(values.std() / values.mean())
    return figures


def contrast_kept(lit, plain, changed, known):
    """Slope of the change of the log transmission on what was implanted, within frames, by size."""
    by_size = {}
    for after, (frames, change) in zip(changed, known, strict=True):
        for frame, size in frames.items():
            moved, known_change = np.log(after[frame] / plain[frame])[lit], change[frame][lit]
            # A frame's level is not a matter of contrast.
            found = slope(known_change - known_change.mean(), moved - moved.mean())
            by_size.setdefault(size, []).append(found)
    return {f"slope_{size}": float(np.median(v)) for size, v in sorted(by_size.items())}


# ---- all of them --------------------------------------------------------------------------------
def find_sources(data):
    """Every source of the folder, and the names of what it lacks."""
    found, absent = [], []
    for name, (file, read) in KINDS.items():
        if (data / file).exists():
            found += read(data)
        else:
            absent.append(name)
    return found, absent


def summarise(rows, column):
    """How often a column is behind plain peers, and what its verdicts are worth."""
    behind = {figure: [] for figure in ("shape", "levels", "absolute")}
    plain = ("mean flats", "eigen flats 1", "eigen flats 3")
    for case in dict.fromkeys(r["case"] for r in rows):
        group = [r for r in rows if r["case"] == case]
        for figure, names in behind.items():
            mine = median(group, column, figure)
            peers = [median(group, p, figure) for p in plain if p in columns_of(group)]
            peers = [v for v in peers if not np.isnan(v)]
            if np.isnan(mine) or (peers and mine > 1.05 * min(peers) + 0.1):
                names.append(case)
    return {"behind plain peers by more than 5 % + 0.1": behind, "verdicts": verdicts(rows, column)}


def tell(rows, summary):
    for case in dict.fromkeys(r["case"] for r in rows):
        group = [r for r in rows if r["case"] == case]
        told = [f for f in TOLD if any(f in c for c in group[0]["columns"].values())]
        if not told:  # tiles as they are have figures of their own
            told = list(next(c for c in group[0]["columns"].values() if "error" not in c))
        print("\n".join(table(case, group, told)))
        if "notes" in group[0]:
            noise = group[0]["noise of the truth"]
            print(f"  ({group[0]['notes']}; noise of the truth in a cell {noise:.3f} %)")
    for name, found in summary.items():
        print(f"{name}: {tell_verdicts(found['verdicts'])}")
        for figure, cases in found["behind plain peers by more than 5 % + 0.1"].items():
            print(
                f"  {figure} behind or failed: {len(cases)}" + ": " * bool(cases) + "; ".join(cases)
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "data", type=Path, help="folder with ssrl, k11, tooth.h5, lm_mosaic_4x4, xradia"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--only", default="", help="cases whose name holds one of these, by commas")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--executable", default="", help="another txmcorrect than this checkout's")
    parser.add_argument("--out", type=Path, default=RESULTS / "real.json")
    given = parser.parse_args()
    if not given.data.is_dir():
        print(f"skipped: {given.data} is not there; name a folder of real references with DATA=")
        return 0
    sources, absent = find_sources(given.data)
    if absent:
        print(f"skipped, not in {given.data}: {', '.join(absent)}")
    kept = Kept(given.out, digest(given.executable, MODULES))
    kept.begin(command_line(), skipped=absent)
    command = product(given.executable)
    cases = [
        (f"{source.name} {kind} @ {seed}", (command, source, kind, seed))
        for source in sources
        for kind in SAMPLES
        for seed in given.seeds
    ]
    work = {key: (judge_case, arguments) for key, arguments in cases}
    if "lm" not in absent:
        work |= {f"lm/as it is @ {s}": (judge_tiles, (command, given.data, s)) for s in given.seeds}
    words = given.only.split(",")
    work = {key: job for key, job in work.items() if any(word in key for word in words)}
    status = run_cases(
        kept, list(work.items()), lambda judge, arguments: judge(*arguments), given.jobs
    )
    rows = [kept.rows[key] for key in work if key in kept.rows]
    if rows:
        judged = [row for row in rows if "notes" in row]
        summary = {name: summarise(judged, name) for name in (OURS, FIT)}
        kept.save(summary=summary)
        tell(rows, summary)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
