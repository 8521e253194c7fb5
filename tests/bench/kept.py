"""What the benches on foreign scans share: kept results, runs of the command, how they are told.

Results lie in one JSON: a head (command, commit, machine, seeds, what code it was) and a row for each
case. It is replaced after every case, so that the same command goes on where it was interrupted; rows
of other code are not kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import h5py
import numpy as np

from txmcorrect.judge.fingerprint import fingerprint

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
OURS, FIT = "ours", "fit alone"
RUNS = {OURS: (), FIT: ("--model", "none")}  # what each column adds to the command
PRODUCT = ("txmcorrect.cli", "txmcorrect.correct")  # the command imports workflows when they run
FIGURES = ("shape", "levels", "absolute")
INTERRUPTED = 130  # how the product ends on Ctrl-C
LAST_CHARACTERS = 300  # of what a failed run said


def digest(executable, modules, paths=()):
    """Twelve hexadecimal digits for what figures depend on: the product, the bench, more files.

    Parameters
    ----------
    executable : another `txmcorrect` than this checkout's, or "". modules : what the bench measures with.
    """
    found = hashlib.sha256()
    if executable:
        done = subprocess.run([executable, "--version"], capture_output=True, text=True, check=True)
        found.update(f"{executable} {done.stdout}".encode())
    else:
        modules = (*PRODUCT, *modules)
        paths = (*paths, *(ROOT / "txmcorrect/models").glob("*.safetensors"))
    for module in modules:
        found.update(fingerprint(module).encode())
    for path in (*sorted(Path(__file__).parent.glob("*.py")), *sorted(paths)):
        found.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:12]


def commit():
    """The commit that is checked out, and whether files differ from it."""

    def git(*words):
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "txmcorrect", "tests")
    return {"commit": git("rev-parse", "HEAD") or "unknown", "changed": bool(changed)}


def machine():
    """The kind of machine, without its name."""
    return {
        "cores": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


class Kept:
    """Rows of a bench, each under its key, in a file that is whole at any time."""

    def __init__(self, path, code):
        self.path, self.rows, self.head = Path(path), {}, {"code": code}
        self.code = code
        if self.path.exists():
            body = json.loads(self.path.read_text())
            if body["head"]["code"] == code:
                self.rows = {row["key"]: row for row in body["rows"]}
                self.head = body["head"]
            else:
                print(f"{self.path.name}: results of other code are replaced", flush=True)

    def begin(self, command, **more):
        """Say what is about to run."""
        self.head = {
            "command": command,
            **commit(),
            "machine": machine(),
            "code": self.code,
            "figures": "per cent, no gain removed; slope and coarse: 1 keeps the contrast",
            **more,
        }

    def add(self, key, row):
        self.rows[key] = {"key": key, **row}
        self.save()

    def save(self, **more):
        """Write all rows in the order of their keys, and what they add up to."""
        seeds = sorted({row["seed"] for row in self.rows.values() if "seed" in row})
        body = {"head": self.head | {"seeds": seeds}, **more}
        body["rows"] = [self.rows[key] for key in sorted(self.rows)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(body, indent=1, default=float) + "\n")
        part.replace(self.path)


def run_cases(kept, cases, work, jobs):
    """Run `work(*arguments)` for each case `(key, arguments)` that is not kept; the exit status of it all.

    Ctrl-C ends it: what is done is kept, and what it interrupted counts as not run. A case that breaks
    (a scan that cannot be made; a run that fails is a result) is told and left for the next time.
    """
    waiting = [(key, arguments) for key, arguments in cases if key not in kept.rows]
    print(f"{len(cases)} cases, {len(cases) - len(waiting)} of them kept", flush=True)
    pool = ThreadPoolExecutor(jobs)
    futures = {pool.submit(work, *arguments): key for key, arguments in waiting}
    broken = 0
    try:
        for count, future in enumerate(as_completed(futures), 1):
            key, reason = futures[future], future.exception()
            if reason is None:
                kept.add(key, future.result())
            broken += reason is not None
            said = "" if reason is None else f": {type(reason).__name__}: {reason}"
            print(f"{count}/{len(waiting)} {key}{said}", flush=True)
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        print("interrupted: the same command goes on from here", flush=True)
        return INTERRUPTED
    pool.shutdown()
    return int(broken > 0)


def command_line():
    """How this program was called, for whoever reads the results."""
    return " ".join(["python", str(Path("tests/bench") / Path(sys.argv[0]).name), *sys.argv[1:]])


def product(executable=""):
    """How to call another `txmcorrect`, or that of this checkout."""
    return [executable] if executable else [sys.executable, "-m", "txmcorrect"]


def correct(command, scan, out, *options, refs=None):
    """Run `txmcorrect correct` as users do: what it said of its result, or `error` and why."""
    command = [*command, "correct", str(scan), "--out", str(out)]
    command += ["--quiet", *options, *(("--refs", str(refs)) if refs else ())]
    here = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=here)
    if done.returncode in (INTERRUPTED, -signal.SIGINT):
        raise InterruptedError("the run was interrupted")
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).replace(str(Path(scan).parent), "").split())
        return {"error": said[-LAST_CHARACTERS:], "exit": done.returncode}
    with h5py.File(out) as file:
        about = file["process/txmcorrect"].attrs
        said = {name: str(about.get(name, "")) for name in ("verdict", "scale")}
    return said | {"seconds": round(time.monotonic() - begin, 1)}


def read_result(path):
    """Transmission `(n, h, w)` of a corrected scan."""
    with h5py.File(path) as file:
        return file["exchange/data"][()]


def run_ours(command, scan, folder, judge, refs=None):
    """Columns of the product: its figures by `judge(transmission)` beside what it said of itself."""
    found = {}
    for name, options in RUNS.items():
        out = Path(folder) / f"{name.replace(' ', '-')}.h5"
        said = correct(command, scan, out, *options, refs=refs)
        found[name] = said if "error" in said else judge(read_result(out)) | said
        out.unlink(missing_ok=True)
    return found


def median(rows, column, figure):
    """Median size of a figure of a column over rows that have it, or NaN."""
    values = [row["columns"].get(column, {}).get(figure) for row in rows]
    values = [abs(v) for v in values if v is not None]
    return float(np.median(values)) if values else float("nan")


def columns_of(rows):
    """Names of all columns, ours first."""
    names = dict.fromkeys(name for row in rows for name in row["columns"])
    return [n for n in RUNS if n in names] + [n for n in names if n not in RUNS]


def table(title, rows, figures, mark=""):
    """Lines of a table: a column of ours or of a peer on each, medians over the rows."""
    lines = [f"{title:34s}" + "".join(f"{name:>9s}" for name in figures)]
    for name in columns_of(rows):
        failed = [
            r["columns"][name]["error"] for r in rows if "error" in r["columns"].get(name, {})
        ]
        if len(failed) == len(rows):
            lines.append(f"  {name:32s}  {failed[0][:90]}")
            continue
        values = [median(rows, name, f) for f in figures]
        cells = "".join("        -" if np.isnan(v) else f"{v:9.3f}" for v in values)
        note = f"  {len(failed)} failed" if failed else ""
        lines.append(f"{'*' if name == mark else ' '} {name:32s}{cells}{note}")
    return lines


def is_wrong(row, bare):
    """Whether TRUSTED would be false of these figures: shape 2 %, levels 1 %, absolute 1 % unless bare."""
    return bool(row["shape"] > 2 or row["levels"] > 1 or (abs(row["absolute"]) > 1 and not bare))


def verdicts(rows, column):
    """How often a column said TRUSTED, wrongly, and when its result deserved it."""
    judged = [
        (r["columns"][column], r["bare"]) for r in rows if "shape" in r["columns"].get(column, {})
    ]
    trusted = [(c, bare) for c, bare in judged if c["verdict"].startswith("TRUSTED")]
    deserving = [c for c, bare in judged if not is_wrong(c, bare)]
    return {
        "results": len(judged),
        "trusted": len(trusted),
        "wrongly": sum(is_wrong(c, bare) for c, bare in trusted),
        "deserving": len(deserving),
        "deserving and trusted": sum(c["verdict"].startswith("TRUSTED") for c in deserving),
        "failed runs": sum("error" in r["columns"].get(column, {}) for r in rows),
    }


def tell_verdicts(found):
    return (
        f"TRUSTED {found['trusted']} of {found['results']} times, {found['wrongly']} wrongly; "
        f"{found['deserving and trusted']} of the {found['deserving']} that deserve it; "
        f"{found['failed runs']} runs failed"
    )
