from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from typer.testing import CliRunner

from txmcorrect.background.conditions import CHANNELS
from txmcorrect.cli import app
from txmcorrect.config import MosaicSettings
from txmcorrect.errors import FormatError, GeometryError, OutputError
from txmcorrect.formats.ome import read_level, write_pyramid
from txmcorrect.mosaic import linked, run, uncovered
from txmcorrect.mosaicking.source import lit_area
from txmcorrect.simulate import simulate_scan
from txmcorrect.stitch.layout import parse_tile_configuration
from txmcorrect.weights import ModelSpec, save_model

GRID = (3, 3)


@pytest.fixture(scope="module")
def scene():
    return simulate_scan(
        "mosaic-dense", "slow", 20000, (128, 128), seed=3, grid=GRID, overlap=0.2, bank=0
    )


def write_tiles(folder: Path, frames, names=None) -> Path:
    folder.mkdir()
    for i, frame in enumerate(frames):
        name = names[i] if names else f"tile_{i + 1:02d}.tif"
        tifffile.imwrite(folder / name, frame)
    return folder


def settings(folder, tmp_path, **given):
    given = {"grid": GRID, "flats": "median", "quiet": True, **given}
    return MosaicSettings(scans=[folder], out=tmp_path / "mosaic.tif", **given)


def error_px(found, truth):
    difference = np.asarray(found) - truth
    return np.hypot(*(difference - difference.mean(0)).T).max()


def registered(tmp_path):
    return parse_tile_configuration((tmp_path / "TileConfiguration.registered.txt").read_text())


def test_a_grid_alone_gives_the_positions_and_an_image(scene, tmp_path):
    folder = write_tiles(tmp_path / "tiles", scene.counts)
    result = run(settings(folder, tmp_path, pixel_size_nm=65.0))
    assert error_px(list(registered(tmp_path).values()), scene.position_px) < 0.5
    image = tifffile.imread(tmp_path / "mosaic.tif")
    assert image.dtype == np.float32
    assert np.isfinite(image).mean() > 0.85
    assert {p.suffix for p in result.outputs} == {".tif", ".png", ".html", ".txt"}
    assert all(p.stat().st_size for p in result.outputs)
    assert "tiles contradict each other" in (tmp_path / "mosaic.html").read_text()
    assert not list(tmp_path.glob(".mosaic*"))


def test_the_file_is_a_tiled_ome_pyramid_with_pixel_size(tmp_path):
    image = np.random.default_rng(0).random((700, 1100)).astype(np.float32)
    image[:50] = np.nan
    strips = ((top, image[top : top + 200]) for top in range(0, 700, 200))
    path = write_pyramid(tmp_path / "a.tif", strips, (700, 1100), pixel_size_um=0.065)
    with tifffile.TiffFile(path) as file:
        assert file.is_bigtiff and file.is_ome
        assert file.pages[0].is_tiled
        assert [level.shape for level in file.series[0].levels] == [
            (700, 1100),
            (350, 550),
            (175, 275),
        ]
        assert 'PhysicalSizeX="0.065"' in file.ome_metadata
        assert np.array_equal(file.asarray(), image, equal_nan=True)
    half = read_level(path, 400)
    assert half[100, 100] == pytest.approx(image[200:202, 200:202].mean(), rel=1e-5)
    assert np.isnan(half[:25]).all()


