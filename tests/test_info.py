"""`info` on real and written files: a table to read, JSON to parse, one line for what fails."""

import json

import h5py
import numpy as np
import pytest
from ole import floats, ints, stored, write_xradia
from typer.testing import CliRunner

from txmcorrect.cli import app
from txmcorrect.config import InfoSettings
from txmcorrect.errors import FormatError
from txmcorrect.info import run


def show(*args):
    done = CliRunner().invoke(app, ["info", *map(str, args)], catch_exceptions=False)
    return done.exit_code, done.stdout


@pytest.fixture
def scan_file(tmp_path):
    images = np.random.default_rng(0).integers(1, 99, (3, 6, 8)).astype(np.uint16)
    extra = {
        "ImageInfo/Energy": floats(8000),
        "ImageInfo/ExpTimes": floats(2, 2, 3),
        "ReferenceData/Image": stored(images[0]),
        "ReferenceData/DataType": ints(5),
        "ReferenceData/ExpTime": floats(4),
    }
    return write_xradia(tmp_path / "a.txrm", images, [0, 1, 2], extra=extra, planned=9)


def test_table(scan_file):
    code, text = show(scan_file)
    assert code == 0
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0].endswith("a.txrm")
    for line in ("format xradia", "frames 3 of 6x8, uint16", "angles 0 to 2°", "energy 8000 eV",
                 "exposure 2 to 3 s"):  # fmt: skip
        assert line in lines
    assert any(
        line.startswith("references 1 of 6x8, uint16 (a.txrm:ReferenceData") for line in lines
    )
    assert any("3 of 9 planned images" in line for line in lines)
    assert "\x1b" not in text and all(line == line.rstrip() for line in text.splitlines())


def test_json(scan_file):
    code, text = show("--json", scan_file)
    (facts,) = json.loads(text)
    assert code == 0 and facts["shape"] == [3, 6, 8] and facts["energy_ev"] == [8000, 8000]
    assert facts["references"][0]["fits"] and facts["corrected_by"] is None


def test_references_that_do_not_fit_are_named(tmp_path):
    images = np.ones((1, 6, 8), np.uint16)
    extra = {"ReferenceData/Image": stored(images[0, :3, :4]), "ReferenceData/DataType": ints(5),
             "ReferenceData/ImageInfo/ImageWidth": ints(4),
             "ReferenceData/ImageInfo/ImageHeight": ints(3)}  # fmt: skip
    _, text = show(write_xradia(tmp_path / "a.xrm", images, extra=extra))
    assert "DO NOT FIT" in text and "frames of 3x4 for a scan of 6x8" in text


def test_file_of_references(tmp_path):
    with h5py.File(tmp_path / "refs.h5", "w") as file:
        file["/exchange/data_white"] = np.ones((5, 6, 8), np.uint16)
    code, text = show(tmp_path / "refs.h5")
    assert code == 0 and "5 of 6x8" in text


def test_real_files(shared_data):
    paths = [
        shared_data / "lm_mosaic_4x4",
        shared_data / "tooth.h5",
        *(shared_data / "xradia").iterdir(),
    ]
    code, text = show("--json", *paths)
    found = {facts["path"].rsplit("/", 1)[-1]: facts for facts in json.loads(text)}
    assert code == 0 and len(found) == len(paths)
    assert found["tooth.h5"]["darks"] == 10
    assert found["lm_mosaic_4x4"]["shape"] == [16, 512, 512]
    assert found["txrm_test_chip_tomo.txrm"]["time"] == [
        "2015-11-09 18:19:21",
        "2015-11-09 18:20:12",
    ]


def test_what_cannot_be_read(tmp_path, scan_file):
    (tmp_path / "notes.tif").write_text("notes")
    with pytest.raises(FormatError, match=r"notes\.tif: expected HDF5"):
        run(InfoSettings(files=[tmp_path / "notes.tif"]))
    code, text = show(tmp_path / "notes.tif", scan_file)
    assert code == 1 and "a.txrm" in text
