import json
import os
import random
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from dxchange_oracle import ask_dxchange

from txmcorrect.errors import FormatError, OutputError
from txmcorrect.formats.corrected import key_weights, read_result
from txmcorrect.formats.write import Process, ResultWriter
from txmcorrect.stream import iter_blocks

SIGNATURE = {"--steps": "4"}
SHAPES = [(37, 130, 50), (16, 64, 32), (5, 2, 640), (2, 70, 3)]


def make_frames(shape, seed=0):
    return np.random.default_rng(seed).normal(1, 0.1, shape).astype(np.float32)


def make_process(shape, **fields):
    n, h, w = shape
    base = {
        "key_index": np.array([0, n - 1]),
        "field": 8 + make_frames((2, h, w), 1),
        "field_std": np.full((2, h, w), 0.01),
        "detail": (np.zeros((1, h, w), np.float32),),
        "share": np.ones((2, 1)),
        "factor": 1,
        "amplitude": np.linspace(1, 1.1, n),
        "flag": np.arange(n) % 2,
        "flag_names": ("leak",),
        "lit": np.ones((h, w), bool),
        "dark": np.full((h, w), 100.0),
        "scale": "relative",
        "verdict": "TRUSTED",
        "options": {"steps": 4, "refs": Path("refs")},
        "model_sha256": "abc",
        "seed": 3,
    }
    return Process(**{**base, **fields})


def write_result(out, frames, theta=None, order=1, memory=1, **options):
    with ResultWriter(out, frames.shape, SIGNATURE, theta=theta, **options) as writer:
        blocks = list(iter_blocks(*frames.shape, memory, 4, multiple=16))
        missing = set(writer.slabs.starts()) - writer.done()
        for start, stop in blocks[::order]:
            if missing & set(range(start, stop)):
                writer.write(start, frames[start:stop])
        return writer.finish(make_process(frames.shape))


def contents(path):
    """All datasets and attributes of a file, in a form that compares."""
    found = {}

    def visit(name, item):
        attributes = {k: str(v) for k, v in item.attrs.items()}
        value = item[()] if isinstance(item, h5py.Dataset) else None
        raw = np.asarray(value).tobytes() if not isinstance(value, bytes) else value
        found[name] = (
            attributes,
            raw,
            getattr(item, "shape", None),
            str(getattr(item, "dtype", 0)),
        )

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["h5", "nxtomo"])
def test_round_trip(tmp_path, shape, layout):
    frames, theta = make_frames(shape), np.linspace(0, np.pi, shape[0])
    out = write_result(tmp_path / "out.h5", frames, theta, layout=layout)
    with read_result(out) as result:
        assert result.transmission.read(0, 99).tobytes() == frames.tobytes()
        np.testing.assert_allclose(result.theta, theta, rtol=1e-15)
        np.testing.assert_array_equal(result.amplitude, np.linspace(1, 1.1, shape[0]))
        np.testing.assert_array_equal(result.flag, np.arange(shape[0]) % 2)
        assert (result.scale, result.verdict, result.seed) == ("relative", "TRUSTED", 3)
        assert result.flag_names == ("leak",)
        assert result.options == {"steps": 4, "refs": "refs"}
        assert result.lit.all() and (result.dark == 100).all()
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("shape", SHAPES)
def test_tiff_round_trip(tmp_path, shape):
    frames = make_frames(shape)
    out = write_result(tmp_path / "out.tif", frames, layout="tiff")
    with tifffile.TiffFile(out) as file:
        assert file.is_bigtiff and len(file.pages) == shape[0]
        assert json.loads(file.pages[0].description)["txmcorrect"]["verdict"] == "TRUSTED"
        assert file.asarray().tobytes() == frames.tobytes()


