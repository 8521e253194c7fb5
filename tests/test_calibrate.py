"""How far fit and network are from what they claim, measured on scans whose truth is known."""

from collections import Counter

import numpy as np
import pytest

from txmcorrect.background.estimate import measured
from txmcorrect.background.known import SITUATIONS
from txmcorrect.simulate import simulate_scan
from txmcorrect.training import calibrate as module
from txmcorrect.training.calibrate import QUANTILES, as_metadata, calibrate, claims, ratios
from txmcorrect.weights import load_model

LIT = np.ones((64, 64), bool)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_errors_of_so_many_claimed_deviations_are_found_to_be(factor):
    rng = np.random.default_rng(1)
    std = np.exp(rng.normal(0, 0.5, (8, 64, 64))).astype(np.float32)
    level = 7.0  # is no error of shape
    error = level + factor * std * rng.standard_normal(std.shape).astype(np.float32)
    found = ratios(error, std, LIT)
    assert found.shape == QUANTILES.shape
    assert np.quantile(found, 0.9) == pytest.approx(1.645 * factor, rel=0.05)


def test_unlit_cells_do_not_count():
    lit = LIT.copy()
    lit[:32] = False
    error = np.where(lit, np.random.default_rng(2).standard_normal((4, 64, 64)), 1e6)
    assert np.quantile(ratios(error, np.ones_like(error), lit), 0.9) == pytest.approx(
        1.645, rel=0.05
    )


def test_nine_errors_in_ten_of_all_scans_in_a_situation_are_covered(monkeypatch):
    """One scan in ten that ran away is what is not covered; who is in no situation often has no factor."""
    normal = np.quantile(np.abs(np.random.default_rng(3).standard_normal(200_000)), QUANTILES)
    asked = Counter()

    def known(model, scan):
        asked[scan] += 1
        if scan != "tomo":
            return "passing", np.stack([2 * normal, 0.5 * normal])
        rare = asked[scan] == 1
        return ("covering" if rare else "turning"), np.stack([normal, normal])

    def mixed(model, scan):
        situation, found = known(model, scan)
        return situation, found * (1000 if asked[scan] % 10 == 0 else 1)

    monkeypatch.setattr(module, "claims", mixed)
    monkeypatch.setattr(
        module, "scans_like_those_of_training", lambda kind, a, b, count, side: [kind] * count
    )
    found = as_metadata(calibrate(load_model("bundled", "stack"), 10))
    assert set(found) == {"doubt", "spread"}
    assert asked == {"film": 10, "tomo": 30, "mosaic-sparse": 10, "mosaic-dense": 10}
    for table, usual in ((found["doubt"], 2.0), (found["spread"], 0.5)):
        assert set(table) == set(SITUATIONS)
        assert table["covering"] == table["standing"] == table["overlapping"] == {}
        assert set(table["passing"]) == set(table["turning"]) == {"none"}
        # All of the nine tenths that did not run away, where 90 % of them would be 1.645 deviations.
        assert all(factor > 1.5 * usual for factor in table["passing"].values())


def test_what_covers_all_is_as_what_turns_where_nothing_else_is_known():
    table = {"turning": {"bank": 3.0}, "covering": {"none": 5.0}}
    assert measured(table, "covering", "none") == 5.0
    assert measured(table, "covering", "bank") == measured(table, "turning", "bank") == 3.0
    assert measured(table, "passing", "bank") == measured({}, "covering", "one") == 1.0


def test_what_fit_and_network_claim_is_within_reason_where_the_sample_passes():
    scan = simulate_scan("film", "slow", 5000, (64, 64), 3, "train", "none", 12, bank=0)
    situation, found = claims(load_model("bundled", "stack"), scan)
    assert situation == "passing"
    doubt, spread = np.quantile(found, 0.9, axis=1) / 1.645
    assert 0.1 < doubt < 10
    assert 0.1 < spread < 10
