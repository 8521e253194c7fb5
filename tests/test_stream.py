import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from txmcorrect import stream
from txmcorrect.errors import OutputError
from txmcorrect.stream import (
    PartFolder,
    atomic_output,
    check_output,
    disk_errors,
    iter_blocks,
    run_signature,
)

SIGNATURE = {"--steps": "4", "the model": "abc"}


@pytest.mark.parametrize("n", [1, 16, 17, 100])
@pytest.mark.parametrize("memory", [1, 10_000, 10**9])
@pytest.mark.parametrize("multiple", [1, 16])
def test_blocks_cover_all_frames_within_the_budget(n, memory, multiple):
    blocks = list(iter_blocks(n, 10, 20, memory, 4.0, multiple))
    assert [i for a, b in blocks for i in range(a, b)] == list(range(n))
    assert all(a % multiple == 0 for a, _ in blocks)
    longest = max(b - a for a, b in blocks)
    assert longest <= multiple or longest * 10 * 20 * 4 <= memory


def test_output_in_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"folder does not exist; create it \(mkdir -p"):
        check_output(tmp_path / "nowhere" / "out.h5")


def test_existing_output_is_refused_unless_overwritten(tmp_path):
    out = tmp_path / "out.h5"
    out.touch()
    with pytest.raises(OutputError, match="--overwrite"):
        check_output(out)
    check_output(out, overwrite=True)
    with pytest.raises(OutputError, match="expected the name of a file, got a folder"):
        check_output(tmp_path, overwrite=True)


def test_atomic_output_appears_whole_or_not_at_all(tmp_path):
    out = tmp_path / "out.txt"
    with pytest.raises(ValueError, match="half-way"), atomic_output(out) as path:
        path.write_text("half")
        raise ValueError("half-way")
    assert list(tmp_path.iterdir()) == []
    with atomic_output(out) as path:
        path.write_text("whole")
        assert not out.exists()
    assert out.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [out]


def test_failed_overwrite_keeps_the_old_output(tmp_path):
    out = tmp_path / "out.txt"
    out.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_output(out, overwrite=True) as path:
        path.write_text("new")
        raise KeyboardInterrupt
    assert out.read_text() == "old"


def test_full_disk_is_one_clear_line(tmp_path):
    for error in (
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Can't close (errno = 28, error message = 'No space left on device')"),
    ):
        with pytest.raises(OutputError, match="the disk is full; free some space"):
            with atomic_output(tmp_path / "a.h5"):
                raise error
    with pytest.raises(OutputError, match=r"cannot be written \(Permission denied\)"):
        with disk_errors(tmp_path):
            raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(RuntimeError, match="ours"), disk_errors(tmp_path):
        raise RuntimeError("ours")


def test_signature_tells_options_inputs_and_model_apart(tmp_path):
    scan = tmp_path / "scan.h5"
    scan.write_text("frames")
    options = {"steps": 4, "memory": 1, "verbose": 0}
    signature = run_signature(options, [scan], "abc")
    assert run_signature({**options, "memory": 2, "verbose": 2}, [scan], "abc") == signature
    assert run_signature({**options, "steps": 5}, [scan], "abc") != signature
    assert run_signature(options, [scan], "abd") != signature
    scan.write_text("other frames")
    assert run_signature(options, [scan], "abc") != signature


def test_signature_of_a_folder_knows_its_files_but_not_our_own_work_in_it(tmp_path):
    (tmp_path / "nested").mkdir()
    (tmp_path / "nested" / "1.tif").write_text("frame")
    signature = run_signature({}, [tmp_path])
    with PartFolder(tmp_path / "out.h5", SIGNATURE) as part:
        part.save("a", b"bytes")
        assert run_signature({}, [tmp_path]) == signature
    (tmp_path / "nested" / "2.tif").write_text("frame")
    assert run_signature({}, [tmp_path]) != signature


def test_shards_survive_and_come_back(tmp_path):
    out = tmp_path / "out.h5"
    with PartFolder(out, SIGNATURE) as part:
        part.save("a", b"bytes", sizes=[5])
        part.save_arrays("key-3", log_background=np.arange(6.0).reshape(2, 3))
    with PartFolder(out, SIGNATURE) as part:
        assert part.names() == {"a", "key-3"}
        assert part.load("a") == b"bytes"
        assert part.meta("a")["sizes"] == [5]
        arrays = part.load_arrays("key-3")
    assert arrays["log_background"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_other_options_do_not_resume_and_are_named(tmp_path):
    out = tmp_path / "out.h5"
    with PartFolder(out, SIGNATURE) as part:
        part.save("a", b"bytes")
    with pytest.raises(OutputError, match=r"--steps differs \(was 4, is 50\); .*--overwrite"):
        PartFolder(out, {**SIGNATURE, "--steps": "50"})
    with pytest.raises(OutputError, match="the model differs; "):
        PartFolder(out, {**SIGNATURE, "the model": "other"})
    with PartFolder(out, {**SIGNATURE, "--steps": "50"}, overwrite=True) as part:
        assert part.names() == set()


def test_second_run_on_the_same_output_is_refused(tmp_path):
    out = tmp_path / "out.h5"
    with PartFolder(out, SIGNATURE):
        with pytest.raises(OutputError, match=rf"another run holds it \(process {os.getpid()} on"):
            PartFolder(out, SIGNATURE)
    PartFolder(out, SIGNATURE).close()


def test_refused_run_does_not_disturb_the_one_that_holds_the_lock(tmp_path):
    out = tmp_path / "out.h5"
    with PartFolder(out, SIGNATURE) as part:
        part.save("a", b"1")
        with pytest.raises(OutputError, match="another run holds"):
            PartFolder(out, {**SIGNATURE, "--steps": "50"}, overwrite=True)
        part.save("b", b"2")
        assert part.load("a") == b"1"


HOLDER = """
import sys, time
from pathlib import Path
from txmcorrect.stream import PartFolder
part = PartFolder(Path(sys.argv[1]), {"--steps": "4", "the model": "abc"})
part.save("a", b"bytes")
print("ready", flush=True)
time.sleep(60)
"""


def test_lock_of_a_killed_process_is_no_obstacle(tmp_path):
    out = tmp_path / "out.h5"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out)], stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout.readline() == "ready\n"
        with pytest.raises(OutputError, match=rf"another run holds it \(process {holder.pid} on"):
            PartFolder(out, SIGNATURE)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with PartFolder(out, SIGNATURE) as part:
        assert part.load("a") == b"bytes"


