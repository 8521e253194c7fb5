"""Frames corrected as they arrive: from a folder, from a growing file, to a complete result."""

import os
import signal
import subprocess
import sys
import threading
import time

import h5py
import numpy as np
import pytest
import tifffile
import torch

from txmcorrect.background import live
from txmcorrect.background.conditions import CHANNELS
from txmcorrect.background.live import correct_live
from txmcorrect.cli import main
from txmcorrect.config import CorrectSettings
from txmcorrect.errors import FormatError
from txmcorrect.formats import open_arriving, open_scan
from txmcorrect.formats.arriving import FilesArriving
from txmcorrect.formats.corrected import read_result
from txmcorrect.simulate import simulate_scan
from txmcorrect.weights import ModelSpec, save_model

FRAMES = 40


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    spec = ModelSpec(
        network={"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [], "patch": 4},
        condition="pair",
        cond_channels=CHANNELS["pair"],
        size=32,
    )
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_model(path, spec.build().state_dict(), spec)
    return path


@pytest.fixture(scope="module")
def simulated():
    return simulate_scan("tomo", frames=FRAMES, shape=(48, 64), seed=3, bank=1)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(live, "POLL", 0.02)


def put(folder, frames, first=0):
    for i, frame in enumerate(frames, first):
        temporary = folder / f".frame_{i}.tif"
        tifffile.imwrite(temporary, frame)
        temporary.rename(folder / f"frame_{i}.tif")


def watch(folder, model, out, seen=None, stop=lambda: False, **options):
    options = {"steps": 1, "samples": 1, "idle": 0.5, "watch": True, **options}
    settings = CorrectSettings(scans=[folder], model=str(model), **options)

    def show(scan, background):
        if seen is not None:
            seen.append(len(background.amplitude))

    return correct_live(settings, folder, out, lambda *_: None, show, stop)


def test_frames_are_corrected_while_they_arrive(tmp_path, model, simulated):
    folder, out, seen = tmp_path / "frames", tmp_path / "out.h5", []
    folder.mkdir()
    put(folder, simulated.counts[:18])

    def go_on():
        while 16 not in seen:  # the first slab is done before the rest is taken
            time.sleep(0.01)
        put(folder, simulated.counts[18:], 18)

    writer = threading.Thread(target=go_on)
    writer.start()
    outcome = watch(folder, model, out, seen, idle=2.0)
    writer.join()
    assert seen == [16, 32, 40]
    assert len(outcome.background.flag) == FRAMES
    with read_result(out) as result:
        assert result.shape == simulated.counts.shape
        raw = result.raw(0, FRAMES)[:, result.lit]
        lit = result.lit
    np.testing.assert_allclose(raw, simulated.counts[:, lit], atol=0.1)
    assert not out.with_name("out.h5.part").exists()


def test_slabs_continue_each_other(tmp_path, model, simulated):
    """A level between slabs is arbitrary; it must not jump."""
    folder, out = tmp_path / "frames", tmp_path / "out.h5"
    folder.mkdir()
    put(folder, simulated.counts)
    watch(folder, model, out)
    with read_result(out) as result:
        background = np.stack([result.background(i) for i in range(FRAMES)])[:, result.lit]
        truth = simulated.background[:, result.lit]
    error = np.log(background / truth).mean(1)
    step = np.abs(np.diff(error))
    assert step[[15, 31]].max() < 3 * np.median(step) + 0.003


def test_a_stop_ends_with_a_complete_file(tmp_path, model, simulated):
    folder, out = tmp_path / "frames", tmp_path / "out.h5"
    folder.mkdir()
    put(folder, simulated.counts[:7])
    began = time.monotonic()
    asked = iter([False] * 5)
    watch(folder, model, out, stop=lambda: next(asked, True), idle=1000.0)
    assert time.monotonic() - began < 60
    with read_result(out) as result:
        assert result.shape[0] == 7


def test_a_half_written_file_is_waited_for(tmp_path, simulated):
    folder = tmp_path / "frames"
    folder.mkdir()
    put(folder, simulated.counts[:3])
    whole = (folder / "frame_1.tif").read_bytes()
    (folder / "frame_1.tif").write_bytes(whole[: len(whole) // 2])
    arriving = open_arriving(folder)
    assert arriving.look() is None, "one look cannot tell"
    assert arriving.look().shape[0] == 1, "cut short, whatever comes after it"
    (folder / "frame_1.tif").write_bytes(whole)
    assert arriving.look().shape[0] == 1, "it has just changed"
    assert arriving.look().shape[0] == 3


def test_a_growing_file_is_read_up_to_its_newest_frame(tmp_path, model, simulated):
    path = tmp_path / "scan.h5"
    counts = simulated.counts
    with h5py.File(path, "w") as file:
        data = file.create_dataset("exchange/data", counts.shape, counts.dtype)
        data[:20] = counts[:20]
    arriving = open_arriving(path)
    assert arriving.look().shape[0] == 19, "the newest may be half there"
    assert arriving.look(last=True).shape[0] == 20
    watch(path, model, tmp_path / "out.h5")
    with read_result(tmp_path / "out.h5") as result:
        assert result.shape[0] == 20


def test_a_beam_dump_is_flagged_and_the_scan_goes_on(tmp_path, model, simulated):
    folder, out = tmp_path / "frames", tmp_path / "out.h5"
    folder.mkdir()
    counts = np.concatenate([simulated.counts[:16], 0 * simulated.counts[:34]])
    put(folder, counts)
    watch(folder, model, out)
    with read_result(out) as result:
        assert result.shape[0] == 50
        assert (result.flag[16:] & 1).all() and not (result.flag[:16] & 1).any()


def test_nothing_arrives(tmp_path, model):
    (tmp_path / "frames").mkdir()
    with pytest.raises(FormatError, match="expected frames to arrive, none did"):
        watch(tmp_path / "frames", model, tmp_path / "out.h5")
    with pytest.raises(FormatError, match="create it before the scan begins"):
        FilesArriving(tmp_path / "gone", open_scan).look()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["b"], "one scan and one process"),
        (["--preview", "3"], "leave --frames and --preview away"),
        (["--format", "nxtomo"], "expected --format h5 or tiff"),
    ],
)
def test_what_cannot_be_watched(monkeypatch, capsys, tmp_path, more, said):
    out = ["--out-dir", str(tmp_path)] if more == ["b"] else []
    monkeypatch.setattr(sys, "argv", ["txmcorrect", "correct", "--watch", "a", *more, *out])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_ctrl_c_ends_the_command_with_a_complete_file(tmp_path, model, simulated):
    folder, out = tmp_path / "frames", tmp_path / "out.h5"
    folder.mkdir()
    put(folder, simulated.counts[:20])
    command = ["correct", folder, "--watch", "--idle", 1000, "--model", model, "--out", out]
    command += ["--steps", 1, "--samples", 1]
    running = subprocess.Popen(
        [sys.executable, "-m", "txmcorrect", *map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    began = time.monotonic()
    while not out.with_suffix(".live.png").exists() and running.poll() is None:
        assert time.monotonic() - began < 120
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    answer, said = running.communicate(timeout=120)
    assert running.returncode == 0, said
    assert str(out) in answer
    with read_result(out) as result:
        assert result.shape[0] == 20
    assert out.with_suffix(".html").exists() and not out.with_suffix(".live.png").exists()
