"""The comparison with peers: benchmark cells, or a user's real scans, into one folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from txmcorrect.background.correction import choose_device
from txmcorrect.background.estimate import Draw
from txmcorrect.background.methods import METHODS
from txmcorrect.baselines import BAD, PEERS, Method
from txmcorrect.config import EvaluateSettings
from txmcorrect.errors import ModelError, TxmError
from txmcorrect.judge import figures, tables
from txmcorrect.judge.bench import (
    KNOWING,
    PLANS,
    Cell,
    iterate_settings,
    methods_for,
    plan_scenes,
    run_scenes,
)
from txmcorrect.judge.bench import Scenes as SceneList
from txmcorrect.judge.scenes import Scene
from txmcorrect.report.page import Page, write_png
from txmcorrect.result import Result
from txmcorrect.scoring.model import candidate, regression, source0
from txmcorrect.scoring.output import json_text, replace_between, say, write_json, write_text
from txmcorrect.scoring.real import real_scenes, score_real
from txmcorrect.weights import condition_of, load_model

log = logging.getLogger(__name__)
SEED_STRIDE = 1000  # another --seed draws other benchmark scans


def run(settings: EvaluateSettings) -> Result:
    """Run the cells that are missing, then write table, JSON, figures and page.

    An interrupted comparison goes on where it stopped when the same command is given.
    """
    ours = models(settings)
    candidates = {**rivals(settings), **ours}
    only = _chosen(settings, candidates)
    folder = settings.out or Path("bench")
    folder.mkdir(parents=True, exist_ok=True)
    if settings.real is None:
        plan = PLANS[settings.plan]
        plan = replace(plan, seeds=settings.seeds or plan.seeds)
        scenes, about = plan_scenes(plan, settings.seed * SEED_STRIDE), list(iterate_settings(plan))
        slow_seeds = plan.slow_seeds
    else:
        scenes, about = real_scenes(settings, settings.real), [{"folder": settings.real.name}]
        slow_seeds = 1
    with _bar() as bar:
        task = bar.add_task("scans", total=len(scenes))

        def progress(name: str, done: int, total: int) -> None:
            bar.update(task, description=name, completed=done, total=total)

        cells = run_scenes(folder, scenes, candidates, only, progress, slow_seeds=slow_seeds)
        bar.update(task, completed=len(scenes), description="done")
    outputs = _write(settings, folder, cells, scenes, candidates, about, tuple(ours))
    if settings.readme is not None:
        outputs.append(replace_between(settings.readme, "compare", _for_readme(settings, cells)))
    if settings.real is not None:
        outputs += score_real(settings, settings.real, folder, _raw_methods(candidates, only))
    return Result(tuple(outputs), f"{len(cells)} cells in {folder}")


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))


def models(settings: EvaluateSettings) -> dict[str, Method]:
    """The model under test; the bundled one may be missing, one that was named may not."""
    if settings.model == "none":
        return {}
    draw = Draw(
        settings.sampler, settings.steps, settings.samples, settings.seed, settings.partners
    )
    found: dict[str, Method] = {}
    for condition in _conditions(settings):
        try:
            model = load_model(settings.model, condition, choose_device(settings.device))
            found |= candidate(model, draw, settings.interval)
        except ModelError as error:
            if settings.model != "bundled":
                raise
            log.warning("the peers are compared without it: %s", error)
    return found


def _conditions(settings: EvaluateSettings) -> tuple[str, ...]:
    if settings.condition != "auto":
        return (settings.condition,)
    return tuple(METHODS) if settings.model == "bundled" else (condition_of(settings.model),)


def rivals(settings: EvaluateSettings) -> dict[str, Method]:
    """Networks to compare with: source 0's way of sampling a pair model, a regression where given."""
    device = choose_device(settings.device)
    found: dict[str, Method] = {}
    if settings.model != "none":
        try:
            origin = settings.model if _conditions(settings) == ("pair",) else "bundled"
            found |= source0(load_model(origin, "pair", device))
        except ModelError as error:
            log.info("source 0's sampling is left out: %s", error)
    if settings.regression is not None:
        found |= regression(settings.regression, device)
    return found


