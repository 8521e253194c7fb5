"""`evaluate`: against truth, on references alone, against peers; and what it says of bad input."""

import json
import logging
from dataclasses import replace

import h5py
import numpy as np
import pytest

from txmcorrect import score
from txmcorrect.background import methods
from txmcorrect.baselines import BAD, PEERS, Estimate, Flats
from txmcorrect.config import EvaluateSettings, UsageError
from txmcorrect.errors import FormatError, ModelError, TxmError
from txmcorrect.formats.write import Process, ResultWriter
from txmcorrect.judge import recorded, scenes
from txmcorrect.scoring import contest, model, output, real, truth
from txmcorrect.simulate import simulate_scan
from txmcorrect.synthesize import write_bank, write_truth
from txmcorrect.weights import Model, ModelSpec

SHAPE = (48, 64)


@pytest.fixture(scope="module")
def scan():
    return simulate_scan("mosaic-sparse", "medium", 5000, SHAPE, seed=4, grid=(2, 2), bank=4)


@pytest.fixture(scope="module")
def truth_file(scan, tmp_path_factory):
    path = tmp_path_factory.mktemp("truth") / "scan.truth.h5"
    write_truth(path, scan)
    return path


def write_result(path, scan, change=0.0, flag=0, names=("leak", "jump")):
    """A result whose background is the truth times exp(change), `change` broadcast to (n, h, w)."""
    n = len(scan.counts)
    log_background = (np.log(scan.background) + change).astype(np.float32)
    dark = scan.dark.mean(0, dtype=np.float32)
    frames = ((scan.counts - dark) / np.exp(log_background)).astype(np.float32)
    process = Process(
        key_index=np.arange(n),
        field=log_background,
        field_std=np.full_like(log_background, 0.01),
        detail=(np.zeros_like(log_background[:1]),),
        share=np.ones((n, 1)),
        factor=1,
        amplitude=np.ones(n),
        flag=np.full(n, flag),
        flag_names=names,
        lit=scan.lit,
        dark=dark,
        scale="relative",
        verdict="TRUSTED",
    )
    with ResultWriter(path, frames.shape, {"x": "y"}) as writer:
        writer.write(0, np.where(scan.lit, frames, 1).astype(np.float32))
        writer.finish(process)
    return path


def test_the_true_background_scores_as_good_as_noise_allows(scan, truth_file, tmp_path):
    result = write_result(tmp_path / "c.h5", scan)
    outcome = score.run(EvaluateSettings(result=result, truth=truth_file, quiet=True))
    assert {p.suffix for p in outcome.outputs} == {".md", ".json", ".png", ".html"}
    body = json.loads((tmp_path / "c.scores" / "scores.json").read_text())
    summary = body["summary"]
    assert summary["background_error_percent"] < 1e-3
    assert abs(summary["absolute_gain_percent"]) < 1e-3
    assert summary["bad_frames"] == 0
    assert summary["psnr_db"] > 25
    assert len(body["frames"]["psnr"]) == 4
    page = (tmp_path / "c.scores" / "scores.html").read_text()
    assert "TRUSTED" in page and "data:image/png" in page


def test_errors_of_known_size_are_measured(scan, truth_file, tmp_path):
    wave = 0.05 * np.cos(np.arange(SHAPE[1]) / 5) * np.ones(SHAPE)
    wave -= wave[scan.lit].mean()
    found = truth.score_result(
        write_result(tmp_path / "c.h5", scan, wave + np.log(1.02), flag=1), truth_file
    )
    summary = found.summary()
    expected = 100 * wave[scan.lit].std()
    assert summary["background_error_percent"] == pytest.approx(expected, rel=1e-3)
    assert summary["absolute_gain_percent"] == pytest.approx(100 * np.log(1.02), abs=1e-3)
    assert summary["bad_frames"] == 0 or expected > 3 * summary["photon_noise_percent"]
    assert found.flagged.all()
    exact = truth.score_result(write_result(tmp_path / "d.h5", scan), truth_file)
    assert found.summary()["psnr_scaled_db"] < exact.summary()["psnr_scaled_db"]


