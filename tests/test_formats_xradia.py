"""Xradia files: real ones against two other readers, and written ones for what real ones lack."""

import json
import pickle
import warnings

import numpy as np
import pytest
from dxchange_oracle import ask_dxchange
from ole import dates, floats, ints, stored, write_ole, write_xradia

from txmcorrect.errors import FormatError
from txmcorrect.formats import open_references, open_scan
from txmcorrect.formats.xradia import OleFile


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 4000, (7, 6, 10)).astype(np.uint16)


@pytest.mark.parametrize("name", ["test_chip00.xrm", "txrm_test_chip_tomo.txrm"])
def test_real_files_read_as_txrm2tiff_reads_them(shared_data, name):
    txrm2tiff = pytest.importorskip("txrm2tiff")
    path = shared_data / "xradia" / name
    scan = open_scan(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with txrm2tiff.open_txrm(path, strict=True) as oracle:
            expected = oracle.get_output(load=True, clear_images=False)
            angles, exposures = oracle.image_info["Angles"], oracle.exposures
            seconds = [d.timestamp() for d in oracle.datetimes]
            reference = oracle.get_reference() if oracle.has_reference else None
    n = len(expected)
    np.testing.assert_array_equal(scan.projections.read(0, n), expected)
    np.testing.assert_allclose(np.rad2deg(scan.theta), angles[:n], atol=1e-5)
    np.testing.assert_allclose(scan.exposure_s, exposures[:n])
    np.testing.assert_allclose(np.diff(scan.time_s), np.diff(seconds[:n]))
    if reference is None:
        assert scan.flats == ()
    else:
        np.testing.assert_array_equal(scan.flats[0].frames.read(0, 1)[0], reference[::-1])


def test_real_stack_reads_as_dxchange_reads_it(shared_data, tmp_path):
    path = shared_data / "xradia" / "txrm_test_chip_tomo.txrm"
    out = tmp_path / "images.npy"
    text = ask_dxchange(
        tmp_path,
        f"""
        images, meta = dxchange.read_txrm({str(path)!r})
        numpy.save({str(out)!r}, images)
        keys = ("thetas", "x_positions", "y_positions", "x-shifts", "y-shifts", "pixel_size")
        print(json.dumps({{k: numpy.ravel(meta[k]).tolist() for k in keys}}))
        """,
    )
    meta = json.loads(text)
    scan = open_scan(path)
    np.testing.assert_array_equal(scan.projections.read(0, 7), np.load(out)[:, ::-1])
    np.testing.assert_allclose(scan.theta, meta["thetas"], atol=1e-7)
    np.testing.assert_allclose(
        scan.position_um, np.stack([meta["y_positions"], meta["x_positions"]], 1)
    )
    np.testing.assert_allclose(
        scan.shifts_px, np.stack([np.negative(meta["y-shifts"]), meta["x-shifts"]], 1)
    )
    assert scan.optics.pixel_size_nm == pytest.approx(meta["pixel_size"][0] * 1000)


def test_real_image_says_what_it_knows(shared_data):
    scan = open_scan(shared_data / "xradia" / "test_chip00.xrm")
    assert scan.shape == (1, 512, 512)
    assert scan.optics.binning == (4, 4)
    assert scan.optics.energy_ev == pytest.approx(7191.05, abs=0.01)
    assert scan.flats[0].exposure_s[0] == pytest.approx(40.0)
    assert scan.current_ma[0] == 343 and scan.flats[0].current_ma[0] == 345
    assert scan.corrected_by == "" and scan.warnings == ()


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_written_stack_comes_back_top_row_first(tmp_path, images, dtype):
    images = images.astype(dtype)
    scan = open_scan(write_xradia(tmp_path / "a.txrm", images, angles=range(7)))
    assert scan.shape == (7, 6, 10)
    assert scan.projections.dtype == dtype
    np.testing.assert_array_equal(scan.projections.read(0, 7), images)
    np.testing.assert_array_equal(scan.projections.read(2, 5), images[2:5])
    np.testing.assert_allclose(np.rad2deg(scan.theta), range(7), atol=1e-6)


def test_reading_a_block_reads_only_its_images(tmp_path, images, monkeypatch):
    scan = open_scan(write_xradia(tmp_path / "a.txrm", images))
    read = []
    stream = OleFile.stream

    def spy(self, name):
        read.append(name)
        return stream(self, name)

    monkeypatch.setattr(OleFile, "stream", spy)
    scan.projections.read(3, 5)
    assert read == ["ImageData1/Image4", "ImageData1/Image5"]


def test_frames_travel_to_another_process(tmp_path, images):
    frames = open_scan(write_xradia(tmp_path / "a.txrm", images)).projections
    frames.read(0, 1)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(frames)).read(0, 7), images)


