"""The background inside a result: what it is made of, in layout 2; an image a key frame, in layout 1."""

import tracemalloc
from dataclasses import replace

import h5py
import numpy as np
import pytest

from txmcorrect import working_grid
from txmcorrect.background.correction import describe
from txmcorrect.background.course import Background, divide_frame, join
from txmcorrect.background.keyframes import nearest_keys
from txmcorrect.config import CorrectSettings
from txmcorrect.errors import FormatError
from txmcorrect.formats.corrected import read_result
from txmcorrect.formats.volume import read_correction
from txmcorrect.formats.write import ResultWriter
from txmcorrect.formats.write_process import GROUP
from txmcorrect.weights import no_model

SHAPE = (30, 43)
FACTOR = 4


def make_background(n=20, keys=(0, 3, 4, 9, 12, 19), jumps=(9,), c=3, shape=SHAPE, seed=0):
    """Fields of some thousand counts, patterns of some per cent, whole numbers of neither."""
    rng = np.random.default_rng(seed)
    k, grid = len(keys), tuple(-(-side // FACTOR) for side in shape)
    return Background(
        keys=np.array(keys),
        jumps=np.array(jumps, np.intp),
        fields=rng.normal(8, 0.3, (k, *grid)).astype(np.float32),
        std=rng.uniform(0.001, 0.1, (k, *grid)).astype(np.float32),
        details=(rng.normal(0, 0.02, (c, *shape)).astype(np.float32),),
        shares=np.concatenate([np.ones((k, 1)), rng.normal(0, 1, (k, c - 1))], 1),
        factor=FACTOR,
        amplitude=rng.uniform(0.9, 1.1, n),
        flag=np.zeros(n, np.uint32),
        lit=rng.random(shape) > 0.1,
        dark=np.full(shape, 100, np.float32),
        scale="relative",
        leak=np.zeros(k),
        grain=0.004,
    )


def process_of(background):
    return describe(CorrectSettings(scans=["scan.h5"]), background, no_model(), {})


def write(path, background):
    shape = (len(background.amplitude), *background.lit.shape)
    with ResultWriter(path, shape, {"x": "y"}) as writer:
        writer.write(0, np.ones(shape, np.float32))
        return writer.finish(process_of(background))


def as_layout_1(path, background):
    """Turn a result into what 0.1 wrote before: an image for each key frame."""
    images = [background.key_image(k) for k in range(len(background.keys))]
    spreads = [background.key_std(k) for k in range(len(background.keys))]
    with h5py.File(path, "a") as file:
        group = file[GROUP]
        del group.attrs["layout"]
        for name in ("field", "field_std", "detail", "share", "factor", "grain", "part"):
            if name in group:
                del group[name]
        options = {"compression": "gzip", "shuffle": True}
        group.create_dataset("log_background", data=np.stack(images), **options)
        group.create_dataset("log_std", data=np.stack(spreads), **options)
    return path


def joined():
    """Three parts, as an energy stack or a watched scan has them: more and less moves in them."""
    parts = [
        make_background(c=2, seed=1),
        make_background(12, (2, 5, 11), (), 1, seed=2),
        make_background(9, (4,), (), 4, seed=3),
    ]
    return join([replace(p, details=()) for p in parts], [p.details[0] for p in parts])


@pytest.mark.parametrize(
    "background",
    [
        make_background(),
        make_background(keys=range(20), jumps=(5, 6)),
        make_background(c=1, shape=(8, 64)),
        joined(),
    ],
    ids=["some keys", "every frame", "nothing moves", "parts"],
)
def test_a_file_gives_every_frames_background(tmp_path, background):
    out = write(tmp_path / "out.h5", background)
    with read_result(out) as result:
        for i, amplitude in enumerate(background.amplitude):
            found = result.log_background(i) + np.log(amplitude)
            assert np.abs(found - background.log_background(i)).max() < 1e-6
            np.testing.assert_allclose(result.log_std(i), background.log_std(i), rtol=1e-3)
            empty = np.exp(background.log_background(i))
            np.testing.assert_allclose(result.background(i), empty, rtol=1e-5)
        for key, frame in enumerate(background.keys):
            np.testing.assert_allclose(result.log_std(frame), background.key_std(key), rtol=1e-3)


def test_what_the_descriptions_say_is_enough(tmp_path):
    """Frame 5 in plain numpy, a quarter of the way: log b = bilinear(field) + sum share * detail + ..."""
    background = make_background(keys=(0, 4, 8), jumps=())
    with h5py.File(write(tmp_path / "out.h5", background)) as file:
        group = file[GROUP]
        assert group.attrs["layout"] == 2
        assert all(len(item.attrs["description"]) > 20 for item in group.values())
        field, share = (0.75 * group[n][1] + 0.25 * group[n][2] for n in ("field", "share"))
        wanted = bilinear(field, group["factor"][()], SHAPE)
        wanted += np.tensordot(share, group["detail"][()], 1) + np.log(group["amplitude"][5])
    assert np.abs(background.log_background(5) - wanted).max() < 2e-6


def test_files_of_layout_1_are_read(tmp_path):
    background = make_background()
    new, old = (write(tmp_path / name, background) for name in ("new.h5", "old.h5"))
    as_layout_1(old, background)
    with read_result(new) as now, read_result(old) as then:
        for i in range(len(background.amplitude)):
            apart = now.log_background(i) - then.log_background(i)
            assert np.abs(apart).max() < 2e-6  # mixed before it was spread out, and after
        for key, frame in enumerate(background.keys):
            assert np.array_equal(then.log_background(frame), background.key_image(key))
            assert np.array_equal(then.log_std(frame), background.key_std(key))
        np.testing.assert_allclose(now.background(7), then.background(7), rtol=1e-5)
    assert read_correction(new).counts == pytest.approx(read_correction(old).counts, rel=1e-6)


def test_a_later_layout_is_refused(tmp_path):
    out = write(tmp_path / "out.h5", make_background())
    with h5py.File(out, "a") as file:
        file[GROUP].attrs["layout"] = 3
    with pytest.raises(FormatError, match="layout 2 or older, got 3"):
        read_result(out)


def bilinear(field, factor, shape):
    """Between the centres of cells, the outer ones going on."""
    y, x = ((np.arange(side) + 0.5) / factor - 0.5 for side in shape)
    rows = np.array([np.interp(y, np.arange(field.shape[0]), column) for column in field.T]).T
    return np.array([np.interp(x, np.arange(field.shape[1]), row) for row in rows])


@pytest.mark.parametrize(("factor", "shape"), [(1, (5, 7)), (3, (15, 20)), (8, (37, 56))])
def test_spreading_out_is_bilinear(factor, shape):
    field = np.random.default_rng(0).normal(0, 0.3, (5, 7)).astype(np.float32)
    found = working_grid.native(field, factor, shape)
    assert np.abs(found - bilinear(field, factor, shape)).max() < 1e-6


@pytest.mark.parametrize("every", [1, 7])
def test_a_frame_costs_one_spreading_out_however_many_keys(monkeypatch, every):
    n = 60
    background = make_background(n, range(0, n, every), jumps=(20,))
    spread, calls = working_grid.spread_out, []

    def counted(*given):
        calls.append(given)
        return spread(*given)

    monkeypatch.setattr(working_grid, "spread_out", counted)
    for i in range(n):
        divide_frame(np.ones(SHAPE, np.float32), background, i)
    assert len(calls) == n


def test_the_nearest_key_is_the_earlier_of_two():
    rng = np.random.default_rng(0)
    for keys in ([0], [5], [2, 4, 9], range(30), np.unique(rng.integers(0, 30, 9))):
        found = nearest_keys(np.array(keys), 30)
        apart = np.abs(np.arange(30)[:, None] - np.array(keys)[None])
        assert found.tolist() == apart.argmin(1).tolist()


def test_memory_does_not_grow_with_key_frames(tmp_path):
    """Neither writer nor reader ever hold an image for each key frame."""
    shape, n = (256, 256), 160
    background = make_background(n, range(n), (), 2, shape)
    image = 4 * shape[0] * shape[1]
    out = tmp_path / "out.h5"
    with ResultWriter(out, (n, *shape), {"x": "y"}, threads=2) as writer:
        for start in writer.slabs.starts():
            writer.write(start, np.ones((writer.slabs.length(start), *shape), np.float32))
        process = process_of(background)
        tracemalloc.start()
        writer.finish(process)
        peak = tracemalloc.get_traced_memory()[1], tracemalloc.stop()
    assert peak[0] < 20 * image
    tracemalloc.start()
    with read_result(out) as result:
        for i in range(n):
            result.background(i)
    peak = tracemalloc.get_traced_memory()[1], tracemalloc.stop()
    assert peak[0] < 20 * image


def test_key_frames_cost_what_they_hold(tmp_path):
    """An image of each was 32 times as much: 16 pixels a cell, field and spread."""
    sizes = []
    for k in (10, 160):
        out = write(tmp_path / f"{k}.h5", make_background(160, range(k), (), 2, (128, 128)))
        with h5py.File(out) as file:
            sizes.append(sum(d.id.get_storage_size() for d in file[GROUP].values()))
    assert sizes[1] - sizes[0] < 150 * 2 * 4 * (128 // FACTOR) ** 2
