"""Training on a data set of `prepare`: what is drawn, from which split, and a run on it."""

import h5py
import numpy as np
import pytest

from txmcorrect.config import DataSettings
from txmcorrect.errors import FormatError
from txmcorrect.simulate.stacks import MOST_BANK, REFERENCE_SHARES
from txmcorrect.training import harvest as module
from txmcorrect.training import measured
from txmcorrect.training.harvest import Harvest
from txmcorrect.training.measured import WAYS, draw_measured_course

SHAPE = (20, 32)
PLAIN = DataSettings(size=32, augment=False, counts=(1000.0, 1000.0))


@pytest.fixture
def data(tmp_path):
    """Transmission 0.5 everywhere under three references; validation says 0.25."""
    path = tmp_path / "data.h5"
    x = np.linspace(0.5, 1.5, SHAPE[1], dtype=np.float32)
    references = np.stack([np.broadcast_to(x**k, SHAPE) for k in range(3)])
    with h5py.File(path, "w") as file:
        for split, level in (("train", 0.5), ("validation", 0.25)):
            group = file.create_group(f"{split}/{SHAPE[0]}x{SHAPE[1]}")
            group["transmission"] = np.full((4, *SHAPE), level, np.float32)
            group["reference"] = references
    return path


def test_frames_are_samples_under_a_reference_with_photon_noise(data):
    drawn = Harvest(data, PLAIN, "train").draw(1, 0, 6)
    assert drawn.frames.shape == (6, 2, *SHAPE)
    expected = 0.5 * drawn.background[:, None]
    spread = np.sqrt(expected / drawn.photons[:, None, None, None])
    error = (drawn.frames - expected) / spread
    assert error.mean() == pytest.approx(0, abs=0.05)
    assert error.std() == pytest.approx(1, abs=0.05)
    for background, lit in zip(drawn.background, drawn.lit, strict=True):
        assert background[lit].mean() == pytest.approx(1000, rel=1e-3)


def test_training_and_validation_are_drawn_from_their_own_scans(data):
    for purpose, level in (("train", 0.5), ("validate", 0.25)):
        drawn = Harvest(data, PLAIN, purpose).draw(1, 0, 4)
        assert drawn.frames.mean() / drawn.background.mean() == pytest.approx(level, rel=0.02)


def test_a_draw_is_a_function_of_seed_and_index(data):
    harvest = Harvest(data, DataSettings(size=32), "train")
    first, again, other = (harvest.draw(seed, 5, 3) for seed in (1, 1, 2))
    assert np.array_equal(first.frames, again.frames)
    assert not np.array_equal(first.frames, other.frames)


def test_the_share_of_real_batches_is_what_was_asked_for(data):
    harvest = Harvest(data, DataSettings(size=32, real=0.3), "train")
    assert np.mean([harvest.turn(0, i) for i in range(400)]) == pytest.approx(0.3, abs=0.07)
    assert not any(
        Harvest(data, DataSettings(size=32, real=0.0), "train").turn(0, i) for i in range(50)
    )


def test_references_are_mirrored_upside_down_only(data):
    """They are tied to the detector: left stays left."""
    drawn = Harvest(data, DataSettings(size=32), "train").draw(2, 1, 20)
    assert (np.diff(drawn.background, axis=2) >= -1e-3).all()


def test_large_frames_are_binned_to_the_working_grid(data):
    drawn = Harvest(data, DataSettings(size=16), "train").draw(2, 1, 2)
    assert drawn.background.shape == (2, 10, 16)


def test_what_is_no_training_set_is_refused(tmp_path):
    text, empty = tmp_path / "text.h5", tmp_path / "empty.h5"
    text.write_text("nothing")
    with pytest.raises(FormatError, match="expected a training set"):
        Harvest(text, PLAIN, "train")
    with h5py.File(empty, "w"):
        pass
    with pytest.raises(FormatError, match="no group 'train'"):
        Harvest(empty, PLAIN, "train")
    assert not Harvest(empty, PLAIN, "validate").turn(0, 0)


# --- scans of the stack condition ---------------------------------------------------------------


def logs_of(images, lit):
    logs = np.log(images)
    return logs - logs[..., lit].mean(-1)[..., None, None]


def test_scans_are_a_function_of_seed_and_index(data):
    harvest = Harvest(data, DataSettings(size=32), "train")
    first, again, other = (harvest.draw_scans(seed, 5, 6) for seed in (1, 1, 2))
    assert sum(len(scan.targets) for scan in first) == 6
    for one, two in zip(first, again, strict=True):
        assert np.array_equal(one.frames, two.frames)
        assert np.array_equal(one.background, two.background)
    assert not np.array_equal(first[0].background[0], other[0].background[0])