def test_slices_of_a_tomogram_are_scored(tmp_path):
    tomogram = simulate_scan("tomo", "medium", 20000, (16, 64), seed=5, frames=48, bank=0)
    write_truth(tmp_path / "t.truth.h5", tomogram)
    wave = 0.05 * np.cos(np.arange(64) / 5) * np.ones((16, 64))
    exact, wrong = (
        truth.score_result(
            write_result(tmp_path / f"{name}.h5", tomogram, change), tmp_path / "t.truth.h5"
        )
        for name, change in (("a", 0.0), ("b", wave))
    )
    best, worse = exact.summary(), wrong.summary()
    assert best["slice_error"] < 0.5 * worse["slice_error"]
    assert best["contrast_to_noise_ideal"] == worse["contrast_to_noise_ideal"]
    assert worse["contrast_to_noise"] < best["contrast_to_noise"]
    assert best["contrast_to_noise"] < best["contrast_to_noise_ideal"]
    outputs = score.run(
        EvaluateSettings(result=tmp_path / "b.h5", truth=tmp_path / "t.truth.h5", quiet=True)
    ).outputs
    assert (tmp_path / "b.scores" / "slices.png") in outputs
    assert "middle slice" in (tmp_path / "b.scores" / "scores.html").read_text()


def test_a_mosaic_has_no_slices(scan, truth_file, tmp_path):
    found = truth.score_result(write_result(tmp_path / "c.h5", scan), truth_file)
    assert found.slices == {} and truth.draw_slices(found) is None


def test_remarks_are_no_distrust(scan, truth_file, tmp_path):
    found = truth.score_result(write_result(tmp_path / "c.h5", scan, flag=2), truth_file)
    assert not found.flagged.any()


def test_a_bad_frame_without_flag_costs_recall(scan, truth_file, tmp_path):
    change = np.zeros_like(scan.background)
    change[1] = 0.3 * np.linspace(-1, 1, SHAPE[1])
    found = truth.score_result(write_result(tmp_path / "c.h5", scan, change), truth_file)
    assert found.bad.tolist() == [False, True, False, False]
    assert found.summary()["flag_recall"] == 0
    assert int(found.shown["frame"]) == 1


def test_truth_of_another_scan_is_refused(scan, truth_file, tmp_path):
    result = write_result(tmp_path / "c.h5", scan)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["truth/background"] = np.ones((9, 9, 9))
    with pytest.raises(FormatError, match="expected truth of 4 frames of 48x64"):
        truth.score_result(result, tmp_path / "other.h5")
    with h5py.File(tmp_path / "none.h5", "w"):
        pass
    for name in ("none.h5", "missing.h5"):
        with pytest.raises(FormatError, match="expected"):
            truth.score_result(result, tmp_path / name)


@pytest.mark.parametrize(
    "given",
    [{}, {"result": "a.h5"}, {"truth": "t.h5"}, {"compare": True, "refs": "r"}],
)
def test_exactly_one_thing_is_evaluated(given):
    with pytest.raises(UsageError, match=r"expected RESULT with --truth FILE, or --refs REFS"):
        score.run(EvaluateSettings(**given))


def test_references_are_predicted_from_each_other(tmp_path, capsys):
    scan = simulate_scan("film", "medium", 5000, (32, 40), seed=2, frames=2, bank=8)
    write_bank(tmp_path / "bank.h5", scan)
    settings = EvaluateSettings(refs=tmp_path / "bank.h5", model="none", json_output=True)
    score.run(settings)
    body = json.loads(capsys.readouterr().out)
    error = {
        name: np.mean(v["error"]) for name, v in body["leave_one_out"].items() if v["error"][0]
    }
    assert body["count"] == 8
    assert error["robust-eigen-flats"] < error["mean of others"] < error["none"]
    assert body["null"]["none"]["passed"] is False
    assert (tmp_path / "bank.scores" / "references.html").is_file()


