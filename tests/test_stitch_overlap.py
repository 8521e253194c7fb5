import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from txmcorrect.stitch.fields import Smoothness
from txmcorrect.stitch.layout import grid_cells, grid_neighbours
from txmcorrect.stitch.likely import likely
from txmcorrect.stitch.overlap import refine
from txmcorrect.stitch.preserve import implants, recovered_slopes
from txmcorrect.stitch.seam import measure_seam, seam_figure

SHAPE = (96, 96)
CELLS = grid_cells((3, 3), "rows,bottom-left")
PAIRS = grid_neighbours(CELLS)
POSITIONS = CELLS * np.array([80.0, 80.0])
LIT = np.ones(SHAPE, bool)


def tiles(seed, shared=0.05, own=0.0, gain=0.0):
    """Nine tiles of one world under known background errors `(9, h, w)`, in the logarithm."""
    rng = np.random.default_rng(seed)
    world = 0.3 * gaussian_filter(rng.standard_normal((300, 300)), 3) * 10

    def smooth(width):
        field = gaussian_filter(rng.standard_normal((300, 300)), width)[100:196, 100:196]
        return field / field.std()

    wrong = shared * smooth(10) + np.stack([own * smooth(30) for _ in range(9)])
    wrong += gain * rng.standard_normal(9)[:, None, None]
    crops = [world[y : y + 96, x : x + 96] for y, x in POSITIONS.astype(int)]
    return np.exp(np.stack(crops) + wrong), wrong


def seams(images):
    found = []
    for i, j in PAIRS:
        y, x = (POSITIONS[j] - POSITIONS[i]).astype(int)
        found.append(measure_seam((i, j), (images[i], images[j]), (y, x), LIT, 6))
    return found


def refined(images, **smoothness):
    result = refine(seams(images), 9, SHAPE, Smoothness(**smoothness))
    fixed = [images[i] * np.exp(-result.log_background(i)) for i in range(9)]
    return result, np.stack(fixed)


def test_seams_of_perfect_tiles_are_zero():
    images, _ = tiles(0, shared=0)
    assert seam_figure(seams(images)) == pytest.approx(0, abs=1e-6)
    result, _ = refined(images)
    assert np.abs(result.log_background(4)).max() < 1e-4


def test_gains_come_back():
    images, wrong = tiles(1, shared=0, gain=0.05)
    result, _ = refined(images, gain=0.5, shared=1e-4, own=1e-4)
    truth = wrong.mean((1, 2))
    assert result.log_gain == pytest.approx(truth - truth.mean(), abs=1e-3)


def test_seams_close_and_no_background_is_made_up():
    """Tile interiors are seen once: what overlaps cannot know must not get worse."""
    before, after = [], []
    for seed in range(3):
        images, wrong = tiles(seed, shared=0.05)
        result, fixed = refined(images, gain=0.002)
        left = np.stack([wrong[i] - result.log_background(i) for i in range(9)])
        assert seam_figure(seams(fixed)) < 0.4 * seam_figure(seams(images))
        before.append(wrong.std())
        after.append(left.std())
    assert np.mean(after) < np.mean(before)


def test_the_sample_drops_out_whatever_the_smoothness():
    """Another world under the same errors gives the same correction: nothing is flattened."""
    images, wrong = tiles(2, shared=0.05, own=0.02)
    flat = np.exp(wrong)
    for roughness in (0.003, 0.03):
        one, _ = refined(images, shared=roughness, own=roughness)
        other, _ = refined(flat, shared=roughness, own=roughness)
        assert one.log_background(4) == pytest.approx(other.log_background(4), abs=6e-3)


def test_a_drift_from_tile_to_tile_is_found_where_tiles_do_not_overlap():
    """Fields that change slowly over the tiles as taken are better known than unrelated ones."""
    rng = np.random.default_rng(5)
    slope = (np.indices(SHAPE)[1] / 95 - 0.5) * 0.1
    wrong = np.linspace(-0.5, 0.5, 9)[:, None, None] * slope
    images = np.exp(wrong + 0.01 * rng.standard_normal((9, *SHAPE)))

    def left(kept):
        result, _ = refined(images, kept=kept)
        off = np.stack([wrong[i] - result.log_background(i) for i in range(9)])
        return off.std()

    assert left(0.9) < 0.8 * left(0.0) < 0.8 * wrong.std()


