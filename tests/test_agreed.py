"""What residuals of frames share."""

import numpy as np
import pytest

from txmcorrect.background.agreed import agreed, main_course
from txmcorrect.background.pattern import HALVES

SHAPE, FRAMES, NOISE = (48, 64), 16, 0.003
LIT = np.ones(SHAPE, bool)


def waves(number: float, size: float) -> np.ndarray:
    y, x = np.indices(SHAPE) / max(SHAPE)
    return np.asarray(size * np.sin(number * x + 3) * np.cos(number * y), np.float32)


def scene(seed: int = 0, samples: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mistakes `(n, h, w)` in all frames and in step with a change, the change, and what frames show."""
    rng = np.random.default_rng(seed)
    course = np.linspace(-1, 1, FRAMES)[:, None, None]
    mistakes = waves(40, 0.004) + course * waves(60, 0.006)
    change = course * waves(5, 0.05)
    seen = mistakes + NOISE * rng.standard_normal((FRAMES, *SHAPE))
    if samples:  # somewhere else in every frame
        for frame in seen:
            top, left = rng.integers(0, 30, 2)
            frame[top : top + 20, left : left + 24] -= rng.uniform(0.05, 0.4)
    return mistakes, np.asarray(change, np.float32), np.asarray(seen, np.float32)


def noise() -> np.ndarray:
    return np.full(SHAPE, NOISE, np.float32)


@pytest.mark.parametrize("samples", [False, True])
def test_mistakes_of_all_frames_and_of_their_course_are_found(samples: bool) -> None:
    mistakes, change, seen = scene(samples=samples)
    found = agreed(seen, change, noise(), LIT)
    for k in (0, FRAMES // 2, FRAMES - 1):
        left = found[k] - mistakes[k]
        assert left.std() < 0.35 * mistakes[k].std()


def test_noise_and_samples_alone_are_hardly_taken() -> None:
    mistakes, change, seen = scene()
    found = agreed(seen - mistakes, change, noise(), LIT)
    assert found.std() < 0.3 * NOISE / FRAMES**0.5


def test_levels_do_not_matter() -> None:
    _, change, seen = scene()
    levels = np.random.default_rng(1).normal(0, 0.1, (FRAMES, 1, 1)).astype(np.float32)
    shifted = agreed(seen + levels, change + levels, noise(), LIT)
    np.testing.assert_allclose(shifted, agreed(seen, change, noise(), LIT), atol=2e-5)


def test_few_frames_or_no_light_say_nothing() -> None:
    _, change, seen = scene()
    few = slice(0, HALVES - 1)
    assert not agreed(seen[few], change[few], noise(), LIT).any()
    assert not agreed(seen, change, noise(), ~LIT).any()


def test_what_is_unlit_stays_as_it_is() -> None:
    _, change, seen = scene()
    lit = LIT.copy()
    lit[:10] = False
    assert not agreed(seen, change, noise(), lit)[:, ~lit].any()


def test_main_course() -> None:
    course = np.linspace(-1, 1, 9)
    shape = np.array([[1.0, -1.0, 2.0, -2.0]], np.float32)
    found = main_course(course[:, None, None] * shape + 5, np.ones((1, 4), bool))
    np.testing.assert_allclose(np.abs(found), np.abs(course) / course.std(), rtol=1e-6, atol=1e-9)
    assert not main_course(np.ones((9, 1, 4)), np.ones((1, 4), bool)).any()
