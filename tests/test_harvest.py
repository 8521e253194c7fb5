"""Training on a data set of `prepare`: what is drawn, from which split, and a run on it."""

import h5py
import numpy as np
import pytest

from txmcorrect.config import DataSettings
from txmcorrect.errors import FormatError
from txmcorrect.training.harvest import Harvest

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
