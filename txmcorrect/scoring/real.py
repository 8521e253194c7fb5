"""Judgement on a user's own scans: implants in raw frames, real backgrounds, real flats."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from txmcorrect.baselines import Flats, Method, NotApplicableError, Problem
from txmcorrect.config import EvaluateSettings
from txmcorrect.errors import FormatError, TxmError
from txmcorrect.formats import open_scan
from txmcorrect.judge.bench import Scenes
from txmcorrect.judge.recorded import (
    find_empty,
    implanted_scene,
    judge_flats,
    judge_raw,
    lit_pixels,
)
from txmcorrect.judge.scenes import Kind, Scene
from txmcorrect.judge.trial import Finding
from txmcorrect.scan import Frames, FrameView, Scan
from txmcorrect.scoring.output import markdown_table, number, write_json, write_text

log = logging.getLogger(__name__)
MOST_FRAMES = 32
LONG_SIDE = 1024
SAMPLES: tuple[Kind, ...] = ("mosaic-sparse", "mosaic-dense")
SEEDS = 3


def find_scans(folder: Path) -> dict[str, Scan]:
    """Everything in a folder that can be read as one scan; folders that cannot are searched.

    Raises
    ------
    TxmError : nothing in there is a scan of at least two frames or with a reference.
    """
    found: dict[str, Scan] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else [folder]:
        try:
            found[path.stem] = open_scan(path)
        except FormatError as reason:
            if path.is_dir():
                found |= find_scans_or_none(path)
            else:
                log.info("%s", reason)
    usable = {n: s for n, s in found.items() if s.shape[0] >= 2 or s.flats}
    if not usable:
        raise TxmError(
            f"{folder}: expected scans of two or more frames, or with references; got none"
        )
    return usable


def find_scans_or_none(folder: Path) -> dict[str, Scan]:
    """The scans inside a folder that is not one itself; it may hold none."""
    try:
        return find_scans(folder)
    except TxmError as reason:
        log.info("%s", reason)
        return {}


def load_problem(scan: Scan) -> Problem:
    """At most 32 frames, evenly chosen, binned to at most 1024 pixels, with the scan's references."""
    n, h, w = scan.shape
    index = np.unique(np.linspace(0, n - 1, min(n, MOST_FRAMES)).astype(np.intp))
    factor = _factor(h, w)
    frames = FrameView(scan.projections, index, None, factor).read(0, len(index))
    dark = np.zeros(frames.shape[1:], np.float32)
    if scan.darks is not None:
        dark = _read_all(scan.darks, factor).mean(0, dtype=np.float32)
    flats = _load_flats(scan, factor)
    counts = frames.astype(np.float32)
    return Problem(
        frames=counts,
        dark=dark,
        lit=lit_pixels(counts if flats is None else flats.counts, dark),
        current_ma=None if scan.current_ma is None else scan.current_ma[index],
        stale=flats,
        theta=None if scan.theta is None else scan.theta[index],
    )


def _factor(h: int, w: int) -> int:
    factor = -(-max(h, w) // LONG_SIDE)
    return factor if min(h, w) >= factor else 1


def _read_all(frames: Frames, factor: int) -> NDArray[np.float32]:
    count = frames.shape[0]
    view = FrameView(frames, np.arange(count, dtype=np.intp), None, factor)
    return view.read(0, count).astype(np.float32)


def _load_flats(scan: Scan, factor: int) -> Flats | None:
    same = [f for f in scan.flats if f.frames.shape[1:] == scan.shape[1:]]
    if not same:
        return None
    group = max(same, key=lambda f: f.frames.shape[0])
    return Flats(_read_all(group.frames, factor), group.current_ma)


def real_scenes(settings: EvaluateSettings, folder: Path) -> Scenes:
    """Backgrounds of real scans under simulated samples, with known truth.

    The background is that of the references under a simulated drift, or else the stack's median,
    drifting as the two emptiest frames do.
    """
    scenes: Scenes = []
    for name, scan in find_scans(folder).items():
        ends = background_ends(load_problem(scan))
        if ends is None:
            log.info("%s: neither references nor enough frames for a background", name)
            continue
        for kind in SAMPLES:
            for seed in range(settings.seeds or SEEDS):
                label = f"real-{name}_{kind}"
                scenes.append(
                    (label, seed, _maker(label, kind, *ends, seed + 1000 * settings.seed))
                )
    return scenes


def _maker(
    label: str,
    kind: Kind,
    first: NDArray[np.float32],
    last: NDArray[np.float32] | None,
    lit: NDArray[np.bool_],
    seed: int,
) -> Callable[[], Scene]:
    return lambda: implanted_scene(label, kind, first, last, lit, seed)


def background_ends(
    problem: Problem,
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None, NDArray[np.bool_]] | None:
    """Light of two real backgrounds `(h, w)`, first and last, and the lit pixels.

    References of one moment have no last.
    """
    if problem.stale is not None:
        return (problem.stale.counts - problem.dark).mean(0), None, problem.lit
    if len(problem.frames) < 6:
        return None
    first, last = find_empty(problem)
    # The median of the stack has less sample and less noise than an emptiest frame has.
    shared = np.median(problem.frames - problem.dark, axis=0)
    light = problem.frames - problem.dark
    return shared, shared * _smooth_ratio(light[last], light[first]), problem.lit


def _smooth_ratio(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    ratio = gaussian_filter(a, 8.0) / np.maximum(gaussian_filter(b, 8.0), 1.0)
    return np.asarray(ratio, np.float32)


def score_real(
    settings: EvaluateSettings, folder: Path, out: Path, methods: Mapping[str, Method]
) -> list[Path]:
    """What raw frames and raw references tell without any truth, into `real.md` and `real.json`."""
    body: dict[str, dict[str, dict[str, object]]] = {}
    parts = ["# Real frames: no truth, but implants, flats and neighbours"]
    for name, scan in find_scans(folder).items():
        problem = load_problem(scan)
        body[name] = {m: judge_one(method, problem, settings.seed) for m, method in methods.items()}
        parts += [f"## {name}", _table(body[name])]
    text = "\n\n".join(parts) + "\n"
    return [write_text(out / "real.md", text), write_json(out / "real.json", body)]


def judge_one(method: Method, problem: Problem, seed: int) -> dict[str, object]:
    """All that can be said about one method on one real scan; what cannot is said too."""
    out: dict[str, object] = {}
    try:
        out |= _flatten(judge_raw(method, problem, seed))
    except TxmError as reason:
        out["not_run"] = str(reason)
    if problem.stale is not None:
        try:
            found = judge_flats(method, problem.stale, problem.dark, problem.lit)
            out |= _flatten({"null": found})
        except NotApplicableError as reason:
            out["null"] = str(reason)
    return out


def _flatten(findings: Mapping[str, Finding]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for check, finding in findings.items():
        flat[check] = finding.passed
        flat |= {f"{check}.{k}": v for k, v in finding.figures.items()}
    return flat


def _table(methods: Mapping[str, Mapping[str, object]]) -> str:
    """Columns are the figures that any method has."""
    columns = list(dict.fromkeys(k for found in methods.values() for k in found if k != "not_run"))
    shown = [c for c in columns if not c.startswith(("null.ratio", "null.excess"))]
    rows = [
        [name, *[_text(found.get(c)) for c in shown], str(found.get("not_run", ""))]
        for name, found in methods.items()
    ]
    return markdown_table(rows, ["method", *shown, "not run because"])


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "passed" if value else "failed"
    return number(float(value)) if isinstance(value, int | float) else str(value)