def test_whether_the_beam_drifts_slowly_is_told_by_the_overlaps():
    """Fields that stay much the same from tile to tile, or are others in every tile; of three, all."""
    rng = np.random.default_rng(6)
    fields = gaussian_filter(rng.standard_normal((3, 9, *SHAPE)), (0, 0, 40, 40), mode="wrap")
    fields /= fields.std((1, 2, 3), keepdims=True)
    for some in fields:
        noise = 0.01 * rng.standard_normal(some.shape)
        kept = {}
        for name, own in (("slow", np.cumsum(0.1 * some, 0)), ("new", some)):
            images = np.exp(0.05 * own + noise)
            kept[name] = likely(seams(images), 9, SHAPE).kept
        assert kept["slow"] == 0.9
        assert kept["new"] < 0.9


def test_nothing_that_overlaps_leaves_the_beam_as_it_is_expected():
    assert likely([], 4, SHAPE) == Smoothness()


def test_what_only_edges_see_is_undone_there_and_left_alone_inside():
    """As at a detector's rim: too steep for any broad field."""
    images, _ = tiles(4, shared=0)
    rng = np.random.default_rng(4)
    along = gaussian_filter(rng.standard_normal((9, 96)), (0, 12))
    wrong = (0.1 * along / along.std())[:, :, None] * np.exp((np.indices(SHAPE)[1] - 95) / 8)
    images = images * np.exp(wrong)
    seam, left = {}, {}
    for near in (1e-6, 0.1):
        result, fixed = refined(images, near_size=near)
        seam[near] = seam_figure(seams(fixed))
        left[near] = np.std([wrong[k] - result.log_background(k) for k in range(9)])
    assert seam[0.1] < 0.75 * seam[1e-6] < 0.75 * seam_figure(seams(images))
    assert left[0.1] < left[1e-6] < wrong.std()
    inside = np.abs(result.near[:, 8:-8, 8:-8]).max()
    assert inside < 0.01 * np.abs(result.near).max()


@pytest.mark.parametrize("size", [8, 64])
def test_implants_are_recovered(size):
    images, _ = tiles(3, shared=0.05, own=0.02)
    disks = implants(POSITIONS, SHAPE, size)
    before = refine(seams(images), 9, SHAPE)
    with_disks = [images[i] * np.exp(disks(i)) for i in range(9)]
    after = refine(seams(with_disks), 9, SHAPE)
    assert recovered_slopes(disks, before, after, range(9)) == pytest.approx(1, abs=0.02)


def test_a_method_that_flattens_is_caught_by_the_implants():
    """The slope falls when a tile is divided by its own blur."""
    images, _ = tiles(3, shared=0)
    disks = implants(POSITIONS, SHAPE, 24)

    class Blur:
        def __init__(self, logs):
            self.logs = logs

        def log_background(self, tile):
            return gaussian_filter(self.logs[tile], 8)

    before = Blur(np.log(images))
    after = Blur([np.log(images[i]) + disks(i) for i in range(9)])
    assert recovered_slopes(disks, before, after, range(9)) < 0.8


def test_tiles_that_do_not_overlap_have_no_seam():
    images, _ = tiles(0)
    assert measure_seam((0, 1), (images[0], images[1]), (0, 96), LIT) is None
    assert np.isnan(seam_figure([]))


def test_tiles_that_only_touch_have_no_seam():
    """Tiles one whole frame apart share a border and no pixel."""
    lit = np.ones((40, 50), bool)
    tiles = np.ones((40, 50), np.float32), np.ones((40, 50), np.float32)
    assert measure_seam((0, 1), tiles, (3, 50), lit) is None
    assert measure_seam((0, 1), tiles, (-41, 2), lit) is None


def test_an_overlap_in_which_no_block_shows_both_tiles_says_nothing():
    dark = np.full(LIT.shape, 0.001)
    assert measure_seam((0, 1), (dark, np.ones(LIT.shape)), (0, 5), LIT) is None
