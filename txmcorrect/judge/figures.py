"""Pictures of a comparison: error by method, by octave, preservation by size, and the worst cells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from txmcorrect.baselines import Method, correct
from txmcorrect.judge.bench import Cell
from txmcorrect.judge.scenes import Scene
from txmcorrect.judge.statistics import mean_interval
from txmcorrect.judge.tables import Group, background_error, is_peer, preserves
from txmcorrect.judge.trial import background_only, log_error


def _name(setting: str) -> str:
    return setting.replace("_", " ")


def _ran(methods: Mapping[str, list[Cell]]) -> dict[str, list[Cell]]:
    return {name: cells for name, cells in methods.items() if any(c.findings for c in cells)}


def draw_errors(groups: Group) -> Figure:
    """Background error of every method, one panel a setting; hollow where the sample suffers."""
    count = len(groups)
    columns = min(count, 4)
    rows = math.ceil(count / columns)
    figure = Figure((4.2 * columns, 4.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (setting, methods) in zip(axes, groups.items(), strict=False):
        names = [n for n in _ran(methods) if is_peer(n)]
        for place, name in enumerate(names):
            error = background_error(methods[name])
            face = "C0" if preserves(methods[name]) else "white"
            low, high = (error.low, error.high) if error.n > 1 else (error.mean, error.mean)
            axis.errorbar(
                100 * error.mean,
                place,
                xerr=[[100 * (error.mean - low)], [100 * (high - error.mean)]],
                fmt="o",
                color="C0",
                markerfacecolor=face,
            )
        axis.set_yticks(range(len(names)), names, fontsize=7)
        axis.invert_yaxis()
        axis.set_xscale("log")
        axis.set_title(_name(setting), fontsize=8)
        axis.set_xlabel("background error (%)")
        axis.grid(axis="x", alpha=0.3)
    figure.suptitle("Hollow: the sample is not preserved, so the error does not count", fontsize=9)
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure


def draw_octaves(methods: Mapping[str, list[Cell]], title: str) -> Figure:
    """Background error by octave of wavelength."""
    figure = Figure((8.5, 4.5), layout="constrained")
    axis = figure.subplots()
    for i, (name, cells) in enumerate((n, c) for n, c in _ran(methods).items() if is_peer(n)):
        bands = _named(cells, "quality", "rms_")
        axis.plot(
            [b.removeprefix("rms_") for b in bands],
            [100 * v for v in bands.values()],
            marker="os^Dv"[i % 5],
            label=name,
            color=matplotlib.colormaps["tab20"](i % 20),
        )
    axis.set(
        yscale="log",
        xlabel="wavelength (pixels)",
        ylabel="background error (%)",
        title=_name(title),
    )
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    axis.grid(alpha=0.3)
    return figure


def draw_preservation(methods: Mapping[str, list[Cell]], title: str) -> Figure:
    """Slope of recovered on true log-change by implant size, with the band that passes."""
    figure = Figure((8.5, 4.5), layout="constrained")
    axis = figure.subplots()
    axis.axhspan(0.98, 1.02, color="C2", alpha=0.2)
    for i, (name, cells) in enumerate(_ran(methods).items()):
        sizes = _named(cells, "preservation", "slope_")
        axis.plot(
            [int(s.removeprefix("slope_")) for s in sizes],
            list(sizes.values()),
            marker="os^Dv"[i % 5],
            linestyle="--" if name.startswith("bad:") else "-",
            label=name,
            color=matplotlib.colormaps["tab20"](i % 20),
        )
    axis.set(
        xscale="log", xlabel="implant size (pixels)", ylabel="recovered / true", title=_name(title)
    )
    axis.set_xscale("log", base=2)
    axis.set_ylim(-0.1, 1.3)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    axis.grid(alpha=0.3)
    return figure


def _named(cells: list[Cell], check: str, prefix: str) -> dict[str, float]:
    """Means over seeds of all figures of a check whose name begins so, in their own order."""
    values: dict[str, list[float]] = {}
    for cell in cells:
        for name, value in cell.findings[check].figures.items() if cell.findings else ():
            if name.startswith(prefix):
                values.setdefault(name, []).append(value)
    ordered = sorted(values, key=lambda n: int(n.removeprefix(prefix).split("-")[0]))
    return {name: mean_interval(values[name]).mean for name in ordered}


def worst_cell(cells: list[Cell]) -> Cell | None:
    """The cell of largest background error."""
    ran = [c for c in cells if math.isfinite(c.figure("quality", "log_rms"))]
    return max(ran, key=lambda c: c.figure("quality", "log_rms")) if ran else None


def draw_scene(scene: Scene, methods: Mapping[str, Method]) -> Figure:
    """The frame that the first method does worst: raw, truth, and each method's result and error."""
    problem, lit = scene.problem, scene.problem.lit
    estimates = {name: background_only(method)(problem) for name, method in methods.items()}
    first = next(iter(estimates.values()))
    shape = [float(e[lit].std()) for e in log_error(first, scene)]
    worst = int(np.argmax(shape))
    figure = Figure((2.6 * (1 + len(methods)), 5.6), layout="constrained")
    axes = figure.subplots(2, 1 + len(methods), squeeze=False)
    light = np.where(lit, problem.frames[worst] - problem.dark, np.nan)
    truth = scene.truth.transmission[worst]
    low, high = np.quantile(truth, [0.01, 0.99])
    span = {"vmin": low - 0.05, "vmax": high + 0.05}
    _show(axes[0, 0], light, f"raw, frame {worst}")
    _show(axes[1, 0], truth, "true transmission", **span)
    for column, (name, estimate) in enumerate(estimates.items(), 1):
        error = log_error(estimate, scene)[worst]
        error = np.where(lit, error - error[lit].mean(), np.nan)
        found = correct(problem, estimate)[worst] * np.exp(
            np.float32(_level(estimate.log_background[worst], scene, worst))
        )
        _show(axes[0, column], found, name, **span)
        _show(
            axes[1, column],
            100 * error,
            f"error {100 * np.nanstd(error):.2f} %",
            vmin=-5,
            vmax=5,
            cmap="RdBu",
        )
    figure.suptitle(f"{_name(scene.name)}, seed {scene.seed}", fontsize=9)
    return figure


def _level(log_background: Any, scene: Scene, frame: int) -> float:
    lit = scene.problem.lit
    return float((log_background - scene.truth.log_background[frame])[lit].mean())


def _show(axis: Any, image: Any, title: str, cmap: str = "gray", **span: Any) -> None:
    h, w = image.shape
    aspect = "equal" if max(h, w) < 4 * min(h, w) else "auto"  # frames may have two rows
    picture = axis.imshow(image, cmap=cmap, interpolation="nearest", aspect=aspect, **span)
    axis.figure.colorbar(picture, ax=axis, shrink=0.7)
    axis.set_title(title, fontsize=7)
    axis.set_xticks([])
    axis.set_yticks([])


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    figure.savefig(part, dpi=110, format="png")
    part.replace(path)
    return path