def test_layout_is_data_exchange(tmp_path):
    frames = make_frames((37, 130, 50))
    out = write_result(tmp_path / "out.h5", frames, theta=np.linspace(0, np.pi, 37))
    with h5py.File(out) as file:
        data = file["exchange/data"]
        assert (data.dtype, data.chunks) == (np.float32, (16, 64, 50))
        assert (data.compression, data.compression_opts, data.shuffle) == ("gzip", 4, True)
        assert data.attrs["axes"] == "theta:y:x"
        assert set(data.attrs) == {"axes", "units", "description"}
        assert file["exchange/theta"].attrs["units"] == "degrees"
        assert file["exchange/theta"][-1] == 180
        for name, value in (("data_white", 1), ("data_dark", 0)):
            blank = file["exchange"][name]
            assert blank.shape == (2, 130, 50) and (blank[()] == value).all()
            assert blank.id.get_storage_size() == 0
        assert file["process/txmcorrect/flag"].attrs["bits"].tolist() == ["leak"]


def test_scan_without_angles_gets_none(tmp_path):
    out = write_result(tmp_path / "out.h5", make_frames((3, 8, 8)))
    with h5py.File(out) as file, read_result(out) as result:
        assert "theta" not in file["exchange"] and result.theta is None
    with pytest.raises(OutputError, match="NXtomo needs angles"):
        ResultWriter(tmp_path / "out.nx", (3, 8, 8), SIGNATURE, layout="nxtomo")
    assert list(tmp_path.iterdir()) == [out]


def test_any_order_and_block_size_give_the_same_file(tmp_path):
    frames = make_frames((70, 20, 30))
    first = write_result(tmp_path / "a.h5", frames)
    second = write_result(tmp_path / "b.h5", frames, order=-1, memory=10**6)
    assert contents(first) == contents(second)
    assert first.read_bytes() == second.read_bytes()


def test_ranks_share_the_work(tmp_path):
    frames = make_frames((70, 20, 30))
    one = write_result(tmp_path / "one.h5", frames)
    out = tmp_path / "two.h5"
    with ResultWriter(out, frames.shape, SIGNATURE) as first:
        with ResultWriter(out, frames.shape, SIGNATURE, rank=1) as second:
            for i, start in enumerate(first.slabs.starts()):
                (first, second)[i % 2].write(start, frames[start : start + 16])
        first.finish(make_process(frames.shape))
    assert contents(out) == contents(one)


def test_numbers_of_frames_are_kept_with_them(tmp_path):
    frames = make_frames((37, 4, 5))
    amplitude = np.random.default_rng(0).random(37)
    with ResultWriter(tmp_path / "out.h5", frames.shape, SIGNATURE) as writer:
        writer.write(16, frames[16:], amplitude=amplitude[16:], flag=[0] * 20 + [8])
    with ResultWriter(tmp_path / "out.h5", frames.shape, SIGNATURE) as writer:
        assert writer.done() == {16, 32}
        writer.write(0, frames[:16], amplitude=amplitude[:16], flag=[0] * 16)
        assert writer.values("amplitude").tolist() == amplitude.tolist()
        assert writer.values("flag").tolist() == [0] * 36 + [8]


def test_missing_frames_are_said_and_stay_resumable(tmp_path):
    frames = make_frames((37, 4, 5))
    with ResultWriter(tmp_path / "out.h5", frames.shape, SIGNATURE) as writer:
        writer.write(0, frames[:16])
        with pytest.raises(OutputError, match="frames from 16 on are missing in 2 blocks"):
            writer.finish(make_process(frames.shape))
    out = write_result(tmp_path / "out.h5", frames)
    assert read_result(out).transmission.read(0, 37).tobytes() == frames.tobytes()


def test_other_layout_does_not_resume(tmp_path):
    frames = make_frames((3, 4, 5))
    ResultWriter(tmp_path / "out.h5", frames.shape, SIGNATURE).close()
    with pytest.raises(OutputError, match="the layout differs"):
        ResultWriter(tmp_path / "out.h5", frames.shape, SIGNATURE, layout="tiff")


def test_too_little_space_is_said_before_assembling(tmp_path, monkeypatch):
    frames = make_frames((3, 4, 5))
    with ResultWriter(tmp_path / "out.h5", frames.shape, SIGNATURE) as writer:
        writer.write(0, frames)
        with monkeypatch.context() as patch:
            usage = type("Usage", (), {"free": 1000})
            patch.setattr("txmcorrect.formats.write.shutil.disk_usage", lambda path: usage)
            with pytest.raises(OutputError, match="needs about 1 MiB and the disk has 0"):
                writer.finish(make_process(frames.shape))
        writer.finish(make_process(frames.shape))


