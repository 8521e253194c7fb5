"""TIFF, NumPy, folders, inputs of other projects, and files that are none of these."""

import json
import pickle
import sys

import h5py
import numpy as np
import pytest
import tifffile
from dxchange_oracle import find_dxchange, run_python
from ole import floats, write_xradia

from txmcorrect.errors import FormatError
from txmcorrect.formats import open_references, open_scan


@pytest.fixture
def stack():
    return np.random.default_rng(2).integers(1, 4000, (6, 5, 8)).astype(np.uint16)


def write_tiffs(folder, stack, name="t_{}.tif", first=8):
    folder.mkdir(exist_ok=True)
    for i, frame in enumerate(stack):
        tifffile.imwrite(folder / name.format(first + i), frame)
    return folder


def test_real_tiles(shared_data):
    scan = open_scan(shared_data / "lm_mosaic_4x4")
    assert scan.shape == (16, 512, 512) and scan.projections.dtype == np.uint16
    assert [name[-8:-4] for name in scan.names] == [f"{i + 1:04d}" for i in range(16)]
    tile = shared_data / "lm_mosaic_4x4" / scan.names[8]
    np.testing.assert_array_equal(scan.projections.read(8, 9)[0], tifffile.imread(tile))


def test_everything_in_the_shared_folder_opens(shared_data):
    paths = [
        shared_data / "lm_mosaic_4x4",
        shared_data / "tooth.h5",
        *(shared_data / "xradia").iterdir(),
    ]
    for path in paths:
        scan = open_scan(path)
        assert scan.projections.read(0, 1).any() and open_references(path)


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4", "f8"])
@pytest.mark.parametrize("how", [
    {}, {"compression": "zlib"}, {"byteorder": ">"}, {"bigtiff": True}, {"imagej": True},
    {"metadata": None}, {"rowsperstrip": 2}, {"compression": "zlib", "byteorder": ">"}, {"ome": True},
], ids=str)  # fmt: skip
def test_tiff_stacks(tmp_path, stack, dtype, how):
    if how.get("imagej") and dtype in ("i2", "f8"):
        pytest.skip("ImageJ has no such type")
    stack = stack.astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", **how)
    scan = open_scan(tmp_path / "a.tif")
    assert scan.shape == (6, 5, 8) and scan.projections.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(scan.projections.read(0, 6), stack)
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(scan.projections)).read(2, 5), stack[2:5]
    )


def test_our_own_tiff_counts_as_corrected(tmp_path, stack):
    note = json.dumps({"txmcorrect": {"scale": "relative"}})
    tifffile.imwrite(tmp_path / "a.tif", stack, description=note, metadata=None)
    assert open_scan(tmp_path / "a.tif").corrected_by == "txmcorrect"


def test_folder_in_natural_order(tmp_path, stack):
    scan = open_scan(write_tiffs(tmp_path / "tiles", stack))
    assert scan.names[:3] == ("t_8.tif", "t_9.tif", "t_10.tif")
    np.testing.assert_array_equal(scan.projections.read(0, 6), stack)
    np.testing.assert_array_equal(scan.projections.read(1, 4), stack[1:4])


def test_folder_ignores_what_is_no_data(tmp_path, stack):
    folder = write_tiffs(tmp_path / "tiles", stack)
    (folder / "TileConfiguration.txt").write_text("dim = 2\n")
    (folder / "notes.tif.txt").write_text("x")
    (folder / ".hidden.tif").write_text("x")
    (folder / "empty.tmp").touch()
    assert open_scan(folder).shape == (6, 5, 8)


def test_folder_of_several_pages_each(tmp_path, stack):
    folder = tmp_path / "stacks"
    folder.mkdir()
    for i in range(3):
        tifffile.imwrite(folder / f"s{i}.tif", stack[2 * i : 2 * i + 2])
    scan = open_scan(folder)
    for start in range(6):
        for stop in range(start, 7):
            np.testing.assert_array_equal(scan.projections.read(start, stop), stack[start:stop])


def test_dates_in_tiff_tags_become_times(tmp_path, stack):
    for i, frame in enumerate(stack):
        date = f"2023:04:26 10:00:{i:02d}"
        tifffile.imwrite(tmp_path / f"{i}.tif", frame, datetime=date)
    np.testing.assert_array_equal(np.diff(open_scan(tmp_path).time_s), 1)


def test_mixed_sizes_are_refused_in_a_scan_and_grouped_in_references(tmp_path, stack):
    folder = write_tiffs(tmp_path / "tiles", stack)
    tifffile.imwrite(folder / "t_20.tif", stack[0, :4])
    with pytest.raises(FormatError, match=r"one size, got 5x8 \(t_13.tif\), 4x8 \(t_20.tif\)"):
        open_scan(folder)
    assert [group.frames.shape for group in open_references(folder)] == [(6, 5, 8), (1, 4, 8)]


