"""Cells -> Markdown tables and one JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from txmcorrect.judge.bench import KINDS, Cell
from txmcorrect.judge.statistics import (
    Interval,
    geometric_interval,
    mean_interval,
    paired_difference,
    paired_ratio,
    wins,
)
from txmcorrect.judge.trial import Finding
from txmcorrect.judge.verdict import CHECKS, CRITICAL

Group = dict[str, dict[str, list[Cell]]]  # setting -> method -> cells

HEAD = (
    "| method | background error % | x best peer | PSNR dB | dB behind oracle | SSIM | gain % "
    "| slope <=64 px | slope >64 px | elsewhere % | null % | swap % | leak | flags r/p | fails |"
)
LEGEND = """\
Background error: rms of the noise-free log error with its mean removed, geometric mean over seeds
and its 95 % interval; against the best method that is not under test: ratio of errors, seed by seed,
and on how many seeds it is the smaller. Behind the oracle: paired difference of the PSNR to its left,
with its interval. Each interval stands alone: of twenty that compare equals, one excludes equality.
*In parentheses*: the method does not preserve the sample (slopes, elsewhere, swap or leak out of
bounds), so its flatness does not count. PSNR (data range 1) and SSIM after one scale factor for the
scan; the oracle's is what photon noise leaves. Gain: of those that vouch for an absolute scale.
Slopes: recovered on true log-change of implants, the worst of all seeds. Null: worst octave of what
is not shot noise in corrected flats. Swap and leak: change of the background when the neighbours show
other samples. Flags: recall/precision on planted failures. Slices: relative error of reconstructed
slices; contrast kept and contrast-to-noise of spheres planted into the raw projections. Coverage:
share of the truth within mean +- 1.645 sd of 16 samples; CRPS of a method without a spread is its
mean absolute error.
"""


def group(cells: Iterable[Cell]) -> Group:
    """Cells by setting and method, in the order they come."""
    groups: Group = {}
    for cell in cells:
        groups.setdefault(cell.setting, {}).setdefault(cell.method, []).append(cell)
    return groups


def by_seed(cells: list[Cell], check: str, figure: str) -> dict[int, float]:
    """One figure of one method, by seed; absent where it did not run."""
    return {c.seed: c.figure(check, figure) for c in cells if c.findings}


def interval(cells: list[Cell], check: str, figure: str) -> Interval:
    """Mean and interval of one figure over seeds."""
    return mean_interval(list(by_seed(cells, check, figure).values()))


def background_error(cells: list[Cell]) -> Interval:
    """Geometric mean over seeds of the background's error, with its interval."""
    return geometric_interval(list(by_seed(cells, "quality", "log_rms").values()))


def _spread(value: Interval, times: float = 1.0) -> str:
    """`mean [low, high]`, or the mean alone where there is one seed only."""
    text = f"{times * value.mean:.2f}"
    return text if value.n < 2 else f"{text} [{times * value.low:.2f}, {times * value.high:.2f}]"


def failed(cells: list[Cell]) -> list[str]:
    """Critical checks that failed on any seed, with how often."""
    out = []
    for check in CRITICAL:
        count = sum(c.findings[check].passed is False for c in cells if check in c.findings)
        if count:
            out.append(f"{check} {count}/{sum(bool(c.findings) for c in cells)}")
    return out


def preserves(cells: list[Cell]) -> bool:
    """Whether the sample survived on every seed, so that flatness counts."""
    return all(
        c.findings[check].passed is not False
        for c in cells
        for check in ("preservation", "neighbours")
        if check in c.findings
    )


def is_peer(method: str) -> bool:
    """Neither the oracle nor a deliberately bad method."""
    return method != "oracle" and not method.startswith("bad:")


def is_tested(method: str) -> bool:
    """Whether a method is a model under test."""
    return method.startswith("model:")


def best_peer(methods: dict[str, list[Cell]]) -> str | None:
    """The method of smallest background error, preserving the sample or not; none under test.

    Being chosen as the best of all flatters it a little, to the disadvantage of what is under test. Slow
    methods that ran on less than half of the seeds are not comparable.
    """
    seeds = {
        name: sum(bool(c.findings) for c in cells)
        for name, cells in methods.items()
        if is_peer(name) and not is_tested(name)
    }
    enough = max(max(seeds.values(), default=0) / 2, 1)
    error = {name: background_error(methods[name]).mean for name, n in seeds.items() if n >= enough}
    return min(error, key=lambda name: error[name]) if error else None


