"""Do the figures of two comparisons with different seeds agree as well as chance allows?

    python tests/bench/repeat.py bench/core/results.json bench/again/results.json

Welch's test for every figure that both have, on the logarithm where it is an error: if nothing but the
draw of scenes tells two runs apart, about 95 of 100 figures have p > 0.05. Methods share their scenes,
so figures of one run go up and down together; ratios to the best peer, seed by seed, do less so and are
counted apart. What stays apart after Holm's correction for the number of figures is named. Exits 1 if
fewer than 90 % of either agree, or if anything is named.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
from scipy import stats

LEAST_SHARE = 0.9
LEVEL = 0.05
ROUNDING = 1e-6  # figures that do not vary over seeds have no interval to speak of
ERRORS = ("quality.log_rms", "quality.rms_", "quality.mae")


def pairs(first, second):
    """`(setting, method, figure, one, other)`; one and other are mean, standard error, seeds."""
    for setting in sorted(first.keys() & second.keys()):
        for method in sorted(first[setting].keys() & second[setting].keys()):
            ours, theirs = first[setting][method], second[setting][method]
            for figure in sorted(ours.keys() & theirs.keys()):
                runs = [
                    run
                    for run in (ours, theirs)
                    if "seeds" in run and is_interval(figure, run[figure])
                ]
                # Both runs on one scale: few seeds may leave an interval that reaches below zero.
                log = figure.startswith(ERRORS) and all(min(r[figure]) > ROUNDING for r in runs)
                values = [standard(run[figure], len(run["seeds"]), log) for run in runs]
                if len(values) == 2 and None not in values:
                    yield setting, method, figure, *values


def is_interval(figure, value):
    """Whether a value is `[mean, low, high]`, not seeds or names of checks."""
    named = figure in ("seeds", "fails")
    return not named and isinstance(value, list) and len(value) == 3 and None not in value


def standard(interval, count, log):
    """Mean, standard error and seeds behind `[mean, low, high]`; None where there is no interval."""
    if count < 2:
        return None
    if log:
        interval = np.log(interval).tolist()
    mean, low, high = interval
    return mean, (high - low) / 2 / float(stats.t.ppf(0.975, count - 1)), count


def ratios(first, second):
    """The same for log ratios of background error to the method that was best in the first run."""
    name = "quality.log_rms"
    for setting in sorted(first.keys() & second.keys()):
        runs = [r[setting] for r in (first, second)]
        seeded = [
            {m: e["by_seed"][name] for m, e in r.items() if name in e.get("by_seed", {})}
            for r in runs
        ]
        both = [m for m in seeded[0] if m in seeded[1] and m != "oracle"]
        peers = [m for m in both if not m.startswith(("bad:", "model:"))]
        if not peers:
            continue
        best = min(peers, key=lambda m: runs[0][m][name][0])
        for method in both:
            found = [ratio(s[method], s[best]) for s in seeded]
            if method != best and None not in found:
                yield setting, method, f"{name} over {best}", *found


def ratio(ours, theirs):
    """Mean, standard error and number of log ratios over the seeds that both have."""
    logs = [
        math.log(ours[s] / theirs[s])
        for s in ours.keys() & theirs.keys()
        if ours[s] and theirs[s] and min(ours[s], theirs[s]) > ROUNDING
    ]
    if len(logs) < 2:
        return None
    return float(np.mean(logs)), float(np.std(logs, ddof=1)) / math.sqrt(len(logs)), len(logs)


def chance(one, other):
    """Welch's p: how often two runs differ so much if nothing but chance tells them apart."""
    (a, ea, na), (b, eb, nb) = one, other
    error = ea**2 + eb**2
    if abs(a - b) <= ROUNDING:
        return 1.0
    if error == 0:
        return 0.0
    freedom = error**2 / (ea**4 / (na - 1) + eb**4 / (nb - 1))
    return float(2 * stats.t.sf(abs(a - b) / math.sqrt(error), freedom))


def apart(p_values):
    """Which of many differences stay after Holm's correction."""
    order = np.argsort(p_values)
    bounds = LEVEL / np.arange(len(p_values), 0, -1)
    passed = np.asarray(p_values)[order] <= bounds
    count = len(p_values) if passed.all() else int(np.argmin(passed))
    return set(order[:count].tolist())


def report(title, found):
    """Print how many agree and what does not; return whether that is as it should be."""
    p_values = [chance(one, other) for *_, one, other in found]
    named = apart(p_values) if found else set()
    for i in sorted(named, key=lambda k: p_values[k]):
        setting, method, figure, one, other = found[i]
        print(f"{setting} {method} {figure}: {one[0]:.4g} and {other[0]:.4g}, p {p_values[i]:.1e}")
    agree = sum(p > LEVEL for p in p_values)
    share = agree / max(len(found), 1)
    print(f"{title}: {agree} of {len(found)} agree ({share:.1%}); {len(named)} differ for certain")
    return bool(found) and share >= LEAST_SHARE and not named


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("results", nargs=2, type=Path)
    parser.add_argument("--figures", default="quality.", help="Beginnings of names, by commas.")
    options = parser.parse_args()
    first, second = (json.loads(p.read_text())["results"] for p in options.results)
    wanted = tuple(options.figures.split(","))
    plain = [p for p in pairs(first, second) if p[2].startswith(wanted)]
    well = [
        report("figures", plain),
        report("ratios to the best peer", list(ratios(first, second))),
    ]
    return not all(well)


if __name__ == "__main__":
    raise SystemExit(main())