def _chosen(settings: EvaluateSettings, candidates: Mapping[str, Method]) -> tuple[str, ...]:
    """Names given by --methods, checked; the model under test is always among them."""
    if not settings.methods:
        return ()
    known = [*PEERS, *candidates, *KNOWING, *BAD]
    names = [name.strip() for name in settings.methods.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise TxmError(f"--methods: expected some of {', '.join(known)}; got {', '.join(unknown)}")
    return (*names, *candidates)


def _raw_methods(candidates: Mapping[str, Method], only: tuple[str, ...]) -> dict[str, Method]:
    everything = {**PEERS, **candidates, **BAD}
    return {name: m for name, m in everything.items() if not only or name in only}


def _write(
    settings: EvaluateSettings,
    folder: Path,
    cells: list[Cell],
    scenes: SceneList,
    candidates: Mapping[str, Method],
    about: list[dict[str, Any]],
    ours: tuple[str, ...],
) -> list[Path]:
    """Write what the cells say; pictures show the worst cell of each setting."""
    groups = tables.group(cells)
    body = {"settings": about, "results": tables.to_json(cells)}
    text = tables.markdown(cells)
    page = Page("Comparison of background corrections", subtitle=tables.LEGEND.replace("*", ""))
    outputs = [write_text(folder / "table.md", text), write_json(folder / "results.json", body)]
    drawn = {"errors.png": figures.draw_errors(groups)}
    for setting, methods in groups.items():
        drawn[f"octaves_{setting}.png"] = figures.draw_octaves(methods, setting)
        drawn[f"preservation_{setting}.png"] = figures.draw_preservation(methods, setting)
        worst = _draw_worst(methods, scenes, candidates, ours)
        if worst is not None:
            drawn[f"worst_{setting}.png"] = worst
    for name, figure in drawn.items():
        outputs.append(write_png(figure, folder / name))
        page.figure(figure, name.removesuffix(".png").replace("_", " "))
    outputs.append(page.write(folder / "report.html"))
    say(settings, json_text(body) if settings.json_output else text)
    return outputs


def _draw_worst(
    methods: Mapping[str, list[Cell]],
    scenes: SceneList,
    candidates: Mapping[str, Method],
    ours: tuple[str, ...],
) -> Any:
    """The worst cell of the model under test, or else of the best peer, beside it and the oracle."""
    best = tables.best_peer({n: c for n, c in methods.items() if n not in ours})
    ran = [n for n in ours if n in methods and any(c.findings for c in methods[n])]
    names = [n for n in (*ran, best, "oracle") if n is not None and n in methods]
    if not names or (cell := figures.worst_cell(methods[names[0]])) is None:
        return None
    make = next(make for name, seed, make in scenes if (name, seed) == (cell.setting, cell.seed))
    scene: Scene = make()
    available = methods_for(scene, candidates)
    return figures.draw_scene(scene, {name: available[name] for name in names})


def _for_readme(settings: EvaluateSettings, cells: list[Cell]) -> str:
    """The newest comparison in short, with the command that made it."""
    groups = tables.group(cells)
    seeds = len({(c.setting, c.seed) for c in cells})
    plan = f"--plan {settings.plan}" if settings.real is None else "--real"
    tested = dict.fromkeys(c.method for c in cells if c.method.startswith("model:"))
    model = ", ".join(tested) or "none"
    note = (
        f"`txmcorrect evaluate --compare {plan} --seed {settings.seed}`: {seeds} scans, model under "
        f"test: {model}. Background error in per cent (noise-free, geometric mean over seeds); *in "
        "parentheses*: the sample is not preserved, so it does not count."
    )
    return "\n\n".join([note, tables.short_table(groups), tables.checks_table(cells)])