def test_aborted_scan_gives_the_images_taken(tmp_path, images):
    path = write_xradia(tmp_path / "a.txrm", images[:3], planned=361, taken=3, angles=range(361))
    scan = open_scan(path)
    assert scan.shape[0] == 3 and len(scan.theta) == 3
    assert "3 of 361" in scan.warnings[0]


def test_count_of_images_is_not_believed_when_streams_are_missing(tmp_path, images):
    scan = open_scan(write_xradia(tmp_path / "a.txrm", images, taken=50, planned=50))
    assert scan.shape[0] == 7
    assert "7 of 50" in scan.warnings[0]


def test_more_than_two_hundred_images(tmp_path):
    images = np.arange(305, dtype=np.uint16)[:, None, None] * np.ones((4, 6), np.uint16)
    scan = open_scan(write_xradia(tmp_path / "a.txrm", images))
    assert scan.shape == (305, 4, 6)
    np.testing.assert_array_equal(scan.projections.read(198, 305)[:, 0, 0], np.arange(198, 305))


def test_overlong_arrays_and_garbage(tmp_path, images):
    extra = {
        "ImageInfo/Angles": floats(*range(7), 1e30, np.nan, 5),
        "ImageInfo/ExpTimes": floats(*[2.0] * 7, 0, 0),
        "ImageInfo/Energy": floats(9000.0, *[0.0] * 60),
        "ImageInfo/XPosition": floats(*range(7), 99),
        "ImageInfo/YPosition": floats(np.nan, *range(6)),
        "ImageInfo/Current": floats(0.0),
        "ImageInfo/XrayMagnification": floats(*[38.0] * 7, 1e-42) + b"\1",
    }
    scan = open_scan(write_xradia(tmp_path / "a.txrm", images, extra=extra))
    np.testing.assert_allclose(np.rad2deg(scan.theta), range(7), atol=1e-5)
    np.testing.assert_array_equal(scan.energy_ev, 9000)
    np.testing.assert_array_equal(scan.exposure_s, 2)
    assert scan.optics.magnification == 38
    assert scan.position_um is None and scan.current_ma is None


def test_dates(tmp_path, images):
    texts = [f"11/08/15 11:58:{s:02d}" for s in range(7)]
    v3 = open_scan(
        write_xradia(tmp_path / "a.xrm", images, extra={"ImageInfo/Date": dates(*texts)})
    )
    np.testing.assert_allclose(np.diff(v3.time_s), 1)
    assert v3.time_s[0] == np.datetime64("2015-11-08T11:58:00").astype("datetime64[s]").astype(int)
    texts = [f"03/29/2021 01:59:{s:02d}.50" for s in range(9)]
    v5 = open_scan(
        write_xradia(tmp_path / "b.xrm", images, extra={"ImageInfo/Date": dates(*texts)})
    )
    assert v5.time_s[0] == np.datetime64("2021-03-29T01:59:00").astype("datetime64[s]").astype(int)


