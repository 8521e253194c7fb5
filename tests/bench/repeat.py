"""Do the figures of two comparisons with different seeds agree within their intervals?

    python tests/bench/repeat.py bench/core/results.json bench/again/results.json

Two independent means with 95 % half-widths a and b differ by less than sqrt(a^2 + b^2) in about 95
of 100 cases if nothing but chance tells them apart. Exits 1 below 90 %.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

LEAST_SHARE = 0.9
ROUNDING = 1e-6  # figures that do not vary over seeds have no interval to speak of


def pairs(first, second):
    """`(setting, method, figure, one, other)` of all figures that both runs have with an interval."""
    for setting in first.keys() & second.keys():
        for method in first[setting].keys() & second[setting].keys():
            ours, theirs = first[setting][method], second[setting][method]
            for figure in ours.keys() & theirs.keys():
                values = ours[figure], theirs[figure]
                if all(isinstance(v, list) and len(v) == 3 and None not in v for v in values):
                    yield setting, method, figure, *values


def agree(one, other):
    """Whether two `[mean, low, high]` differ by no more than chance explains."""
    half = math.hypot(*((high - low) / 2 for _, low, high in (one, other)))
    return abs(one[0] - other[0]) <= half + ROUNDING


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("results", nargs=2, type=Path)
    parser.add_argument("--figures", default="quality.", help="Beginnings of names, by commas.")
    options = parser.parse_args()
    first, second = (json.loads(p.read_text())["results"] for p in options.results)
    wanted = tuple(options.figures.split(","))
    found = [p for p in pairs(first, second) if p[2].startswith(wanted)]
    apart = [p for p in found if not agree(p[3], p[4])]
    for setting, method, figure, one, other in sorted(apart):
        print(f"{setting} {method} {figure}: {one[0]:.4g} and {other[0]:.4g} (second run)")
    share = 1 - len(apart) / max(len(found), 1)
    print(
        f"{len(found) - len(apart)} of {len(found)} figures agree within their intervals ({share:.1%})"
    )
    return share < LEAST_SHARE or not found


if __name__ == "__main__":
    raise SystemExit(main())
