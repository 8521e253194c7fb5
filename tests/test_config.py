"""Settings: what is understood, what is refused, and that the example files are valid."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from txmcorrect import config
from txmcorrect.config import CorrectSettings, MosaicSettings, TrainSettings, load_settings
from txmcorrect.errors import TxmError

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_example_file_loads_and_is_a_possible_network(path):
    from txmcorrect.train import spec_of

    settings = load_settings(TrainSettings, {"config": path})
    assert settings.batch % settings.accumulate == 0
    spec = spec_of(settings)
    assert len(spec.sigmas()) == settings.diffusion.timesteps
    assert all(level < len(settings.network.multipliers) for level in settings.network.attention)


def test_the_source_settings_are_the_source_s():
    """Section 0 of the digest: widths, schedule, target, optimiser and checkpoints."""
    base = load_settings(
        TrainSettings, {"config": CONFIGS[0].parent / "source0-base.yaml"}
    ).model_dump()
    network, diffusion, data = (base[name] for name in ("network", "diffusion", "dataset"))
    assert (network["channels"], network["multipliers"]) == (64, (1, 2, 2, 4, 4))
    assert (network["blocks"], network["patch"], data["size"]) == (2, 1, 256)
    assert [2**level for level in network["attention"]] == [16]  # downsampling
    assert (diffusion["schedule"], diffusion["timesteps"]) == ("linear", 1000)
    assert (diffusion["target"], diffusion["loss"]) == ("eps", "l2")
    assert diffusion["uncon_ratio"] >= 0.5
    assert (base["batch"] // base["accumulate"], base["accumulate"]) == (6, 2)
    assert base["lr"] == pytest.approx(6 * 4.5e-6)
    assert (base["weight_decay"], base["clip"], base["precision"]) == (1e-4, 1.0, "fp16")
    assert (base["checkpoint_every"], base["ema"]) == (5000, 0)
    assert (data["augment"], data["brightness"], data["contrast"]) == (True, 0, 0)


def test_the_source_s_third_version_is_deeper_narrower_and_more_varied():
    base, third = (
        load_settings(TrainSettings, {"config": CONFIGS[0].parent / f"source0-{name}.yaml"})
        for name in ("base", "v3")
    )
    assert len(third.network.multipliers) > len(base.network.multipliers)
    assert third.network.channels < base.network.channels
    assert third.dataset.brightness > 0
    assert third.dataset.contrast > 0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("2GiB", 2 * 2**30), ("500 MB", 500_000_000), ("1e9", 10**9), ("64k", 64_000), (512, 512)],
)
def test_sizes(text, wanted):
    assert load_settings(CorrectSettings, {"scans": ["a"], "memory": text}).memory == wanted


@pytest.mark.parametrize("text", ["much", "", "-1GB", "0"])
def test_odd_sizes_are_refused(text):
    with pytest.raises(config.UsageError, match="--memory"):
        load_settings(CorrectSettings, {"scans": ["a"], "memory": text})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1:5", (1, 5, None)),
        (":", (None, None, None)),
        ("::2", (None, None, 2)),
        ("-3:", (-3, None, None)),
    ],
)
def test_slices_select_as_python_s_do(text, wanted):
    assert load_settings(CorrectSettings, {"scans": ["a"], "frames": text}).frames == wanted


def test_regions_and_grids():
    settings = load_settings(
        MosaicSettings, {"scans": ["a"], "roi": "1:5, 2:9", "grid": "4x5", "overlap": "0.1"}
    )
    assert (settings.roi, settings.grid, settings.overlap) == ((1, 5, 2, 9), (4, 5), 0.1)


@pytest.mark.parametrize(
    "given",
    [
        {"roi": "5:1,0:4"},
        {"roi": "0:4"},
        {"grid": "0x4"},
        {"frames": "1-4"},
        {"every": "often"},
        {"steps": 0},
        {"scans": []},
        {"format": "png"},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_in_one_line(given):
    with pytest.raises(config.UsageError) as caught:
        load_settings(MosaicSettings, {"scans": ["a"], **given})
    assert str(caught.value).startswith("--" + next(iter(given)))
    assert "\n" not in str(caught.value)


def test_settings_survive_their_own_text():
    """What is written beside an output can be read back."""
    given = {"scans": ["a"], "memory": "1MiB", "frames": "::2", "roi": "0:4,0:4", "grid": "2x3"}
    before = load_settings(MosaicSettings, given)
    assert load_settings(MosaicSettings, before.model_dump(mode="json")) == before


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        TrainSettings().steps = 3


@pytest.mark.parametrize(
    ("content", "said"),
    [("- 1\n- 2\n", "`name: value` lines, got list"), ("a: [", "readable YAML"), (None, "YAML")],
)
def test_an_unreadable_settings_file(tmp_path, content, said):
    path = tmp_path / "some.yaml"
    if content:
        path.write_text(content)
    with pytest.raises(TxmError, match="--config") as caught:
        load_settings(TrainSettings, {"config": path})
    assert said in str(caught.value)


def test_an_empty_settings_file_changes_nothing(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("")
    assert load_settings(TrainSettings, {"config": path}) == TrainSettings(config=path)
