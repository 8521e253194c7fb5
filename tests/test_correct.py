"""`correct` from file to file: results, resumption, scale, flags and bad input."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
import tifffile
import torch
from typer.testing import CliRunner

from txmcorrect.background.conditions import CHANNELS
from txmcorrect.background.correction import condition_for, correct_scan, is_same_run
from txmcorrect.background.detail import choose_frames, detail_of
from txmcorrect.background.keyframes import find_jumps, first_plan, refinement, settle
from txmcorrect.background.quality import Flag, judge_run, leak_slope
from txmcorrect.cli import app, main
from txmcorrect.config import CorrectSettings
from txmcorrect.correct import write_report
from txmcorrect.formats.corrected import read_result
from txmcorrect.scan import ArrayFrames
from txmcorrect.simulate import simulate_scan
from txmcorrect.simulate.fields import smooth_field
from txmcorrect.synthesize import write_bank, write_scan
from txmcorrect.weights import ModelSpec, save_model

SPEC = ModelSpec(
    network={"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [], "patch": 4},
    condition="pair",
    cond_channels=CHANNELS["pair"],
    size=64,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("correct")


@pytest.fixture(scope="module")
def model(folder):
    """An untrained network: its background is the pair's mean, which is all these tests need."""
    torch.manual_seed(0)
    path = folder / "tiny.safetensors"
    save_model(path, SPEC.build().state_dict(), SPEC)
    return path


@pytest.fixture(scope="module")
def simulated():
    return simulate_scan(
        "mosaic-sparse", shape=(96, 80), grid=(5, 4), seed=3, references="stale", bank=2
    )


@pytest.fixture(scope="module")
def scan(folder, simulated):
    path = folder / "scan.h5"
    write_scan(path, simulated)
    write_bank(folder / "bank.h5", simulated)
    return path


def run(*arguments):
    """Run a command as a user does; returns exit code and what was said on stderr."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["txmcorrect", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            return stop.code or 0
    return 0


def correct(scan, model, out, *more):
    return run(
        "correct", scan, "--model", model, "--out", out, "--steps", 2, "--samples", 2, "-q", *more
    )


def pipeline(scan, model, out, **options):
    """The same without command line and report, which take most of the time."""
    settings = CorrectSettings(scans=[scan], model=str(model), steps=2, samples=2, **options)
    return correct_scan(settings, scan, out)


@pytest.fixture(scope="module")
def result(folder, scan, model):
    out = folder / "out.h5"
    assert correct(scan, model, out) == 0
    return out


def test_result_holds_transmission_and_its_background(result, simulated):
    with read_result(result) as found:
        assert found.shape == simulated.counts.shape
        frames = found.transmission.read(0, len(simulated.counts))
        assert frames.dtype == np.float32 and np.isfinite(frames).all()
        assert (frames[:, ~found.lit] == 1).all()
        raw = found.raw(0, len(frames))[:, found.lit]
    error = raw - simulated.counts[:, found.lit]
    assert np.abs(error).max() < 0.1  # counts of thousands, in float32


def test_report_lies_beside_the_result(result):
    page = result.with_suffix(".html").read_text()
    assert "scale" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert result.with_suffix(".png").stat().st_size > 1000


@pytest.mark.parametrize("memory", ["1MiB", "100MiB"])
def test_blocks_do_not_change_the_result(folder, scan, model, result, memory):
    out = folder / f"blocks-{memory}.h5"
    pipeline(scan, model, out, memory=memory)
    with h5py.File(result) as a, h5py.File(out) as b:
        for name in (
            "exchange/data",
            "process/txmcorrect/field",
            "process/txmcorrect/detail",
            "process/txmcorrect/flag",
        ):
            np.testing.assert_array_equal(a[name][()], b[name][()])


def test_refuses_to_overwrite_and_overwrites_when_told(scan, model, result, capsys):
    assert correct(scan, model, result) == 1
    assert "exists" in capsys.readouterr().err
    assert correct(scan, model, result, "--overwrite") == 0


def test_killed_run_resumes_to_the_same_result(folder, scan, model, result):
    out = folder / "killed.h5"
    code = (
        "import os, sys\n"
        "from txmcorrect.formats.write import ResultWriter\n"
        "write = ResultWriter.write\n"
        "def once(self, *a, **k):\n"
        "    write(self, *a, **k)\n"
        "    os.kill(os.getpid(), 9)\n"
        "ResultWriter.write = once\n"
        "from txmcorrect.cli import main\n"
        "main()\n"
    )
    arguments = [
        "correct",
        scan,
        "--model",
        model,
        "--out",
        out,
        "--steps",
        2,
        "--samples",
        2,
        "-q",
    ]
    arguments += ["--memory", "1MiB"]
    killed = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], env=os.environ)
    assert killed.returncode == -9 and not out.exists()
    assert correct(scan, model, out, "--memory", "1MiB") == 0
    with h5py.File(result) as a, h5py.File(out) as b:
        names = {
            "exchange/data",
            *(f"process/txmcorrect/{name}" for name in b["process/txmcorrect"]),
        }
        assert names == {
            "exchange/data",
            *(f"process/txmcorrect/{n}" for n in a["process/txmcorrect"]),
        }
        for name in names:
            np.testing.assert_array_equal(a[name][()], b[name][()])
    assert not out.with_name("killed.h5.part").exists()


def test_every_frame_may_have_a_background_of_its_own(folder, scan, model):
    outcome = pipeline(scan, model, folder / "every.h5", every=1)
    background = outcome.background
    assert background.keys.tolist() == list(range(20))
    with read_result(folder / "every.h5") as found:
        for i in range(20):
            wanted = background.log_background(i) - np.log(background.amplitude[i])
            assert np.abs(found.log_background(i) - wanted).max() < 2e-6
            np.testing.assert_allclose(found.log_std(i), background.log_std(i), rtol=1e-3)
    summary = write_report(outcome, CorrectSettings(scans=[scan], model=str(model)))
    assert all(path.stat().st_size > 1000 for path in summary)


def test_absolute_scale_from_matching_references(result, simulated):
    """The level follows the reference's, scaled by ring current."""
    with read_result(result) as found:
        assert found.scale.startswith("reference")
        ratio = [found.background(i) / simulated.background[i] for i in range(found.shape[0])]
        level = np.log(ratio)[:, found.lit].mean(1)
    # Right but for what the illumination's shape took with it since the reference.
    assert np.abs(level).max() < 0.025


