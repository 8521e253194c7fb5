"""HDF5: Data Exchange, NXtomo, any layout by path, and what is wrong with files in the field."""

import subprocess
import sys
import warnings

import h5py
import numpy as np
import pytest
from dxchange_oracle import ask_dxchange

from txmcorrect.errors import FormatError
from txmcorrect.formats import open_references, open_scan


@pytest.fixture
def stack():
    return np.random.default_rng(1).integers(1, 4000, (9, 5, 8)).astype(np.uint16)


def write_exchange(path, projections, flats=None, darks=None, theta=None, units="degrees", **more):
    with h5py.File(path, "w") as file:
        file["/exchange/data"] = projections
        if flats is not None:
            file["/exchange/data_white"] = flats
        if darks is not None:
            file["/exchange/data_dark"] = darks
        if theta is not None:
            file["/exchange/theta"] = np.asarray(theta, np.float64)
            if units:
                file["/exchange/theta"].attrs["units"] = units
        for name, value in more.items():
            file[name] = value
    return path


def write_nxtomo(path, data, key, angles=None, entry="entry0000", detector="detector", **more):
    with h5py.File(path, "w") as file:
        group = file.create_group(entry)
        group.attrs["NX_class"] = "NXentry"
        group[f"instrument/{detector}/data"] = data
        group[f"instrument/{detector}/image_key"] = key
        if angles is not None:
            group["sample/rotation_angle"] = np.asarray(angles, np.float64)
        for name, value in more.items():
            group[name] = value
    return path


def test_tooth_reads_as_dxchange_reads_it(shared_data, tmp_path):
    path, out = shared_data / "tooth.h5", tmp_path / "all.npz"
    ask_dxchange(
        tmp_path,
        f"""
        p, f, d, t = dxchange.read_aps_32id({str(path)!r})
        numpy.savez({str(out)!r}, p=p, f=f, d=d, t=t)
        print("done")
        """,
    )
    oracle = np.load(out)
    scan = open_scan(path)
    np.testing.assert_array_equal(scan.projections.read(0, 181), oracle["p"])
    np.testing.assert_array_equal(scan.flats[0].frames.read(0, 10), oracle["f"])
    np.testing.assert_array_equal(scan.darks.read(0, 10), oracle["d"])
    np.testing.assert_allclose(scan.theta, oracle["t"])


def test_exchange_comes_back(tmp_path, stack):
    path = write_exchange(tmp_path / "a.h5", stack, stack[:2], stack[2:3], np.linspace(0, 180, 9))
    scan = open_scan(path)
    assert scan.format == "data exchange" and scan.shape == (9, 5, 8) and scan.warnings == ()
    np.testing.assert_array_equal(scan.projections.read(3, 7), stack[3:7])
    np.testing.assert_array_equal(scan.darks.read(0, 1), stack[2:3])
    np.testing.assert_allclose(scan.theta, np.linspace(0, np.pi, 9))
    np.testing.assert_array_equal(open_references(path)[0].frames.read(0, 2), stack[:2])


def test_references_without_flats_are_the_data_themselves(tmp_path, stack):
    path = write_exchange(
        tmp_path / "refs.h5", stack, **{"/measurement/instrument/source/current": np.arange(1, 10)}
    )
    (group,) = open_references(path)
    np.testing.assert_array_equal(group.frames.read(0, 9), stack)
    np.testing.assert_array_equal(group.current_ma, np.arange(1, 10))


def test_file_of_references_alone(tmp_path, stack):
    with h5py.File(tmp_path / "refs.h5", "w") as file:
        file["/exchange/data_white"], file["/exchange/data_dark"] = stack, stack[:2]
        file["/exchange/time"] = np.arange(9.0) + 1e9
        file["/measurement/instrument/source/current"] = np.arange(1, 10)
        file["/measurement/instrument/detector/exposure_time"] = 0.5
    (group,) = open_references(tmp_path / "refs.h5")
    np.testing.assert_array_equal(group.time_s, np.arange(9.0) + 1e9)
    np.testing.assert_array_equal(group.current_ma, np.arange(1, 10))
    np.testing.assert_array_equal(group.exposure_s, 0.5)
    np.testing.assert_array_equal(group.darks.read(0, 2), stack[:2])


