import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from txmcorrect.stitch.blend import blend_strips, feather, mosaic_shape, place_tile

LIT = np.ones((40, 50), bool)


def blended(tiles, positions, strip_rows=16, lit=LIT, width=6, multiband=False):
    weight = feather(lit, width)
    order = list(range(len(tiles)))
    strips = blend_strips(lambda i: tiles[i], weight, positions, order, strip_rows, multiband)
    parts = list(strips)
    assert [top for top, _ in parts] == list(np.cumsum([0] + [len(p) for _, p in parts[:-1]]))
    return np.concatenate([part for _, part in parts])


def world(seed=0):
    field = gaussian_filter(np.random.default_rng(seed).standard_normal((120, 140)), 2)
    return (1 + field).astype(np.float32)


# Near its edge a tile's coarse band is an average over what it has: bands of two tiles differ there.
@pytest.mark.parametrize(("multiband", "worst", "usual"), [(False, 1e-5, 1e-6), (True, 0.03, 3e-3)])
def test_tiles_of_one_world_give_that_world(multiband, worst, usual):
    scene = world()
    positions = np.array([[0.0, 0.0], [3.0, 38.0], [30.0, 2.0]])
    tiles = [scene[int(y) : int(y) + 40, int(x) : int(x) + 50] for y, x in positions]
    image = blended(tiles, positions, multiband=multiband)
    assert image.shape == mosaic_shape(positions, (40, 50))
    known = np.isfinite(image)
    assert known.mean() > 0.6
    off = image[known] - scene[: image.shape[0], : image.shape[1]][known]
    assert np.abs(off).max() < worst
    assert np.sqrt(np.mean(off**2)) < usual


@pytest.mark.parametrize("strip_rows", [1, 7, 16, 1000])
def test_strips_of_any_height_give_the_same_image(strip_rows):
    positions = np.array([[0.0, 0.3], [2.6, 37.9], [30.1, 2.2], [28.4, 39.0]])
    tiles = [world(i)[:40, :50] for i in range(4)]
    assert np.array_equal(
        blended(tiles, positions, strip_rows), blended(tiles, positions, 16), equal_nan=True
    )


def test_each_tile_is_read_once():
    reads = []
    tile = np.ones((40, 50), np.float32)

    def read(index):
        reads.append(index)
        return tile

    positions = np.array([[0.0, 0.0], [0.0, 45.0], [35.0, 0.0]])
    list(blend_strips(read, feather(LIT, 4), positions, [0, 1, 2], 8))
    assert sorted(reads) == [0, 1, 2]


def test_sub_pixel_placement_keeps_fine_detail():
    scene = world()
    placed = place_tile(scene[:40, :50], feather(LIT, 4), np.array([0.5, 0.5]))
    again = place_tile(placed.image[:40, :50], feather(LIT, 4), np.array([0.5, 0.5]))
    inside = np.s_[6:36, 6:46]
    assert again.image[inside] == pytest.approx(scene[5:35, 5:45], abs=2e-3)


def test_unlit_pixels_are_left_out_and_do_not_ring():
    lit = LIT.copy()
    lit[:12, -12:] = False
    tile = np.where(lit, 1.0, 50.0).astype(np.float32)
    image = blended([tile], np.array([[0.4, 0.6]]), lit=lit)
    known = np.isfinite(image)
    assert not known[:10, -10:].any()
    assert np.abs(image[known] - 1).max() < 0.01


def test_the_feather_starts_and_ends_gently():
    rise = feather(np.ones((9, 101), bool), 20)[4]
    weight = feather(np.ones((101, 101), bool), 20)[50]
    assert rise[0] == 0
    assert weight[50] == 1
    assert np.abs(np.diff(weight, 2)).max() < 0.02


def test_the_better_exposed_tile_counts_more():
    bright, dark = np.full((40, 50), 1.0, np.float32), np.full((40, 50), 0.1, np.float32)
    image = blended([bright, dark], np.zeros((2, 2)))
    assert image[20, 25] == pytest.approx((1 + 0.1 * 0.1) / 1.1, abs=1e-3)


def test_bands_keep_detail_single_where_tiles_are_out_of_place():
    """A step in level fades over the whole overlap; a line that is off by 3 px is not shown twice."""
    wide = np.ones((40, 80), bool)
    left, right = np.ones((40, 80), np.float32), np.full((40, 80), 1.1, np.float32)
    left[20], right[23] = 0.5, 0.6
    positions = np.array([[0.0, 0.0], [0.0, 40.0]])

    def twice(image):
        """Columns in which both lines are dark, each by a good part of its contrast."""
        return int(((image[20] < 0.85) & (image[23] < 0.95)).sum())

    plain = blended([left, right], positions, lit=wide, width=30)
    banded = blended([left, right], positions, lit=wide, width=30, multiband=True)
    assert twice(banded) < twice(plain)
    level = banded[5, 2:118]
    assert np.abs(np.diff(level)).max() < 1.5 * np.abs(np.diff(plain[5, 2:118])).max()


@pytest.mark.parametrize("strip_rows", [1, 9])
def test_strips_of_bands_are_the_same_for_any_height(strip_rows):
    positions = np.array([[0.0, 0.3], [2.6, 37.9], [30.1, 2.2], [28.4, 39.0]])
    tiles = [world(i)[:40, :50] for i in range(4)]
    one, other = (blended(tiles, positions, k, multiband=True) for k in (strip_rows, 16))
    assert np.array_equal(one, other, equal_nan=True)
