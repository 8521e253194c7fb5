"""Scans and training draws of 0.1.0: the same arguments give the same arrays."""

import numpy as np
import pytest

from txmcorrect.simulate import simulate_scan
from txmcorrect.simulate.bodies import benchmark_body
from txmcorrect.simulate.draws import draw_pairs
from txmcorrect.simulate.objects import draw_sinogram, draw_transmission
from txmcorrect.simulate.stacks import draw_scans

SMALL = {"shape": (48, 64), "frames": 6, "grid": (2, 3), "bank": 2}


def summary(array):
    """Mean, and a weighted mean that any change of place would change."""
    values = np.asarray(array, np.float64).ravel()
    weights = np.cos(0.7 * np.arange(len(values)) ** 0.9)
    return float(values.mean()), float((weights * values).mean() / np.abs(values).mean())


# Taken from the code of 0.1.0.
PINNED = {
    "pairs": (2649.7725830078125, -0.013990761716594451),
    "stack": (659.4523281521267, 0.000373143709947674),
    "body": (0.009377498281168073, 0.0051540774390708465),
    "sinogram": (-0.31521747833074526, -0.015863278818959766),
    "object train": (0.9902657083272934, 0.001733588272878355),
    "object benchmark": (0.9503532853424549, 0.0011157705128528798),
    "mosaic-sparse train stale": (3395.674832666204, 0.00020687816227896337),
    "mosaic-sparse benchmark stale": (3290.3074451628186, 0.00065284291107285),
    "mosaic-dense train none": (2156.273598375144, 0.0029187088747896035),
    "mosaic-dense benchmark none": (1700.3439693362625, 0.0006277502226072197),
    "tomo train before-after": (3698.2556657456516, -0.0002964096860092553),
    "tomo benchmark before-after": (3536.1790749443726, -0.0007612869688232737),
    "film train fresh": (3511.9767509050534, 0.0020106182608061666),
    "film benchmark fresh": (3623.347284496484, 0.00015733013154794204),
}


def scan_of(kind, family, references):
    scan = simulate_scan(kind, "fast", seed=3, family=family, references=references, **SMALL)
    return np.concatenate([scan.counts, scan.dark, scan.bank, scan.flats])


DRAWN = {
    "pairs": lambda: draw_pairs(1, 2, 4, 32).frames,
    "stack": lambda: np.concatenate([s.frames.ravel() for s in draw_scans(1, 2, 10, 32)]),
    "body": lambda: benchmark_body(1, 2, (32, 32)).volume(32, 32),
    "sinogram": lambda: draw_sinogram(1, 2),
    "object train": lambda: draw_transmission(1, 2, (40, 50), "train"),
    "object benchmark": lambda: draw_transmission(1, 2, (40, 50), "benchmark"),
} | {
    f"{kind} {family} {references}": lambda k=kind, f=family, r=references: scan_of(k, f, r)
    for kind, references in [
        ("mosaic-sparse", "stale"),
        ("mosaic-dense", "none"),
        ("tomo", "before-after"),
        ("film", "fresh"),
    ]
    for family in ["train", "benchmark"]
}


@pytest.mark.parametrize("name", DRAWN)
def test_what_was_drawn_before_is_drawn_again(name):
    assert summary(DRAWN[name]()) == pytest.approx(PINNED[name], rel=1e-6, abs=1e-9)