def setting_table(methods: dict[str, list[Cell]]) -> str:
    """The table of one setting."""
    best = best_peer(methods)
    rows = [HEAD, "|" + "---|" * (HEAD.count("|") - 1)]
    left_out = []
    for name, cells in methods.items():
        if any(c.findings for c in cells):
            rows.append(_row(name, cells, methods[best] if best else [], methods.get("oracle", [])))
        else:
            left_out.append(f"{name}: {cells[0].skipped or cells[0].error}")
    notes = "".join(f"\n- not run, {note}" for note in left_out)
    return "\n".join(rows) + ("\n" + notes if notes else "")


def _row(name: str, cells: list[Cell], best: list[Cell], oracle: list[Cell]) -> str:
    text = _spread(background_error(cells), 100)
    ours, theirs = (by_seed(c, "quality", "log_rms") for c in (cells, best))
    won, of = wins(ours, theirs)
    against = f"{_spread(paired_ratio(ours, theirs))}, {won}/{of}" if cells is not best else "1"
    worst_small, worst_large = (_worst_slope(cells, large) for large in (False, True))
    columns = [
        name,
        text if preserves(cells) else f"*({text})*",
        against,
        _number(interval(cells, "quality", "psnr_scaled").mean, 1),
        _behind(cells, oracle),
        _number(interval(cells, "quality", "ssim").mean, 3),
        _number(100 * interval(_vouching(cells), "gain", "absolute_gain").mean, 2),
        _number(worst_small, 3),
        _number(worst_large, 3),
        _number(100 * _worst(cells, "preservation", "elsewhere"), 2),
        _number(100 * _worst(cells, "null", "excess_"), 2),
        _number(100 * _worst(cells, "neighbours", "swap"), 2),
        _number(_worst(cells, "neighbours", "leak"), 3),
        f"{_number(interval(cells, 'flags', 'recall').mean, 2)}/"
        f"{_number(interval(cells, 'flags', 'precision').mean, 2)}",
        ", ".join(failed(cells)) or "-",
    ]
    return "| " + " | ".join(columns) + " |"


def _behind(cells: list[Cell], oracle: list[Cell]) -> str:
    """How much lower the PSNR is than the oracle's, seed by seed."""
    difference = paired_difference(*(by_seed(c, "quality", "psnr_scaled") for c in (oracle, cells)))
    return _spread(difference) if difference.n else ""


def spread_table(methods: dict[str, list[Cell]]) -> str:
    """Calibration of those that tell a spread, and CRPS of the others; empty where none does."""
    rows = [
        "| method | coverage of 90 %, pixels | slow modes | CRPS %, pixels | slow modes |",
        "|---|---|---|---|---|",
    ]
    for name, cells in methods.items():
        found = [
            (times, interval(cells, "calibration", figure))
            for times, figure in (
                (1, "coverage"),
                (1, "coverage_slow"),
                (100, "crps"),
                (100, "crps_slow"),
            )
        ]
        if found[0][1].n or (is_peer(name) and found[2][1].n):
            rows.append(
                f"| {name} | {' | '.join(_spread(i, t) if i.n else '' for t, i in found)} |"
            )
    return "\n".join(rows) if len(rows) > 2 else ""


def slice_table(methods: dict[str, list[Cell]]) -> str:
    """Slices and planted spheres of a tomogram, diameters in pixels; empty for other scans."""
    names = {
        k: None
        for cells in methods.values()
        for c in cells
        if c.findings
        for k in c.findings.get("slices", Finding(None)).figures
    }
    if not names:
        return ""
    rows = ["| method | " + " | ".join(k.replace("_", " ") for k in names) + " |"]
    rows.append("|---" * (len(names) + 1) + "|")
    for name, cells in methods.items():
        if any(c.findings for c in cells):
            found = (_number(interval(cells, "slices", k).mean, 3) for k in names)
            rows.append(f"| {name} | {' | '.join(found)} |")
    return "\n".join(rows)