def test_too_few_references_are_refused(tmp_path):
    scan = simulate_scan("film", "slow", 500, (32, 32), seed=2, frames=2, bank=2)
    write_bank(tmp_path / "bank.h5", scan)
    with pytest.raises(TxmError, match="expected at least 3 references of one kind, got 2"):
        score.run(EvaluateSettings(refs=tmp_path / "bank.h5", model="none"))


def test_real_flats_as_a_scan_pass_with_fresh_references_and_fail_without():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64] / 64
    light = 4000 * np.exp(-((x - 0.5) ** 2) - (y - 0.4) ** 2) * (1 + rng.normal(0, 0.02, (64, 64)))
    gain = 3.0  # counts per photon: the noise must be measured, not assumed
    counts = (gain * rng.poisson(light / gain, (40, 64, 64))).astype(np.float32)
    flats = Flats(counts, np.full(40, 200.0))
    dark, lit = np.zeros((64, 64), np.float32), np.ones((64, 64), bool)
    assert recorded.judge_flats(PEERS["stale"], flats, dark, lit).passed
    for name in ("none", "pair-mean"):
        assert recorded.judge_flats(PEERS[name], flats, dark, lit).passed is False


def test_real_backgrounds_get_simulated_samples_and_a_truth():
    rng = np.random.default_rng(1)
    first = rng.uniform(900, 1100, (48, 48)).astype(np.float32)
    lit = np.ones((48, 48), bool)
    scene = recorded.implanted_scene("real", "film", first, first * 1.02, lit, 0)
    light = scene.problem.frames
    expected = np.exp(scene.truth.log_background) * scene.truth.transmission
    assert (light / expected).mean() == pytest.approx(1, abs=0.01)
    assert np.exp(scene.truth.log_background[0]) == pytest.approx(first, rel=1e-5)
    assert scene.truth.transmission.std() > 0.01


def test_the_emptiest_frames_are_found():
    setting = scenes.Setting("mosaic-sparse", references="none", shape=(64, 64))
    scene = scenes.simulated_scene(setting, 0)
    transmission = scene.truth.transmission.copy()
    rng = np.random.default_rng(0)
    for i in range(len(transmission)):
        transmission[i] = (
            1 if i in (3, 9) else np.kron(rng.uniform(0.7, 1, (16, 16)), np.ones((4, 4)))
        )
    problem = scenes.expose(scene, transmission).problem
    assert recorded.find_empty(problem) == [3, 9]
    found = recorded.judge_raw(PEERS["stack-median"], problem)
    assert found["preservation"].passed is False
    assert found["flatness"].figures["flatness_4"] > 0
    assert found["leave-out"].figures["leave_out"] > 0


def test_a_withheld_frame_is_predicted_from_the_later_neighbour():
    """The one thing known about frame 12 is what a method says of 13; frames 8 and 12 are withheld."""
    y, x = np.mgrid[:48, :48] / 48
    t = np.linspace(0, 1, 16)[:, None, None]
    frames = (2000 * np.exp(0.1 * t * np.cos(3 * x + y))).astype(np.float32)
    problem = scenes.Problem(frames, np.zeros((48, 48), np.float32), np.ones((48, 48), bool))
    given = []

    def knowing(given_problem):
        given.append(len(given_problem.frames))
        return Estimate(np.log(given_problem.frames))

    good = recorded.leave_out(knowing, problem, [8, 12])
    assert given == [14] and good.passed
    change = np.log(frames[13] / frames[12])
    wanted = 1.4826 * np.median(np.abs(change - np.median(change)))
    assert good.figures["leave_out"] == pytest.approx(wanted, rel=0.1)
    bad = recorded.leave_out(BAD["bad:identity"], problem, [8, 12])
    assert bad.passed is False


