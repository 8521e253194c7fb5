"""Foreign backgrounds: the scorer, peers that fit vacuum, and benches that resume and say what they are."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, shift

from txmcorrect.baselines import Flats, NotApplicableError, Problem
from txmcorrect.baselines.two_terms import two_terms
from txmcorrect.baselines.vacuum import fit_to_vacuum
from txmcorrect.baselines.variation import eigen_flats_of
from txmcorrect.judge.outside import Known, score

BENCH = Path(__file__).parent / "bench"
SIDE, FRAMES, COUNTS = 64, 4, 20_000.0


def smooth(rng, sigma=6.0, count=None):
    """Fields of unit rms without a mean, `(64, 64)` or `(count, 64, 64)`."""
    fields = rng.standard_normal((count or 1, 2 * SIDE, 2 * SIDE))
    fields = np.stack([gaussian_filter(f, sigma)[:SIDE, :SIDE] for f in fields])
    fields -= fields.mean((1, 2), keepdims=True)
    fields /= fields.std((1, 2), keepdims=True)
    return fields if count else fields[0]


@pytest.fixture(scope="module")
def known():
    """A sample in the middle columns, and a beam that is not flat."""
    rng = np.random.default_rng(0)
    t = np.exp(-0.3 * np.abs(smooth(rng, 2.0, FRAMES)))
    t[:, :, :16] = t[:, :, -16:] = 1
    background = COUNTS * np.exp(0.2 * smooth(rng, 10.0, FRAMES))
    return Known(t, background, np.ones((SIDE, SIDE), bool))


def test_a_perfect_result_has_no_error(known):
    figures = score(known.transmission, known)
    slopes = {key: figures.pop(key) for key in ("slope", "coarse")}
    assert slopes == pytest.approx({"slope": 1, "coarse": 1}, abs=1e-9)
    assert figures == pytest.approx(dict.fromkeys(figures, 0), abs=1e-9)
    assert {"4px", "8px", "16px", "32px", "64px", "128px"} < figures.keys()


def test_no_gain_is_removed(known):
    gains = np.array([1.1, 1.1, 1.3, 1.3])
    figures = score(known.transmission * gains[:, None, None], known)
    assert figures["absolute"] == pytest.approx(100 * np.log(gains).mean())
    assert figures["levels"] == pytest.approx(100 * np.log(gains).std())
    assert figures["shape"] == pytest.approx(0, abs=1e-9)


def test_lost_contrast_is_a_slope(known):
    assert score(known.transmission**0.9, known)["slope"] == pytest.approx(0.9, abs=0.005)
    flat = Known(np.ones_like(known.transmission), known.background, known.lit)
    assert score(flat.transmission, flat)["slope"] is None


def test_octaves_add_up_and_stand_where_the_error_is(known):
    rng = np.random.default_rng(1)
    coarse = 0.05 * np.kron(rng.standard_normal((FRAMES, 4, 4)), np.ones((16, 16)))
    figures = score(known.transmission * np.exp(coarse), known)
    octaves = {k: v for k, v in figures.items() if k.endswith("px")}
    assert np.sqrt(sum(v**2 for v in octaves.values())) == pytest.approx(figures["shape"], rel=0.01)
    assert octaves["4px"] < 0.01 * figures["shape"] and octaves["8px"] < 0.01 * figures["shape"]
    assert octaves["16px"] + octaves["32px"] > figures["shape"]


def test_dark_pixels_and_thin_frames_do_not_matter():
    rng = np.random.default_rng(2)
    background = np.full((3, 2, 50), COUNTS)
    lit = np.ones((2, 50), bool)
    lit[:, :8] = False
    t = rng.uniform(0.5, 1, background.shape)
    spoilt = t.copy()
    spoilt[:, :, :8] = np.nan
    assert score(spoilt, Known(t, background, lit))["shape"] == pytest.approx(0, abs=1e-9)


# ---- peers --------------------------------------------------------------------------------------
def scan_of(rng, logs, flat_logs, transmission):
    """A problem with photon noise; every flat is a bank's."""
    frames = rng.poisson(COUNTS * np.exp(logs) * transmission).astype(np.float32)
    flats = rng.poisson(COUNTS * np.exp(flat_logs)).astype(np.float32)
    lit = np.ones(logs.shape[1:], bool)
    return Problem(frames, np.zeros(lit.shape, np.float32), lit, bank=Flats(flats))