def test_failed_assembly_leaves_the_work(tmp_path):
    frames = make_frames((20, 4, 5))

    def interrupt(done, total):
        raise KeyboardInterrupt

    with ResultWriter(tmp_path / "out.h5", frames.shape, SIGNATURE) as writer:
        writer.write(0, frames)
        with pytest.raises(KeyboardInterrupt):
            writer.finish(make_process(frames.shape), interrupt)
        assert not (tmp_path / "out.h5").exists()
        steps = []
        writer.finish(make_process(frames.shape), lambda done, total: steps.append((done, total)))
    assert steps == [(16, 20), (20, 20)]


def test_memory_does_not_grow_with_frames(tmp_path):
    def peak(n):
        block = make_frames((16, 64, 32))
        tracemalloc.start()
        with ResultWriter(tmp_path / f"{n}.h5", (n, 64, 32), SIGNATURE) as writer:
            for start in writer.slabs.starts():
                writer.write(start, block)
            writer.finish(make_process((n, 64, 32)))
        return tracemalloc.get_traced_memory()[1], tracemalloc.stop()

    small, large = peak(32)[0], peak(480)[0]
    assert large < small + 480 * 64 * 32 * 4 / 20


@pytest.mark.parametrize("layout", ["h5", "nxtomo"])
def test_raw_counts_come_back(tmp_path, layout):
    rng = np.random.default_rng(5)
    shape = n, h, w = 40, 30, 20
    keys = np.array([0, 19, 39])
    log = np.log(5000) + rng.normal(0, 0.3, (3, h, w)).astype(np.float32)
    lit = rng.random((h, w)) > 0.1
    process = make_process(
        shape,
        key_index=keys,
        field=log,
        field_std=np.zeros_like(log),
        share=np.ones((3, 1)),
        jump_index=np.array([30]),
        lit=lit,
    )
    raw = rng.poisson(5000 * rng.random(shape)) + 100
    frames = np.empty(shape, np.float32)
    for i in range(n):
        a, b, t = key_weights(keys, process.jump_index, i)
        background = np.exp((1 - t) * log[a] + t * log[b]) * process.amplitude[i]
        frames[i] = np.where(lit, (raw[i] - 100) / background, 1)
    with ResultWriter(
        tmp_path / "out.h5", shape, SIGNATURE, theta=np.zeros(n), layout=layout
    ) as writer:
        writer.write(0, frames)
        writer.finish(process)
    with read_result(tmp_path / "out.h5") as result:
        again = np.concatenate([result.raw(0, 25), result.raw(25, n)])
    np.testing.assert_array_equal(np.rint(again[:, lit]), raw[:, lit])
    assert np.isnan(again[:, ~lit]).all()


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (0, (0, 0, 0)),  # before the first key frame
        (2, (0, 1, 0.0)),
        (5, (0, 1, 0.75)),
        (7, (1, 1, 0)),  # up to the jump at 9, the key on this side
        (8, (1, 1, 0)),
        (9, (2, 2, 0)),
        (12, (2, 3, 0.5)),
        (15, (3, 3, 0)),
    ],
)
def test_key_weights(frame, expected):
    assert key_weights(np.array([2, 6, 10, 14]), np.array([9]), frame) == expected


def test_key_weights_between_two_jumps_take_the_nearer_key():
    keys, jumps = np.array([0, 10]), np.array([3, 8])
    sides = [key_weights(keys, jumps, i)[0] for i in range(11)]
    assert sides == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]


def test_what_is_no_result_is_refused(tmp_path):
    text = tmp_path / "a.h5"
    text.write_text("no HDF5")
    h5py.File(tmp_path / "b.h5", "w").close()
    with pytest.raises(FormatError, match=r"no such file"):
        read_result(tmp_path / "none.h5")
    with pytest.raises(FormatError, match="expected a result of `txmcorrect correct`"):
        read_result(text)
    with pytest.raises(FormatError, match="found no /process/txmcorrect in it; correct the scan"):
        read_result(tmp_path / "b.h5")


