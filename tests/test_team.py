"""Work shared by processes: equal results for any number, failures that hang nobody, any resumption."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from txmcorrect.background.conditions import CHANNELS
from txmcorrect.background.correction import correct_scan
from txmcorrect.config import CorrectSettings
from txmcorrect.errors import OutputError
from txmcorrect.simulate import simulate_scan
from txmcorrect.stream import PartFolder
from txmcorrect.synthesize import write_scan
from txmcorrect.team import InMemory, Shared, Team
from txmcorrect.weights import ModelSpec, save_model

SIGNATURE = {"--steps": "4"}
BIN = Path(sys.executable).parent
OPTIONS = ("--steps", "2", "--samples", "2", "--every", "3", "-q")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("team")


@pytest.fixture(scope="module")
def model(folder):
    """A network whose answer is noise: any difference in what it sees or does shows."""
    torch.manual_seed(0)
    spec = ModelSpec(
        network={"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [1], "patch": 4},
        condition="pair",
        cond_channels=CHANNELS["pair"],
        size=32,
    )
    state = {k: 0.1 * torch.randn_like(v) for k, v in spec.build().state_dict().items()}
    save_model(folder / "tiny.safetensors", state, spec)
    return folder / "tiny.safetensors"


@pytest.fixture(scope="module")
def scan(folder):
    path = folder / "scan.h5"
    write_scan(path, simulate_scan("tomo", frames=75, shape=(48, 64), seed=3, bank=1))
    return path


@pytest.fixture(scope="module")
def alone(folder, scan, model):
    out = folder / "alone.h5"
    settings = CorrectSettings(scans=[scan], model=str(model), steps=2, samples=2, every=3)
    correct_scan(settings, scan, out)
    return contents(out)


def contents(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item}))
        return {
            name: item[()].tobytes() if isinstance(item[()], np.ndarray) else item[()]
            for name, item in found.items()
            if isinstance(item, h5py.Dataset)
        }


def launch(processes, *arguments, code="-m txmcorrect"):
    program = code.split() if code.startswith("-m") else [code]
    command = [sys.executable]
    if processes > 1:
        launcher = ["torchrun", "--standalone", "--nproc_per_node", str(processes)]
        command = [str(BIN / launcher[0]), *launcher[1:]]
    env = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *program, *map(str, arguments)],
        env=env,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def correct(processes, scan, model, out, *more, code="-m txmcorrect"):
    return launch(
        processes, "correct", scan, "--model", model, "--out", out, *OPTIONS, *more, code=code
    )


DIES = """
import os, sys
from txmcorrect.formats.write import ResultWriter
write = ResultWriter.write
def once(self, *a, **k):
    write(self, *a, **k)
    os.kill(os.getpid(), 9)
ResultWriter.write = once
from txmcorrect.cli import main
main()
"""


def test_two_processes_go_on_where_one_was_killed(folder, scan, model, alone, tmp_path):
    out, program = folder / "two.h5", tmp_path / "dies.py"
    program.write_text(DIES)
    killed = correct(1, scan, model, out, code=str(program))
    killed.communicate()
    assert killed.returncode == -9
    names = {path.stem for path in out.with_name("two.h5.part").glob("*.shard")}
    assert {"survey-00000", "detail-00000", "key0-00000", "slab-0000000"} <= names
    pair = correct(2, scan, model, out)
    said = pair.communicate()[1]
    assert pair.returncode == 0, said
    assert contents(out) == alone
    assert not out.with_name("two.h5.part").exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_any_number_of_processes_gives_the_same_file(folder, scan, model, alone, processes):
    out = folder / f"by-{processes}.h5"
    started = correct(processes, scan, model, out)
    said = started.communicate()[1]
    assert started.returncode == 0, said
    assert contents(out) == alone


@pytest.mark.slow
def test_an_error_in_one_process_ends_all(folder, scan, model, tmp_path):
    program = tmp_path / "fails.py"
    fails = "if os.environ['RANK'] == '1':\n        raise OSError(28, 'No space left on device')"
    program.write_text(DIES.replace("os.kill(os.getpid(), 9)", fails))
    out = folder / "fails.h5"
    began = time.monotonic()
    started = correct(2, scan, model, out, code=str(program))
    started.communicate(timeout=300)
    assert started.returncode != 0 and not out.exists()
    assert time.monotonic() - began < 300
    again = correct(1, scan, model, out)
    said = again.communicate()[1]
    assert again.returncode == 0, said


KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from txmcorrect.background.correction import correct_scan
from txmcorrect.config import CorrectSettings

torch.set_num_threads(1)
scan, model, out = map(Path, sys.argv[1:])
settings = CorrectSettings(scans=[scan], model=str(model), steps=2, samples=2, every=3)
part, rng = out.with_name(out.name + ".part"), random.Random(0)
kills = whole = before = 0
limit = 0.3  # seconds; grows until a run comes through, so that every phase is hit
while kills < 50:
    child = os.fork()  # nothing is imported again: kills hit work, not imports
    if child == 0:
        correct_scan(settings, scan, out)
        os._exit(0)
    started = time.monotonic()
    delay = rng.uniform(0, limit)
    while time.monotonic() - started < delay and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.002)
    try:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        status = 0
    if status == signal.SIGKILL:
        kills, limit = kills + 1, 1.15 * limit
        done = len(list(part.glob("*.shard"))) if part.exists() else 0
        if not out.exists():
            assert done >= before, (done, before)
            before = done
    if out.exists():
        whole, before = whole + 1, 0
        limit /= 3
        os.rename(out, f"{out}.{whole}")
        if part.exists():  # killed between the rename and the clean-up
            before = 0
print(kills, "kills,", whole, "complete files", file=sys.stderr)
if whole == 0:
    correct_scan(settings, scan, out)
"""