def test_tiles_are_corrected_once_and_stitched_again(scene, tmp_path, monkeypatch):
    torch.manual_seed(0)
    spec = ModelSpec(
        network={"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [], "patch": 4},
        condition="pair",
        cond_channels=CHANNELS["pair"],
        size=64,
    )
    model = tmp_path / "tiny.safetensors"
    save_model(model, spec.build().state_dict(), spec)
    folder = write_tiles(tmp_path / "tiles", scene.counts)
    given = {"flats": "generated", "model": str(model), "steps": 1, "device": "cpu"}
    run(settings(folder, tmp_path, **given))
    first = tifffile.imread(tmp_path / "mosaic.tif")
    (tmp_path / "mosaic.tif").unlink()

    def refuse(*_, **__):
        raise AssertionError("the tiles were corrected again")

    monkeypatch.setattr("txmcorrect.mosaicking.source.correct_scan", refuse)
    run(settings(folder, tmp_path, **given))
    assert np.array_equal(tifffile.imread(tmp_path / "mosaic.tif"), first, equal_nan=True)

    save_model(model, spec.build().state_dict(), spec)  # other weights of the same name
    with pytest.raises(AssertionError, match="corrected again"):
        run(settings(folder, tmp_path, overwrite=True, **given))


@pytest.mark.slow
def test_a_layout_that_is_wrong_by_many_pixels_is_improved(scene, tmp_path):
    folder = write_tiles(tmp_path / "tiles", scene.counts)
    rough = scene.position_px + np.random.default_rng(1).uniform(-5, 5, (9, 2))
    lines = [f"tile_{i + 1:02d}.tif; ; ({x}, {y})" for i, (y, x) in enumerate(rough)]
    (tmp_path / "layout.txt").write_text("dim = 2\n" + "\n".join(lines))
    run(settings(folder, tmp_path, grid=None, layout=tmp_path / "layout.txt"))
    assert error_px(list(registered(tmp_path).values()), scene.position_px) < 0.5


def test_a_black_tile_and_a_duplicate_are_flagged_and_left_out(scene, tmp_path):
    frames = scene.counts.copy()
    frames[4] = 3
    frames[8] = frames[7]
    folder = write_tiles(tmp_path / "tiles", frames)
    result = run(settings(folder, tmp_path, strict=True))
    assert "tile_05.tif (no light)" in result.message
    assert "tile_09.tif (the same frame as tile_08.tif)" in result.message
    assert result.exit_code == 3
    found = registered(tmp_path)
    assert "tile_05.tif" not in found and "tile_09.tif" not in found
    kept = [0, 1, 2, 3, 5, 6, 7]
    # The median of seven tiles leaves ghosts of the sample, which pull by a good half pixel.
    assert error_px(list(found.values()), scene.position_px[kept]) < 1.0


def test_tiles_in_the_wrong_order_are_refused_with_the_right_one(scene, tmp_path):
    folder = write_tiles(tmp_path / "tiles", scene.counts)
    with pytest.raises(GeometryError, match="with --order rows,bottom-left"):
        run(settings(folder, tmp_path, order="rows,top-left"))
    assert not (tmp_path / "mosaic.tif").exists()


def test_a_missing_tile_is_named(scene, tmp_path):
    names = [f"tile_{i:02d}.tif" for i in (1, 2, 3, 4, 6, 7, 8, 9)]
    folder = write_tiles(tmp_path / "tiles", scene.counts[:8], names)
    with pytest.raises(GeometryError, match=r"3x3 has 9 tiles, got 8 \(number 5 is missing\)"):
        run(settings(folder, tmp_path))


def test_a_tile_of_another_size_is_named(scene, tmp_path):
    folder = write_tiles(tmp_path / "tiles", [*scene.counts[:8], scene.counts[8][:100]])
    with pytest.raises(FormatError, match=r"tile_09\.tif"):
        run(settings(folder, tmp_path))


def test_a_single_tile_has_nothing_to_stitch(scene, tmp_path):
    folder = write_tiles(tmp_path / "tiles", scene.counts[:1])
    with pytest.raises(GeometryError, match="at least two tiles, got 1"):
        run(settings(folder, tmp_path, grid=(1, 1)))


def test_without_any_layout_the_way_out_is_said(scene, tmp_path):
    folder = write_tiles(tmp_path / "tiles", scene.counts)
    with pytest.raises(GeometryError, match="give --grid ROWSxCOLUMNS"):
        run(settings(folder, tmp_path, grid=None))


def test_holes_that_no_tile_covers_are_counted():
    image = np.ones((20, 30), np.float32)
    image[:2] = np.nan  # outside: the mosaic's own edge
    assert uncovered(image, 2.0) == ""
    image[8:10, 12:15] = np.nan
    assert uncovered(image, 2.0).startswith("1 places, 24 pixels")


def test_the_rim_of_the_light_is_left_out_and_dead_pixels_stay_small():
    y, x = np.indices((64, 64))
    background = np.where(np.hypot(y - 32, x - 32) < 30, 1000.0, 150.0)
    known = np.ones((64, 64), bool)
    known[32, 32] = False
    lit, light = lit_area(background, known)
    assert not lit[32, 32] and lit[32, 33] and lit[31, 32]
    assert not lit[32, 32 + 28] and lit[32, 32 + 25]
    assert light[lit].min() == light[lit].max() == 1
    assert (light[~lit] == 0).all()


def test_an_existing_output_is_kept(scene, tmp_path):
    folder = write_tiles(tmp_path / "tiles", scene.counts)
    (tmp_path / "mosaic.tif").write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        run(settings(folder, tmp_path))
    assert (tmp_path / "mosaic.tif").read_text() == "mine"


def test_the_command_says_one_line_and_exits(tmp_path):
    folder = write_tiles(tmp_path / "tiles", np.ones((4, 32, 32), np.uint16))
    result = CliRunner().invoke(app, ["mosaic", str(folder), "--grid", "2x3", "--quiet"])
    assert isinstance(result.exception, GeometryError)
    assert "\n" not in str(result.exception)


@pytest.mark.slow
def test_stage_positions_may_point_the_other_way(scene, tmp_path):
    from txmcorrect.mosaicking.arrange import align
    from txmcorrect.mosaicking.plan import Plan
    from txmcorrect.scan import ArrayFrames

    class Silent:
        def __call__(self, stage, done, total): ...

    class Source:
        frames = ArrayFrames((scene.counts / scene.background).astype(np.float32))
        lit = scene.lit

    upward = scene.position_px * [-1, 1]
    plan = Plan(tuple("abcdefghi"), None, upward, {}, stage=True)
    given = MosaicSettings(scans=[tmp_path])
    found = align(given, Source, plan, frozenset(), 9, Silent())
    assert error_px(found.positions, scene.position_px) < 0.5


# Shifts (y, x) of pairs with much to see, read off the peak of the band-passed correlation.
REAL_SHIFTS = {
    (15, 11): (491, 3),
    (5, 6): (-3, 482),
    (7, 8): (1, 488),
    (15, 16): (-3, 485),
    (11, 7): (501, 18),
    (14, 15): (3, 504),
    (12, 8): (506, 20),
    (5, 1): (502, 25),
}


@pytest.mark.slow
@pytest.mark.parametrize("grid", [(4, 4), None])
def test_real_tiles_find_their_places(shared_data, tmp_path, grid):
    """From the grid alone, and from the layout beside them, which is wrong by up to 18 px."""
    folder = shared_data / "lm_mosaic_4x4"
    run(settings(folder, tmp_path, grid=grid))
    found = list(registered(tmp_path).values())
    off = [
        np.hypot(*(np.subtract(found[j - 1], found[i - 1]) - shift))
        for (i, j), shift in REAL_SHIFTS.items()
    ]
    assert np.median(off) < 1.5
    assert max(off) < 4


@pytest.mark.parametrize(
    ("pairs", "held"),
    [
        ([], set()),
        ([(0, 2)], {0, 2}),
        ([(0, 2), (1, 3), (3, 5)], {1, 3, 5}),  # two columns, nothing between them
        ([(0, 2), (1, 3), (3, 5), (2, 3)], {0, 1, 2, 3, 5}),
    ],
)
def test_only_tiles_that_pairs_link_are_held_by_more_than_the_stage(pairs, held):
    used = tuple(SimpleNamespace(first=a, second=b) for a, b in [*pairs, (4, 5)])
    weights = [*(1.0 for _ in pairs), 0.1]  # the last one was given up
    alignment = SimpleNamespace(
        used=used, positions=np.zeros((6, 2)), placement=SimpleNamespace(weights=weights)
    )
    assert linked(alignment) == held
