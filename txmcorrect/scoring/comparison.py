"""The comparison with peers: benchmark cells, or a user's real scans, into one folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from txmcorrect.baselines import BAD, PEERS, Method
from txmcorrect.config import EvaluateSettings
from txmcorrect.judge import figures, tables
from txmcorrect.judge.bench import Cell, methods_for
from txmcorrect.judge.scenes import Scene
from txmcorrect.report.page import Page, write_png
from txmcorrect.result import Result
from txmcorrect.scoring.contest import Contest, fill, prepare
from txmcorrect.scoring.output import json_text, replace_between, say, write_json, write_text
from txmcorrect.scoring.real import score_real


def run(settings: EvaluateSettings) -> Result:
    """Run the cells that are missing, then write table, JSON, figures and page of all there are.

    An interrupted comparison goes on where it stopped when the same command is given.
    """
    contest = prepare(settings)
    folder = contest.folder
    folder.mkdir(parents=True, exist_ok=True)
    with _bar() as bar:
        task = bar.add_task("scans", total=len(contest.run))

        def progress(name: str, done: int, total: int) -> None:
            bar.update(task, description=name, completed=done, total=total)

        fill(settings, contest, progress)
        bar.update(task, completed=len(contest.run), description="done")
    cells = contest.cells()
    outputs = _write_tables(settings, contest, cells)
    outputs += _write_pictures(contest, cells)
    if settings.real is not None:
        methods = _raw_methods(contest.candidates, contest.only)
        outputs += score_real(settings, settings.real, folder, methods)
    return Result(tuple(outputs), f"{len(cells)} cells in {folder}")


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))


def _raw_methods(candidates: Mapping[str, Method], only: tuple[str, ...]) -> dict[str, Method]:
    everything = {**PEERS, **candidates, **BAD}
    return {name: m for name, m in everything.items() if not only or name in only}


def _write_tables(settings: EvaluateSettings, contest: Contest, cells: list[Cell]) -> list[Path]:
    """Write what the cells say, in full and, if asked for, in short into another text."""
    body = {"settings": contest.about, "results": tables.to_json(cells)}
    text = tables.markdown(cells)
    folder = contest.folder
    outputs = [write_text(folder / "table.md", text), write_json(folder / "results.json", body)]
    if settings.readme is not None:
        outputs.append(replace_between(settings.readme, "compare", _for_readme(settings, cells)))
    say(settings, json_text(body) if settings.json_output else text)
    return outputs


def _write_pictures(contest: Contest, cells: list[Cell]) -> list[Path]:
    """Draw errors by method and octave, preservation by size, and the worst cell of each setting."""
    folder, groups = contest.folder, tables.group(cells)
    page = Page("Comparison of background corrections", subtitle=tables.LEGEND.replace("*", ""))
    outputs = []
    drawn = {"errors.png": figures.draw_errors(groups)}
    for setting, methods in groups.items():
        drawn[f"octaves_{setting}.png"] = figures.draw_octaves(methods, setting)
        drawn[f"preservation_{setting}.png"] = figures.draw_preservation(methods, setting)
        worst = _draw_worst(methods, contest)
        if worst is not None:
            drawn[f"worst_{setting}.png"] = worst
    for name, figure in drawn.items():
        outputs.append(write_png(figure, folder / name))
        page.figure(figure, name.removesuffix(".png").replace("_", " "))
    outputs.append(page.write(folder / "report.html"))
    return outputs


def _draw_worst(methods: Mapping[str, list[Cell]], contest: Contest) -> Any:
    """The worst cell of the model under test that ran on most scans, or else of the best peer, beside all
    of them and the oracle.
    """
    best = tables.best_peer({n: c for n, c in methods.items() if n not in contest.ours})
    count = {n: sum(bool(c.findings) for c in methods.get(n, ())) for n in contest.ours}
    ran = sorted((n for n in contest.ours if count[n]), key=lambda n: -count[n])
    names = [n for n in (*ran, best, "oracle") if n is not None and n in methods]
    if not names or (cell := figures.worst_cell(methods[names[0]])) is None:
        return None
    wanted = cell.setting, cell.seed
    make = next(make for name, seed, make in contest.all if (name, seed) == wanted)
    scene: Scene = make()
    available = methods_for(scene, contest.candidates)
    return figures.draw_scene(scene, {name: available[name] for name in names})


def _for_readme(settings: EvaluateSettings, cells: list[Cell]) -> str:
    """The newest comparison in short, with the command that made it."""
    groups = tables.group(cells)
    scans = len({(c.setting, c.seed) for c in cells})
    plan = f"--plan {settings.plan}" if settings.real is None else "--real"
    tested = dict.fromkeys(c.method for c in cells if tables.is_tested(c.method))
    note = (
        f"`txmcorrect evaluate --compare {plan} --seed {settings.seed}`: {scans} scans, under test: "
        f"{', '.join(tested) or 'no model'}. Background error in per cent (noise-free, geometric mean "
        "over seeds); *in parentheses*: the sample is not preserved, so it does not count; n: ran on "
        "fewer seeds than others."
    )
    parts = [note, tables.short_table(groups)]
    if against := tables.against_peers(groups):
        parts += [
            "Error over that of the best peer, seed by seed (95 % interval), and seeds won:",
            against,
        ]
    return "\n\n".join([*parts, tables.checks_table(cells)])