@pytest.mark.slow
def test_fifty_kills_lose_nothing(folder, scan, model, alone, tmp_path):
    """Killed at random moments; every run keeps what was done, and what comes out is the same."""
    program, out = tmp_path / "kills.py", tmp_path / "killed.h5"
    program.write_text(KILLS)
    command = [sys.executable, str(program), str(scan), str(model), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    print(done.stderr.splitlines()[-1])
    results = [path for path in tmp_path.glob("killed.h5*") if path.is_file()]
    assert results and all(contents(path) == alone for path in results)


def make(number):
    return {"value": np.array([number])}


def test_pieces_are_made_once_by_whom_they_fall_to(tmp_path):
    made = {0: [], 1: []}

    def work(rank, part, found):
        def note(number):
            made[rank].append(number)
            return make(number)

        pieces = Shared(part, Team(rank, 2)).each("piece", 5, note)
        found[rank] = [int(piece["value"][0]) for piece in pieces]

    found = {}
    out = tmp_path / "out.h5"
    with PartFolder(out, SIGNATURE) as first, PartFolder(out, SIGNATURE, rank=1) as second:
        threads = [
            threading.Thread(target=work, args=(rank, part, found))
            for rank, part in enumerate((first, second))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert found == {0: [0, 1, 2, 3, 4], 1: [0, 1, 2, 3, 4]}
    assert made == {0: [0, 2, 4], 1: [1, 3]}
    with PartFolder(out, SIGNATURE) as part:  # a later run, alone
        assert [int(p["value"][0]) for p in Shared(part, Team()).each("piece", 5, None)] == [
            *range(5)
        ]


def test_pieces_in_memory_are_the_same():
    pieces = InMemory()
    assert [int(p["value"][0]) for p in pieces.each("piece", 3, make)] == [0, 1, 2]
    assert pieces.get("piece", 1) == make(1)


def test_pieces_do_not_pile_up_while_one_is_stored(tmp_path, monkeypatch):
    made = []

    def note(number):
        made.append(number)
        return make(number)

    with PartFolder(tmp_path / "out.h5", SIGNATURE) as part:
        save, ahead = part.save, []

        def slow(name, data, **meta):
            time.sleep(0.02)
            ahead.append(len(made) - len(part.names()))
            save(name, data, **meta)

        monkeypatch.setattr(part, "save", slow)
        assert len(list(Shared(part, Team(), 2).each("piece", 20, note))) == 20
    assert sorted(made) == [*range(20)]
    assert max(ahead) <= 3, "the one in hand and one for each worker"


def test_who_waits_hears_of_a_failure(tmp_path):
    out = tmp_path / "out.h5"
    with PartFolder(out, SIGNATURE) as first, PartFolder(out, SIGNATURE, rank=1) as second:
        with pytest.raises(ValueError), Shared(second, Team(1, 2)).guard():
            raise ValueError("broken")
        with pytest.raises(OutputError, match=r"rank 1 stopped: ValueError\('broken'\)"):
            Shared(first, Team(0, 2)).wait(["missing"])
    with PartFolder(out, SIGNATURE) as first:
        assert first.failures() == {}, "the next run begins anew"


def test_who_waits_notices_that_rank_0_is_gone(tmp_path):
    out = tmp_path / "out.h5"
    first = PartFolder(out, SIGNATURE)
    with PartFolder(out, SIGNATURE, rank=1) as second:
        first.close()
        with pytest.raises(OutputError, match="rank 0 is gone"):
            Shared(second, Team(1, 2)).wait(["missing"])


def test_who_waits_forever_gives_up(tmp_path, monkeypatch):
    monkeypatch.setattr("txmcorrect.team.STALLED", 0.2)
    with PartFolder(tmp_path / "out.h5", SIGNATURE) as first:
        with pytest.raises(OutputError, match="no process has finished anything"):
            Shared(first, Team(0, 2)).wait(["missing"])


def test_a_full_disk_stops_pieces_and_keeps_what_was_done(tmp_path, monkeypatch):
    out = tmp_path / "out.h5"
    with PartFolder(out, SIGNATURE) as part:
        save = part.save

        def full(name, data, **meta):
            if name == "piece-00002":
                raise OutputError("the disk is full")
            save(name, data, **meta)

        monkeypatch.setattr(part, "save", full)
        with pytest.raises(OutputError, match="full"):
            list(Shared(part, Team(), 2).each("piece", 5, make))
    with PartFolder(out, SIGNATURE) as part:
        assert part.names() == {"piece-00000", "piece-00001"}
        assert len(list(Shared(part, Team(), 2).each("piece", 5, make))) == 5
    shutil.rmtree(out.with_name("out.h5.part"))
