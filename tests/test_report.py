import io
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import tifffile
from PIL import Image

from txmcorrect.errors import OutputError
from txmcorrect.report import plots
from txmcorrect.report.correction import (
    CorrectionSummary,
    ShownFrame,
    correction_report,
    frames_to_show,
)
from txmcorrect.report.page import Page, png_bytes, write_png
from txmcorrect.report.plots import Timeline


def make_images(count=3, shape=(40, 60)):
    return np.random.default_rng(0).normal(1, 0.1, (count, *shape))


def make_summary(**fields):
    raw = 100 * make_images(7)
    lit = np.ones(raw.shape[1:], bool)
    lit[:5, :5] = False
    flag = np.array([0, 1, 0, 3, 0, 0, 2])
    shown = [ShownFrame(label, raw[i], raw[i], raw[i] / 100) for i, label in frames_to_show(flag)]
    base = {
        "title": "scan.h5",
        "verdict": "CHECK (frames 1, 3): the sample leaked",
        "scale": "relative",
        "frames": shown,
        "key_index": np.array([0, 3, 6]),
        "drift": np.array([0, 0.01, 0.02]),
        "amplitude": np.linspace(1, 1.1, 7),
        "flag": flag,
        "flag_names": ("leak", "dim"),
        "jump_index": [2],
        "lit": lit,
        "log_std": np.full(lit.shape, 0.01),
        "time_s": np.arange(7) * 60.0,
        "facts": {"reader": "own"},
        "options": {"steps": 4, "model": "<bundled>"},
    }
    return CorrectionSummary(**{**base, **fields})


def pixels(figure):
    return np.asarray(Image.open(io.BytesIO(png_bytes(figure))).convert("RGB")).astype(int)


def share_of(image, colour, tolerance=12):
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(image - wanted).max(-1) < tolerance).mean()


class Checker(HTMLParser):
    """Collects the sources of a page and checks that its tags are balanced."""

    VOID = ("meta", "img", "br")

    def __init__(self):
        super().__init__()
        self.open, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_page(text):
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert all(link.startswith("data:image/png;base64,") for link in checker.links)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    return checker.links


@pytest.mark.parametrize("word", ["TRUSTED", "CHECK", "FAILED"])
def test_verdict_comes_first_and_has_its_colour(word):
    text = Page("scan", f"{word} (why)", "scale: from the reference").html()
    check_page(text)
    body = text[text.index("<body>") :]
    assert body.index(f"<strong>{word}</strong><span>(why)</span>") < body.index("<h1>")
    assert f"background: var(--{word})" in body and f"--{word}: #" in text
    assert "<span>scale: from the reference</span>" in body
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text


@pytest.mark.parametrize(
    ("verdict", "why"),
    [
        ("TRUSTED: no flag", "no flag"),
        ("CHECK (frames 1): leak", "(frames 1): leak"),
        ("FAILED", ""),
    ],
)
def test_verdict_is_split_into_word_and_reason(verdict, why):
    text = Page("scan", verdict).html()
    word = verdict.split()[0].rstrip(":")
    assert f"var(--{word})" in text
    assert f"<strong>{word}</strong>" + (f"<span>{why}</span>" if why else "") + "</div>" in text


def test_page_escapes_and_keeps_order():
    page = Page("<scan>").heading("A & B").text("<script>").table([("<x>", 1)], ("name", "value"))
    text = page.html()
    check_page(text)
    assert "<script>" not in text and "verdict" not in text[text.index("<body>") :]
    order = [text.index(part) for part in ("<h1>&lt;scan", "A &amp; B", "&lt;script", "<thead>")]
    assert order == sorted(order)
    assert "<td>&lt;x&gt;</td><td>1</td>" in text


def test_page_is_written_whole_and_replaced(tmp_path):
    path = tmp_path / "report.html"
    Page("one").write(path)
    Page("two").write(path)
    assert "<h1>two</h1>" in path.read_text()
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OutputError, match="folder does not exist"):
        Page("three").write(tmp_path / "nowhere" / "report.html")


def test_figures_lie_inside_the_page():
    figure = plots.contact_sheet(make_images())
    (link,) = check_page(Page("scan").figure(figure, "three <frames>").html())
    assert link.startswith("data:image/png;base64,iVBOR")


def test_no_state_of_pyplot_is_touched(tmp_path):
    write_png(plots.contact_sheet(make_images(1)), tmp_path / "a.png")
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )


def test_limits_are_percentiles_of_lit_finite_pixels():
    image = np.linspace(0, 1, 10_000).reshape(100, 100)
    low, high = plots.percentile_limits([image], share=1)
    assert low == pytest.approx(0.01, abs=1e-3) and high == pytest.approx(0.99, abs=1e-3)
    image[0, :50] = np.nan
    lit = image < 0.5
    assert plots.percentile_limits([image, image + 1], lit, 1)[1] == pytest.approx(1.495, abs=0.01)
    assert plots.percentile_limits([np.full((3, 3), np.nan)]) == (0, 1)
    low, high = plots.percentile_limits([np.ones((3, 3))])
    assert low == 1 and high > low


def test_equal_values_have_equal_greys_in_all_images():
    """One scale for all: a flat image of the same value looks the same beside any other."""
    flat = np.full((40, 40), 0.5)
    ramp = np.tile(np.linspace(0, 1, 40), (40, 1))
    alone = plots.contact_sheet([ramp, flat, flat], limits=(0, 1))
    image = pixels(alone)
    assert share_of(image, "#7f7f7f", 3) > 0.3