def test_garbage_dates_are_bridged_or_dropped(tmp_path, images):
    texts = [
        "01/02/20 00:00:00",
        "99/99/99 99:99:99",
        "01/02/20 00:00:20",
        *["01/02/20 00:00:30"] * 4,
    ]
    scan = open_scan(
        write_xradia(tmp_path / "a.xrm", images, extra={"ImageInfo/Date": dates(*texts)})
    )
    np.testing.assert_allclose(scan.time_s[:3] - scan.time_s[0], [0, 10, 20])
    assert "1 of 7 dates" in scan.warnings[0]
    junk = {"ImageInfo/Date": bytes(range(256)) * 2}
    scan = open_scan(write_xradia(tmp_path / "b.xrm", images, extra=junk))
    assert scan.time_s is None and "dates cannot be read" in scan.warnings[0]


def test_reference_of_version_3(tmp_path, images):
    extra = {
        "ReferenceData/Image": stored(images[6]),
        "ReferenceData/DataType": ints(5),
        "ReferenceData/ExpTime": floats(3.0),
        "ReferenceData/IonCurrent": floats(120.0),
        "ReferenceData/Binning": ints(2),
    }
    flats = open_scan(write_xradia(tmp_path / "a.xrm", images[:1], extra=extra)).flats[0]
    np.testing.assert_array_equal(flats.frames.read(0, 1)[0], images[6])
    assert (flats.exposure_s[0], flats.current_ma[0], flats.optics.binning) == (3, 120, (2, 2))


def test_reference_of_version_5(tmp_path, images):
    reference = images[6, :4, :5].astype(np.float32)
    info = "ReferenceData/ImageInfo"
    extra = {
        "ReferenceData/Image": stored(reference),
        f"{info}/DataType": ints(10),
        f"{info}/ImageWidth": ints(5),
        f"{info}/ImageHeight": ints(4),
        f"{info}/ExpTimes": floats(7.0),
        f"{info}/Energy": floats(520.0),
        f"{info}/VerticalalBin": ints(4),
        f"{info}/HorizontalBin": ints(2),
        f"{info}/Date": dates("03/29/2021 01:59:00"),
    }
    path = write_xradia(tmp_path / "a.xrm", images[:1], version=5.0, extra=extra)
    flats = open_scan(path).flats[0]
    np.testing.assert_array_equal(flats.frames.read(0, 1)[0], reference)
    assert flats.optics.energy_ev == 520 and flats.optics.binning == (4, 2)
    assert flats.exposure_s[0] == 7 and flats.time_s is not None


def test_several_references_of_lab_systems(tmp_path, images):
    extra = {f"MultiReferenceData/Image{i + 1}": stored(images[i]) for i in range(4)}
    scan = open_scan(write_xradia(tmp_path / "a.txrm", images, version=5.0, extra=extra))
    np.testing.assert_array_equal(scan.flats[0].frames.read(0, 4), images[:4])


def test_stitched_mosaic_is_split_from_the_bottom_left_going_right_then_up(tmp_path, images):
    rows, columns = 2, 3
    laid = np.zeros((12, 30), np.uint16)  # top row first
    for k in range(6):
        y, x = rows - 1 - k // columns, k % columns
        laid[y * 6 : y * 6 + 6, x * 10 : x * 10 + 10] = images[k]
    extra = {
        "ImageInfo/MosiacRows": ints(rows),
        "ImageInfo/MosiacColumns": ints(columns),
        "ImageInfo/MosiacMode": ints(1),
        "ImageInfo/ExpTimes": floats(2.0),
        "ReferenceData/Image": stored(images[6]),
        "ReferenceData/DataType": ints(5),
    }
    scan = open_scan(write_xradia(tmp_path / "a.xrm", laid[None], extra=extra))
    assert scan.shape == (6, 6, 10) and scan.mosaic_shape == (2, 3)
    np.testing.assert_array_equal(scan.projections.read(0, 6), images[:6])
    np.testing.assert_array_equal(scan.projections.read(2, 5), images[2:5])
    np.testing.assert_array_equal(scan.exposure_s, [2] * 6)
    np.testing.assert_array_equal(scan.flats[0].frames.read(0, 1)[0], images[6])