def test_scale_roi_makes_the_region_one(folder, scan, model):
    out = folder / "roi.h5"
    pipeline(scan, model, out, scale_roi="10:30,10:30")
    with read_result(out) as found:
        frames = found.transmission.read(0, found.shape[0])[:, 10:30, 10:30]
        inside = found.lit[10:30, 10:30]
        assert found.scale == "scale-roi"
    np.testing.assert_allclose(frames[:, inside].mean(1), 1, atol=1e-5)


def _beam_dump(folder, simulated):
    """A scan without references in which the beam was away for one frame; no darks either."""
    frames = simulated.counts.copy()
    frames[3] = simulated.dark[0]
    path = folder / "dump.npy"
    np.save(path, frames)
    return path


def test_bad_frame_is_flagged_and_the_run_goes_on(folder, model, simulated):
    pipeline(_beam_dump(folder, simulated), model, folder / "dump.h5")
    with read_result(folder / "dump.h5") as found:
        assert found.flag[3] & Flag.NO_LIGHT
        assert "no light in 1" in found.verdict
        assert 3 not in found.key_index


def test_strict_exits_with_3_unless_trusted(folder, model, simulated):
    path = _beam_dump(folder, simulated)
    assert correct(path, model, folder / "strict.h5", "--strict") == 3


def _truncated(folder, scan):
    path = folder / "cut.h5"
    path.write_bytes(scan.read_bytes()[:20000])
    return path


def _text(folder, scan):
    path = folder / "text.tif"
    path.write_text("not a picture\n" * 50)
    return path


def _one_frame(folder, scan):
    path = folder / "one.npy"
    np.save(path, np.full((1, 32, 32), 1000, np.uint16))
    return path


def _mixed(folder, scan):
    path = folder / "mixed"
    path.mkdir()
    for i, side in enumerate((32, 40)):
        tifffile.imwrite(path / f"{i}.tif", np.full((side, side), 1000, np.uint16))
    return path


def _no_data(folder, scan):
    path = folder / "nodata.h5"
    with h5py.File(path, "w") as file:
        file["somewhere/else"] = np.zeros((3, 4, 4))
    return path


def _dark(folder, scan):
    path = folder / "dark.npy"
    np.save(path, np.zeros((4, 32, 32), np.uint16))
    return path


def _empty_folder(folder, scan):
    path = folder / "empty"
    path.mkdir()
    return path