def test_unlit_and_nan_pixels_have_a_colour_of_their_own():
    images = make_images(2)
    assert share_of(pixels(plots.contact_sheet(images)), plots.UNLIT) == 0
    lit = np.ones(images[0].shape, bool)
    lit[:, :30] = False
    by_mask = share_of(pixels(plots.contact_sheet(images, lit=lit)), plots.UNLIT)
    images[:, :, :30] = np.nan
    by_nan = share_of(pixels(plots.contact_sheet(images)), plots.UNLIT)
    assert by_mask == pytest.approx(by_nan, abs=0.01) and by_mask > 0.2


def test_large_images_are_binned_without_spreading_nan():
    image = np.ones((1001, 1203))
    image[0, 0] = np.nan
    image[500:600] = np.nan
    small = plots._reduce(image)
    assert max(small.shape) <= plots.SIDE
    assert small[0, 0] == 1 and np.isnan(small[140]).all()
    assert plots._reduce(np.ones((2, 6000))).shape == (1, 400)


@pytest.mark.parametrize("shape", [(2, 640), (300, 20), (1, 1)])
def test_odd_shapes_are_drawn(shape):
    images = make_images(1, shape)
    assert pixels(plots.triptychs(["a"], images, images, images)).std() > 1
    assert pixels(plots.contact_sheet(images, ["a"])).std() > 1


def test_drift_is_the_rms_change_of_shape():
    lit = np.ones((50, 50), bool)
    lit[0] = False
    base = make_images(1, (50, 50))[0]
    ramp = np.tile(np.linspace(-1, 1, 50), (50, 1))
    wild = np.where(lit, base, 1e9)
    drift = plots.drift_from_first(iter([base, base + 3, wild + 0.05 * ramp / ramp.std()]), lit)
    np.testing.assert_allclose(drift, [0, 0, 0.05], atol=1e-12)


def test_curves_mark_flags_and_jumps():
    plain = Timeline(np.zeros(9, int), ("leak",))
    marked = Timeline(np.array([0] * 8 + [1]), ("leak",), [4], np.arange(9) * 30.0)
    keys, drift = np.array([0, 4, 8]), np.array([0, 0.01, 0.03])
    assert share_of(pixels(plots.drift_curve(keys, drift, plain)), plots.ALARM) == 0
    figure = plots.drift_curve(keys, drift, marked)
    assert share_of(pixels(figure), plots.ALARM) > 0
    assert figure.axes[0].get_xlabel() == "minutes"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["key frames", "jump", "leak (1)"]
    line = figure.axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(line, [0, np.nan, 1, 3])
    assert plots.amplitude_curve(np.ones(9), plain).axes[0].get_xlabel() == "frame"


def test_worst_flagged_frames_are_shown_beside_first_middle_and_last():
    flag = np.array([0, 1, 0, 3, 0, 1, 0, 0, 2])
    assert [i for i, _ in frames_to_show(flag)] == [0, 1, 3, 4, 8]
    shown = dict(frames_to_show(flag, badness=np.arange(9)))
    assert shown == {
        0: "frame 0 (first)",
        4: "frame 4 (middle)",
        5: "frame 5 (flagged)",
        8: "frame 8 (last, flagged)",
    }
    assert [i for i, _ in frames_to_show(np.zeros(2, int))] == [0, 1]


def test_correction_report(tmp_path):
    page, png = tmp_path / "report.html", tmp_path / "report.png"
    assert correction_report(page, make_summary(), png) == (page, png)
    text = page.read_text()
    assert len(check_page(text)) == 5
    for part in (
        "<strong>CHECK</strong><span>(frames 1, 3): the sample leaked</span>",
        "<span>scale: relative</span>",
        "<td>flagged: leak</td><td>2: 1, 3</td>",
        "<td>reader</td><td>own</td>",
        "<td>model</td><td>&lt;bundled&gt;</td>",
    ):
        assert part in text
    with Image.open(png) as image:
        assert image.format == "PNG"


def test_report_of_a_single_sample_says_that_the_spread_is_unknown(tmp_path):
    summary = make_summary(log_std=None, time_s=None)
    correction_report(tmp_path / "report.html", replace(summary, frames=summary.frames[:1]))
    text = (tmp_path / "report.html").read_text()
    assert len(check_page(text)) == 4
    assert "unknown, one sample was drawn" in text


def test_real_tiles_make_a_contact_sheet(shared_data):
    files = sorted((shared_data / "lm_mosaic_4x4").glob("*.tif"))[:4]
    tiles = np.stack([tifffile.imread(file) for file in files]).astype(float)
    flat = tiles / np.median(tiles, axis=0)
    low, high = plots.percentile_limits(flat)
    assert 0.3 < low < 0.95 and 1.05 < high < 2
    assert pixels(plots.contact_sheet(flat, [f.stem[-4:] for f in files], 2)).shape[0] > 400


@pytest.mark.parametrize(("k", "marker"), [(3, "o"), (1500, "None")])
def test_thousands_of_key_frames_are_a_line(k, marker):
    plain = plots.Timeline(np.zeros(k, int), (), [], None)
    figure = plots.drift_curve(np.arange(k), np.linspace(0, 0.1, k), plain)
    (line,) = figure.axes[0].get_lines()
    assert line.get_marker() == marker and len(line.get_xdata()) == k
