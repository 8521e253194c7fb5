"""Peers: each does what its name says, on cases where the right answer is known."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from txmcorrect import metrics
from txmcorrect.baselines import (
    BAD,
    PEERS,
    Estimate,
    Flats,
    NotApplicableError,
    Problem,
    correct,
    eigenflats,
    external,
    oracle,
)
from txmcorrect.baselines.smooth import wide_gaussian

SHAPE = (12, 48, 64)
LOCAL = [name for name in PEERS if name not in ("nabu-pca", "basic")]


def modes(rng):
    """Two smooth modes and a fixed pattern, logs `(h, w)`."""
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]] / 64
    return np.cos(3 * x + y), np.sin(4 * y - x), rng.normal(0, 0.02, SHAPE[1:])


def make_problem(noise=True, drift=0.05, seed=1, sample=True):
    """A drifting beam with a bank that spans the drift: the problem and its true log background."""
    rng = np.random.default_rng(seed)
    a, b, fixed = modes(rng)
    n = SHAPE[0]
    current = np.linspace(200, 190, n)

    def log_level(weights, ma):
        return np.log(5000 * ma / 200) + fixed + weights[0] * a + weights[1] * b

    def expose(log_light):
        mean = np.exp(log_light)
        return (100 + (rng.poisson(mean) if noise else mean)).astype(np.float32)

    t = np.linspace(0, 1, n)
    true = np.stack(
        [log_level((drift * u, -drift * u**2), c) for u, c in zip(t, current, strict=True)]
    )
    transmission = np.ones(SHAPE)
    if sample:
        for i in range(n):
            transmission[i, 10:20, 4 * i : 4 * i + 9] = 0.7
    bank_weights = rng.normal(0, drift, (15, 2))
    bank_current = rng.uniform(180, 220, 15)
    bank = [expose(log_level(w, c)) for w, c in zip(bank_weights, bank_current, strict=True)]

    def flats(index):
        return Flats(np.stack([expose(true[index]) for _ in range(8)]), np.full(8, current[index]))

    problem = Problem(
        frames=np.stack(
            [expose(lb + np.log(tr)) for lb, tr in zip(true, transmission, strict=True)]
        ),
        dark=np.full(SHAPE[1:], 100, np.float32),
        lit=np.ones(SHAPE[1:], bool),
        current_ma=current,
        before=flats(0),
        after=flats(-1),
        bank=Flats(np.stack(bank), bank_current),
    )
    return problem, true


def shape_error(estimate, true, lit):
    return float(np.sqrt(np.mean(metrics.log_rms(estimate.log_background - true, lit) ** 2)))


@pytest.mark.parametrize("name", [*LOCAL, *BAD])
def test_every_peer_answers_in_shape_and_type(name):
    problem, _ = make_problem()
    method = PEERS.get(name) or BAD[name]
    estimate = method(problem)
    assert estimate.log_background.shape == SHAPE
    assert estimate.log_background.dtype == np.float32
    assert np.isfinite(estimate.log_background).all()
    assert estimate.flags.shape == (SHAPE[0],)


@pytest.mark.parametrize("name", ["stale", "interpolated", "bank-mean"])
def test_references_give_the_absolute_scale_where_currents_are_known(name):
    problem, true = make_problem(noise=False, drift=0)
    estimate = PEERS[name](problem)
    assert estimate.scale == "absolute"
    np.testing.assert_allclose(estimate.log_background, true, atol=2e-3)
    unknown = Problem(
        problem.frames,
        problem.dark,
        problem.lit,
        before=problem.before,
        after=problem.after,
        bank=problem.bank,
    )
    assert PEERS[name](unknown).scale == "relative"


def test_interpolation_beats_the_stale_reference_under_drift():
    problem, true = make_problem()
    lit = problem.lit
    stale, between = (shape_error(PEERS[n](problem), true, lit) for n in ("stale", "interpolated"))
    assert between < 0.5 * stale


def test_registration_finds_a_shift_of_the_illumination():
    y, x = np.mgrid[:64, :64]
    rng = np.random.default_rng(0)
    fixed = rng.normal(0, 0.01, (64, 64))

    def log_background(shift):
        return 8 - ((x - 30 - shift) ** 2 + (y - 34 + shift) ** 2) / 1500 + fixed

    frames = np.exp(np.stack([log_background(0), log_background(1.5)])).astype(np.float32)
    problem = Problem(
        frames,
        np.zeros((64, 64), np.float32),
        np.ones((64, 64), bool),
        stale=Flats(frames[:1]),
    )
    moved = PEERS["shift-registered"](problem).log_background[1]
    inner = (slice(8, -8), slice(8, -8))
    error = (moved - log_background(1.5))[inner].std()
    assert error < 0.15 * (log_background(0) - log_background(1.5))[inner].std()


@pytest.mark.parametrize("name", ["eigen-flats", "robust-eigen-flats"])
def test_eigen_flats_follow_a_drift_that_the_bank_spans(name):
    problem, true = make_problem()
    error, still = (shape_error(PEERS[n](problem), true, problem.lit) for n in (name, "stale"))
    assert error < 0.35 * still
    assert PEERS[name](problem).scale == "absolute"
    with pytest.raises(NotApplicableError, match="bank of at least 3"):
        PEERS[name](problem.without("bank"))


def test_parallel_analysis_counts_the_modes_that_are_there():
    rng = np.random.default_rng(3)
    a, b, fixed = modes(rng)
    noise = rng.normal(0, 0.02, (15, *SHAPE[1:]))
    weights = rng.normal(0, 0.05, (15, 2))
    bank = fixed + weights[:, 0, None, None] * a + weights[:, 1, None, None] * b + noise
    for data, count in ((bank, 2), (noise, 0)):
        flat = (data - data.mean(0)).reshape(15, -1)
        assert eigenflats.significant_components(flat) == count


def test_robust_weights_ignore_outliers():
    rng = np.random.default_rng(4)
    design = rng.normal(size=(500, 3))
    target = design @ [1.0, -2, 0.5] + rng.normal(0, 0.01, 500)
    target[:100] += 5
    np.testing.assert_allclose(eigenflats.robust_weights(design, target), [1, -2, 0.5], atol=0.02)


def test_a_background_that_does_not_change_leaves_nothing_to_fit():
    problem, true = make_problem(noise=False, drift=0)
    for name in ("eigen-flats", "robust-eigen-flats"):
        np.testing.assert_allclose(PEERS[name](problem).log_background, true, atol=0.01)


def test_a_stack_that_never_shows_the_sample_twice_gives_its_background_to_the_median():
    problem, true = make_problem(drift=0)
    assert shape_error(PEERS["stack-median"](problem), true, problem.lit) < 0.01
    assert shape_error(PEERS["pair-mean"](problem), true, problem.lit) > 0.03


def test_wide_smoothing_is_the_gaussian_filter_it_stands_for():
    image = np.random.default_rng(5).normal(size=(2, 40, 64)).astype(np.float32)
    for sigma in (1.5, 9.0):
        exact = gaussian_filter(image, (0, sigma, sigma), truncate=6)
        np.testing.assert_allclose(wide_gaussian(image, sigma), exact, atol=2e-4)


def test_the_last_frame_is_paired_backwards():
    from txmcorrect.baselines.frames import partners

    assert partners(4).tolist() == [1, 2, 3, 2]
    assert partners(5, 2).tolist() == [2, 3, 4, 1, 2]
    with pytest.raises(NotApplicableError, match="more than 3 frames"):
        partners(3, 3)


@pytest.mark.parametrize("name", [*LOCAL, *BAD])
def test_a_single_frame_is_answered_or_refused(name):
    whole, _ = make_problem()
    problem = replace(whole, frames=whole.frames[:1], current_ma=whole.current_ma[:1])
    try:
        estimate = (PEERS.get(name) or BAD[name])(problem)
    except NotApplicableError:
        return
    assert estimate.log_background.shape == (1, *SHAPE[1:])
    assert np.isfinite(estimate.log_background).all()


def test_peers_say_what_they_lack():
    problem, _ = make_problem()
    alone = problem.without("before", "after", "bank")
    for name in ("stale", "interpolated", "bank-mean", "shift-registered", "smoothed-ratio"):
        with pytest.raises(NotApplicableError, match=r"expected .* got"):
            PEERS[name](alone)
    assert PEERS["double-flat"](alone).scale == "relative"


def test_correction_divides_subtracts_and_leaves_unlit_pixels_alone():
    problem, true = make_problem(noise=False, sample=False)
    lit = problem.lit.copy()
    lit[:3] = False
    spot = np.full(SHAPE[1:], 50, np.float32)
    shown = Problem(problem.frames + spot, problem.dark, lit)
    corrected = correct(shown, oracle(true.astype(np.float32), spot)(shown))
    np.testing.assert_allclose(corrected[:, 3:], 1, atol=1e-4)
    assert (corrected[:, :3] == 1).all()


def test_estimates_get_flags_of_their_own():
    assert Estimate(np.zeros((3, 2, 2), np.float32)).flags.tolist() == [False] * 3


def test_a_missing_package_is_named_and_the_variable_that_helps(monkeypatch):
    external._python.cache_clear()
    monkeypatch.setenv("TXMCORRECT_NABU_PYTHON", sys.executable)
    with pytest.raises(NotApplicableError, match=r"TXMCORRECT_NABU_PYTHON"):
        external._python("nabu", "no_such_module_anywhere")


def test_arrays_travel_to_another_interpreter_and_back():
    script = "import sys, numpy as np; np.save(sys.argv[2], 2 * np.load(sys.argv[1])['a'])"
    assert external._run(sys.executable, script, a=np.arange(3)).tolist() == [0, 2, 4]
    with pytest.raises(external.TxmError, match="ValueError: no"):
        external._run(sys.executable, "raise ValueError('no')", a=np.arange(3))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nabu-pca", "basic"])
def test_peers_of_other_packages(name):
    problem, true = make_problem()
    try:
        estimate = PEERS[name](problem)
    except NotApplicableError as reason:
        pytest.skip(str(reason))
    assert shape_error(estimate, true, problem.lit) < shape_error(
        PEERS["none"](problem), true, problem.lit
    )