def make_source(path):
    with h5py.File(path, "w") as file:
        group = file.create_group("measurement")
        group.attrs["operator"] = "Ada"
        group["sample/name"] = "chip"
        group["sample/experimenter/name"] = "Ada"
        group["sample/comment"] = "ask ada@example.org"
        group["sample/user_name"] = "Ada"
        group["sample/full_file_name"] = "/data/2026-11/Ada/chip.h5"
        detector = group.create_group("instrument/detector")
        detector["exposure_time"] = 2.0
        detector["fill_value"] = 1.0
        detector["pixel_size"] = 10.0
        detector["pixel_size"].attrs.update(units="nm", set_by="ada@example.org")
        group["instrument/source/current"] = 300.0
        group["instrument/source/energy"] = 8.0
        group["loop"] = h5py.SoftLink("/measurement")
        group["broken"] = h5py.SoftLink("/nowhere")
        file["process/acquisition/flat_fields/flat_field_value"] = [3.0]


def test_measurement_is_copied_without_people_and_exposures(tmp_path):
    make_source(tmp_path / "in.h5")
    out = write_result(tmp_path / "out.h5", make_frames((3, 4, 5)), source=tmp_path / "in.h5")
    with h5py.File(out) as file:
        names = []
        file["measurement"].visit(names.append)
        assert {
            name for name in names if isinstance(file[f"measurement/{name}"], h5py.Dataset)
        } == {
            "sample/name",
            "instrument/detector/pixel_size",
            "instrument/source/energy",
        }
        assert dict(file["measurement"].attrs) == {}
        assert dict(file["measurement/instrument/detector/pixel_size"].attrs) == {"units": "nm"}
        assert list(file["process"]) == ["txmcorrect"]
    assert b"ada" not in out.read_bytes().lower()


def test_source_that_is_no_hdf5_gives_no_measurement(tmp_path):
    (tmp_path / "in.tif").write_text("tiff")
    out = write_result(tmp_path / "out.h5", make_frames((3, 4, 5)), source=tmp_path / "in.tif")
    with h5py.File(out) as file:
        assert "measurement" not in file


def test_nxtomo_opens_with_nxtomo(tmp_path):
    nxtomo = pytest.importorskip("nxtomo")
    theta = np.linspace(0, np.pi, 37)
    out = write_result(tmp_path / "out.nx", make_frames((37, 30, 20)), theta, layout="nxtomo")
    assert nxtomo.NXtomo.get_valid_entries(str(out)) == ("/entry",)
    loaded = nxtomo.NXtomo().load(str(out), "entry", detector_data_as="as_numpy_array")
    nxtomo.NXtomo.check_consistency(loaded, raises_error=True)
    assert [key.value for key in loaded.instrument.detector.image_key_control] == [0] * 37 + [1, 2]
    np.testing.assert_allclose(loaded.sample.rotation_angle.to("radian").magnitude[:37], theta)
    data = loaded.instrument.detector.data
    assert (data[37] == 1).all() and (data[38] == 0).all()
    np.testing.assert_array_equal(data[:37], make_frames((37, 30, 20)))


NABU = """
import sys, warnings
import h5py, numpy as np
warnings.filterwarnings("ignore")
from nabu.io.reader import NXTomoReader
from nabu.preproc.flatfield import FlatField
from nabu.resources.dataset_analyzer import analyze_dataset
about, data = analyze_dataset(sys.argv[1]), NXTomoReader(sys.argv[1]).load_data()
with h5py.File(sys.argv[1]) as file:
    stored = file["entry/instrument/detector/data"][()]
    key = file["entry/instrument/detector/image_key"][()]
flats, darks = ({i: stored[i] for i in np.flatnonzero(key == k)} for k in (1, 2))
again = data.copy()
FlatField(again.shape, flats, darks, radios_indices=np.arange(len(again))).normalize_radios(again)
assert np.array_equal(again, data) and np.array_equal(data, stored[key == 0])
print(about.n_angles, *np.rad2deg(about.rotation_angles)[:3])
"""


