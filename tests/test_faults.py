"""A disk that goes away in the middle of `correct`: one clear line, exit 1, and the same command goes on."""

import errno
import os
import sys

import h5py
import numpy as np
import pytest
import torch

from txmcorrect.background.conditions import CHANNELS
from txmcorrect.cli import main
from txmcorrect.formats import write
from txmcorrect.formats.hdf5 import Hdf5Frames
from txmcorrect.stream import PartFolder
from txmcorrect.weights import ModelSpec, save_model

SPEC = ModelSpec(
    network={"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [], "patch": 4},
    condition="pair",
    cond_channels=CHANNELS["pair"],
    size=64,
)
FRAMES = 40


@pytest.fixture
def inputs(tmp_path):
    """A scan and an untrained network, whose background is the pair's mean."""
    torch.manual_seed(0)
    save_model(tmp_path / "tiny.safetensors", SPEC.build().state_dict(), SPEC)
    folder = tmp_path / "mount"
    folder.mkdir()
    frames = np.random.default_rng(0).poisson(500, (FRAMES, 32, 32)).astype(np.uint16)
    with h5py.File(folder / "scan.h5", "w") as file:
        file["exchange/data"] = frames
        file["exchange/data_dark"] = np.zeros((2, 32, 32), np.uint16)
    return tmp_path


def correct(inputs, capsys, out):
    """Run `correct` as a user does: exit code, and what was said on stderr."""
    arguments = ["correct", inputs / "mount/scan.h5", "--out", out, "--quiet", "--samples", 1]
    arguments += ["--model", inputs / "tiny.safetensors"]
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["txmcorrect", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0), capsys.readouterr().err
    return 0, capsys.readouterr().err


def later(function, calls, fail):
    """`function`, before whose call number `calls` (and all after it) `fail` is called."""
    count = 0

    def wrapped(*arguments, **options):
        nonlocal count
        count += 1
        if count >= calls:
            fail()
        return function(*arguments, **options)

    return wrapped


def io_error():
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def same_data(one, other):
    with h5py.File(one) as a, h5py.File(other) as b:
        names = []
        a.visititems(lambda name, item: names.append(name) if hasattr(item, "shape") else None)
        return bool(names) and all(np.array_equal(a[n][()], b[n][()]) for n in names)


def check(inputs, capsys, break_, mend=lambda: None):
    """Break a run, see that it says so in one line, mend, and see that it ends as if undisturbed."""
    whole, out = inputs / "whole.h5", inputs / "out" / "out.h5"
    out.parent.mkdir()
    assert correct(inputs, capsys, whole)[0] == 0
    with pytest.MonkeyPatch.context() as patch:
        break_(patch)
        code, said = correct(inputs, capsys, out)
    mend()
    assert code == 1 and said.startswith("Error: ") and len(said.splitlines()) == 1, said
    assert "Traceback" not in said and not out.exists()
    code, second = correct(inputs, capsys, out)
    assert code == 0, second
    assert same_data(whole, out) and not list(out.parent.glob("*.part"))
    return said


@pytest.mark.parametrize("calls", [1, 2, 4])
def test_input_that_vanishes(inputs, capsys, calls):
    scan, away = inputs / "mount", inputs / "away"

    def vanish():
        if scan.exists():
            scan.rename(away)

    said = check(
        inputs,
        capsys,
        lambda patch: patch.setattr(Hdf5Frames, "read", later(Hdf5Frames.read, calls, vanish)),
        lambda: away.rename(scan),
    )
    assert "scan.h5" in said


@pytest.mark.parametrize("calls", [1, 3])
def test_input_that_gives_errors(inputs, capsys, calls):
    said = check(
        inputs,
        capsys,
        lambda patch: patch.setattr(Hdf5Frames, "read", later(Hdf5Frames.read, calls, io_error)),
    )
    assert os.strerror(errno.EIO) in said and "same command" in said


@pytest.mark.parametrize("calls", [1, 3, 5])
def test_output_that_vanishes(inputs, capsys, calls):
    out, away = inputs / "out", inputs / "gone"

    def vanish():
        if out.exists():
            out.rename(away)

    check(
        inputs,
        capsys,
        lambda patch: patch.setattr(PartFolder, "save", later(PartFolder.save, calls, vanish)),
        lambda: away.rename(out),
    )


@pytest.mark.parametrize("name", ["load", "_enter"])
def test_output_that_gives_errors(inputs, capsys, name):
    said = check(
        inputs,
        capsys,
        lambda patch: patch.setattr(
            PartFolder, name, later(getattr(PartFolder, name), 2, io_error)
        ),
    )
    assert os.strerror(errno.EIO) in said


def test_disk_that_fails_while_the_output_is_assembled(inputs, capsys):
    said = check(inputs, capsys, lambda patch: patch.setitem(write.LAYOUTS, "h5", failing))
    assert os.strerror(errno.EIO) in said


def failing(path, *_):
    path.write_bytes(b"half of a file")
    io_error()
