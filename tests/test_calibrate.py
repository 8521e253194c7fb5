"""How far fit and network are from what they claim, measured on scans whose truth is known."""

import numpy as np
import pytest

from txmcorrect.background.known import SITUATIONS
from txmcorrect.background.stack import REFERENCES
from txmcorrect.simulate import simulate_scan
from txmcorrect.training import calibrate as module
from txmcorrect.training.calibrate import as_metadata, calibrate, claims, excess
from txmcorrect.weights import load_model

LIT = np.ones((64, 64), bool)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_errors_of_so_many_claimed_deviations_are_found_to_be(factor):
    rng = np.random.default_rng(1)
    std = np.exp(rng.normal(0, 0.5, (8, 64, 64))).astype(np.float32)
    level = 7.0  # is no error of shape
    error = level + factor * std * rng.standard_normal(std.shape).astype(np.float32)
    assert excess(error, std, LIT) == pytest.approx(factor, rel=0.05)


def test_unlit_cells_do_not_count():
    lit = LIT.copy()
    lit[:32] = False
    error = np.where(lit, np.random.default_rng(2).standard_normal((4, 64, 64)), 1e6)
    assert excess(error, np.ones_like(error), lit) == pytest.approx(1.0, rel=0.05)


def test_every_situation_has_the_usual_of_its_scans(monkeypatch):
    """The median over scans: one that ran away does not count for all."""
    ratios = iter([(1.0, 0.5), (2.0, 0.6), (900.0, 90.0)] * 99)
    asked = []

    def known(model, scan, situation):
        asked.append(scan)
        return next(ratios)

    monkeypatch.setattr(module, "claims", known)
    monkeypatch.setattr(module, "scans_like_those_of_training", lambda kind, *given: [kind] * 3)
    found = as_metadata(calibrate(load_model("bundled", "stack"), 3))
    assert set(found) == {"doubt", "spread"}
    for table, usual in ((found["doubt"], 2.0), (found["spread"], 0.6)):
        assert set(table) == set(SITUATIONS)
        # A sample that stands is looked for where there is no reference.
        assert set(table.pop("standing")) == {"none"}
        assert all(set(row) == set(REFERENCES) for row in table.values())
        assert {v for row in table.values() for v in row.values()} == {usual}
    assert set(asked) == {"film", "tomo", "mosaic-sparse", "mosaic-dense"}


def test_what_fit_and_network_claim_is_within_reason_where_the_sample_passes():
    scan = simulate_scan("film", "slow", 5000, (64, 64), 3, "train", "stale", 12)
    doubt, spread = claims(load_model("bundled", "stack"), scan, "passing")
    assert 0.1 < doubt < 10
    assert 0.1 < spread < 10
