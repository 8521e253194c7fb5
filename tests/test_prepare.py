"""`prepare`: what is harvested, paired, left out and why; streamed, atomic, reproducible."""

import json
import os
import subprocess

import h5py
import numpy as np
import pytest
import tifffile
from ole import dates, floats, write_xradia
from PIL import Image
from typer.testing import CliRunner

from txmcorrect.cli import app
from txmcorrect.config import PrepareSettings
from txmcorrect.errors import FormatError, OutputError, TxmError
from txmcorrect.harvest.pairing import Flats, Pairing
from txmcorrect.harvest.screen import Screen
from txmcorrect.harvest.split import split_frames, split_units
from txmcorrect.harvest.store import area_weights, bin_frame, transmission
from txmcorrect.prepare import run
from txmcorrect.scan import ArrayFrames, References, Scan

H, W = 24, 40


def beam(level=1000.0, tilt=0.5):
    y, x = np.mgrid[:H, :W] / W
    return level * (1 + tilt * x + 0.2 * y)


def noisy(mean, seed):
    return np.random.default_rng(seed).poisson(mean).astype(np.uint16)


@pytest.fixture
def raw(tmp_path):
    """Two tile folders, and references beside them."""
    absorber = np.ones((H, W))
    absorber[6:18, 10:20] = 0.5
    for k, folder in enumerate("ab"):
        (tmp_path / "raw" / folder).mkdir(parents=True)
        for i in range(3):
            frame = noisy(beam() * absorber, 10 * k + i)
            tifffile.imwrite(tmp_path / "raw" / folder / f"tile_{i}.tif", frame)
    (tmp_path / "refs").mkdir()
    for i in range(4):
        tifffile.imwrite(tmp_path / "refs" / f"ref_{i}.tif", noisy(beam(), 100 + i))
    return tmp_path


def prepare(folder, **more):
    settings = {"raw": folder / "raw", "refs": folder / "refs", "out": folder / "data.h5", **more}
    return run(PrepareSettings(quiet=True, **{"size": 32, "validation": 0.5, **settings}))


def fates(folder):
    """`{path: [what became of each frame, ...]}` from the manifest."""
    manifest = json.loads((folder / "data.json").read_text())
    found = {}
    for entry in manifest["files"]:
        name = os.path.relpath(entry["path"], folder)
        if "left_out" in entry:
            found[name] = [entry["left_out"]]
        else:
            found[name] = [
                run.get("left_out", run.get("dataset"))
                for run in entry["frames"]
                for _ in range(run["first"], run["last"] + 1)
            ]
    return found


def test_transmission_and_references_are_right(raw):
    result = prepare(raw)
    assert [p.name for p in result.outputs] == ["data.h5", "data.json", "data.png"]
    with h5py.File(raw / "data.h5") as file:
        group = file["train/19x32"]
        assert group["transmission"].shape == (3, 19, 32) and group["reference"].shape == (
            2,
            19,
            32,
        )
        assert file["validation/19x32/transmission"].shape == (3, 19, 32)
        t = group["transmission"][()]
        assert t.dtype == np.float32
        assert (
            abs(np.median(t[:, :3]) - 1) < 0.02 and abs(np.median(t[:, 7:12, 10:14]) - 0.5) < 0.02
        )
        expected = bin_frame(beam().astype(np.float32), 32)
        assert abs(group["reference"][0] / expected - 1).mean() < 0.04
        np.testing.assert_array_equal(group["reference_factor"][()], 1)


def test_tiles_of_a_folder_stay_in_one_split(raw):
    prepare(raw)
    manifest = json.loads((raw / "data.json").read_text())
    splits = {}
    for entry in manifest["files"]:
        if entry["role"] == "sample":
            splits.setdefault(os.path.dirname(entry["path"]), set()).add(entry["split"])
    assert sorted(map(sorted, splits.values())) == [["train"], ["validation"]]


