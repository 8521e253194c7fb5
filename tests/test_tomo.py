"""`tomo` from file to file: axis, hand, merging, shifts, memory, resuming, units, messages."""

import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch
from typer.testing import CliRunner

from txmcorrect.cli import app
from txmcorrect.config import TomoSettings
from txmcorrect.errors import FlatFieldError, GeometryError, ModelError, OutputError, TxmError
from txmcorrect.formats import open_scan
from txmcorrect.formats.volume import VolumeWriter
from txmcorrect.recon.align import move
from txmcorrect.recon.geometry import ParallelBeam
from txmcorrect.recon.projector import Projector
from txmcorrect.tomo import run

SIZE, DEPTH, AXIS, PIXEL_UM = 40, 6, 17.6, 0.05
THETA = np.linspace(0, math.pi, 61)
MU = 0.6  # per um


@pytest.fixture(scope="module")
def volume():
    """A tube with a bead on a screw thread: one hand only. `(z, y, x)` per um."""
    z, y, x = np.mgrid[:DEPTH, :SIZE, :SIZE].astype(float)
    y, x = y - (SIZE - 1) / 2, x - (SIZE - 1) / 2
    turn = z / DEPTH * 1.8 * np.pi
    bead = np.hypot(x - 7 * np.cos(turn), y - 7 * np.sin(turn)) < 3
    tube = np.abs(np.hypot(x, y) - 12) < 1.2
    return (MU * bead + 0.3 * MU * tube).astype(np.float32)


@pytest.fixture(scope="module")
def transmission(volume):
    beam = ParallelBeam(torch.from_numpy(THETA), SIZE, AXIS)
    lines = Projector(beam, SIZE).A(torch.from_numpy(volume)) * PIXEL_UM
    return np.exp(-lines.numpy()).swapaxes(0, 1)


def write(path, frames, theta=THETA, counts=20000.0, pixel_um=PIXEL_UM, flats=True):
    rng = np.random.default_rng(3)
    gain = rng.uniform(0.8, 1.2, frames.shape[1:])
    with h5py.File(path, "w") as file:
        file["exchange/data"] = rng.poisson(counts * gain * frames).astype(np.uint16) + 100
        file["exchange/theta"] = np.rad2deg(theta)
        file["exchange/theta"].attrs["units"] = "degrees"
        if flats:
            flat = rng.poisson(counts * gain, (30, *gain.shape)) + 100
            file["exchange/data_white"] = flat.astype(np.uint16)
            file["exchange/data_dark"] = np.full((5, *gain.shape), 100, np.uint16)
        if pixel_um:
            name = "measurement/instrument/detection_system/objective/resolution"
            file[name] = pixel_um
            file[name].attrs["units"] = "um"
    return path


@pytest.fixture
def scan(tmp_path, transmission):
    return write(tmp_path / "scan.h5", transmission)


def tomo(scan, **options):
    scans = scan if isinstance(scan, list) else [scan]
    options = {"flats": "measured", "out": scans[0].with_name("out.h5"), **options}
    return run(TomoSettings(scans=scans, quiet=True, **options))


def read(path):
    with h5py.File(path) as file:
        stack = file["reconstruction/volume"]
        return stack[()], dict(stack.attrs)


def likeness(found, truth):
    return float(np.corrcoef(found.ravel(), truth.ravel())[0, 1])


def test_scan_becomes_a_volume_in_physical_units(scan, volume):
    result = tomo(scan)
    found, about = read(result.outputs[0])
    assert about["units"] == "1/um" and about["contrast"] == "absorption"
    assert abs(about["center_px"] - AXIS) < 0.3
    assert likeness(found, volume) > 0.95
    bead = volume >= MU
    core = bead & np.roll(bead, 1, 1) & np.roll(bead, -1, 1) & np.roll(bead, 1, 2)
    core &= np.roll(bead, -1, 2)
    assert found[core].mean() == pytest.approx(MU, rel=0.03)
    assert "axis" in result.message and "61 projections" in result.message