def error_of(method, problem, logs):
    """Rms error of the log background in per cent, levels included."""
    found = method(problem).log_background - np.log(COUNTS)
    return 100 * float(np.sqrt(((found - logs) ** 2).mean()))


@pytest.fixture
def drifting(known):
    """A beam with two modes and levels of its own in every frame; twelve flats."""
    rng = np.random.default_rng(3)
    modes = 0.04 * smooth(rng, 8.0, 2)
    pattern = 0.05 * rng.standard_normal((SIDE, SIDE))
    weights, flat_weights = rng.standard_normal((FRAMES, 2)), rng.standard_normal((12, 2))
    levels = 0.05 * rng.standard_normal(FRAMES)[:, None, None]
    logs = pattern + np.tensordot(weights, modes, 1)
    flat_logs = pattern + np.tensordot(flat_weights, modes, 1)
    return scan_of(rng, logs + levels, flat_logs, known.transmission), logs + levels


def test_components_fitted_to_vacuum_follow_drift_and_level(known, drifting):
    problem, logs = drifting
    vacuum = (known.transmission == 1).all(0)
    fitted = error_of(fit_to_vacuum(vacuum), problem, logs)
    assert fitted < 0.5 < 5 * fitted < error_of(eigen_flats_of(1), problem, logs)


def test_components_need_vacuum(drifting):
    problem, _ = drifting
    with pytest.raises(NotApplicableError, match="expected vacuum in at least"):
        fit_to_vacuum(np.zeros((SIDE, SIDE), bool))(problem)


def test_eigen_flats_of_two_follow_what_one_cannot(drifting):
    problem, logs = drifting
    free = logs - logs.mean((1, 2), keepdims=True)

    def shape(count):
        found = eigen_flats_of(count)(problem).log_background
        return float((found - found.mean((1, 2), keepdims=True) - free).std())

    assert shape(2) < 0.5 * shape(1)


@pytest.mark.parametrize("with_vacuum", [True, False])
def test_illumination_moves_over_a_fixed_detector(known, with_vacuum):
    rng = np.random.default_rng(4)
    wide = 0.1 * smooth(rng, 6.0)
    pattern = 0.05 * rng.standard_normal((SIDE, SIDE))
    shifts = np.array([[1.5, -1.0], [-0.7, 0.4], [0.0, 1.2], [2.0, 2.0]])
    logs = pattern + np.stack([shift(wide, s, order=3, mode="nearest") for s in shifts])
    problem = scan_of(rng, logs, np.repeat((pattern + wide)[None], 8, 0), known.transmission)
    vacuum = (known.transmission == 1).all(0)
    vacuum[:4] = vacuum[-4:] = False  # what came in over the edge is nowhere in the flats
    found = two_terms(vacuum if with_vacuum else None)(problem).log_background - np.log(COUNTS)
    inside = np.s_[:, 4:-4, 4:-4]
    still = 100 * (pattern + wide - logs)[inside].std()
    assert 100 * (found - logs)[inside].std() < 0.3 * still


# ---- benches ------------------------------------------------------------------------------------
WORLD = """
import numpy as np, h5py
REFERENCES = {}
def make_world(name, seed, size, frames, photons, order, stray):
    rng = np.random.default_rng(seed)
    t = np.ones((frames, 64, 64))
    for k, image in enumerate(t):
        image[8 * k % 40 : 8 * k % 40 + 20, 20:40] = 0.8
    b = np.full((frames, 64, 64), photons)
    b *= np.exp(0.2 * np.sin(np.arange(64) / 9))
    white = rng.poisson(b[:2]).astype(np.uint16)
    data = rng.poisson(b * t).astype(np.uint16)
    zero = np.zeros((64, 64))
    return dict(data=data, white=white, bank=white[:0], transmission=t, background=b, additive=zero,
        offset=zero, lit=zero + 1, time=np.r_[(np.arange(frames) + 0.5) / frames, -0.1, -0.05],
        current=np.ones(frames + 2), level=np.ones(frames), extra={})
def write_world(out, world, metadata, seed):
    with h5py.File(out, "w") as f:
        f["exchange/data"], f["exchange/data_white"] = world["data"], world["white"]
    with h5py.File(out.with_suffix(".truth.h5"), "w") as f:
        for key in ("transmission", "background", "additive", "offset", "lit"):
            f["truth/" + key] = world[key]
        f["truth/time_white"] = world["time"][-2:]
"""
SCORE = """
import h5py, numpy as np
from txmcorrect.judge.outside import Known, score as ours, cell_sums
CELL = 4
blocks = cell_sums
PEERS = {"own flats": lambda s: s["own"].mean(0)}
def score(result, truth):
    return ours(result, Known(truth["transmission"], truth["background"], truth["lit"] > 0))
def read_truth(path):
    with h5py.File(path) as f:
        return {key: value[()] for key, value in f["truth"].items()}
def read_scan(path, refs, truth):
    with h5py.File(path) as f:
        frames, own = (f["exchange"][k][()].astype(float) for k in ("data", "data_white"))
    return {"frames": frames, "own": own, "bank": None, "time_white": truth["time_white"],
        "lit": truth["lit"] > 0}
"""


