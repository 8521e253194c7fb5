"""Cells are run once, kept, resumed; tables and figures say what they hold."""

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from txmcorrect.baselines import MissingPackageError, NotApplicableError
from txmcorrect.errors import TxmError
from txmcorrect.judge import bench, figures, statistics, tables
from txmcorrect.judge.scenes import Setting, simulated_scene
from txmcorrect.judge.trial import Finding

PLAN = bench.Plan((Setting("film", references="fresh", shape=(32, 32)),), 2)
METHODS = ("none", "stale", "interpolated", "oracle", "bad:erase-all")


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    return folder, bench.run_scenes(folder, bench.plan_scenes(PLAN), {}, METHODS)


def refuse():
    raise AssertionError("a scene was made although all its cells are there")


def test_cells_are_kept_and_not_run_again(cells):
    folder, first = cells
    scenes = [(name, seed, refuse) for name, seed, _ in bench.plan_scenes(PLAN)]
    again = bench.run_scenes(folder, scenes, {}, METHODS)
    assert [c.method for c in again] == [c.method for c in first]
    for a, b in zip(first, again, strict=True):
        assert a.figure("quality", "log_rms") == pytest.approx(
            b.figure("quality", "log_rms"), rel=1e-5, nan_ok=True
        )
    assert not list(folder.rglob("*.part"))


def test_only_what_is_missing_is_run(cells):
    folder, _ = cells
    name, seed, make = bench.plan_scenes(PLAN)[0]
    path = bench.cell_path(folder, name, seed, "stale")
    others = [p for p in path.parent.iterdir() if p != path]
    before = {p: p.stat().st_mtime_ns for p in others}
    body = json.loads(path.read_text())
    path.write_text(json.dumps({**body, "version": -1}))
    bench.run_scenes(folder, [(name, seed, make)], {}, METHODS)
    assert json.loads(path.read_text())["version"] == bench.VERSION
    assert {p: p.stat().st_mtime_ns for p in others} == before


def test_a_method_that_cannot_run_says_why(cells):
    _, found = cells
    cell = next(c for c in found if c.method == "interpolated")
    assert "before and after" in cell.skipped and not cell.findings