def _vouching(cells: list[Cell]) -> list[Cell]:
    return [c for c in cells if "gain" in c.findings and c.findings["gain"].passed is not None]


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else ""


def _worst(cells: list[Cell], check: str, figure: str) -> float:
    """Largest value over seeds of a figure, or of all whose name begins so (with `_` at the end)."""
    values = [
        v
        for c in cells
        if check in c.findings
        for k, v in c.findings[check].figures.items()
        if (k.startswith(figure) if figure.endswith("_") else k == figure)
    ]
    finite = [v for v in values if math.isfinite(v)]
    return max(finite) if finite else float("nan")


def _worst_slope(cells: list[Cell], large: bool) -> float:
    """The slope farthest from one, of sizes up to 64 pixels or above."""
    values = [
        v
        for c in cells
        if "preservation" in c.findings
        for k, v in c.findings["preservation"].figures.items()
        if k.startswith("slope_")
        and (int(k.removeprefix("slope_")) > 64) is large
        and math.isfinite(v)
    ]
    return max(values, key=lambda v: abs(v - 1)) if values else float("nan")


def summary_table(groups: Group) -> str:
    """Background error in per cent: methods down, settings across."""
    names = dict.fromkeys(m for methods in groups.values() for m in methods)
    heads = [s.replace("_", " ") for s in groups]
    return _error_table(groups, names, heads, lambda error: _spread(error, 100))