DIVIDER = """#!{python}
import sys, h5py, numpy as np
if "--version" in sys.argv:
    sys.exit(print("divider 1"))
if "none" in sys.argv:
    sys.exit("no such model")
with h5py.File(sys.argv[2]) as f, h5py.File(sys.argv[4], "w") as out:
    dark = f["exchange/data_dark"][()].mean(0) if "exchange/data_dark" in f else 0
    flat = f["exchange/data_white"][()].mean(0) - dark
    out["exchange/data"] = (f["exchange/data"][()] - dark) / flat
    out.create_group("process/txmcorrect").attrs.update(verdict="TRUSTED: divided", scale="reference")
"""


@pytest.fixture(scope="module")
def divider(tmp_path_factory):
    """A command that divides by the mean flat, called as ours is; it knows no model `none`."""
    path = tmp_path_factory.mktemp("bin") / "divider"
    path.write_text(DIVIDER.format(python=sys.executable))
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """A folder of worlds as the bench expects it."""
    folder = tmp_path_factory.mktemp("worlds")
    (folder / "worlds.py").write_text(WORLD)
    (folder / "score.py").write_text(SCORE)
    (folder / "run.py").write_text('FLOOR = 0.05\nWORLDS = ["a/still/c/before --frames 4"]\n')
    return folder