def test_mosaic_of_separate_images_stays_as_it_is(tmp_path, images):
    extra = {"ImageInfo/MosiacRows": ints(2), "ImageInfo/MosiacColumns": ints(3)}
    scan = open_scan(write_xradia(tmp_path / "a.txrm", images[:6], version=5.0, extra=extra))
    assert scan.shape == (6, 6, 10) and scan.mosaic_shape == (2, 3)
    aborted = write_xradia(
        tmp_path / "b.txrm", images[:1], version=5.0, extra=extra, planned=6, taken=1
    )
    assert open_scan(aborted).shape == (1, 6, 10)


def test_mosaic_that_does_not_divide_stays_one_image(tmp_path, images):
    extra = {"ImageInfo/MosiacRows": ints(4), "ImageInfo/MosiacColumns": ints(3)}
    scan = open_scan(write_xradia(tmp_path / "a.xrm", images[:1], extra=extra))
    assert scan.shape == (1, 6, 10) and scan.mosaic_shape is None
    assert "does not divide" in scan.warnings[0]


def test_vendor_correction_is_noticed(tmp_path, images):
    extra = {"ImageInfo/OriginalDataRefCorrected": ints(1)}
    path = write_xradia(tmp_path / "a.xrm", images, extra=extra)
    assert open_scan(path).corrected_by
    with pytest.raises(FormatError, match="raw references"):
        open_references(path)


def test_names_of_streams_ignore_case(tmp_path, images):
    streams = {
        "imageinfo/imagewidth": ints(10),
        "imageinfo/IMAGEHEIGHT": ints(6),
        "imageinfo/noofimages": ints(1),
        "imagedata1/image1": stored(images[0]),
    }
    scan = open_scan(write_ole(tmp_path / "a.xrm", streams))
    np.testing.assert_array_equal(scan.projections.read(0, 1)[0], images[0])


def test_folder_of_single_images_is_one_scan(tmp_path, images):
    for i in range(3):
        extra = {"ImageInfo/Angles": floats(10 * i), "ImageInfo/ExpTimes": floats(1 + i)}
        write_xradia(tmp_path / f"p_{8 + i}.xrm", images[i : i + 1], extra=extra)
    scan = open_scan(tmp_path)
    np.testing.assert_array_equal(scan.projections.read(0, 3), images[:3])
    np.testing.assert_allclose(np.rad2deg(scan.theta), [0, 10, 20], atol=1e-5)
    assert scan.names == ("p_8.xrm", "p_9.xrm", "p_10.xrm")


def test_folder_of_references_is_grouped_by_optics(tmp_path, images):
    for i in range(4):
        extra = {"ImageInfo/Energy": floats(8000 if i < 3 else 9000)}
        write_xradia(tmp_path / f"ref{i}.xrm", images[i : i + 1], extra=extra)
    groups = open_references(tmp_path)
    assert [(g.frames.shape[0], g.optics.energy_ev) for g in groups] == [(3, 8000), (1, 9000)]
    np.testing.assert_array_equal(groups[0].frames.read(0, 3), images[:3])


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 0.98])
def test_file_cut_short_is_one_clear_line(tmp_path, share, images):
    whole = write_xradia(tmp_path / "a.txrm", np.tile(images, (1, 20, 20))).read_bytes()
    (tmp_path / "cut.txrm").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(FormatError, match="copy it again") as caught:
        open_scan(tmp_path / "cut.txrm")
    assert "\n" not in str(caught.value)


def test_real_file_cut_in_half(shared_data, tmp_path):
    whole = (shared_data / "xradia" / "test_chip00.xrm").read_bytes()
    (tmp_path / "cut.xrm").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match="copy it again"):
        open_scan(tmp_path / "cut.xrm")


def test_no_images_and_other_compound_files_are_refused(tmp_path, images):
    path = write_xradia(tmp_path / "a.txrm", np.zeros((0, 6, 10), np.uint16), planned=5)
    with pytest.raises(FormatError, match="got none"):
        open_scan(path)
    with pytest.raises(FormatError, match="no image size"):
        open_scan(write_ole(tmp_path / "report.doc", {"WordDocument": b"x" * 5000}))