@pytest.mark.parametrize("method", ["sirt", "mlem"])
def test_iterative_methods(scan, volume, method):
    found, about = read(tomo(scan, method=method, iterations=30, center=AXIS).outputs[0])
    assert about["center_method"] == "given" and about["center_px"] == AXIS
    assert likeness(found, volume) > 0.9
    if method == "mlem":
        assert found.min() >= 0


def test_hand_is_kept_and_inverted_on_request(scan, volume):
    mirrored = volume[:, ::-1]
    found, _ = read(tomo(scan, center=AXIS).outputs[0])
    assert likeness(found, volume) > 0.95 > 0.7 > likeness(found, mirrored)
    turned, _ = read(tomo(scan, center=AXIS, invert_theta=True, overwrite=True).outputs[0])
    assert likeness(turned, mirrored) > 0.95


def test_transmission_is_written_as_data_exchange(scan, transmission):
    out = tomo(scan, method="none").outputs[0]
    with h5py.File(out) as file:
        data = file["exchange/data"]
        assert data.shape == transmission.shape and "reconstruction" not in file
        assert np.abs(data[()] - transmission).mean() < 0.01
        assert data[()].max() > 1  # noise in empty places is not clipped
        assert (file["exchange/data_white"][()] == 1).all() and file["exchange/data_white"].shape[
            0
        ] == 2
        assert (file["exchange/data_dark"][()] == 0).all() and file["exchange/data_dark"].shape[
            0
        ] == 2
        assert np.allclose(file["exchange/theta"][()], np.rad2deg(THETA))
    assert open_scan(out).corrected_by == "txmcorrect"


def test_a_result_can_be_reconstructed_again(scan, volume):
    first = tomo(scan, method="none", out=scan.with_name("t.h5")).outputs[0]
    again, about = read(tomo(first, flats="generated", center=AXIS).outputs[0])
    assert likeness(again, volume) > 0.95 and about["units"] == "1/um"


def test_merged_scans_take_the_latest_of_equal_angles(tmp_path, transmission):
    one = write(tmp_path / "one.h5", np.clip(transmission[:40], 0, None), THETA[:40])
    two = write(tmp_path / "two.h5", transmission[30:], THETA[30:])
    out = tomo([two, one], merge=True, method="none").outputs[0]
    with h5py.File(out) as file:
        assert np.allclose(file["exchange/theta"][()], np.rad2deg(THETA))
        source, frame = (file[f"process/txmcorrect/tomo/{n}"][()] for n in ("source", "frame"))
    assert source.tolist() == [1] * 40 + [0] * 21
    assert frame.tolist() == [*range(40), *range(10, 31)]


def test_bad_frames_are_left_out(tmp_path, transmission, volume):
    frames = transmission.copy()
    frames[[7, 33]] = 0.01
    scan = write(tmp_path / "scan.h5", frames)
    result = tomo(scan, center=AXIS)
    assert "59 projections (2 bad" in result.message
    assert likeness(read(result.outputs[0])[0], volume) > 0.95


def test_shifts_are_found_and_applied(tmp_path, transmission, volume):
    shifts = np.random.default_rng(5).uniform(-2, 2, (len(THETA), 2)) * [0, 1]
    moved = np.clip(move(transmission.astype(np.float32), shifts), 0.01, None)
    scan = write(tmp_path / "scan.h5", moved)
    before = likeness(read(tomo(scan, center=AXIS).outputs[0])[0], volume)
    out = tomo(scan, center=AXIS, align="common-line", overwrite=True).outputs[0]
    assert likeness(read(out)[0], volume) > max(0.9, before + 0.1)


def test_memory_and_interruptions_change_nothing(scan, monkeypatch):
    whole, _ = read(tomo(scan, center=AXIS).outputs[0])
    other = scan.with_name("other.h5")
    store = VolumeWriter.write_slices

    def killed(self, first, slices):
        if first > 0:
            raise KeyboardInterrupt
        store(self, first, slices)

    monkeypatch.setattr(VolumeWriter, "write_slices", killed)
    with pytest.raises(KeyboardInterrupt):
        tomo(scan, center=AXIS, out=other, memory=1)
    assert not other.exists()
    with pytest.raises(OutputError, match="--center differs"):
        tomo(scan, center=AXIS + 1, out=other)
    monkeypatch.setattr(VolumeWriter, "write_slices", store)
    resumed, _ = read(tomo(scan, center=AXIS, out=other).outputs[0])
    assert np.array_equal(whole, resumed)
    assert not list(scan.parent.glob("*.part"))