def _error_table(
    groups: Group, names: Iterable[str], heads: list[str], text: Callable[[Interval], str]
) -> str:
    """A row a method that was judged; errors of those that lose the sample in parentheses.

    Where methods ran on different numbers of seeds, those that ran on fewer say on how many.
    """

    def entry(methods: dict[str, list[Cell]], name: str) -> str:
        cells = methods.get(name, [])
        error = background_error(cells)
        if error.n == 0:
            return ""
        words = text(error) if preserves(cells) else f"*({text(error)})*"
        most = max(sum(bool(c.findings) for c in own) for own in methods.values())
        return words if error.n == most else f"{words} n={error.n}"

    rows = ["| method | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name in names:
        own = [c for methods in groups.values() for c in methods.get(name, [])]
        if any(c.findings for c in own):
            entries = (entry(methods, name) for methods in groups.values())
            rows.append(f"| {name} | " + " | ".join(entries) + " |")
    return "\n".join(rows)


def against_peers(groups: Group) -> str:
    """Models under test over the best peer of each setting, seed by seed; empty without models."""
    tested = dict.fromkeys(m for methods in groups.values() for m in methods if is_tested(m))
    if not tested:
        return ""
    rows = [
        "| setting | best peer | " + " | ".join(tested) + " |",
        "|---" * (len(tested) + 2) + "|",
    ]
    for setting, methods in groups.items():
        best = best_peer(methods)
        if best is not None:
            theirs = by_seed(methods[best], "quality", "log_rms")
            entries = (_against(methods.get(name, []), theirs) for name in tested)
            rows.append(f"| {short_name(setting)} | {best} | {' | '.join(entries)} |")
    return "\n".join(rows)


def _against(cells: list[Cell], theirs: dict[int, float]) -> str:
    ours = by_seed(cells, "quality", "log_rms")
    won, of = wins(ours, theirs)
    return f"{_spread(paired_ratio(ours, theirs))}, {won}/{of}" if of else ""


# The deliberately bad methods that each check is there to catch.
MEANT = {
    "gain": ("gain-error",),
    "preservation": ("blur-division", "erase-all", "over-smoothed"),
    "null": ("identity", "over-smoothed"),
    "neighbours": ("neighbours",),
    "flags": ("flags-all", "identity"),
    "wrong-bank": ("any-bank",),
    "calibration": ("too-sure",),
    "slices": ("erase-all", "over-smoothed"),
}


def checks_table(cells: list[Cell]) -> str:
    """What each check let pass and what it caught: a check that catches nothing checks nothing."""
    rows = [
        "| check | true background passes | fresh reference passes | bad methods meant for it, caught "
        "| others caught |",
        "|---|---|---|---|---|",
    ]
    fresh = [c for c in cells if c.method == "stale" and "_fresh_" in c.setting]
    oracle = [c for c in cells if c.method == "oracle"]
    for check in CHECKS:
        bad: dict[str, list[bool]] = {}
        for cell in cells:
            if cell.method.startswith("bad:") and (verdicts := _verdicts([cell], check)):
                bad.setdefault(cell.method.removeprefix("bad:"), []).extend(verdicts)
        if not bad:
            continue
        meant = [name for name in bad if name in MEANT.get(check, ())]
        others = [name for name in bad if name not in meant and False in bad[name]]
        passes = [
            f"{v.count(True)}/{len(v)}" if (v := _verdicts(own, check)) else "-"
            for own in ([] if check == "flags" else oracle, [] if check == "flags" else fresh)
        ]
        caught = [
            ", ".join(f"{name} {bad[name].count(False)}/{len(bad[name])}" for name in names)
            for names in (meant, others)
        ]
        nothing = not any(False in v for v in bad.values())
        rows.append(
            f"| {check} | {' | '.join(passes)} | {caught[0] or '-'} "
            f"| {'**none**' if nothing else caught[1] or '-'} |"
        )
    return "\n".join(rows)


def _verdicts(cells: list[Cell], check: str) -> list[bool]:
    """What a check said, cell by cell, where it said anything."""
    found = [c.findings[check].passed for c in cells if check in c.findings]
    return [passed for passed in found if passed is not None]


def short_name(setting: str) -> str:
    """The parts of a setting's name that tell the settings of the core apart."""
    parts = setting.split("_")
    if parts[0] not in KINDS:  # a real scan's
        return setting.replace("_", " ")
    kind, drift, counts, references = parts[:4]
    words = [kind.removeprefix("mosaic-"), references]
    words += [w for w, usual in ((drift, "medium"), (counts, "5000")) if w != usual]
    return " ".join(words)


def short_table(groups: Group) -> str:
    """Background error in per cent, means alone: for a page that cannot hold the intervals."""
    names = dict.fromkeys(m for methods in groups.values() for m in methods if is_peer(m))
    heads = list(map(short_name, groups))
    return _error_table(groups, names, heads, lambda error: f"{100 * error.mean:.2f}")


def markdown(cells: list[Cell]) -> str:
    """The whole report as Markdown."""
    groups = group(cells)
    parts = ["# Comparison of background corrections", LEGEND, summary_table(groups)]
    if against := against_peers(groups):
        parts += ["## Error over that of the best peer, and seeds won", against]
    parts += ["## What the checks let pass and what they caught", checks_table(cells)]
    for setting, methods in groups.items():
        parts += [f"## {setting.replace('_', ' ')}", setting_table(methods)]
        parts += [table for table in (slice_table(methods), spread_table(methods)) if table]
    return "\n\n".join(parts) + "\n"


def to_json(cells: list[Cell]) -> dict[str, Any]:
    """Means and intervals of every figure, by setting and method; what is compared, seed by seed."""
    return {
        setting: {name: _entry(own) for name, own in methods.items()}
        for setting, methods in group(cells).items()
    }


ERRORS = ("quality.log_rms", "quality.rms_", "quality.mae")  # scatter by factors over scans
BY_SEED = ("quality.log_rms", "quality.psnr_scaled", "calibration.crps")


def _entry(own: list[Cell]) -> dict[str, Any]:
    ran = [c for c in own if c.findings]
    if not ran:
        return {"not_run": own[0].skipped or own[0].error}
    entry: dict[str, Any] = {
        "seeds": [c.seed for c in ran],
        "seconds": float(np.mean([c.seconds for c in ran])),
        "fails": failed(ran),
    }
    for check in ran[0].findings:
        for figure in sorted({k for c in ran for k in c.findings[check].figures}):
            name, values = f"{check}.{figure}", by_seed(ran, check, figure)
            kind = geometric_interval if name.startswith(ERRORS) else mean_interval
            i = kind(list(values.values()))
            entry[name] = [_finite(v) for v in (i.mean, i.low, i.high)]
            if name in BY_SEED:
                entry.setdefault("by_seed", {})[name] = {k: _finite(v) for k, v in values.items()}
    return entry


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