def test_a_method_that_breaks_is_reported_not_hidden():
    scene = simulated_scene(PLAN.settings[0], 0)

    def broken(problem):
        raise TxmError("out of order")

    assert bench.run_cell(broken, "ours", scene).error == "out of order"
    with pytest.raises(ZeroDivisionError):
        bench.run_cell(lambda problem: 1 // 0, "ours", scene)


def test_candidates_run_beside_the_peers(tmp_path):
    def ours(problem):
        raise NotApplicableError("not today")

    found = bench.run_scenes(
        tmp_path, bench.plan_scenes(PLAN)[:1], {"ours": ours}, ("ours", "none")
    )
    assert [(c.method, c.skipped) for c in found] == [("none", ""), ("ours", "not today")]


def test_tables_show_who_fails_and_whose_flatness_does_not_count(cells):
    text = tables.markdown(cells[1])
    row = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "preservation 2/2" in row["bad:erase-all"] and "*(" in row["bad:erase-all"]
    assert row["oracle"].rstrip().endswith("| - |")
    assert "not run, interpolated: expected references before and after" in text
    body = tables.to_json(cells[1])[PLAN.settings[0].name]
    assert body["oracle"]["fails"] == [] and body["bad:erase-all"]["fails"]
    assert body["interpolated"]["not_run"]
    json.dumps(body, allow_nan=False)


def test_the_table_of_checks_tells_what_was_caught(cells):
    text = tables.checks_table(cells[1])
    row = {line.split("|")[1].strip(): line for line in text.splitlines()[2:]}
    assert "| 2/2 | 2/2 | erase-all 2/2 |" in row["preservation"]  # caught by what is meant for it
    assert "erase-all 2/2" in row["null"].split("|")[-2]
    assert "| - | - |" in row["flags"]  # who knows the background does not know which are spoilt
    kept = [replace(c, method="bad:meek" if c.method == "oracle" else c.method) for c in cells[1]]
    meek = tables.checks_table([c for c in kept if c.method != "bad:erase-all"])
    assert any("preservation" in line and "**none**" in line for line in meek.splitlines())


def test_the_short_table_has_a_row_for_every_peer_and_no_bad_one(cells):
    text = tables.short_table(tables.group(cells[1]))
    assert text.splitlines()[0] == "| method | film fresh |"
    assert "| stale |" in text and "bad:" not in text and "oracle" not in text
    assert (
        tables.short_name("tomo_fast_20000_before-after_256x256") == "tomo before-after fast 20000"
    )
    assert tables.short_name("real-lm_mosaic_4x4_tomo") == "real-lm mosaic 4x4 tomo"


def test_a_peer_is_run_again_once_its_package_is_there(tmp_path, monkeypatch):
    def absent(problem):
        raise MissingPackageError("not yet")

    monkeypatch.setitem(bench.PEERS, "basic", absent)
    scenes = bench.plan_scenes(PLAN)[:1]
    (first,) = bench.run_scenes(tmp_path, scenes, {}, ("basic",))
    assert first.skipped == "not yet" and first.unavailable
    mean = bench.PEERS["stack-mean"]
    monkeypatch.setitem(bench.PEERS, "basic", lambda problem: mean(problem))
    for there in (False, True):
        monkeypatch.setattr(bench, "is_available", lambda name, there=there: there)
        (again,) = bench.run_scenes(tmp_path, scenes, {}, ("basic",))
        assert bool(again.findings) is there


def test_slow_methods_run_on_the_first_seeds_only():
    methods = {"source0:abc": bench.PEERS["none"]}
    scenes = bench.plan_scenes(PLAN)
    few, named = (
        bench.plan_tasks(scenes, methods, only, slow_seeds=1) for only in ((), ("source0:abc",))
    )
    assert ["source0:abc" in task.methods for task in few] == [True, False]
    assert ["none" in task.methods for task in few] == [True, True]
    assert [task.methods for task in named] == [("source0:abc",)] * 2  # unless named


def test_slices_and_spreads_have_tables_of_their_own():
    scene = simulated_scene(Setting("tomo", references="none", shape=(12, 48)), 0)
    names = ("oracle", "bad:too-sure")
    methods = {n: [bench.run_cell(bench.methods_for(scene, {})[n], n, scene)] for n in names}
    slices, spreads = tables.slice_table(methods), tables.spread_table(methods)
    assert "| slice error | contrast 4 | cnr 4 |" in slices.splitlines()[0]
    assert "| oracle | " in slices
    row = {line.split("|")[1].strip(): line for line in spreads.splitlines()}
    assert row["bad:too-sure"].count("|  |") == 0 and "oracle" not in spreads
    film = simulated_scene(PLAN.settings[0], 0)
    flat = {"stale": [bench.run_cell(bench.PEERS["stale"], "stale", film)]}
    assert tables.slice_table(flat) == ""
    assert "| stale |  |  | 0." in tables.spread_table(flat)  # no spread, hence CRPS alone


def test_a_peer_that_ran_on_few_seeds_is_not_the_best():
    def cells_of(name, error, seeds):
        finding = {"quality": Finding(None, {"log_rms": error})}
        return [bench.Cell("film", seed, name, finding) for seed in range(seeds)]

    methods = {"stale": cells_of("stale", 0.02, 4), "basic": cells_of("basic", 0.01, 1)}
    assert tables.best_peer(methods) == "stale"
    methods["basic"] = cells_of("basic", 0.01, 2)
    assert tables.best_peer(methods) == "basic"


def test_the_best_peer_is_neither_oracle_nor_bad(cells):
    (methods,) = tables.group(cells[1]).values()
    assert tables.best_peer(methods) == "stale"


@pytest.mark.slow
def test_figures_are_drawn(cells, tmp_path):
    groups = tables.group(cells[1])
    (setting, methods), *_ = groups.items()
    worst = figures.worst_cell(methods["none"])
    scene = simulated_scene(PLAN.settings[0], worst.seed)
    drawn = [
        figures.draw_errors(groups),
        figures.draw_octaves(methods, setting),
        figures.draw_preservation(methods, setting),
        figures.draw_scene(scene, {"stale": bench.PEERS["stale"]}),
    ]
    for i, figure in enumerate(drawn):
        path = figures.save(figure, tmp_path / f"{i}.png")
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_worst_cell_is_that_of_largest_error(cells):
    (methods,) = tables.group(cells[1]).values()
    worst = figures.worst_cell(methods["none"])
    assert worst.figure("quality", "log_rms") == max(
        c.figure("quality", "log_rms") for c in methods["none"]
    )
    assert figures.worst_cell(methods["interpolated"]) is None


def test_plans_hold_what_they_promise():
    core = bench.PLANS["core"]
    assert core.seeds == 10 and len(set(core.settings)) == len(core.settings)
    assert {s.kind for s in core.settings} == set(bench.KINDS)
    assert {s.references for s in core.settings} == set(bench.REFERENCES)
    assert all(s.shape == (256, 256) for s in core.settings)
    assert len(bench.PLANS["grid"].settings) == 4 * 3 * 2 * 5
    names = [s.name for plan in bench.PLANS.values() for s in plan.settings]
    assert all("/" not in name for name in names)
    shapes = {s.shape for s in bench.PLANS["shapes"].settings}
    assert (1024, 1024) in shapes and (2, 640) in shapes


def test_intervals_cover_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = sum(
        i.low <= 3 <= i.high
        for i in (statistics.mean_interval(rng.normal(3, 1, 10)) for _ in range(600))
    )
    assert hits / 600 == pytest.approx(0.95, abs=0.03)
    boot = statistics.bootstrap_interval(rng.normal(3, 1, 200))
    student = statistics.mean_interval(rng.normal(3, 1, 200))
    assert boot.overlaps(student) and boot.half_width == pytest.approx(student.half_width, rel=0.3)


def test_intervals_of_little_data():
    assert math.isinf(statistics.mean_interval([1.0]).high)
    assert statistics.mean_interval([]).n == 0
    assert statistics.mean_interval([1.0, float("nan"), 3.0]).n == 2
    assert statistics.geometric_interval([0.0, 2.0]).mean == 1
    wide = statistics.geometric_interval([1.0, 100.0])
    assert wide.mean == pytest.approx(10) and wide.low > 0


def test_pairs_are_made_seed_by_seed():
    ours, theirs = {0: 1.0, 1: 2.0, 2: 9.0}, {0: 2.0, 1: 4.0, 5: 1.0}
    assert statistics.paired_ratio(ours, theirs).mean == pytest.approx(0.5)
    assert statistics.paired_difference(ours, theirs).mean == pytest.approx(-1.5)
    assert statistics.wins(ours, theirs) == (2, 2)


@pytest.fixture(scope="module")
def repeat():
    path = Path(__file__).parent / "bench" / "repeat.py"
    spec = importlib.util.spec_from_file_location("repeat", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made_up_run(rng, shift=0.0, shared=0.0, count=400, seeds=10):
    """Results of `count` methods on one setting; `shared` is what all have in common on a scene."""
    entries = {}
    common = shared * rng.normal(0, 1, seeds)
    for k in range(count):
        values = np.exp(shift + common + rng.normal(0, 0.3, seeds)) / 100
        i = statistics.geometric_interval(values)
        by_seed = {"quality.log_rms": {str(s): v for s, v in enumerate(values)}}
        entries[f"m{k}"] = {
            "quality.log_rms": [i.mean, i.low, i.high],
            "seeds": list(range(seeds)),
            "by_seed": by_seed,
        }
    return {"cell": entries}


def test_two_runs_that_differ_by_chance_agree(repeat):
    rng = np.random.default_rng(3)
    found = list(repeat.pairs(made_up_run(rng), made_up_run(rng)))
    p = [repeat.chance(one, other) for *_, one, other in found]
    assert len(p) == 400 and np.mean(np.array(p) > 0.05) == pytest.approx(0.95, abs=0.03)
    assert not repeat.apart(p)


def test_two_runs_that_differ_are_told_apart(repeat, capsys):
    rng = np.random.default_rng(4)
    found = list(repeat.pairs(made_up_run(rng, count=40), made_up_run(rng, shift=0.7, count=40)))
    p = [repeat.chance(one, other) for *_, one, other in found]
    assert np.mean(np.array(p) > 0.05) < 0.1 and len(repeat.apart(p)) > 20
    assert not repeat.report("figures", found) and "differ for certain" in capsys.readouterr().out


def test_ratios_do_not_see_what_all_methods_share(repeat):
    rng = np.random.default_rng(5)
    runs = [made_up_run(rng, shared=1.0, count=60) for _ in range(2)]
    errors = [[s[1] for *_, s, _ in kind(*runs)] for kind in (repeat.pairs, repeat.ratios)]
    assert np.median(errors[1]) < 0.7 * np.median(errors[0])


def test_holm_keeps_what_stands_out_of_many(repeat):
    assert repeat.apart([0.5] * 99 + [1e-6]) == {99}
    assert repeat.apart([0.04] * 10) == set()
    assert repeat.apart([0.01, 0.02, 0.06]) == {0, 1}