def test_nabu_normalising_again_changes_nothing(tmp_path):
    python = os.environ.get("TXMCORRECT_NABU_PYTHON")
    if not python:
        pytest.skip("nabu is not at hand (make peers; TXMCORRECT_NABU_PYTHON)")
    theta = np.linspace(0, 3, 37)
    out = write_result(tmp_path / "out.nx", make_frames((37, 30, 20)), theta, layout="nxtomo")
    asked = subprocess.run([python, "-c", NABU, str(out)], capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    count, *degrees = asked.stdout.splitlines()[-1].split()
    assert int(count) == 37
    np.testing.assert_allclose(np.array(degrees, float), np.rad2deg(theta[:3]), atol=1e-4)


def test_dxchange_normalising_again_changes_nothing(tmp_path):
    make_source(tmp_path / "in.h5")
    frames, theta = make_frames((37, 30, 20)), np.linspace(0, np.pi, 37)
    out = write_result(tmp_path / "out.h5", frames, theta, source=tmp_path / "in.h5")
    ask_dxchange(
        tmp_path,
        f"""
        data, white, dark, theta = dxchange.read_aps_32id({str(out)!r})
        dark, white = dark.mean(axis=0), white.mean(axis=0)
        again = (data - dark) / (white - dark)
        numpy.savez({str(tmp_path / "read.npz")!r}, data=data, again=again, theta=theta)
        print()
        """,
    )
    with np.load(tmp_path / "read.npz") as read:
        np.testing.assert_array_equal(read["data"], frames)
        np.testing.assert_array_equal(read["again"], frames)
        np.testing.assert_allclose(read["theta"], theta, rtol=1e-14)


WRITER = """
import sys
from pathlib import Path
import numpy as np
from txmcorrect.errors import OutputError
from txmcorrect.formats.write import Process, ResultWriter
n, h, w = shape = 160, 64, 64
def frames(start):
    return np.random.default_rng(start).normal(1, 0.1, (16, h, w)).astype(np.float32)
print("ready", flush=True)
with ResultWriter(Path(sys.argv[1]), shape, {}, theta=np.linspace(0, 3, n)) as writer:
    for start in sorted(set(writer.slabs.starts()) - writer.done()):
        writer.write(start, frames(start), amplitude=np.arange(start, start + 16))
    field = np.linspace(8, 9, n * 16 * 16).reshape(n, 16, 16)
    writer.finish(Process(
        np.arange(n), field, 0.01 * field, (frames(1)[:3],), np.ones((n, 3)), 4,
        writer.values("amplitude"), np.zeros(n, int), np.ones((h, w), bool), np.zeros((h, w)),
        "relative", "TRUSTED",
    ))
"""


def start(out):
    """Start the writer and wait until it begins to work."""
    command = [sys.executable, "-c", WRITER, str(out)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert writer.stdout.readline() == b"ready\n"
    return writer


def finish(out):
    with start(out) as writer:
        pass
    assert writer.returncode == 0


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """What an uninterrupted run writes, and how long it takes."""
    out = tmp_path_factory.mktemp("uninterrupted") / "out.h5"
    began = time.monotonic()
    finish(out)
    return contents(out), time.monotonic() - began


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 26))]
)
def test_killed_and_resumed_equals_uninterrupted(tmp_path, uninterrupted, seed):
    """Two kills each; with `-m slow`, fifty."""
    expected, seconds = uninterrupted
    out, moments = tmp_path / "out.h5", random.Random(seed)
    for _ in range(2):
        if not out.exists():
            with start(out) as writer:
                time.sleep(moments.uniform(0, seconds / 2))
                writer.kill()
    if out.exists():  # killed between the rename and the clean-up, or not in time
        with pytest.raises(OutputError, match="exists"):
            ResultWriter(out, (160, 64, 64), {})
    else:
        finish(out)
    assert contents(out) == expected
    assert list(tmp_path.iterdir()) == [out]
