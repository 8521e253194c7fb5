"""How far fit and network are from what they claim, measured on scans whose truth is known."""

import numpy as np
import pytest

from txmcorrect.background.estimate import FOREIGN, stack_conditions
from txmcorrect.background.known import SITUATIONS
from txmcorrect.background.stack import REFERENCES
from txmcorrect.simulate import simulate_scan
from txmcorrect.simulate.stacks import draw_scans
from txmcorrect.training import calibrate as module
from txmcorrect.training.batches import known_of
from txmcorrect.training.calibrate import (
    LEAST_FOREIGN,
    as_metadata,
    at_home,
    calibrate,
    claims,
    excess,
)
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

    def known(model, scan):
        asked.append(scan)
        return next(ratios)

    monkeypatch.setattr(module, "claims", known)
    monkeypatch.setattr(module, "scans_like_those_of_training", lambda kind, *given: [kind] * 3)
    found = as_metadata(calibrate(load_model("bundled", "stack"), 3))
    assert set(found) == {"doubt", "spread"}
    for table, usual in ((found["doubt"], 2.0), (found["spread"], 0.6)):
        assert set(table) == set(SITUATIONS)
        assert all(set(row) == set(REFERENCES) for row in table.values())
        assert {v for row in table.values() for v in row.values()} == {usual}
    assert set(asked) == {"film", "tomo", "mosaic-sparse", "mosaic-dense"}


def test_what_fit_and_network_claim_is_within_reason_where_the_sample_passes():
    scan = simulate_scan("film", "slow", 5000, (64, 64), 3, "train", "stale", 12)
    doubt, spread = claims(load_model("bundled", "stack"), scan)
    assert 0.1 < doubt < 10
    assert 0.1 < spread < 10


def test_on_its_own_beamline_a_network_is_believed_as_far_as_it_was_right_there(monkeypatch):
    """The usual of the scans, within what is believed of any beam."""
    model, scans = load_model("bundled", "stack"), draw_scans(5, 0, 32, 32, (500.0, 500.0))
    for factor, found in ((1.3, 1.3), (0.01, LEAST_FOREIGN), (9.0, FOREIGN)):
        rng = np.random.default_rng(3)
        truths = iter([np.log(np.maximum(s.background[s.targets], 1e-3)) for s in scans])

        def known(model, conditions, targets, rng=rng, factor=factor, truths=truths):
            truth = next(truths)
            error = factor * conditions.spread * 0.01 * rng.standard_normal(truth.shape)
            return truth + error, np.full_like(truth, 0.01)

        monkeypatch.setattr(module, "_asked", known)
        assert at_home(model, scans) == pytest.approx(found, rel=0.1)


def test_weights_say_how_far_they_are_believed_on_their_beamline():
    known = known_of(draw_scans(5, 0, 8, 32, (500.0, 500.0))[0])
    assert stack_conditions(known, {}).foreign == FOREIGN
    assert stack_conditions(known, {"foreign": 0.75}).foreign == 0.75
