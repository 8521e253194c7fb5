"""What `make bench-families` computes and keeps: figures, peers, rows to run again."""

import importlib.util
import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from txmcorrect.simulate import draw_world

PATH = Path(__file__).parent / "bench/families.py"
spec = importlib.util.spec_from_file_location("families", PATH)
assert spec is not None
families = importlib.util.module_from_spec(spec)
spec.loader.exec_module(families)
LIT = np.ones((16, 18), bool)


def test_errors_are_those_put_in_and_no_gain_is_removed():
    truth = np.full((4, 16, 18), 0.5)
    gains = np.array([0.01, 0.03, -0.01, 0.01])
    wrong = np.zeros((16, 18))
    wrong[:8], wrong[8:] = 0.02, -0.02
    found = families.errors(truth * np.exp(gains[:, None, None] + wrong), truth, LIT)
    assert found == pytest.approx(
        {"shape": 2.0, "levels": 100 * gains.std(), "absolute": 1.0}, abs=1e-3
    )
    assert families.errors(truth, truth, LIT) == {"shape": 0, "levels": 0, "absolute": 0}
    assert families.errors(truth, truth, ~LIT)["shape"] is None


def test_unlit_pixels_do_not_count():
    truth = np.ones((2, 16, 18))
    lit = LIT.copy()
    lit[3, 3] = False
    result = truth.copy()
    result[:, 3, 3] = 9
    assert families.errors(result, truth, lit)["shape"] == 0


def test_plain_division_is_right_where_nothing_changes():
    """With another exposure of the references, which is recorded."""
    given = {"shape": (32, 32), "frames": 4, "counts": 10000.0, "sample": "tomo"}
    scan = draw_world(
        1, drift="still", records="full", references="fresh", flats_exposure=2.0, bank=12, **given
    )
    found = families.peers(scan)
    assert sorted(found) == ["bank mean", "mean flats", "stack median", "true background"]
    for name in ("mean flats", "bank mean", "true background"):
        figures = families.errors(found[name], scan.transmission, scan.lit)
        assert abs(figures["absolute"]) < 0.8, name
        assert figures["levels"] < 0.3
    bare = draw_world(1, drift="still", records="none", references="none", bank=0, **given)
    assert sorted(families.peers(bare)) == ["stack median", "true background"]


def test_rows_are_kept_and_failed_or_old_ones_run_again(tmp_path, monkeypatch):
    ran = []

    def run_world(seed, family, drift, sample, *rest):
        ran.append((drift, sample))
        if len(ran) == 3:
            raise KeyboardInterrupt
        ours = {"error": "no such model"} if drift == "walk" else {"shape": 1.0, "levels": 2.0}
        return {"choices": {"references": "none"}, "methods": {"correct": ours}}

    out = tmp_path / "results" / "families.json"
    words = ["--seeds", "1", "--drifts", "walk", "white", "--samples", "tomo", "film"]
    monkeypatch.setattr(families, "run_world", run_world)
    monkeypatch.setattr(families, "commit", lambda: "abc")
    monkeypatch.setattr("sys.argv", ["families.py", *words, "--out", str(out)])
    with pytest.raises(SystemExit) as stopped:
        families.main()
    assert stopped.value.code == 130
    assert len(json.loads(out.read_text())["rows"]) == 2
    families.main()
    assert ran[3:] == [("walk", "tomo"), ("walk", "film"), ("white", "tomo"), ("white", "film")]
    families.main()
    assert ran[7:] == [("walk", "tomo"), ("walk", "film")]  # those that failed
    stored = json.loads(out.read_text())
    assert stored["commit"] == "abc"
    assert stored["seeds"] == [families.FIRST_SEED]
    assert {"command", "machine", "rows"} <= stored.keys()


def test_tables_show_medians_of_sizes():
    rows = {
        str(k): {
            "drift": "white",
            "choices": {},
            "methods": {"correct": dict.fromkeys(families.FIGURES, v)},
        }
        for k, v in enumerate((-3.0, 1.0, 2.0))
    }
    line = families.table(rows, "drift").splitlines()[1]
    assert line.split()[:2] == ["white", "2.00/"]


def test_a_failing_command_is_a_row_with_its_last_line(tmp_path, monkeypatch):
    done = Namespace(returncode=1, stdout="", stderr="some\nError: no such model\n")
    monkeypatch.setattr(families.subprocess, "run", lambda *a, **k: done)
    scan = Namespace(bank=[])
    assert families.run_ours(tmp_path, scan, []) == {"error": "Error: no such model"}