@pytest.mark.parametrize("damage", ["flip", "cut", "lose"])
def test_torn_shard_is_forgotten(tmp_path, damage):
    out = tmp_path / "out.h5"
    with PartFolder(out, SIGNATURE) as part:
        part.save("a", b"first")
        part.save("b", b"second")
        shard = part.path / "b.shard"
    if damage == "lose":
        shard.unlink()
    else:
        shard.write_bytes(b"secoND" if damage == "flip" else b"sec")
    with PartFolder(out, SIGNATURE) as part:
        assert part.names() == {"a"}
        part.save("b", b"again")
    with PartFolder(out, SIGNATURE) as part:
        assert part.load("b") == b"again"


def test_shard_damaged_while_we_run_is_reported(tmp_path):
    with PartFolder(tmp_path / "out.h5", SIGNATURE) as part:
        part.save("a", b"first")
        (part.path / "a.shard").write_bytes(b"other")
        with pytest.raises(OutputError, match="a is damaged; run the same command again"):
            part.load("a")


@pytest.mark.parametrize("cut", range(1, 40, 6))
def test_torn_journal_line_costs_only_its_own_shard(tmp_path, cut):
    out = tmp_path / "out.h5"
    with PartFolder(out, SIGNATURE) as part:
        part.save("a", b"first")
        part.save("b", b"second")
        journal = part.path / "journal.0.jsonl"
    journal.write_bytes(journal.read_bytes()[:-cut])
    with PartFolder(out, SIGNATURE) as part:
        # Without its newline alone, the line is still whole.
        assert part.names() == ({"a", "b"} if cut == 1 else {"a"})
        part.save("c", b"third")
    with PartFolder(out, SIGNATURE) as part:
        assert part.names() >= {"a", "c"}


def test_other_ranks_write_and_rank_0_learns_of_it(tmp_path):
    out = tmp_path / "out.h5"
    with PartFolder(out, SIGNATURE) as first, PartFolder(out, SIGNATURE, rank=1) as second:
        second.save("b", b"second")
        first.save("a", b"first")
        first.refresh()
        assert first.names() == {"a", "b"}
        assert first.load("b") == b"second"
        with pytest.raises(OutputError, match="rank 2 has other options"):
            PartFolder(out, {}, rank=2)


def test_disk_full_keeps_what_was_stored(tmp_path, monkeypatch):
    def full(path, data):
        path.write_bytes(data[:2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "out.h5"
    with PartFolder(out, SIGNATURE) as part:
        part.save("a", b"first")
        with monkeypatch.context() as patch:
            patch.setattr(stream, "_write_synced", full)
            with pytest.raises(OutputError, match="the disk is full"):
                part.save("b", b"second")
    with PartFolder(out, SIGNATURE) as part:
        assert part.names() == {"a"}
        assert not list(part.path.glob("*.tmp"))


def test_publish_leaves_only_the_output(tmp_path):
    out = tmp_path / "out.h5"
    with PartFolder(out, SIGNATURE) as part:
        (part.path / "assembled.h5").write_text("whole")
        part.publish(part.path / "assembled.h5")
    assert out.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [out]
    with pytest.raises(OutputError, match="--overwrite"):
        PartFolder(out, SIGNATURE)
    assert list(tmp_path.iterdir()) == [out]


def test_kill_between_rename_and_clean_up_is_cleaned_up_later(tmp_path):
    out = tmp_path / "out.h5"
    part = PartFolder(out, SIGNATURE)
    part.save("a", b"first")
    (part.path / "assembled.h5").write_text("whole")
    part.remove = part.close
    part.publish(part.path / "assembled.h5")
    with pytest.raises(OutputError, match="--overwrite"):
        PartFolder(out, SIGNATURE)
    assert list(tmp_path.iterdir()) == [out]


def test_unfinished_overwrite_is_not_lost_by_a_run_without_the_flag(tmp_path):
    out = tmp_path / "out.h5"
    out.write_text("old")
    with PartFolder(out, SIGNATURE, overwrite=True) as part:
        part.save("a", b"first")
    with pytest.raises(OutputError, match="--overwrite"):
        PartFolder(out, SIGNATURE)
    with PartFolder(out, SIGNATURE, overwrite=True) as part:
        assert part.names() == {"a"}
    assert out.read_text() == "old"


def test_journal_is_json_lines(tmp_path):
    with PartFolder(tmp_path / "out.h5", SIGNATURE) as part:
        part.save("a", b"first", values={"flag": [0, 1]})
        lines = (part.path / "journal.0.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["a"]