def test_scans_show_the_samples_of_their_own_split(data, monkeypatch):
    monkeypatch.setattr(module, "OWN_SAMPLES", 1.0)
    monkeypatch.setattr(module, "EMPTY_SHARE", 0.0)
    for purpose, level in (("train", 0.5), ("validate", 0.25)):
        for scan in Harvest(data, PLAIN, purpose).draw_scans(1, 0, 8):
            light, seen = scan.background[:, scan.lit].sum(), scan.frames[:, scan.lit].sum()
            assert seen / light == pytest.approx(level, rel=0.02)


def test_simulated_samples_come_in_as_well(data, monkeypatch):
    """They know how to turn, which a folder of frames does not."""
    monkeypatch.setattr(module, "OWN_SAMPLES", 0.0)
    scans = [s for k in range(12) for s in Harvest(data, PLAIN, "train").draw_scans(1, k, 8)]
    assert any(s.turning for s in scans) and not all(s.turning for s in scans)


def test_the_beam_of_a_scan_stays_on_its_side_of_the_detector(data, monkeypatch):
    """References are mirrored upside down only: left stays left."""
    monkeypatch.setattr(measured, "PART", (1e-5, 1e-5))  # a beam that stands still
    for index in range(4):
        for scan in Harvest(data, DataSettings(size=32), "train").draw_scans(3, index, 16):
            assert (np.diff(scan.background, axis=2) > -1e-3 * scan.background.max()).all()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_references_do(count):
    rng = np.random.default_rng(2)
    references = np.exp(rng.normal(0, 0.1, (count, 12, 16))).astype(np.float32)
    for kind in REFERENCE_SHARES:
        course = draw_measured_course(rng, references, 9, kind)
        assert course.logs["frames"].shape == (9, 12, 16)
        assert all(np.isfinite(x).all() for x in course.logs.values())
        assert "bank" not in course.logs  # a scan on its way between them has none beside


def test_frames_lie_on_the_way_between_references_and_others_are_the_bank():
    """Noise that two references do not share is no drift: differences are smooth."""
    rng = np.random.default_rng(5)
    pattern, fields = rng.normal(0, 0.3, (48, 48)), rng.normal(0, 0.2, (30, 3))
    y, x = np.mgrid[:48, :48] / 48 - 0.5
    drifts = np.tensordot(fields, np.stack([x, y, x * y]), 1)
    noise = rng.normal(0, 0.01, (30, 48, 48))
    references = np.exp(pattern + drifts + noise).astype(np.float32)
    course = draw_measured_course(rng, references, 40, "bank+stale")
    moved = (course.logs["frames"] - course.logs["frames"][0])[:, course.lit]
    basis = np.stack([f[course.lit] for f in (x, y, x * y, np.ones_like(x))])
    rest = moved - moved @ np.linalg.pinv(basis) @ basis
    assert moved.std() > 0.001
    assert rest.std() < 0.1 * moved.std()
    stored = logs_of(references, course.lit)
    for image in course.logs["bank"]:
        near = np.abs(stored - image)[:, course.lit].max(1)
        assert near.min() < 1e-5 and near.argmin() > WAYS


def test_a_fresh_reference_is_nearly_where_the_scan_is():
    rng = np.random.default_rng(7)
    references = np.exp(rng.normal(0, 0.3, (6, 24, 24))).astype(np.float32)
    course = draw_measured_course(rng, references, 10, "fresh")
    apart = course.logs["frames"] - course.logs["before"]
    assert np.abs(apart[:, course.lit]).max() < 0.05


# --- what a model remembers ---------------------------------------------------------------------


def test_references_that_differ_most_are_remembered(data):
    """Of many taken at one moment one will do; those of validation are not among them."""
    rng = np.random.default_rng(1)
    moments = rng.normal(0, 0.2, (MOST_BANK, *SHAPE))
    with h5py.File(data, "a") as file:
        group = file[f"train/{SHAPE[0]}x{SHAPE[1]}"]
        del group["reference"]
        many = np.repeat(moments, 5, 0) + rng.normal(0, 0.001, (5 * MOST_BANK, *SHAPE))
        group["reference"] = (900 * np.exp(many)).astype(np.float32)
    (beam,) = Harvest(data, PLAIN, "train").beams()
    assert beam.shape == (MOST_BANK, *SHAPE)
    assert np.abs(beam.mean((1, 2))).max() < 1e-3
    found = [np.abs(moments - moments.mean((1, 2), keepdims=True) - b).mean((1, 2)) for b in beam]
    assert sorted(int(f.argmin()) for f in found) == list(range(MOST_BANK))


def test_fewer_references_are_all_remembered_and_two_are_no_bank(data):
    (beam,) = Harvest(data, PLAIN, "train").beams()
    assert beam.shape == (3, *SHAPE)
    assert Harvest(data, DataSettings(size=16), "train").beams()[0].shape == (3, 10, 16)
    with h5py.File(data, "a") as file:
        group = file[f"train/{SHAPE[0]}x{SHAPE[1]}"]
        two = group["reference"][:2]
        del group["reference"]
        group["reference"] = two
    assert Harvest(data, PLAIN, "train").beams() == ()