BAD = {
    _truncated: "truncated|cannot be read|cut short|not complete|damaged",
    _text: "TIFF|tif",
    _one_frame: "at least two frames",
    _mixed: "size|shape|32",
    _no_data: "exchange/data",
    _dark: "usable frames",
    _empty_folder: "no |empty|found",
}


@pytest.mark.parametrize("make", BAD, ids=lambda f: f.__name__.strip("_"))
def test_bad_input_is_one_clear_line(make, tmp_path, scan, model, capsys):
    path = make(tmp_path, scan)
    out = tmp_path / "result.h5"
    assert correct(path, model, out) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.strip().count("\n") == 0, said
    assert re.search(BAD[make], said), said
    assert not out.exists()


def test_missing_output_folder(tmp_path, scan, model, capsys):
    assert correct(scan, model, tmp_path / "nowhere" / "out.h5") == 1
    assert "folder does not exist" in capsys.readouterr().err


def test_references_of_another_binning(tmp_path, folder, scan, model, simulated, capsys):
    bank = simulated.bank[:, ::2, ::2]
    path = tmp_path / "binned.npy"
    np.save(path, bank)
    # The scan's own flats match, so only a scan without them is refused.
    bare = tmp_path / "bare.npy"
    np.save(bare, simulated.counts)
    assert correct(bare, model, tmp_path / "out.h5", "--refs", path) == 1
    assert "binning" in capsys.readouterr().err


def test_pickled_model_is_refused(tmp_path, scan, capsys):
    path = tmp_path / "model.pt"
    torch.save({"weights": torch.zeros(3)}, path)
    assert correct(scan, path, tmp_path / "out.h5") == 1
    assert "pickle" in capsys.readouterr().err


def test_model_of_another_architecture_is_refused(tmp_path, scan, capsys):
    other = ModelSpec({**SPEC.network, "channels": 16}, "pair", 8, 64)
    path = tmp_path / "odd.safetensors"
    save_model(path, SPEC.build().state_dict(), other)
    assert correct(scan, path, tmp_path / "out.h5") == 1
    assert "another architecture" in capsys.readouterr().err


def test_result_is_not_corrected_twice(tmp_path, result, model, capsys):
    assert correct(result, model, tmp_path / "twice.h5") == 1
    assert "already" in capsys.readouterr().err


def test_dry_run_prints_the_settings_and_writes_nothing(tmp_path, scan):
    answer = CliRunner().invoke(
        app, ["correct", str(scan), "--dry-run", "--out", str(tmp_path / "x.h5")]
    )
    assert answer.exit_code == 0 and "condition: auto" in answer.stdout
    assert list(tmp_path.iterdir()) == []


def test_several_scans_need_a_folder(scan, model, tmp_path, capsys):
    code = run("correct", scan, scan, "--model", model, "--out", tmp_path / "x.h5", "-q")
    assert code == 2 and "--out-dir" in capsys.readouterr().err


def test_key_frames_close_in_on_a_jump():
    usable = np.ones(100, bool)
    keys = first_plan(usable, 20)
    assert keys.tolist() == [0, 20, 40, 60, 80, 99]
    shape = np.where(np.arange(100)[:, None] < 47, 0.0, 0.2) * np.linspace(-1, 1, 50)
    for _ in range(10):
        change = np.diff(shape[keys], axis=0).std(1)
        more = refinement(keys, change, usable)
        if len(more) == 0:
            break
        keys = np.union1d(keys, more)
    change = np.diff(shape[keys], axis=0).std(1)
    assert find_jumps(keys, change).tolist() == [47]


def test_verdict_names_frames_and_reasons():
    flag = np.zeros(50, np.uint32)
    assert judge_run(flag, "relative").word == "TRUSTED"
    flag[[3, 4, 5, 9]] = Flag.LEAK
    assert str(judge_run(flag, "relative")) == (
        "CHECK (frames 3-5, 9): sample leakage into the background in 4; scale=relative"
    )
    flag[:40] = Flag.NO_LIGHT
    assert judge_run(flag, "relative").word == "FAILED"