def test_nothing_is_left_out_where_no_frame_is_empty():
    rng = np.random.default_rng(0)
    texture = np.kron(rng.uniform(0.7, 1, (8, 16, 16)), np.ones((4, 4)))
    frames = rng.poisson(3000 * texture).astype(np.float32)
    problem = scenes.Problem(frames, np.zeros((64, 64), np.float32), np.ones((64, 64), bool))
    assert "leave-out" not in recorded.judge_raw(PEERS["none"], problem)
    assert not recorded.nearly_empty(problem, [0, 1])


def test_dead_and_hot_pixels_do_not_count_as_lit():
    frames = np.full((5, 32, 32), 1000.0)
    frames[:, 3, 4], frames[:, 8, 9], frames[:, :, 28:] = 0, 9000, 20
    lit = recorded.lit_pixels(frames, np.zeros((32, 32)))
    assert not lit[3, 4] and not lit[8, 9] and not lit[:, 29:].any() and lit[10:20, :26].all()


@pytest.mark.slow
def test_a_comparison_is_written_and_resumed(tmp_path, monkeypatch):
    tiny = contest.PLANS["quick"].settings[3]
    monkeypatch.setitem(
        contest.PLANS,
        "quick",
        contest.PLANS["quick"].__class__(
            (scenes.Setting(tiny.kind, references="fresh", shape=(32, 32)),), 1
        ),
    )
    settings = EvaluateSettings(
        compare=True, methods="stale,oracle", model="none", out=tmp_path / "b", quiet=True
    )
    first = score.run(settings)
    assert {"table.md", "results.json", "errors.png", "report.html"} <= {
        p.name for p in first.outputs
    }
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "b" / "cells").rglob("*.json")}
    score.run(settings)
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "b" / "cells").rglob("*.json")}
    assert len(before) == 2


@pytest.mark.slow
def test_processes_make_the_same_cells(tmp_path):
    def cells(jobs):
        settings = EvaluateSettings(
            compare=True,
            methods="stack-mean,oracle",
            model="none",
            seeds=1,
            jobs=jobs,
            out=tmp_path / str(jobs),
            quiet=True,
        )
        prepared = contest.prepare(settings)
        contest.fill(settings, prepared, lambda *_: None)
        return {
            (c.setting, c.seed, c.method): vars(replace(c, seconds=0)) for c in prepared.cells()
        }

    alone, shared = cells(1), cells(2)
    assert len(alone) == 8
    # As text: nan differs from itself.
    assert repr(sorted(alone.items())) == repr(sorted(shared.items()))


def test_tables_are_made_of_all_current_cells(tmp_path, monkeypatch):
    tiny = contest.Plan((scenes.Setting("film", references="fresh", shape=(32, 32)),), 2)
    monkeypatch.setitem(contest.PLANS, "quick", tiny)

    def run(methods, seeds):
        settings = EvaluateSettings(
            compare=True, methods=methods, model="none", seeds=seeds, out=tmp_path, quiet=True
        )
        prepared = contest.prepare(settings)
        contest.fill(settings, prepared, lambda *_: None)
        return [(c.method, c.seed) for c in prepared.cells()]

    assert run("stale", 2) == [("stale", 0), ("stale", 1)]
    assert run("oracle", 1) == [("stale", 0), ("oracle", 0), ("stale", 1)]


def test_groups_of_methods_may_be_named():
    ours, all_networks = {"model:x": None}, {"source0:y": None, "model:x": None}
    assert contest.chosen("models", ours, all_networks) == ("model:x",)
    assert contest.chosen("networks,stale,stale", ours, all_networks) == ("source0:y", "stale")
    assert set(BAD) < set(contest.chosen("checks", ours, all_networks))
    assert contest.chosen("", ours, all_networks) == ()