def test_manifest_names_a_place_for_every_frame(raw):
    prepare(raw)
    manifest = json.loads((raw / "data.json").read_text())
    with h5py.File(raw / "data.h5") as file:
        places = [
            (run["dataset"], run["at"] + k)
            for entry in manifest["files"]
            for run in entry["frames"]
            for k in range(run["last"] - run["first"] + 1)
        ]
        assert len(places) == len(set(places)) == 10
        assert all(at < len(file[name]) for name, at in places)
        assert manifest["datasets"] == {name: len(file[name]) for name in manifest["datasets"]}
    assert manifest["settings"]["size"] == 32


def test_frames_of_no_use_are_left_out_with_the_reason(raw):
    a = raw / "raw" / "a"
    tifffile.imwrite(a / "zero.tif", np.zeros((H, W), np.uint16))
    burnt = noisy(beam(), 7)
    burnt[:4, :4] = 65535
    tifffile.imwrite(a / "burnt.tif", burnt)
    (a / "copy.tif").write_bytes((a / "tile_0.tif").read_bytes())
    tifffile.imwrite(a / "dark.tif", noisy(beam() * 0.001, 8))
    tifffile.imwrite(a / "bright.tif", noisy(beam() * 20, 9))
    tifffile.imwrite(a / "small.tif", noisy(beam()[:10, :10], 9))
    bad = beam().astype(np.float32)
    bad[3, 3] = np.nan
    tifffile.imwrite(a / "nan.tif", bad)
    (a / "notes.txt").write_text("notes")
    (a / "fake.tif").write_text("text")
    (a / "cut.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50))
    tifffile.imwrite(raw / "refs" / "shut.tif", noisy(beam() * 0.01, 10))
    prepare(raw)
    found = fates(raw)
    for name, reason in {
        "raw/a/zero.tif": "dead: every pixel is 0",
        "raw/a/nan.tif": "dead: not a number",
        "raw/a/burnt.tif": "saturated: 1.7 % of pixels at 65535",
        "raw/a/tile_0.tif": "duplicate of",
        "raw/a/dark.tif": "dim: median transmission 0.0",
        "raw/a/bright.tif": "unmatched: median transmission 20",
        "raw/a/small.tif": "frames of 24x40 for a scan of 10x10",
        "raw/a/notes.txt": "not a data file",
        "raw/a/fake.tif": "not a data file",
        "raw/a/cut.h5": "unreadable HDF5",
        "refs/shut.tif": "% of the usual counts",
    }.items():
        assert reason in " ".join(found[name]), (name, found[name])
    assert found["refs/ref_1.tif"][0].endswith("reference")
    assert found["raw/a/copy.tif"][0].endswith("transmission")  # it comes first by name
    with h5py.File(raw / "data.h5") as file:
        sizes = [len(file[f"{s}/19x32/transmission"]) for s in ("train", "validation")]
        assert sorted(sizes) == [3, 3]


def test_summary_counts_what_was_left_out(raw):
    tifffile.imwrite(raw / "raw" / "a" / "zero.tif", np.zeros((H, W), np.uint16))
    assert "left out: 1 dead" in prepare(raw).message


def test_references_by_name_and_inside_the_raw_folder(raw):
    (raw / "refs").rename(raw / "raw" / "flats")
    tifffile.imwrite(raw / "raw" / "a" / "Open_REF.tif", noisy(beam(), 300))
    prepare(raw, refs=raw / "raw" / "flats", pattern="*_ref*")
    found = fates(raw)
    assert found["raw/a/Open_REF.tif"][0].endswith("reference")
    assert sum(f.endswith("transmission") for fs in found.values() for f in fs) == 6


def write_exchange(path, frames, flats=None, darks=None, **more):
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        file["/exchange/data"] = frames
        for name, values in (("data_white", flats), ("data_dark", darks)):
            if values is not None:
                file[f"/exchange/{name}"] = values
        for name, values in more.items():
            file[name] = values


EXPOSURE = "/measurement/instrument/detector/exposure_time"
FLAT_EXPOSURE = "/process/acquisition/flat_fields/flat_exposure_time"
BEFORE = "/process/acquisition/flat_fields/projections_before"


def test_darks_exposure_and_order_are_used(tmp_path):
    frames = np.stack([noisy(beam() + 100, i) for i in range(2)] + [noisy(beam() * 2 + 100, 5)])
    flats = np.stack([noisy(beam() * 2 + 100, 9), noisy(beam() * 4 + 100, 10)])
    write_exchange(
        tmp_path / "raw" / "s.h5", frames, flats, np.full((2, H, W), 100, np.uint16),
        **{EXPOSURE: 1.0, FLAT_EXPOSURE: 2.0, BEFORE: [0, 3]},
    )  # fmt: skip
    write_exchange(tmp_path / "refs" / "unused.h5", noisy(beam(), 99)[None, :10])
    prepare(tmp_path, size=40)
    with h5py.File(tmp_path / "data.h5") as file:
        t = np.median(file["train/24x40/transmission"][()], (1, 2))
        np.testing.assert_allclose(t, [1, 1, 1], atol=0.02)
        r = file["train/24x40/reference"][()]
        np.testing.assert_allclose(np.median(r, (1, 2)) / np.median(beam()), [1, 2], atol=0.02)
        np.testing.assert_array_equal(file["train/24x40/reference_factor"], [2, 2])


def test_flats_inside_a_scan_go_where_it_goes(tmp_path):
    for k in range(4):
        frames = np.stack([noisy(beam(), 10 * k + i) for i in range(4)])
        write_exchange(tmp_path / "raw" / f"s{k}.h5", frames[:2], frames[2:])
        write_exchange(tmp_path / "refs" / f"r{k}.h5", noisy(beam(), 100 + k)[None])
    prepare(tmp_path, size=40)
    manifest = json.loads((tmp_path / "data.json").read_text())
    splits = {}
    for entry in manifest["files"]:
        splits.setdefault(entry["path"], []).append(entry["split"])
    scans = [found for path, found in splits.items() if "/raw/" in path]
    assert all(a == b for a, b in scans) and sorted(a for a, _ in scans).count("train") == 2
    assert sum(found == ["validation"] for path, found in splits.items() if "/refs/" in path) >= 1


def test_dates_decide_between_references(tmp_path):
    stamps = {
        k: dates(f"01/02/20 {hour}:00:00") for k, hour in {"early": "08", "late": "11"}.items()
    }
    for folder in ("raw", "refs"):
        (tmp_path / folder).mkdir()
    for k, level in {"early": 1000, "late": 2000}.items():
        extra = {"ImageInfo/Date": stamps[k]}
        write_xradia(tmp_path / "refs" / f"{k}.xrm", noisy(beam(level), level)[None], extra=extra)
    for hour, level in (("08", 1000), ("10", 2000), ("19", 1000)):
        extra = {"ImageInfo/Date": dates(f"01/02/20 {hour}:10:00")}
        write_xradia(
            tmp_path / "raw" / f"s{hour}.xrm", noisy(beam(level), int(hour))[None], extra=extra
        )
    tifffile.imwrite(tmp_path / "raw" / "undated.tif", noisy(beam(1000), 77))
    prepare(tmp_path, size=40, max_age_hours=4)
    found = fates(tmp_path)
    assert "no reference within 4 h (the nearest is 8.2 h away)" in found["raw/s19.xrm"][0]
    assert found["raw/undated.tif"][0].endswith("transmission")
    with h5py.File(tmp_path / "data.h5") as file:
        t = file["train/24x40/transmission"][()]
        np.testing.assert_allclose(np.median(t, (1, 2)), 1, atol=0.03)


def test_optics_decide_too(tmp_path):
    for folder in ("raw", "refs"):
        (tmp_path / folder).mkdir()
    for name, energy, level in (("a", 8000, 1000), ("b", 9000, 2000)):
        extra = {"ImageInfo/Energy": floats(energy)}
        write_xradia(
            tmp_path / "refs" / f"r{name}.xrm", noisy(beam(level), level)[None], extra=extra
        )
        write_xradia(
            tmp_path / "raw" / f"s{name}.xrm", noisy(beam(level), 1 + level)[None], extra=extra
        )
    extra = {"ImageInfo/Energy": floats(7000)}
    write_xradia(tmp_path / "raw" / "other.xrm", noisy(beam(), 3)[None], extra=extra)
    tifffile.imwrite(tmp_path / "raw" / "bare.tif", noisy(beam(), 4))
    prepare(tmp_path, size=40)
    found = fates(tmp_path)
    assert "energy 9000.0 eV for 7000.0 eV" in found["raw/other.xrm"][0]
    assert "only the references record their energy" in found["raw/bare.tif"][0]
    with h5py.File(tmp_path / "data.h5") as file:
        t = file["train/24x40/transmission"][()]
        np.testing.assert_allclose(np.median(t, (1, 2)), 1, atol=0.03)
    prepare(tmp_path, size=40, force=True, overwrite=True)
    assert fates(tmp_path)["raw/bare.tif"][0].endswith("transmission")


def test_corrected_scans_are_left_out(raw):
    write_exchange(
        raw / "raw" / "done.h5", np.ones((2, H, W), np.float32), **{"/process/txmcorrect/a": 1}
    )
    prepare(raw)
    assert "txmcorrect has already corrected" in fates(raw)["raw/done.h5"][0]


def test_shapes_go_to_groups_of_their_own(raw):
    for i in range(2):
        tifffile.imwrite(raw / "raw" / f"wide_{i}.tif", noisy(beam()[:12], i))
        tifffile.imwrite(raw / "refs" / f"wide_{i}.tif", noisy(beam()[:12], 10 + i))
    prepare(raw)
    with h5py.File(raw / "data.h5") as file:
        assert sorted(file["train"]) == ["10x32", "19x32"]
        assert len(file["train/10x32/transmission"]) == 2


def test_the_same_run_gives_the_same_set(raw):
    def content():
        found = {}
        with h5py.File(raw / "data.h5") as file:
            file.visititems(
                lambda n, d: found.update({n: d[()]}) if isinstance(d, h5py.Dataset) else None
            )
        return found

    prepare(raw)
    first = content()
    prepare(raw, overwrite=True)
    assert first.keys() == content().keys()
    assert all(np.array_equal(first[name], values) for name, values in content().items())


def test_nothing_usable_is_an_error_and_leaves_nothing(raw):
    for path in (raw / "refs").iterdir():
        path.write_text("text")
    with pytest.raises(TxmError, match="no usable reference was found among 10 files"):
        prepare(raw)
    assert not list(raw.glob("*data*"))


def test_samples_without_references_are_an_error(raw):
    for path in (raw / "refs").iterdir():
        tifffile.imwrite(path, noisy(beam()[:10], len(path.name)))
    with pytest.raises(TxmError, match=r"no usable sample frame with a reference.*frames of 10x40"):
        prepare(raw)


def test_missing_folder_and_existing_output(raw):
    with pytest.raises(FormatError, match="no such file or folder"):
        prepare(raw, refs=raw / "nothing")
    (raw / "data.json").touch()
    with pytest.raises(OutputError, match=r"data\.json exists.*--overwrite"):
        prepare(raw)


def test_an_interrupted_run_leaves_nothing_and_can_be_repeated(raw, monkeypatch):
    from txmcorrect.harvest import samples

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(samples, "transmission", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(raw)
    assert not list(raw.glob("*data*"))
    gone = subprocess.Popen(["true"])
    gone.wait()
    leftover = raw / f".data.{gone.pid}.h5"
    leftover.touch()
    running = raw / f".data.{os.getppid()}.h5"
    running.touch()
    prepare(raw)
    assert not leftover.exists() and running.exists()


def test_contact_sheet_is_a_picture(raw):
    prepare(raw)
    with Image.open(raw / "data.png") as sheet:
        page = np.asarray(sheet.convert("L"))
    assert page.shape[0] > 4 * 128 and page.shape[1] > 3 * 128 and page.std() > 20


def test_command_line(raw):
    done = CliRunner().invoke(
        app, ["prepare", str(raw / "raw"), str(raw / "refs"), "--out", str(raw / "data.h5"), "-q",
              "--size", "32"], catch_exceptions=False)  # fmt: skip
    assert done.exit_code == 0 and "in train/19x32/transmission" in done.stdout


def test_real_files(shared_data, tmp_path):
    out = tmp_path / "data.h5"
    settings = {"raw": shared_data / "xradia", "refs": shared_data / "xradia" / "test_chip00.xrm"}
    with pytest.raises(TxmError, match="no usable sample frame"):
        run(PrepareSettings(quiet=True, out=out, **settings))
    settings = {"raw": shared_data / "tooth.h5", "refs": shared_data / "xradia"}
    run(PrepareSettings(quiet=True, out=out, **settings))
    with h5py.File(out) as file:
        t = file["train/1x256/transmission"]
        assert t.shape == (181, 1, 256) and 0.3 < np.median(t[0]) < 1.1
        found = [len(file[f"{part}/256x256/reference"]) for part in ("train", "validation")]
        # Seven angles and a reference of 256 pixels or more; a mosaic stored as one image may lie beside them.
        assert sum(found) in (8, 9)


@pytest.mark.parametrize(("count", "size"), [(640, 256), (512, 256), (7, 3), (5, 5), (2, 1)])
def test_area_mean_keeps_the_mean_and_covers_every_pixel(count, size):
    weights = area_weights(count, size)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(weights.sum(0), size / count, rtol=1e-4)


def test_binning_by_a_whole_factor_is_the_block_mean():
    frame = np.random.default_rng(0).random((12, 20)).astype(np.float32)
    expected = frame.reshape(6, 2, 10, 2).mean((1, 3))
    np.testing.assert_allclose(bin_frame(frame, 10), expected, rtol=1e-5)
    np.testing.assert_array_equal(bin_frame(frame, 100), frame)


def test_unlit_pixels_transmit_everything():
    open_beam = np.full((4, 4), 100, np.float32)
    open_beam[0] = 1
    counts = np.full((4, 4), 50, np.float32)
    np.testing.assert_array_equal(transmission(counts, open_beam)[:, 0], [1, 0.5, 0.5, 0.5])


def test_screen_knows_cameras():
    screen = Screen()
    frame = np.random.default_rng(0).integers(100, 4096, (50, 50)).astype(np.uint16)
    frame[:5] = 4095
    assert screen.check(frame, "a").startswith("saturated: 10 % of pixels at 4095")
    dim = np.random.default_rng(0).poisson(3.0, (50, 50)).astype(np.uint16)
    assert screen.check(dim, "b") == "" and screen.check(dim, "b") == ""
    assert screen.check(dim, "c") == "duplicate of b"


def test_split_keeps_units_together_and_never_takes_all():
    units, kinds = list("aabbccdd"), ["x"] * 8
    split = split_units(units, kinds, 0.25, seed=3)
    assert split.count("validation") == 2
    assert len({u for u, s in zip(units, split, strict=True) if s == "validation"}) == 1
    assert split_units(["a", "b"], ["x", "y"], 0.9, 0) == ["train", "train"]
    assert split_units(units, kinds, 0, 0) == ["train"] * 8
    assert split_frames(10, 0.1) == ["train"] * 9 + ["validation"]
    assert split_frames(1, 0.5) == ["train"]


def test_bursts_are_averaged_and_bad_flats_skipped(tmp_path):
    frames = ArrayFrames(np.ones((6, H, W), np.float32))
    times = np.array([0.0, 10, 20, 1000, 1010, 1020])
    flats = Flats(0, References(frames, time_s=times), np.array([1, 0, 1, 1, 1, 1], bool))
    scan = Scan(tmp_path, "x", ArrayFrames(np.ones((2, H, W))), time_s=np.array([30.0, 900.0]))
    pairing = Pairing(scan, [], [flats], force=False)
    assert pairing.pair(0, 1e9).index == (0, 2)
    assert pairing.pair(1, 1e9).index == (3, 4, 5) and pairing.pair(1, 1e9).age_s == 100