def test_the_fit_alone_reads_no_weights(folder, scan, monkeypatch, capsys):
    def refuse(*given):
        raise AssertionError("weights were read")

    monkeypatch.setattr("txmcorrect.weights.read_tensors", refuse)
    monkeypatch.setattr("txmcorrect.weights.load_state", refuse)
    out = folder / "alone.h5"
    assert run("correct", scan, "--model", "none", "--out", out, "-q") == 0
    with read_result(out) as found:
        assert found.model_sha256 == "none"
        assert found.log_std(3)[found.lit].min() > 0
    assert "none (fit alone)" in out.with_suffix(".html").read_text()
    assert is_same_run(CorrectSettings(scans=[scan], model="none", quiet=True), out, scan)
    assert not is_same_run(CorrectSettings(scans=[scan], quiet=True), out, scan)
    capsys.readouterr()
    run("info", out)
    assert re.search(r"model +none \(fit alone\)", capsys.readouterr().out)


@pytest.mark.parametrize("command", ["correct", "mosaic", "tomo"])
def test_the_fit_alone_sees_no_pairs(command, scan, tmp_path, capsys):
    out = tmp_path / "x.h5"
    assert run(command, scan, "--model", "none", "--condition", "pair", "--out", out) == 2
    assert "--model" in capsys.readouterr().err and not out.exists()


def test_options_are_stored_beside_the_result(result):
    with read_result(result) as found:
        assert found.options["steps"] == 2
        assert json.dumps(found.options)


def test_leak_is_told_from_drift():
    """A background that follows the sample is flagged, one that drifts by itself is not."""
    rng = np.random.default_rng(0)
    sample, drift = (0.1 * smooth_field(rng, (64, 64), 3) for _ in range(2))
    lit, usual = np.ones((64, 64), bool), np.zeros((64, 64), np.float32)
    assert leak_slope(0.3 * sample, usual, 0.7 * sample, lit) == pytest.approx(0.3, abs=0.01)
    assert leak_slope(0.3 * sample + 0.2 * drift, usual, 0.7 * sample, lit) == pytest.approx(
        0.3, abs=0.1
    )
    assert leak_slope(drift, usual, sample, lit) == 0
    assert leak_slope(drift, usual, 0 * sample, lit) == 0
    assert leak_slope(-2 * sample, usual, sample, lit) == 0  # more than all of it can't be missing


def test_fixed_pattern_does_not_depend_on_memory(simulated):
    frames = ArrayFrames(simulated.counts)
    dark = np.zeros(simulated.counts.shape[1:], np.float32)
    index = choose_frames(np.ones(len(simulated.counts), bool))
    wanted = detail_of(frames, index, dark, 2)
    assert wanted[0].std() > 1e-3 and wanted[1].min() > 0
    found = detail_of(frames, index, dark, 2, memory=100_000)  # two rows at a time
    np.testing.assert_array_equal(found, wanted)


def test_settling_follows_drift_and_drops_what_single_frames_leak():
    rng = np.random.default_rng(0)
    keys = np.arange(0, 120, 6)
    y, x = np.mgrid[-1:1:20j, -1:1:24j]
    lit = np.ones(x.shape, bool)
    truth = 5 + (keys / 120)[:, None, None] * (0.1 * x - 0.05 * y)  # ends as well as the middle
    leak = np.zeros(truth.shape)
    for k in range(len(keys)):  # a disk elsewhere in every frame
        cy, cx = rng.uniform(-0.7, 0.7, 2)
        leak[k] = -0.2 * ((y - cy) ** 2 + (x - cx) ** 2 < 0.04)
    fields = (truth + leak).astype(np.float32)

    def error(found):
        difference = found - truth
        return float((difference - difference.mean((1, 2), keepdims=True)).std())

    assert error(settle(truth.astype(np.float32), lit, keys, np.array([]), 9)) < 1e-5
    assert error(settle(fields, lit, keys, np.array([]), 9)) < 0.25 * error(fields)
    jump = (truth + 0.3 * (keys >= 60)[:, None, None] * x).astype(np.float32)
    assert np.abs(settle(jump, lit, keys, np.array([60]), 9) - jump).max() < 1e-5


def test_a_background_found_without_references_is_never_trusted(scan, model, folder):
    outcome = pipeline(scan, model, folder / "unreferenced.h5", force=True)
    calm = replace(outcome.background, flag=np.zeros(len(outcome.background.flag), np.uint32))
    assert str(calm.verdict()).startswith("CHECK (all frames): no flat field")
    assert replace(calm, referenced=True).verdict().word == "TRUSTED"


def test_auto_takes_what_a_given_model_was_trained_for(scan, model):
    given = CorrectSettings(scans=[scan])
    assert condition_for(given) == "stack"
    assert condition_for(given.model_copy(update={"model": str(model)})) == "pair"
    assert condition_for(given.model_copy(update={"condition": "pair"})) == "pair"