def bench(name, *arguments):
    done = subprocess.run(
        [sys.executable, str(BENCH / f"{name}.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_head(head):
    assert len(head["commit"]) == 40 and head["machine"].keys() == {"cores", "platform", "python"}
    assert head["command"].startswith("python tests/bench/") and isinstance(head["changed"], bool)


def test_worlds_are_judged_kept_and_resumed(worlds, divider, tmp_path):
    out = tmp_path / "worlds.json"
    command = (worlds, "--seeds", 1, "--out", out, "--executable", divider)
    said = bench("worlds", *command)
    body = json.loads(out.read_text())
    check_head(body["head"])
    assert body["head"]["seeds"] == [1] and "1 cases, 0 of them kept" in said
    (row,) = body["rows"]
    ours, peer = (row["columns"][name] for name in ("ours", "own flats"))
    assert ours["verdict"] == "TRUSTED: divided" and ours["scale"] == "reference"
    assert ours["shape"] == pytest.approx(peer["shape"], rel=1e-6)  # the divider is that peer
    assert row["columns"]["fit alone"] == {"error": "no such model", "exit": 1}
    assert row["columns"]["(true background)"]["shape"] < peer["shape"] and row["shows vacuum"]
    assert body["summary"]["ours"]["verdicts"]["deserving and trusted"] == 1
    assert body["summary"]["fit alone"]["against all peers"]["failed"] == [row["world"]]

    body["rows"][0]["columns"]["own flats"]["shape"] = 77.0  # a row that is kept is not run again
    out.write_text(json.dumps(body))
    said = bench("worlds", *command)
    assert "1 cases, 1 of them kept" in said and "77.000" in said


def test_what_other_code_found_is_not_kept_and_slow_lines_wait(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(BENCH))
    kept = importlib.import_module("kept")
    out = tmp_path / "k.json"
    first = kept.Kept(out, kept.digest("", ()))
    first.add("a", {"seed": 1})
    assert set(kept.Kept(out, kept.digest("", ())).rows) == {"a"}
    assert not kept.Kept(out, kept.digest("", ("txmcorrect.baselines.vacuum",))).rows
    assert "results of other code are replaced" in capsys.readouterr().out
    spec = importlib.util.spec_from_file_location("bench_worlds", BENCH / "worlds.py")
    worlds = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worlds)
    lines = "# all\na/b/c/d --stray 0.02\na/b/c/d --size 9 # slow\n"
    assert worlds.read_list(lines, slow=False) == ["a/b/c/d --stray 0.02"]
    assert len(worlds.read_list(lines, slow=True)) == 2
    beyond = worlds.read_list((BENCH / "worlds_beyond.txt").read_text(), slow=True)
    assert [worlds.parse(line)[1].frames for line in beyond].count(200) == 1


def test_what_breaks_or_is_interrupted_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    bench_kept = importlib.import_module("kept")

    class Stopped(bench_kept.Kept):
        def add(self, key, row):
            if row["value"] == 3:
                raise KeyboardInterrupt
            super().add(key, row)

    def work(value):
        if value == 2:
            raise ValueError("broken")
        return {"value": value}

    kept = Stopped(tmp_path / "k.json", "code")
    kept.begin("python tests/bench/some.py")
    cases = [(str(v), (v,)) for v in range(6)]
    assert bench_kept.run_cases(kept, cases[:3], work, 1) == 1
    assert bench_kept.run_cases(kept, cases, work, 1) == bench_kept.INTERRUPTED
    again = bench_kept.Kept(tmp_path / "k.json", "code")
    assert {"0", "1"} <= set(again.rows) and not {"2", "3"} & set(again.rows)
    assert not (tmp_path / "k.part").exists()


def test_verdicts_are_held_to_what_they_promise(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    bench_kept = importlib.import_module("kept")

    def row(shape, absolute, verdict, bare=False):
        ours = {"shape": shape, "levels": 0.1, "absolute": absolute, "verdict": verdict}
        return {"bare": bare, "columns": {"ours": ours}}

    rows = [
        row(1.0, 0.2, "TRUSTED"),
        row(1.0, -3.0, "TRUSTED: scale=reference"),
        row(1.0, 9.0, "TRUSTED", bare=True),
        row(1.0, 0.0, "CHECK (frames 1)"),
        row(5.0, 0.0, "FAILED"),
        {"bare": False, "columns": {"ours": {"error": "no"}}},
    ]
    assert bench_kept.verdicts(rows, "ours") == {
        "results": 5,
        "trusted": 3,
        "wrongly": 1,
        "deserving": 3,
        "deserving and trusted": 2,
        "failed runs": 1,
    }


def test_real_references_are_held_out_and_scored(divider, tmp_path):
    data, out = tmp_path / "data", tmp_path / "real.json"
    data.mkdir()
    rng = np.random.default_rng(5)
    beam = COUNTS * np.exp(0.2 * smooth(rng, 10.0))
    with h5py.File(data / "tooth.h5", "w") as file:
        file["exchange/data_white"] = (100 + rng.poisson(beam, (10, SIDE, SIDE))).astype(np.uint16)
        file["exchange/data_dark"] = np.full((3, SIDE, SIDE), 100, np.uint16)
    only = ("--only", "tooth/ends sparse")
    said = bench("real", data, *only, "--out", out, "--executable", divider)
    body = json.loads(out.read_text())
    check_head(body["head"])
    assert "skipped, not in" in said and set(body["head"]["skipped"]) == {
        "ssrl",
        "k11",
        "lm",
        "chip",
    }
    (row,) = body["rows"]
    # The truth is the held-out flat: a mean of others is off by the photon noise of both.
    noise = row["noise of the truth"]
    assert row["columns"]["mean flats"]["shape"] == pytest.approx(
        noise * np.sqrt(1 + 1 / 6), rel=0.1
    )
    assert abs(row["columns"]["mean flats"]["absolute"]) < 0.1
    assert row["columns"]["ours"]["shape"] == pytest.approx(
        row["columns"]["mean flats"]["shape"], rel=1e-3
    )
    gain = float(row["notes"].split()[1])
    assert gain == pytest.approx(1, abs=0.1) and "before/after" in row["columns"]


def test_real_references_that_are_absent_are_told(tmp_path):
    assert "is not there; name a folder" in bench("real", tmp_path / "nothing")
