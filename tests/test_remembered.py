"""What a model remembers of the beamline that it was trained on, as the bank of scans that bring none."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from txmcorrect.background.base import find_base
from txmcorrect.background.conditions import bin_mean
from txmcorrect.background.estimate import Draw
from txmcorrect.background.known import Known
from txmcorrect.background.methods import as_scan
from txmcorrect.background.pipeline import estimate_background
from txmcorrect.background.quality import REMEMBERED, UNREFERENCED
from txmcorrect.background.remembered import LIKE, with_remembered
from txmcorrect.baselines.contract import Problem
from txmcorrect.simulate import simulate_scan
from txmcorrect.training.measured import log_references
from txmcorrect.weights import load_model

FACTOR = 4


def small(images):
    return bin_mean(torch.from_numpy(np.asarray(images, np.float32)), FACTOR).numpy()


def scan_at(instrument, seed, kind="mosaic-sparse", bank=8):
    return simulate_scan(
        kind,
        "medium",
        5000,
        (128, 128),
        seed,
        "benchmark",
        "stale",
        16,
        bank=bank,
        instrument=instrument,
    )


def known_of(scan):
    frames = small(scan.counts - scan.dark.mean(0))
    return Known(frames, np.ones(len(frames), bool), None, float(FACTOR**2))


def beam_of(scan):
    return log_references(small(scan.bank - scan.dark.mean(0)))[0].astype(np.float32)


def error_of(known, scan):
    """Rms log error of the fit over lit cells, mean removed."""
    truth = np.log(np.maximum(small(scan.background), 1e-3))
    lit = small(scan.lit[None])[0] > 0.99
    error = (find_base(known).fields(np.arange(len(truth))) - truth)[:, lit]
    return float(error.std(1).mean())


@pytest.fixture(scope="module")
def beams():
    return {i: beam_of(scan_at(i, 90 + i)) for i in (3, 4)}


@pytest.mark.parametrize("kind", ["mosaic-sparse", "film"])
def test_a_beam_that_is_remembered_helps_scans_of_that_beamline(beams, kind):
    errors = []
    for scan in (scan_at(3, seed, kind) for seed in (7, 8, 9)):
        known = known_of(scan)
        found = with_remembered(known, (beams[3],))
        assert found.bank is not None and found.bank.shape == beams[3].shape
        assert found.remembered > LIKE and known.remembered == 0
        errors.append((error_of(found, scan), error_of(known, scan)))
    remembered, alone = np.mean(errors, 0)
    assert remembered < 0.8 * alone


def test_the_verdict_says_what_the_background_rests_on():
    scan = scan_at(3, 7)
    problem = Problem(scan.counts.astype(np.float32), scan.dark.mean(0), scan.lit)
    bundled = load_model("bundled", "stack")
    bank = scan_at(3, 93).bank - scan.dark.mean(0)
    beam = bin_mean(torch.from_numpy(bank.astype(np.float32)), 2).numpy()
    mine = replace(bundled, beams=(log_references(beam)[0].astype(np.float32),))
    draw = Draw(steps=1, samples=1)
    one, other = (estimate_background(as_scan(problem), model, draw) for model in (mine, bundled))
    assert one.remembered > LIKE and REMEMBERED in str(one.verdict())
    assert other.remembered == 0 and UNREFERENCED in str(other.verdict())
    assert one.scale == other.scale == "relative"


def test_another_beam_is_not_used_and_that_is_said(beams, caplog):
    known = known_of(scan_at(3, 7))
    with caplog.at_level(logging.WARNING, "txmcorrect"):
        assert with_remembered(known, (beams[4],)) is known
    assert "another fixed pattern" in caplog.text
    turned = np.ascontiguousarray(beams[3][:, ::-1, ::-1])
    assert with_remembered(known, (turned,)) is known


def test_of_several_shapes_the_fitting_one_counts(beams):
    known = known_of(scan_at(3, 7))
    other = beams[3][:, :-4]
    assert with_remembered(known, (other,)) is known
    assert with_remembered(known, (other, beams[3])).bank is not None


def test_what_the_scan_brings_counts_first(beams):
    scan = scan_at(3, 7)
    own = replace(known_of(scan), bank=small(scan.bank - scan.dark.mean(0)))
    assert with_remembered(own, (beams[3],)) is own


def test_levels_stay_those_of_the_scan(beams):
    """Whatever the beam that is remembered was like: it says nothing of brightness."""
    scan = scan_at(3, 7)
    known = known_of(scan)
    one, two = (find_base(with_remembered(known, (b,))) for b in (beams[3], beams[3] + 5))
    index = np.arange(len(known.frames))
    assert np.allclose(one.fields(index), two.fields(index), atol=1e-3)


@pytest.mark.parametrize("usable", [0, 1])
def test_a_scan_without_frames_to_compare_is_left_as_it_is(beams, usable):
    known = known_of(scan_at(3, 7))
    few = replace(known, usable=np.arange(len(known.frames)) < usable)
    assert usable == 0 or with_remembered(few, (beams[3],)) is few
