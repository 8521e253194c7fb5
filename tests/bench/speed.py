"""How fast, and how much memory: `correct` against a plain read-divide-write, side by side.

    python tests/bench/speed.py [--out bench/speed.json] [--parts ratio,counts,memory,night]
        [--rounds 3] [--frames 100 1000] [--night 1500]

`ratio` : 720 frames of 512x512 with photon noise. The plain program reads 16 frames, divides by a
flat and writes through h5py with the same compression and chunks. Both run in turn, several times, so
that other load on the machine hits both; wall and processor time are given. `counts` : network
evaluations and their GFLOP. `memory` : peak resident memory for 100 and 1,000 frames of 2048x2048
that are made when read (smooth, so that they compress at once) and for 64 noisy ones. `night`, which
runs only where asked for: a whole stack of 2048x2048 with photon noise, from disk to disk, on a GPU if
there is one; frames a second beside those of the plain program (a tenth of the frames), of reading alone
and of storing as many bytes; how busy the GPU was.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest.mock import patch

import h5py
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from txmcorrect.background import correction, estimate, fixed, pipeline
from txmcorrect.config import CorrectSettings
from txmcorrect.formats.write import ResultWriter
from txmcorrect.formats.write_slabs import GZIP, ROWS, SLAB, Slabs
from txmcorrect.scan import Scan
from txmcorrect.stream import PartFolder

N, SIDE, BIG = 720, 512, 2048
UINT16 = np.dtype(np.uint16)


def beam(side: int, i: float) -> np.ndarray:
    """Counts of a hump that wanders."""
    y, x = np.mgrid[:side, :side] / side - 0.5
    return 4000 * np.exp(-((x - 0.1 * i) ** 2 + (y + 0.05 * i) ** 2) / 0.3)


def write_input(path: Path) -> None:
    """Frames of a rod that turns, with photon noise, one chunk a frame, not compressed."""
    rng = np.random.default_rng(0)
    x = np.mgrid[:SIDE, :SIDE][1] / SIDE - 0.5
    noise = rng.standard_normal((SIDE + 64, SIDE + 64)).astype(np.float32)
    with h5py.File(path, "w") as file:
        data = file.create_dataset(
            "exchange/data", (N, SIDE, SIDE), np.uint16, chunks=(1, SIDE, SIDE)
        )
        for i in range(N):
            place = 0.2 * np.sin(np.pi * i / N)
            frame = beam(SIDE, i / N) * np.where(abs(x - place) < 0.1, 0.8, 1) + 100
            dy, dx = rng.integers(0, 64, 2)
            shot = noise[dy : dy + SIDE, dx : dx + SIDE] * np.sqrt(frame)
            data[i] = (frame + shot).round().clip(0, 65535).astype(np.uint16)
        file["exchange/data_dark"] = np.full((2, SIDE, SIDE), 100, np.uint16)
        file["exchange/data_white"] = beam(SIDE, 0)[None].astype(np.uint16) + np.uint16(100)


def plain(path: Path, out: Path) -> None:
    """What anybody would write: read, divide, write."""
    with h5py.File(path) as source, h5py.File(out, "w") as target:
        dark = source["exchange/data_dark"][()].mean(0).astype(np.float32)
        flat = source["exchange/data_white"][()].mean(0).astype(np.float32) - dark
        raw = source["exchange/data"]
        data = target.create_dataset(
            "exchange/data", raw.shape, np.float32, chunks=(SLAB, ROWS, raw.shape[2]),
            compression="gzip", compression_opts=GZIP, shuffle=True,
        )  # fmt: skip
        for start in range(0, raw.shape[0], SLAB):
            data[start : start + SLAB] = (raw[start : start + SLAB] - dark) / flat


def ours(path: Path, out: Path) -> dict[str, float]:
    """`correct` with its defaults; seconds by stage."""
    with stages() as spent:
        correction.correct_scan(CorrectSettings(scans=[path], out=out), path, out)
    return dict(spent)


@contextmanager
def stages() -> Iterator[dict[str, float]]:
    """Add up the wall time spent in each stage; what threads do together counts once."""
    spent: dict[str, float] = defaultdict(float)

    def timed(owner: object, name: str, label: str):
        function = getattr(owner, name)

        def call(*arguments, **options):
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                spent[label] += time.perf_counter() - began

        return patch.object(owner, name, call)

    with (
        timed(pipeline, "survey_scan", "survey"),
        timed(fixed, "fixed_pattern", "fixed pattern"),
        timed(pipeline, "_conditions", "fit of the drift"),
        timed(pipeline, "_key_fields", "key frames"),
        timed(pipeline, "amplitudes", "amplitudes"),
        timed(pipeline, "flag_frames", "flags"),
        timed(correction, "read_counts", "(reading, in the background)"),
        timed(correction, "divide_block", "division"),
        timed(Slabs, "pack", "compression"),
        timed(PartFolder, "save", "storing"),
        timed(ResultWriter, "finish", "assembly"),
        timed(correction, "load_model", "loading the model"),
    ):
        yield spent


@dataclass(frozen=True)
class Used:
    """Seconds of wall and processor time, and the peak of resident memory in MiB."""

    wall: float
    cpu: float
    peak: float
    said: dict[str, float]


def run_apart(job: str, *arguments: object) -> Used:
    """Run a job of this file in a process of its own."""
    command = [sys.executable, __file__, "--job", job, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    return Used(**json.loads(done.stdout.splitlines()[-1]))


def measure_job(job: str, arguments: list[str]) -> None:
    began, cpu = time.perf_counter(), time.process_time()
    said = JOBS[job](*arguments) or {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    used = Used(time.perf_counter() - began, time.process_time() - cpu, peak, said)
    print(json.dumps(vars(used)))


@cache
def smooth_beam(side: int) -> np.ndarray:
    """A beam in steps of 16 counts."""
    return (beam(side, 0) / 16).astype(np.uint16) * np.uint16(16)


@dataclass(frozen=True)
class Made:
    """Frames `(n, h, w)` that exist only while they are read."""

    shape: tuple[int, int, int]
    noisy: bool
    dtype: np.dtype = UINT16

    def read(self, start: int, stop: int) -> np.ndarray:
        side, base = self.shape[1], smooth_beam(self.shape[1])
        out = np.empty((min(stop, self.shape[0]) - start, side, side), np.uint16)
        for k, i in enumerate(range(start, start + len(out))):
            out[k] = base
            out[k, :, 10 * (i % 100) : 10 * (i % 100) + 200] //= 2
            if self.noisy:
                rng = np.random.default_rng(i)
                out[k] += rng.integers(0, 120, out[k].shape, np.uint16)
        return out


def big(n: str, noisy: str, out: str) -> dict[str, float]:
    scan = Scan(Path(out), "made", Made((int(n), BIG, BIG), noisy == "noisy"))
    settings = CorrectSettings(scans=[Path(__file__)], every=max(int(n) // 20, 1), samples=1)
    with stages() as spent, patch.object(correction, "open_for", lambda *_: scan):
        correction.correct_scan(settings, Path(__file__), Path(out))
    Path(out).unlink()
    return dict(spent)


def write_night(path: Path, n: int, different: int = 50) -> None:
    """A large stack of noisy frames, in one piece, quickly: `different` frames over and over."""
    rng = np.random.default_rng(0)
    some = []
    for i in range(different):
        expected = beam(BIG, i / different)
        expected[:, 15 * i : 15 * i + 300] *= 0.8
        some.append((rng.poisson(expected) + 100).clip(0, 65535).astype(np.uint16))
    with h5py.File(path, "w") as file:
        data = file.create_dataset("exchange/data", (n, BIG, BIG), np.uint16)
        for i in range(n):
            data[i] = some[i % different]
        file["exchange/data_dark"] = np.full((2, BIG, BIG), 100, np.uint16)
        file["exchange/data_white"] = (beam(BIG, 0)[None] + 100).astype(np.uint16)


@contextmanager
def watched_gpu() -> Iterator[dict[str, float]]:
    """Mean busy share and most memory used of the GPU, asked five times a second."""
    found: dict[str, float] = {}
    if not torch.cuda.is_available():
        yield found
        return
    query = [
        "nvidia-smi",
        "--query-gpu=utilization.gpu,memory.used",
        "--format=csv,noheader,nounits",
    ]
    with subprocess.Popen([*query, "-lms", "200"], stdout=subprocess.PIPE, text=True) as asked:
        try:
            yield found
        finally:
            asked.terminate()
            assert asked.stdout is not None
            lines = [line.split(",") for line in asked.stdout.read().splitlines() if "," in line]
            busy, used = np.array([[float(a), float(b)] for a, b in lines if a.strip()]).T
            found.update(busy_percent=float(busy.mean()), memory_mib=float(used.max()))


def night(folder: Path, n: int) -> dict[str, object]:
    """See the top."""
    path, out = folder / "night.h5", folder / "corrected.h5"
    write_night(path, n)
    with h5py.File(path) as file:
        began = time.perf_counter()
        for start in range(0, n, SLAB):
            file["exchange/data"][start : start + SLAB]
        reading = time.perf_counter() - began
    with watched_gpu() as gpu:
        used = run_apart("ours", path, out)
    size = out.stat().st_size
    out.unlink()
    block = np.random.default_rng(0).bytes(2**24)
    began = time.perf_counter()
    with out.open("wb") as file:
        for _ in range(size // 2**24):
            file.write(block)
        os.fsync(file.fileno())
    storing = time.perf_counter() - began
    out.unlink()
    path.unlink()
    few = max(n // 10, SLAB)
    write_night(path, few)
    simple = run_apart("plain", path, out)
    return {
        "frames": n,
        "cores": os.cpu_count(),
        "frames_a_second": n / used.wall,
        "plain_frames_a_second": few / simple.wall,
        "reading_alone": n / reading,
        "storing_alone": n / storing,
        "wall_s": used.wall,
        "cpu_s": used.cpu,
        "peak_mib": used.peak,
        "stored_gib": size / 2**30,
        "profile_s": used.said,
        "gpu": gpu,
    }


JOBS = {
    "plain": lambda path, out: plain(Path(path), Path(out)),
    "ours": lambda path, out: ours(Path(path), Path(out)),
    "big": big,
}


def ratio(folder: Path, rounds: int) -> dict[str, object]:
    """Medians over rounds of both programs in turn."""
    path = folder / "scan.h5"
    write_input(path)
    used: dict[str, list[Used]] = {"plain": [], "ours": []}
    for _ in range(rounds):
        for job, uses in used.items():
            out = folder / f"{job}.h5"
            uses.append(run_apart(job, path, out))
            size = out.stat().st_size
            out.unlink()
            print(
                f"{job}: {uses[-1].wall:.1f} s, processor {uses[-1].cpu:.1f} s, {size / 2**20:.0f} MiB"
            )
    middle = {
        job: {kind: float(np.median([getattr(u, kind) for u in uses])) for kind in ("wall", "cpu")}
        for job, uses in used.items()
    }
    fastest = min(used["ours"], key=lambda u: u.wall)
    return {
        "frames": [N, SIDE, SIDE],
        "seconds": middle,
        "ratio_wall": middle["ours"]["wall"] / middle["plain"]["wall"],
        "ratio_cpu": middle["ours"]["cpu"] / middle["plain"]["cpu"],
        "ms_per_frame": {job: 1000 * m["wall"] / N for job, m in middle.items()},
        "profile_s": fastest.said,
        "peak_mib": max(u.peak for u in used["ours"]),
    }


def counts() -> dict[str, float]:
    """Evaluations of the stack network for the 720 frames, and their cost."""
    settings = CorrectSettings(scans=[Path("x")])
    model = correction.load_model(settings.model, "stack", "cpu")
    side = model.spec.size
    x = torch.zeros(estimate.BATCH, 1, side, side)
    cond = torch.zeros(estimate.BATCH, model.spec.cond_channels, side, side)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        sigma = torch.full((estimate.BATCH,), 1.0)
        model.denoiser(x, sigma, cond, None)
    each = counter.get_total_flops() / estimate.BATCH / 1e9
    keys = len(pipeline.first_plan(np.ones(N, bool), None))
    one = settings.steps * settings.samples + 1
    return {
        "gflop_per_evaluation": each,
        "key_frames": keys,
        "evaluations_per_key_frame": one,
        "evaluations_per_frame": keys * one / N,
        "gflop_per_frame": keys * one * each / N,
    }


def memory(folder: Path, frames: list[int]) -> dict[str, float]:
    """Peak MiB by number of frames of 2048x2048."""
    found = {}
    for n, kind in (*((n, "smooth") for n in frames), (64, "noisy")):
        used = run_apart("big", n, kind, folder / "big.h5")
        found[f"{n} {kind} frames"] = round(used.peak)
        print(f"{n} {kind} frames: {used.peak:.0f} MiB, {used.wall:.0f} s {used.said}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--parts", default="ratio,counts,memory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--night", type=int, default=1500)
    parser.add_argument("--job", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        measure_job(given.job[0], given.job[1:])
        return
    parts = given.parts.split(",")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {
            **({"counts": counts()} if "counts" in parts else {}),
            **({"ratio": ratio(folder, given.rounds)} if "ratio" in parts else {}),
            **({"memory_mib": memory(folder, given.frames)} if "memory" in parts else {}),
            **({"night": night(folder, given.night)} if "night" in parts else {}),
        }
    text = json.dumps(found, indent=2)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
