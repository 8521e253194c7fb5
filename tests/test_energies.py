"""Energy stacks: each energy has its own background, from its own frames and its own references."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from txmcorrect.background.conditions import CHANNELS
from txmcorrect.background.correction import correct_scan, open_for
from txmcorrect.cli import app
from txmcorrect.config import CorrectSettings, TomoSettings
from txmcorrect.errors import GeometryError, OutputError
from txmcorrect.formats import open_references, open_scan
from txmcorrect.formats.corrected import read_result
from txmcorrect.matching import match_references, of_energy
from txmcorrect.simulate import simulate_scan
from txmcorrect.synthesize import write_scan
from txmcorrect.tomo import run as reconstruct
from txmcorrect.weights import ModelSpec, save_model

ENERGIES = np.array([7.100, 7.1005, 7.120])  # keV; the first two differ by 70 ppm
FRAMES = 20
ENERGY = "measurement/instrument/monochromator/energy"
EXPOSURE = "measurement/instrument/detector/exposure_time"
RECORDED = (
    "measurement/instrument/source/current",
    "process/acquisition/flat_fields/current",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("energies")


@pytest.fixture(scope="module")
def model(folder):
    torch.manual_seed(0)
    spec = ModelSpec(
        network={"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [], "patch": 4},
        condition="pair",
        cond_channels=CHANNELS["pair"],
        size=32,
    )
    path = folder / "tiny.safetensors"
    save_model(path, spec.build().state_dict(), spec)
    return path


@pytest.fixture(scope="module")
def scans(folder):
    """One scan an energy, each under a beam of its own."""
    found = []
    for i, energy in enumerate(ENERGIES):
        scan = simulate_scan(
            "tomo", frames=FRAMES, shape=(48, 64), seed=20 + i, references="stale", bank=1
        )
        path = folder / f"energy{i}.h5"
        write_scan(path, scan)
        with h5py.File(path, "a") as file:
            file["exchange/data_dark"][...] = 100
            if ENERGY in file:
                del file[ENERGY]
            file[ENERGY] = energy
            file[ENERGY].attrs["units"] = "keV"
        found.append(path)
    return found


@pytest.fixture(scope="module")
def stack(folder, scans):
    """The same frames as one file `(e, n, h, w)`."""
    path = folder / "stack.h5"
    parts = [h5py.File(scan) for scan in scans]
    with h5py.File(path, "w") as file:
        for name in ("data", "data_white"):
            file[f"exchange/{name}"] = np.stack([part[f"exchange/{name}"][()] for part in parts])
        file["exchange/data_dark"] = parts[0]["exchange/data_dark"][()]
        file["exchange/theta"] = parts[0]["exchange/theta"][()]
        file["exchange/theta"].attrs["units"] = "degrees"
        for name in RECORDED:
            file[name] = np.concatenate([part[name][()] for part in parts])
            file[name].attrs["units"] = parts[0][name].attrs["units"]
        file[EXPOSURE] = parts[0][EXPOSURE][()]
        file[ENERGY] = ENERGIES
        file[ENERGY].attrs["units"] = "keV"
    return path


def correct(path, model, out, **options):
    settings = CorrectSettings(scans=[path], model=str(model), steps=1, samples=1, **options)
    correct_scan(settings, path, out)
    return out


@pytest.fixture(scope="module")
def result(folder, stack, model):
    return correct(stack, model, folder / "stack.corrected.h5")


def test_a_stack_is_read_energy_by_energy(stack, scans):
    scan = open_scan(stack)
    assert (scan.shape, scan.energies) == ((3 * FRAMES, 48, 64), 3)
    assert scan.energy_ev[::FRAMES].tolist() == pytest.approx(1000 * ENERGIES)
    assert scan.theta.shape == (3 * FRAMES,)
    across = scan.projections.read(FRAMES - 2, 2 * FRAMES + 1)
    whole = np.concatenate([open_scan(s).projections.read(0, FRAMES) for s in scans])
    np.testing.assert_array_equal(across, whole[FRAMES - 2 : 2 * FRAMES + 1])
    for number, single in enumerate(map(open_scan, scans)):
        one = scan.at_energy(number)
        (flats,) = of_energy(one.flats, 1000 * ENERGIES, number)
        np.testing.assert_array_equal(flats.frames.read(0, 1), single.flats[0].frames.read(0, 1))
        np.testing.assert_array_equal(one.projections.read(3, 5), single.projections.read(3, 5))


def test_the_result_has_the_shape_of_the_stack(result):
    with h5py.File(result) as file:
        assert file["exchange/data"].shape == (3, FRAMES, 48, 64)
        assert file["exchange/data"].attrs["axes"] == "energy:theta:y:x"
        assert file["exchange/theta"].shape == (FRAMES,)
        jumps = file["process/txmcorrect/jump_index"][()]
    assert {FRAMES, 2 * FRAMES} <= set(jumps.tolist()), "nothing is interpolated between energies"
    scan = open_scan(result)
    assert (scan.energies, scan.corrected_by) == (3, "txmcorrect")


def test_each_energy_is_corrected_as_if_it_were_alone(folder, result, scans, stack, model):
    with read_result(result) as found:
        raw = found.raw(0, 3 * FRAMES)
        counts = open_scan(stack).projections.read(0, 3 * FRAMES)
        np.testing.assert_allclose(raw[:, found.lit], counts[:, found.lit], atol=0.1)
        together = found.transmission.read(0, 3 * FRAMES)
        lit = found.lit
    for number, scan in enumerate(scans):
        out = correct(scan, model, folder / f"alone{number}.h5")
        with read_result(out) as alone:
            frames = alone.transmission.read(0, FRAMES)[:, lit]
            own = [alone.background(i) for i in range(FRAMES)]
        with read_result(result) as found:
            stored = [found.background(number * FRAMES + i) for i in range(FRAMES)]
        np.testing.assert_array_equal(stored, own)
        here = together[number * FRAMES : (number + 1) * FRAMES, lit]
        np.testing.assert_array_equal(here, frames)


def test_a_change_at_one_energy_leaves_the_others_alone(folder, stack, result, model):
    other = folder / "changed.h5"
    other.write_bytes(stack.read_bytes())
    with h5py.File(other, "a") as file:
        file["exchange/data"][1] = file["exchange/data"][1] // 2 + 30
        file["exchange/data_white"][1] = file["exchange/data_white"][1][:, ::-1]
    out = correct(other, model, folder / "changed.corrected.h5")
    with h5py.File(result) as a, h5py.File(out) as b:
        lit = np.logical_and(*(f["process/txmcorrect/lit"][()] for f in (a, b)))
        for number, same in ((0, True), (1, False), (2, True)):
            before, after = (f["exchange/data"][number][:, lit] for f in (a, b))
            assert np.array_equal(before, after) == same


def test_frames_are_chosen_within_each_energy(stack, folder, model):
    settings = CorrectSettings(scans=[stack], frames="2:12:2", bin=2)
    scan = open_for(settings, stack)
    assert (scan.shape, scan.energies) == ((15, 24, 32), 3)
    assert scan.energy_ev.tolist() == pytest.approx(np.repeat(1000 * ENERGIES, 5))
    out = correct(stack, model, folder / "some.h5", frames="2:12:2", bin=2)
    with h5py.File(out) as file:
        assert file["exchange/data"].shape == (3, 5, 24, 32)


def test_references_of_the_nearest_energy_count(scans):
    """All three lie within the tolerance of a setting; only one was taken at this energy."""
    groups = [group for path in scans for group in open_references(path)]
    for scan in map(open_scan, scans):
        matches = match_references(scan, groups)
        assert [m.references.optics.energy_ev for m in matches] == [scan.optics.energy_ev]


def test_references_of_no_known_energy_belong_to_none(stack):
    (first, *_) = open_scan(stack).flats
    unknown = replace(first, energy_number=None, optics=replace(first.optics, energy_ev=None))
    assert of_energy([unknown], 1000 * ENERGIES, 0) == []
    far = replace(unknown, optics=replace(first.optics, energy_ev=7110.0))
    assert of_energy([far], 1000 * ENERGIES, 1) == []


def test_nxtomo_holds_one_energy(stack, model, folder):
    with pytest.raises(OutputError, match="one energy, got 3; use --format h5"):
        correct(stack, model, folder / "stack.nx", format="nxtomo")
    assert not (folder / "stack.nx").exists()


@pytest.mark.parametrize("name", ["said.h5", "said.tif"])
def test_the_command_reports_a_stack(stack, model, folder, name):
    out = folder / name
    arguments = ["correct", str(stack), "--model", str(model), "--out", str(out), "-q"]
    arguments += ["--format", "tiff" if name.endswith("tif") else "h5", "--steps", "1"]
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 0, answer.output
    assert "scale" in out.with_suffix(".html").read_text()
    assert open_scan(out).shape[0] == 3 * FRAMES


def test_tomo_wants_one_energy(stack, folder):
    settings = TomoSettings(scans=[stack], out=folder / "volume.h5", quiet=True)
    with pytest.raises(GeometryError, match="got a stack of 3; write each energy"):
        reconstruct(settings)