def test_a_table_is_brought_up_to_date_in_place(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- table: compare -->\nold\n<!-- end of table: compare -->\nb\n")
    for _ in range(2):
        output.replace_between(page, "compare", "new")
    assert (
        page.read_text() == "a\n<!-- table: compare -->\nnew\n<!-- end of table: compare -->\nb\n"
    )
    with pytest.raises(TxmError, match=r"expected a text file with `<!-- table: other -->`"):
        output.replace_between(page, "other", "new")


def test_unknown_methods_are_named():
    with pytest.raises(TxmError, match=r"--methods: expected some of peers, .*; got fancy"):
        score.run(EvaluateSettings(compare=True, methods="stale,fancy", model="none"))


def test_a_model_that_was_named_must_exist(tmp_path, caplog):
    with pytest.raises(ModelError):
        contest.models(EvaluateSettings(compare=True, model=str(tmp_path / "no.safetensors")))

    def absent(*_):
        raise ModelError("none ships")

    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(contest, "load_model", absent)
        assert contest.models(EvaluateSettings(compare=True)) == {}
    assert "peers are compared without it" in caplog.text


def test_the_pipeline_is_judged_like_a_peer(scan, monkeypatch):
    """The adapter hands over frames, dark, currents and references, and takes the answer as it is."""
    seen = {}

    class Answer:
        amplitude = np.ones(4)
        keys = np.arange(4)
        flag = np.array([0, 16, 256, 0], np.uint32)
        scale = "reference (stale, exposure and current recorded)"

        notes = ()

        def log_background(self, frame):
            return np.log(scan.background[frame])

    def pipeline(given, network, draw, *, references, dark, interval, settle_keys):
        seen.update(scan=given, references=references, interval=interval)
        return Answer()

    monkeypatch.setattr(methods, "estimate_background", pipeline)
    problem = scenes.problem_of(scan)
    network = Model(None, ModelSpec({}, "pair", 10, 64), "0" * 64, "here")
    (method,) = model.candidate(network, model.Draw(samples=1), interval=2).values()
    estimate: Estimate = method(problem)
    assert seen["interval"] == 2
    np.testing.assert_allclose(estimate.log_background, np.log(scan.background), rtol=1e-6)
    assert estimate.scale == "absolute"
    assert estimate.flags.tolist() == [False, True, False, False]  # a jump is a remark
    assert seen["scan"].shape == problem.shape
    assert [r.origin for r in seen["references"]] == ["bank"]
    level = np.log(seen["references"][0].counts[scan.lit]).mean()
    assert level == pytest.approx(np.log(scan.background)[:, scan.lit].mean(), abs=0.1)


def test_folders_are_searched_for_scans(tmp_path):
    np.save(tmp_path / "a.npy", np.full((6, 20, 24), 500, np.uint16))
    (tmp_path / "notes.txt").write_text("not a scan")
    found = real.find_scans(tmp_path)
    assert list(found) == ["a"]
    problem = real.load_problem(found["a"])
    assert problem.shape == (6, 20, 24) and problem.lit.all()
    (tmp_path / "empty").mkdir()
    with pytest.raises(TxmError, match="expected scans of two or more frames"):
        real.find_scans(tmp_path / "empty")


def test_real_frames_are_judged_without_truth(tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.poisson(800, (8, 40, 40)) * np.where(rng.random((8, 40, 40)) < 0.1, 0.8, 1)
    np.save(tmp_path / "a.npy", frames.astype(np.uint16))
    methods = {n: PEERS[n] for n in ("none", "pair-mean", "stale")}
    real.score_real(EvaluateSettings(compare=True), tmp_path, tmp_path, methods)
    body = json.loads((tmp_path / "real.json").read_text())["a"]
    assert body["none"]["preservation"] is True
    assert body["pair-mean"]["preservation"] is False
    assert "expected a reference" in body["stale"]["not_run"]
    assert "| pair-mean | failed |" in (tmp_path / "real.md").read_text()


@pytest.mark.slow
def test_emptiest_tiles_of_the_real_mosaic(shared_data):
    found = real.find_scans(shared_data)
    problem = real.load_problem(found["lm_mosaic_4x4"])
    assert recorded.find_empty(problem) == [8, 12]
    first, last, lit = real.background_ends(problem)
    assert lit.mean() > 0.99
    ratio = np.log(last / first)[lit]
    assert 0.003 < ratio.std() < 0.03