@pytest.mark.parametrize(
    ("units", "factor", "warned"),
    [("degrees", np.pi / 180, False), ("deg", np.pi / 180, False), ("rad", 1, False),
     ("Radians", 1, False), ("", np.pi / 180, True), ("furlongs", np.pi / 180, True)],
)  # fmt: skip
def test_units_of_theta(tmp_path, stack, units, factor, warned):
    scan = open_scan(write_exchange(tmp_path / "a.h5", stack, theta=range(9), units=units))
    np.testing.assert_allclose(scan.theta, np.arange(9) * factor)
    assert bool(scan.warnings) == warned


def test_angles_that_do_not_fit(tmp_path, stack):
    scan = open_scan(write_exchange(tmp_path / "a.h5", stack, theta=range(12)))
    np.testing.assert_allclose(np.rad2deg(scan.theta), range(9))
    assert "12 angles for 9 frames" in scan.warnings[0]
    scan = open_scan(write_exchange(tmp_path / "b.h5", stack, theta=range(4)))
    assert scan.theta is None and "4 angles for 9 frames" in scan.warnings[0]


def test_metadata_in_our_units(tmp_path, stack):
    instrument = "/measurement/instrument"
    path = write_exchange(
        tmp_path / "a.h5",
        stack,
        stack[:3],
        **{
            f"{instrument}/detector/exposure_time": 0.5,
            f"{instrument}/detector/binning_x": [2],
            f"{instrument}/detector/binning_y": [1],
            f"{instrument}/source/current": np.linspace(100, 99, 9),
            f"{instrument}/monochromator/energy": 8.4,
            f"{instrument}/detection_system/objective/resolution": 0.02,
            f"{instrument}/sample_motor_stack/setup/x": np.arange(9) * 10.0,
            f"{instrument}/sample_motor_stack/setup/y": np.arange(9) * 1.0,
            "/process/acquisition/flat_fields/flat_exposure_time": 2.0,
            "/process/acquisition/mosaic/rows": 3,
            "/process/acquisition/mosaic/columns": 3,
            "/exchange/time": 1.7e9 + np.arange(9) * 10,
            "/exchange/time_white": 1.7e9 + np.array([-5.0, 25.0, 95.0]),
        },
    )
    with h5py.File(path, "a") as file:
        file[f"{instrument}/monochromator/energy"].attrs["units"] = "keV"
    scan = open_scan(path)
    assert scan.optics.binning == (1, 2) and scan.optics.energy_ev == pytest.approx(8400)
    assert scan.optics.pixel_size_nm == pytest.approx(20)
    np.testing.assert_array_equal(scan.exposure_s, 0.5)
    np.testing.assert_allclose(scan.position_um[4], [4, 40])
    assert scan.mosaic_shape == (3, 3)
    flats = scan.flats[0]
    np.testing.assert_array_equal(flats.before, [0, 3, 9])
    np.testing.assert_array_equal(flats.exposure_s, 2)
    assert flats.current_ma is None


def test_order_and_times_from_areadetector(tmp_path, stack):
    kinds = ["/exchange/data_white"] * 2 + ["/exchange/data"] * 9 + ["/exchange/data_white"]
    path = write_exchange(
        tmp_path / "a.h5",
        stack,
        stack[:3],
        **{
            "/defaults/HDF5FrameLocation": np.array(kinds, "S32"),
            "/defaults/NDArrayTimeStamp": 1e9 + np.arange(12.0),
        },
    )
    scan = open_scan(path)
    np.testing.assert_array_equal(scan.flats[0].before, [0, 0, 9])
    np.testing.assert_allclose(scan.time_s, 631152000 + 1e9 + np.arange(2, 11))
    np.testing.assert_allclose(scan.flats[0].time_s, 631152000 + 1e9 + np.array([0, 1, 11]))


