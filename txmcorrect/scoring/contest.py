"""What is compared with what: settings -> scenes, methods, and who runs where."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from txmcorrect.background.correction import choose_device
from txmcorrect.background.estimate import Draw
from txmcorrect.background.methods import METHODS
from txmcorrect.baselines import BAD, PEERS, Method
from txmcorrect.config import EvaluateSettings
from txmcorrect.errors import ModelError, TxmError
from txmcorrect.judge.bench import (
    KNOWING,
    PLANS,
    Cell,
    Plan,
    Scenes,
    Task,
    is_slow,
    iterate_settings,
    known_cells,
    plan_scenes,
    plan_tasks,
    run_task,
)
from txmcorrect.scoring.model import candidate, regression, source0
from txmcorrect.scoring.real import real_scenes
from txmcorrect.weights import condition_of, load_model

log = logging.getLogger(__name__)
SEED_STRIDE = 1000  # another --seed draws other benchmark scans
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Contest:
    """One comparison.

    Attributes
    ----------
    ours : models under test. candidates : these and their rivals among networks.
    run : scenes that are run now; all : those that the tables are made of.
    only : names of methods that are run now, all where empty. about : the scenes in words.
    """

    folder: Path
    ours: dict[str, Method]
    candidates: dict[str, Method]
    run: Scenes = field(repr=False)
    all: Scenes = field(repr=False)
    only: tuple[str, ...]
    slow_seeds: int
    about: list[dict[str, Any]]

    def tasks(self) -> list[Task]:
        """Who runs where now."""
        return plan_tasks(self.run, self.candidates, self.only, self.slow_seeds)

    def cells(self) -> list[Cell]:
        """Every cell in the folder that belongs to the comparison and that present code made.

        Cells of other seeds and methods, from earlier runs, are among them: peers may run tonight
        and a model tomorrow.
        """
        found = []
        for task in plan_tasks(self.all, self.candidates):
            known = known_cells(self.folder, task, self.candidates)
            found += [known[m] for m in task.methods if m in known]
        return found


def prepare(settings: EvaluateSettings) -> Contest:
    """Load models and list scenes; no scene is made yet."""
    ours = models(settings)
    candidates = {**rivals(settings), **ours}
    folder = settings.out or Path("bench")
    only = chosen(settings.methods, ours, candidates)
    if settings.real is not None:
        scenes = real_scenes(settings, settings.real)
        about: list[dict[str, Any]] = [{"folder": settings.real.name}]
        return Contest(folder, ours, candidates, scenes, scenes, only, 1, about)
    plan = PLANS[settings.plan]
    some, every = (_scenes(plan, n, settings.seed) for n in _seeds(plan, settings.seeds))
    about = list(iterate_settings(plan))
    return Contest(folder, ours, candidates, some, every, only, plan.slow_seeds, about)


def _seeds(plan: Plan, wanted: int | None) -> tuple[int, int]:
    """How many seeds are run now, and of how many the tables are made."""
    now = wanted or plan.seeds
    return now, max(now, plan.seeds)


def _scenes(plan: Plan, seeds: int, seed: int) -> Scenes:
    return plan_scenes(replace(plan, seeds=seeds), seed * SEED_STRIDE)


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


def chosen(
    wanted: str, ours: Mapping[str, Method], candidates: Mapping[str, Method]
) -> tuple[str, ...]:
    """Names given by --methods, checked: methods, or groups of them; slow peers by their own names.

    Raises
    ------
    TxmError : something is neither.
    """
    rival = tuple(n for n in candidates if n not in ours)
    groups: dict[str, tuple[str, ...]] = {
        "peers": tuple(n for n in PEERS if not is_slow(n)),
        "models": tuple(ours),
        "networks": rival,
        "checks": (*KNOWING, *BAD),
    }
    known = [*PEERS, *candidates, *KNOWING, *BAD]
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    unknown = [name for name in names if name not in known and name not in groups]
    if unknown:
        raise TxmError(
            f"--methods: expected some of {', '.join([*groups, *known])}; got {', '.join(unknown)}"
        )
    return tuple(dict.fromkeys(m for name in names for m in groups.get(name, (name,))))


def fill(settings: EvaluateSettings, contest: Contest, progress: Progress) -> None:
    """Run the cells that are missing, scene by scene, in `--jobs` processes; each cell is a file.

    What a cell holds does not depend on the number of processes, but for the seconds that it took.
    """
    tasks = contest.tasks()
    if settings.jobs == 1:
        for i, task in enumerate(tasks):
            progress(f"{task.setting} seed {task.seed}", i, len(tasks))
            run_task(contest.folder, task, contest.candidates)
        return
    # Spawned, not forked: torch's threads and a GPU's context do not survive a fork.
    pool = ProcessPoolExecutor(settings.jobs, get_context("spawn"), _start, (settings,))
    with pool:
        waiting = {pool.submit(_run, i): task for i, task in enumerate(tasks)}
        try:
            for done, future in enumerate(as_completed(waiting), 1):
                future.result()
                task = waiting[future]
                progress(f"{task.setting} seed {task.seed}", done, len(tasks))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_shared: dict[str, Any] = {}  # of a worker process: what it prepared once


def _start(settings: EvaluateSettings) -> None:
    """A worker gets one thread and makes the same list of tasks as all others."""
    torch.set_num_threads(1)
    contest = prepare(settings)
    _shared.update(contest=contest, tasks=contest.tasks())


def _run(number: int) -> None:
    contest: Contest = _shared["contest"]
    run_task(contest.folder, _shared["tasks"][number], contest.candidates)
