"""Frames on the working grid, of scans of any length."""

import numpy as np
import pytest

from txmcorrect.background import thumbnails
from txmcorrect.background.thumbnails import Thumbnails
from txmcorrect.stream import PartFolder
from txmcorrect.team import Shared, Team

FRAMES = np.random.default_rng(0).random((21, 6, 5), np.float32)
UNIT = 4


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(thumbnails, "IN_MEMORY", 0)

    def make(number):
        rows = FRAMES[number * UNIT : (number + 1) * UNIT]
        return {"small": rows, "other": np.zeros(3)}

    with PartFolder(tmp_path / "out.h5", {"signature": "one"}) as part:
        pieces = Shared(part, Team())
        list(pieces.each("survey", -(-len(FRAMES) // UNIT), make))
        yield Thumbnails(pieces, "survey", UNIT, FRAMES.shape)


@pytest.mark.parametrize(
    "which",
    [
        0,
        np.int64(20),
        np.array([3]),
        np.array([20, 0, 7, 7]),
        [1, 2],
        np.arange(21) % 3 == 0,
        np.zeros(0, int),
    ],
)
def test_thumbnails_are_indexed_as_an_array_is(small, which):
    assert np.array_equal(small[which], FRAMES[which])
    assert len(small) == len(FRAMES) and small.shape == FRAMES.shape


def test_pieces_that_are_in_memory_are_not_read_again(small, monkeypatch):
    small[0], small[20]
    monkeypatch.setattr(small._pieces, "get", None)
    assert np.array_equal(small[np.array([3, 20])], FRAMES[[3, 20]])
    with pytest.raises(TypeError):
        small[8]