def test_any_layout_by_path(tmp_path, stack):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["/raw/images"] = stack
        file["/raw/open"] = stack[:2]
        file["/raw/closed"] = stack[2:3]
        file["/raw/phi"] = np.arange(9.0)
    scan = open_scan(
        tmp_path / "a.h5",
        data_path="/raw/images",
        flat_path="/raw/open",
        dark_path="/raw/closed",
        angle_path="/raw/phi",
    )
    np.testing.assert_array_equal(scan.projections.read(0, 9), stack)
    np.testing.assert_array_equal(scan.flats[0].frames.read(0, 2), stack[:2])
    np.testing.assert_array_equal(scan.darks.read(0, 1), stack[2:3])
    np.testing.assert_allclose(np.rad2deg(scan.theta), range(9))
    (group,) = open_references(tmp_path / "a.h5", flat_path="/raw/open")
    np.testing.assert_array_equal(group.frames.read(0, 2), stack[:2])


def test_missing_dataset_names_those_there_are(tmp_path, stack):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["/raw/images"] = stack
        file["/raw/title"] = "x"
    with pytest.raises(
        FormatError, match=r"no dataset /exchange/data; it holds /raw/images \(9, 5, 8\)"
    ):
        open_scan(tmp_path / "a.h5")
    with pytest.raises(FormatError, match=r"no dataset /raw/flat.*--flat-path"):
        open_scan(tmp_path / "a.h5", data_path="/raw/images", flat_path="/raw/flat")


def test_what_is_no_stack_is_refused(tmp_path, stack):
    with pytest.raises(FormatError, match="no frames"):
        open_scan(write_exchange(tmp_path / "a.h5", stack[:0]))
    with pytest.raises(FormatError, match="expected frames"):
        open_scan(write_exchange(tmp_path / "b.h5", stack[..., None]))
    with pytest.raises(FormatError, match="darks are 4x8 but frames 5x8"):
        open_scan(write_exchange(tmp_path / "c.h5", stack, darks=stack[:1, :4]))


def test_single_frame_and_empty_references(tmp_path, stack):
    scan = open_scan(write_exchange(tmp_path / "a.h5", stack[0], flats=stack[:0]))
    assert scan.shape == (1, 5, 8) and scan.flats == ()
    np.testing.assert_array_equal(scan.projections.read(0, 1)[0], stack[0])


@pytest.mark.parametrize("written", range(1, 9))
def test_frames_not_yet_written_are_reported(tmp_path, stack, written):
    stack[written:] = 0
    scan = open_scan(write_exchange(tmp_path / "a.h5", stack))
    assert scan.shape[0] == 9
    assert f"frames {written} to 8 are empty" in scan.warnings[0]


def test_file_a_writer_still_appends_to(tmp_path, stack):
    code = (
        "import h5py, sys\n"
        "file = h5py.File(sys.argv[1], 'w', libver='latest')\n"
        "size = dict(shape=(3, 5, 8), maxshape=(None, 5, 8), chunks=(1, 5, 8))\n"
        "data = file.create_dataset('/exchange/data', dtype='u2', **size)\n"
        "data[:] = 7\n"
        "file.swmr_mode = True\n"
        "data.flush()\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    path = tmp_path / "a.h5"
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout.readline() == "ready\n"
        scan = open_scan(path)
        np.testing.assert_array_equal(scan.projections.read(0, 3), 7)
        writer.communicate("\n")


def test_reading_leaves_no_file_open(tmp_path, stack):
    path = write_exchange(tmp_path / "a.h5", stack)
    open_scan(path).projections.read(0, 4)
    with h5py.File(path, "r+") as file:
        file["/exchange/data"][0] = 1


def test_truncated_file(tmp_path, stack):
    whole = write_exchange(tmp_path / "a.h5", np.tile(stack, (1, 40, 40))).read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match="truncated HDF5 file; copy it again"):
        open_scan(tmp_path / "cut.h5")


def test_our_own_output_counts_as_corrected(tmp_path, stack):
    path = write_exchange(tmp_path / "a.h5", stack, **{"/process/txmcorrect/flag": [0]})
    assert open_scan(path).corrected_by == "txmcorrect"
    with pytest.raises(FormatError, match="raw references"):
        open_references(path)


# image keys: flat, flat, projections, flat, projection, dark, invalid
KEY = [1, 1, 0, 0, 1, 0, 2, 3, 1]