def test_mixed_kinds_are_refused(tmp_path, stack):
    folder = write_tiffs(tmp_path / "tiles", stack)
    write_xradia(folder / "a.xrm", stack[:1])
    with pytest.raises(FormatError, match="1 xradia and 6 tiff"):
        open_scan(folder)


def test_several_scans_in_a_folder_are_not_one(tmp_path, stack):
    for name in "ab":
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["/exchange/data"] = stack
    with pytest.raises(FormatError, match="holds 2 HDF5 scans"):
        open_scan(tmp_path)


def test_merged_images_must_be_alike(tmp_path, stack):
    write_xradia(tmp_path / "a1.xrm", stack[:1], extra={"ImageInfo/Energy": floats(8000)})
    write_xradia(tmp_path / "a2.xrm", stack[1:2], extra={"ImageInfo/Energy": floats(9000)})
    assert any("differ in energy" in note for note in open_scan(tmp_path).warnings)


@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_npy(tmp_path, stack, dtype):
    np.save(tmp_path / "a.npy", stack.astype(dtype))
    frames = open_scan(tmp_path / "a.npy").projections
    assert frames.dtype == dtype
    np.testing.assert_array_equal(frames.read(2, 4), stack[2:4])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(frames)).read(0, 6), stack)
    assert len(pickle.dumps(frames)) < 1000
    np.save(tmp_path / "one.npy", stack[0])
    assert open_scan(tmp_path / "one.npy").shape == (1, 5, 8)


def test_npy_that_cannot_be_read(tmp_path, stack):
    np.save(tmp_path / "a.npy", stack)
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:200])
    np.save(tmp_path / "objects.npy", np.array([{}, []], object), allow_pickle=True)
    np.save(tmp_path / "line.npy", np.arange(5))
    for name in ("cut.npy", "objects.npy", "line.npy"):
        with pytest.raises(FormatError):
            open_scan(tmp_path / name)


def test_files_that_are_not_data(tmp_path, stack):
    (tmp_path / "text.tif").write_text("these are my notes\n")
    (tmp_path / "empty.tif").touch()
    (tmp_path / "header.tif").write_bytes(b"II*\0\x08\0\0\0")
    tifffile.imwrite(tmp_path / "colour.tif", np.zeros((5, 8, 3), np.uint8), photometric="rgb")
    for name, message in {
        "text.tif": "expected HDF5, Xradia.*begins with b'these are my notes",
        "empty.tif": "an empty file",
        "header.tif": "TIFF",
        "colour.tif": "expected grey frames",
        "missing.tif": "no such file",
    }.items():
        with pytest.raises(FormatError, match=message) as caught:
            open_scan(tmp_path / name)
        assert "\n" not in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize("how", [{}, {"compression": "zlib"}, {"metadata": None}], ids=str)
def test_tiff_cut_in_half(tmp_path, stack, how):
    big = np.random.default_rng(0).integers(0, 60000, (6, 50, 80)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", big, **how)
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match="TIFF"):
        open_scan(tmp_path / "cut.tif").projections.read(0, 6)


def damage(data, rng):
    """Cut a file short, or overwrite a few of its bytes, mostly near the beginning."""
    data = bytearray(data)
    if rng.random() < 0.3:
        return data[: rng.integers(1, len(data))]
    for _ in range(rng.integers(1, 6)):
        reach = len(data) if rng.random() < 0.5 else min(len(data), 2048)
        data[rng.integers(reach)] = rng.integers(256)
    return data


@pytest.mark.parametrize("name", ["a.txrm", "a.h5", "a.nx", "a.tif", "z.tif", "a.npy"])
def test_damaged_files_are_read_or_refused_but_never_crash(tmp_path, stack, name):
    path = tmp_path / name
    if name == "a.txrm":
        write_xradia(path, stack, angles=range(6))
    elif name == "a.npy":
        np.save(path, stack)
    elif name.endswith(".tif"):
        tifffile.imwrite(path, stack, compression="zlib" if name == "z.tif" else None)
    else:
        with h5py.File(path, "w") as file:
            where = "/exchange/data" if name == "a.h5" else "/entry/instrument/detector/data"
            file.create_dataset(where, data=stack, chunks=(1, 5, 8), compression="gzip")
            file["/entry/instrument/detector/image_key"] = [0] * 6
    whole, rng = path.read_bytes(), np.random.default_rng(5)
    outcomes = set()
    for k in range(60):
        broken = tmp_path / f"{k}_{name}"
        broken.write_bytes(damage(whole, rng))
        try:
            scan = open_scan(broken)
            scan.projections.read(0, min(scan.shape[0], 9))
            outcomes.add("read")
        except FormatError as error:
            assert "\n" not in str(error) and str(broken) in str(error)
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_text_file_among_tiles_is_refused(tmp_path, stack):
    folder = write_tiffs(tmp_path / "tiles", stack)
    (folder / "t_99.tif").write_text("notes")
    with pytest.raises(FormatError, match=r"t_99\.tif"):
        open_scan(folder)