def test_phase_contrast_gets_no_unit(tmp_path, transmission):
    scan = write(tmp_path / "scan.h5", np.where(transmission < 0.98, 1.25, transmission))
    assert read(tomo(scan, center=AXIS).outputs[0])[1]["units"] == "arbitrary"
    forced = tomo(scan, center=AXIS, contrast="absorption", overwrite=True)
    assert read(forced.outputs[0])[1]["units"] == "1/um"


def test_unknown_pixel_size(tmp_path, transmission):
    scan = write(tmp_path / "scan.h5", transmission, pixel_um=None)
    assert read(tomo(scan, center=AXIS).outputs[0])[1]["units"] == "1/pixel"


def test_tiff_stack(scan, volume):
    result = tomo(scan, center=AXIS, format="tiff", out=scan.with_name("out.tif"))
    assert likeness(tifffile.imread(result.outputs[0]), volume) > 0.95


def test_flats_of_the_scan_are_used_where_there_are_any(scan):
    chosen = tomo(scan, flats="auto", method="none", out=scan.with_name("auto.h5"))
    measured = tomo(scan, method="none", out=scan.with_name("measured.h5"))
    with h5py.File(chosen.outputs[0]) as a, h5py.File(measured.outputs[0]) as b:
        np.testing.assert_array_equal(a["exchange/data"][()], b["exchange/data"][()])


def test_report_shows_slices_and_axis(scan):
    page = tomo(scan).outputs[1].read_text()
    for words in ("Reconstructed slices, 1/um", "Sinograms", "Rotation axis", "61 of 61"):
        assert words in page


def test_messages(tmp_path, scan, transmission):
    bare = write(tmp_path / "bare.h5", transmission, flats=False)
    with pytest.raises(FlatFieldError, match="expected flats in the scan for --flats measured"):
        tomo(bare)
    with pytest.raises(TxmError, match="expected --out-dir for 2 scans"):
        tomo([scan, bare])
    with pytest.raises(GeometryError, match="expected 4 projections or more"):
        tomo(scan, frames="0:3")
    with pytest.raises(GeometryError, match="flats taken at two or more times"):
        tomo(scan, split=10)
    angles = tmp_path / "angles.txt"
    angles.write_text("0\n1\n")
    with pytest.raises(GeometryError, match="expected 61 angles, one per frame"):
        tomo(scan, theta=angles)
    angles.write_text("none\n")
    with pytest.raises(GeometryError, match="expected one angle a line"):
        tomo(scan, theta=angles)
    with pytest.raises(OutputError, match="NXtomo holds no volume"):
        tomo(scan, format="nxtomo")


def test_command_line(scan):
    out = scan.with_name("cli.h5")
    arguments = ["tomo", str(scan), "--out", str(out), "--flats", "measured", "--center", str(AXIS)]
    done = CliRunner().invoke(app, [*arguments, "--filter", "hann", "--quiet"])
    assert done.exit_code == 0, done.output
    assert out.exists() and out.with_suffix(".html").exists()


def test_tooth(shared_data: Path, tmp_path):
    """A real tooth: the axis that the literature gives, enamel around dentine, air outside."""
    out = tomo(shared_data / "tooth.h5", out=tmp_path / "tooth.h5", roi="0:1,0:640").outputs[0]
    found, about = read(out)
    assert abs(about["center_px"] - 296) < 1
    image = found[0]
    assert abs(image[550:600, 250:350].mean()) < 2e-4  # air
    assert image[300:330, 225:232].mean() > 4e-3  # enamel: twenty times what air may be


def test_a_missing_prior_is_refused_before_any_work(scan, tmp_path):
    with pytest.raises(ModelError, match="expected a model file"):
        tomo(scan, method="tpdm", prior=str(tmp_path / "none.safetensors"))
    assert not (tmp_path / "out.h5.part").exists()