@pytest.mark.parametrize("entry", ["entry", "entry0000", "1.1"])
def test_nxtomo(tmp_path, stack, entry):
    angles = np.arange(9.0) * 10
    path = write_nxtomo(tmp_path / "a.nx", stack, KEY, angles, entry=entry, detector="pco")
    scan = open_scan(path)
    assert scan.format == "nxtomo"
    np.testing.assert_array_equal(scan.projections.read(0, 3), stack[[2, 3, 5]])
    np.testing.assert_array_equal(scan.flats[0].frames.read(0, 4), stack[[0, 1, 4, 8]])
    np.testing.assert_array_equal(scan.flats[0].before, [0, 0, 2, 3])
    np.testing.assert_array_equal(scan.darks.read(0, 1), stack[[6]])
    np.testing.assert_allclose(np.rad2deg(scan.theta), [20, 30, 50])
    assert "1 frames are marked invalid" in scan.warnings[0]
    np.testing.assert_array_equal(open_references(path)[0].frames.read(0, 4), stack[[0, 1, 4, 8]])


@pytest.mark.slow
def test_nxtomo_written_by_nxtomo(tmp_path, stack):
    nxtomo = pytest.importorskip("nxtomo.application.nxtomo")
    import pint
    from nxtomo.nxobject.nxdetector import ImageKey

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer = nxtomo.NXtomo()
        writer.instrument.detector.data = stack
        writer.instrument.detector.image_key_control = [ImageKey(k if k < 3 else -1) for k in KEY]
        writer.sample.rotation_angle = np.arange(9.0) * 10 * pint.get_application_registry().degree
        writer.save(str(tmp_path / "a.nx"), data_path="my_entry")
    scan = open_scan(tmp_path / "a.nx")
    np.testing.assert_array_equal(scan.flats[0].frames.read(0, 4), stack[[0, 1, 4, 8]])
    np.testing.assert_array_equal(scan.darks.read(0, 1), stack[[6]])
    np.testing.assert_allclose(np.rad2deg(scan.theta)[:3], [20, 30, 50])


def test_nxtomo_without_projections_or_with_a_short_key(tmp_path, stack):
    path = write_nxtomo(tmp_path / "a.nx", stack, [1] * 9)
    with pytest.raises(FormatError, match="got none in 9 frames"):
        open_scan(path)
    with pytest.raises(FormatError, match="4 entries for 9 frames"):
        open_scan(write_nxtomo(tmp_path / "b.nx", stack, [0] * 4))


def test_nxtomo_numbers_per_frame(tmp_path, stack):
    path = write_nxtomo(
        tmp_path / "a.nx",
        stack,
        KEY,
        **{
            "instrument/detector/count_time": np.arange(1.0, 10),
            "control/data": np.arange(101.0, 110),
            "instrument/beam/incident_energy": 9.2,
            "sample/x_pixel_size": 2e-8,
        },
    )
    scan = open_scan(path)
    np.testing.assert_array_equal(scan.exposure_s, [3, 4, 6])
    np.testing.assert_array_equal(scan.flats[0].exposure_s, [1, 2, 5, 9])
    np.testing.assert_allclose(scan.flats[0].current_ma, [101, 102, 105, 109])
    assert scan.optics.energy_ev == pytest.approx(9200)
    assert scan.optics.pixel_size_nm == pytest.approx(20)


def test_selecting_a_region_crops_everything_alike(tmp_path, stack):
    path = write_exchange(tmp_path / "a.h5", stack, stack[:2], stack[2:3], range(9))
    part = open_scan(path).select(slice(2, 8, 2), roi=(1, 5, 2, 8), bin=2)
    assert part.shape == (3, 2, 3) and len(part.theta) == 3
    assert part.flats[0].frames.shape == (2, 2, 3)
    assert part.darks.shape == part.flats[0].darks.shape == (1, 2, 3)
    expected = stack[[2, 4, 6], 1:5, 2:8].astype(float).reshape(3, 2, 2, 3, 2).sum((2, 4))
    np.testing.assert_array_equal(part.projections.read(0, 3), expected)
