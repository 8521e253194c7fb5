"""A cell knows the code that made it: what a method needs counts, what it does not need does not."""

import ast
from dataclasses import replace
from functools import partial

import pytest

from txmcorrect.baselines import BAD, PEERS
from txmcorrect.judge import bench, fingerprint
from txmcorrect.judge.scenes import Setting, simulated_scene
from txmcorrect.judge.trial import Finding
from txmcorrect.judge.verdict import CHECKS
from txmcorrect.memo import remembered

PLAN = bench.Plan((Setting("film", references="fresh", shape=(32, 32)),), 1)
NAMES = ("stale", "stack-mean", "oracle")


@pytest.fixture
def cells(tmp_path):
    return tmp_path, bench.run_scenes(tmp_path, bench.plan_scenes(PLAN), {}, NAMES)


def change(monkeypatch, module, edit):
    """Let the digests see a module with another source text."""
    source = ast.unparse(fingerprint._tree(module))
    monkeypatch.setattr(
        fingerprint,
        "_tree",
        lambda name, old=fingerprint._tree: (
            ast.parse(edit(source)) if name == module else old(name)
        ),
    )
    fingerprint.fingerprint.cache_clear()


@pytest.fixture(autouse=True)
def _forget():
    yield
    fingerprint.fingerprint.cache_clear()


def current(folder):
    (task,) = bench.plan_tasks(bench.plan_scenes(PLAN), {}, NAMES)
    return set(bench.known_cells(folder, task, {}))


@pytest.mark.parametrize(
    ("module", "left"),
    [
        ("txmcorrect.baselines.frames", {"stale", "oracle"}),
        ("txmcorrect.baselines.knowing", {"stale", "stack-mean"}),
        ("txmcorrect.baselines.contract", set()),  # everything stands on it
        ("txmcorrect.judge.checks", set()),
        ("txmcorrect.simulate.beam", set()),
        ("txmcorrect.recon.fbp", set(NAMES)),  # no slices of a film
        ("txmcorrect.background.pipeline", set(NAMES)),  # no peer runs it
    ],
)
def test_changed_code_runs_its_own_cells_again(cells, monkeypatch, module, left):
    folder, _ = cells
    assert current(folder) == set(NAMES)
    change(monkeypatch, module, lambda text: text + "\nADDED = 1\n")
    assert current(folder) == left


def test_words_do_not_count(cells, monkeypatch):
    folder, _ = cells
    change(
        monkeypatch, "txmcorrect.baselines.frames", lambda text: f'"""Other."""\n# more\n\n{text}'
    )
    assert "stack-mean" not in current(folder)  # a second string is a statement
    fingerprint.fingerprint.cache_clear()
    monkeypatch.undo()
    assert current(folder) == set(NAMES)
    change(
        monkeypatch,
        "txmcorrect.baselines.frames",
        lambda text: text.replace("Deliberately bad", "Bad on purpose").replace(
            "\n\n", "\n\n# x\n"
        ),
    )
    assert current(folder) == set(NAMES)


def test_a_cell_of_other_checks_or_of_another_module_is_run_again(cells):
    _, (cell, *_) = cells
    module = bench.module_of(PEERS[cell.method])
    checks = tuple(CHECKS)
    assert bench.stale_checks(cell, module, checks) == ()
    assert bench.stale_checks(cell, "txmcorrect.scoring.model", checks) == checks
    assert bench.stale_checks(cell, module, (*checks, "a new one")) == ("a new one",)
    assert bench.stale_checks(replace(cell, code={}), module, checks) == checks


def test_where_one_check_changed_only_that_one_is_run_again(cells, monkeypatch):
    _, (cell, *_) = cells
    module, checks = bench.module_of(PEERS[cell.method]), tuple(CHECKS)
    change(monkeypatch, "txmcorrect.judge.preservation", lambda text: text + "\nADDED = 1\n")
    assert bench.stale_checks(cell, module, checks) == ("preservation",)
    asked = []
    monkeypatch.setattr(
        bench,
        "judge",
        lambda method, scene, names: asked.append(names) or {names[0]: Finding(False)},
    )
    scene = simulated_scene(Setting(shape=(32, 32)), 0)
    again = bench.run_cell(PEERS[cell.method], cell.method, scene, checks, cell)
    assert asked == [("preservation",)]
    assert again.findings["preservation"] == Finding(False)
    others = [name for name in checks if name != "preservation"]
    assert all(again.findings[name] == cell.findings[name] for name in others)
    assert bench.stale_checks(again, module, checks) == ()


def test_the_pipeline_is_known_by_everything_under_it():
    needed = fingerprint.needed("txmcorrect.scoring.model")
    assert {
        "txmcorrect.background.pipeline",
        "txmcorrect.background.stack",
        "txmcorrect.diffusion.unet",
        "txmcorrect.weights",
    } <= needed
    assert not {n for n in fingerprint.needed("txmcorrect.judge.checks") if "background" in n}
    assert not needed & {f"txmcorrect.baselines.{n}" for n in ("frames", "eigenflats")}


def test_a_methods_module_is_found_behind_wrappers():
    assert bench.module_of(partial(PEERS["pair-mean"], interval=2)) == "txmcorrect.baselines.frames"
    assert bench.module_of(BAD["bad:identity"]) == "txmcorrect.baselines.references"


def test_what_was_just_computed_is_kept():
    calls = []

    @remembered(2)
    def add(numbers, more=0):
        calls.append(more)
        return sum(numbers) + more

    one, two = [1, 2], [1, 2]
    assert [add(one), add(one), add(one, more=1), add(one, more=1)] == [3, 3, 4, 4]
    assert calls == [0, 1]
    assert add(two) == 3 and calls == [0, 1, 0]  # equal, but not the same object
    assert add(one) == 3 and len(calls) == 4  # two were kept, and two others came since