def test_empty_folder(tmp_path):
    with pytest.raises(FormatError, match="found none in it"):
        open_scan(tmp_path)
    with pytest.raises(FormatError, match="no such file or folder"):
        open_references(tmp_path / "nothing")


def test_unreadable_folder_and_file(tmp_path, monkeypatch):
    from pathlib import Path

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.tif").touch()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refuse)
        with pytest.raises(FormatError, match=r"cannot be listed \(Permission denied"):
            open_scan(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(FormatError, match=r"cannot be read \(Permission denied"):
            open_scan(tmp_path / "a.tif")


def test_png_images(tmp_path, stack):
    imageio = pytest.importorskip("imageio.v3")
    imageio.imwrite(tmp_path / "a_1.png", stack[0])
    imageio.imwrite(tmp_path / "a_2.png", stack[1])
    np.testing.assert_array_equal(open_scan(tmp_path).projections.read(0, 2), stack[:2])
    imageio.imwrite(tmp_path / "colour.png", np.arange(120, dtype=np.uint8).reshape(5, 8, 3))
    with pytest.raises(FormatError, match="expected a grey image"):
        open_scan(tmp_path / "colour.png")


def test_matlab_files(tmp_path, stack):
    from scipy.io import savemat

    savemat(tmp_path / "a.mat", {"frames": stack.transpose(1, 2, 0), "note": "x"})
    np.testing.assert_array_equal(open_scan(tmp_path / "a.mat").projections.read(0, 6), stack)
    savemat(tmp_path / "b.mat", {"one": stack[0], "two": stack[1]})
    with pytest.raises(FormatError, match="expected one array of frames"):
        open_scan(tmp_path / "b.mat")


def test_nifti_volumes(tmp_path, stack):
    nibabel = pytest.importorskip("nibabel")
    volume = stack[:, ::-1].transpose(2, 1, 0)
    nibabel.Nifti1Image(volume, np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(open_scan(tmp_path / "a.nii.gz").projections.read(0, 6), stack)


def test_optional_packages_are_asked_for(tmp_path, monkeypatch):
    (tmp_path / "a.nii").write_bytes(bytes(344) + b"n+1\0" + bytes(100))
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(FormatError, match=r"needs the package nibabel.*txmcorrect\[inputs\]"):
        open_scan(tmp_path / "a.nii")


READ = """
    import json, sys, numpy
    from txmcorrect.formats import open_scan
    from txmcorrect.errors import TxmError
    try:
        scan = open_scan({path!r}, reader="dxchange")
        numpy.savez({out!r}, frames=scan.projections.read(2, 5), theta=scan.theta)
        print(json.dumps(dict(shape=scan.shape, format=scan.format, flats=len(scan.flats))))
    except TxmError as error:
        print(json.dumps(str(error)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tooth.h5", "xradia/txrm_test_chip_tomo.txrm"])
def test_reading_through_dxchange_gives_what_our_reader_gives(shared_data, tmp_path, name):
    path, out = shared_data / name, tmp_path / "out.npz"
    done = run_python(READ.format(path=str(path), out=str(out)), find_dxchange(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    own = open_scan(path)
    assert tuple(found["shape"]) == own.shape and "(dxchange)" in found["format"]
    assert found["flats"] == len(own.flats)
    np.testing.assert_array_equal(np.load(out)["frames"], own.projections.read(2, 5))
    np.testing.assert_allclose(np.load(out)["theta"], own.theta, atol=1e-7)


@pytest.mark.slow
def test_dxchange_failing_on_a_file_is_one_line(shared_data, tmp_path):
    code = READ.format(path=str(shared_data / "xradia" / "test_chip00.xrm"), out="unused")
    done = run_python(code, find_dxchange(tmp_path))
    assert "dxchange cannot read it" in json.loads(done.stdout), done.stderr


def test_impostor_and_absent_dxchange_are_told_apart(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    path.touch()
    monkeypatch.setitem(sys.modules, "dxchange", None)
    with pytest.raises(FormatError, match="package is not installed; it is on conda-forge"):
        open_scan(path, reader="dxchange")
    monkeypatch.delitem(sys.modules, "dxchange")
    (tmp_path / "dxchange").mkdir()
    (tmp_path / "dxchange" / "__init__.py").write_text("def exchange():\n    return 'rates'\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FormatError, match="unrelated package of that name from PyPI"):
        open_scan(path, reader="dxchange")
    monkeypatch.delitem(sys.modules, "dxchange")
