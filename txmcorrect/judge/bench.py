"""Run methods over benchmark cells, one JSON file a cell; what is there is not run again."""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from txmcorrect.baselines import (
    BAD,
    PEERS,
    Method,
    MissingPackageError,
    NotApplicableError,
    flags_all,
    gain_error,
    oracle,
    over_smoothed,
    too_sure,
)
from txmcorrect.baselines.external import is_available
from txmcorrect.errors import TxmError
from txmcorrect.judge.fingerprint import fingerprint
from txmcorrect.judge.scenes import (
    Drift,
    Kind,
    References,
    Scene,
    Setting,
    describe,
    simulated_scene,
)
from txmcorrect.judge.trial import Finding
from txmcorrect.judge.verdict import CHECKS, judge

VERSION = 4  # of the judge; cells of another version are run again
DRIFTS: tuple[Drift, ...] = ("slow", "medium", "fast")
KINDS: tuple[Kind, ...] = ("mosaic-sparse", "mosaic-dense", "tomo", "film")
REFERENCES: tuple[References, ...] = ("bank+stale", "before-after", "stale", "none", "fresh")

# Methods that need the truth of the scene they run on.
KNOWING: dict[str, Callable[..., Method]] = {
    "oracle": oracle,
    "bad:gain-error": gain_error,
    "bad:over-smoothed": over_smoothed,
    "bad:too-sure": too_sure,
    "bad:flags-all": flags_all,
}

Progress = Callable[[str, int, int], None]
Scenes = list[tuple[str, int, Callable[[], Scene]]]  # name, seed, how to make it
SLOW = ("basic", "source0")  # methods that take ten times as long as all others


@dataclass(frozen=True)
class Plan:
    """Which settings, how many seeds of each, and how many of them for slow methods."""

    settings: tuple[Setting, ...]
    seeds: int
    slow_seeds: int = 1


@dataclass(frozen=True)
class Cell:
    """What one method did on one scene."""

    setting: str
    seed: int
    method: str
    findings: dict[str, Finding] = field(default_factory=dict)
    skipped: str = ""
    error: str = ""
    unavailable: bool = False  # skipped for want of a package: run again once it is there
    seconds: float = 0.0
    code: dict[str, str] = field(default_factory=dict)  # module -> digest of what made the cell

    def figure(self, check: str, name: str) -> float:
        """One figure, NaN where it was not measured."""
        finding = self.findings.get(check)
        return float("nan") if finding is None else finding.figures.get(name, float("nan"))


def _core() -> tuple[Setting, ...]:
    """Every kind with all that a user can have and with nothing; what lies between where it matters."""
    sparse = [Setting("mosaic-sparse", references=r) for r in REFERENCES]
    others: tuple[Kind, ...] = ("mosaic-dense", "tomo", "film")
    ends: tuple[References, ...] = ("bank+stale", "none")
    extremes = [Setting(kind, references=r) for kind, r in product(others, ends)]
    turning: tuple[References, ...] = ("before-after", "stale", "fresh")  # what tomograms come with
    return (*sparse, *extremes, *(Setting("tomo", references=r) for r in turning))


def _grid() -> tuple[Setting, ...]:
    everything = product(KINDS, DRIFTS, (5000.0, 20000.0), REFERENCES)
    return tuple(Setting(*cell) for cell in everything)


SMALL = (96, 96)
PLANS: dict[str, Plan] = {
    # Under five minutes on two cores; all checks, all peers but the slow ones.
    "quick": Plan(
        (
            Setting("mosaic-sparse", "medium", 5000.0, "bank+stale", SMALL),
            Setting("mosaic-dense", "medium", 5000.0, "none", SMALL),
            Setting("tomo", "medium", 5000.0, "before-after", SMALL),
            Setting("film", "medium", 5000.0, "fresh", SMALL),
        ),
        3,
        slow_seeds=0,
    ),
    # Three quarters of an hour on one core; slow peers as long again.
    "core": Plan(_core(), 10, slow_seeds=2),
    # Kinds x drifts x counts x references: a night.
    "grid": Plan(_grid(), 3),
    "shapes": Plan(
        tuple(
            Setting(kind, shape=shape)
            for kind, shape in product(KINDS[:3], ((1024, 1024), (250, 330), (2, 640)))
        ),
        2,
    ),
}


def methods_for(scene: Scene, candidates: Mapping[str, Method]) -> dict[str, Method]:
    """Candidates, peers, and the methods that know this scene's truth, good and bad."""
    knowing = {k: f(scene.truth.log_background, scene.truth.additive) for k, f in KNOWING.items()}
    return {**PEERS, **candidates, **knowing, **BAD}


def plan_scenes(plan: Plan, first_seed: int = 0) -> Scenes:
    """All scenes of a plan, seed by seed, so that an early table has every setting."""

    def maker(setting: Setting, seed: int) -> Callable[[], Scene]:
        return lambda: simulated_scene(setting, seed)

    seeds = range(first_seed, first_seed + plan.seeds)
    return [(s.name, seed, maker(s, seed)) for seed, s in product(seeds, plan.settings)]


@dataclass(frozen=True)
class Task:
    """One scene and the methods that run on it."""

    setting: str
    seed: int
    make: Callable[[], Scene] = field(repr=False)
    methods: tuple[str, ...]


def plan_tasks(
    scenes: Scenes,
    candidates: Mapping[str, Method],
    only: tuple[str, ...] = (),
    slow_seeds: int | None = None,
) -> list[Task]:
    """Who runs where.

    `only` : names of methods; all where empty. `slow_seeds` : scenes of each setting that slow methods
    run on unless they are named in `only`; None: all.
    """
    wanted = [n for n in {**PEERS, **candidates, **KNOWING, **BAD} if not only or n in only]
    tasks = []
    count: Counter[str] = Counter()
    for name, seed, make in scenes:
        count[name] += 1
        late = slow_seeds is not None and count[name] > slow_seeds and not only
        names = tuple(n for n in wanted if not (late and is_slow(n)))
        tasks.append(Task(name, seed, make, names))
    return tasks


def run_scenes(
    folder: Path,
    scenes: Scenes,
    candidates: Mapping[str, Method],
    only: tuple[str, ...] = (),
    progress: Progress | None = None,
    checks: tuple[str, ...] = tuple(CHECKS),
    slow_seeds: int | None = None,
) -> list[Cell]:
    """Fill in the cells that are missing and return all.

    Parameters
    ----------
    folder : keeps `cells/SETTING/SEED/METHOD.json`, each written at once or not at all.
    candidates : methods beside the peers; a name must change when what it names does.
    only, slow_seeds : see `plan_tasks`.
    """
    cells = []
    tasks = plan_tasks(scenes, candidates, only, slow_seeds)
    for i, task in enumerate(tasks):
        if progress:
            progress(f"{task.setting} seed {task.seed}", i, len(tasks))
        cells += run_task(folder, task, candidates, checks)
    return cells


def run_task(
    folder: Path,
    task: Task,
    candidates: Mapping[str, Method],
    checks: tuple[str, ...] = tuple(CHECKS),
) -> list[Cell]:
    """Fill in the cells of one scene that are missing; the scene is made only if one is.

    A cell that exists is not run again, unless the code behind it changed, or the package that it
    lacked has come; where only checks changed, only these run.
    """
    known = known_cells(folder, task, candidates, checks)
    missing = [m for m in task.methods if m not in known]
    if missing:
        scene = task.make()
        methods = methods_for(scene, candidates)
        for m in missing:
            path = cell_path(folder, task.setting, task.seed, m)
            known[m] = run_cell(methods[m], m, scene, checks, read_cell(path))
            write_cell(path, known[m])
    return [known[m] for m in task.methods]


def known_cells(
    folder: Path,
    task: Task,
    candidates: Mapping[str, Method],
    checks: tuple[str, ...] = tuple(CHECKS),
) -> dict[str, Cell]:
    """Cells of one scene that hold what the present code would find."""
    found = {}
    everything: dict[str, Callable[..., Any]] = {**PEERS, **candidates, **KNOWING, **BAD}
    for m in task.methods:
        cell = read_cell(cell_path(folder, task.setting, task.seed, m))
        module = module_of(everything[m])
        if cell and not stale_checks(cell, module, checks):
            if not (cell.unavailable and is_available(m)):
                found[m] = cell
    return found


def stale_checks(cell: Cell, module: str, checks: tuple[str, ...]) -> tuple[str, ...]:
    """Which of `checks` the present code would judge anew, for a method that stands in `module`."""
    judges = {module_of(check) for check in CHECKS.values()}
    made_by = {*cell.code} - judges
    if made_by != {module} or cell.code[module] != fingerprint(module):
        return checks
    changed = {name for name, digest in cell.code.items() if digest != fingerprint(name)}
    if not cell.findings:
        return checks if changed else ()
    return tuple(c for c in checks if c not in cell.findings or module_of(CHECKS[c]) in changed)


def module_of(method: Callable[..., Any]) -> str:
    """The module whose code a method is."""
    inner = method.func if isinstance(method, partial) else method
    return str(inner.__module__)


def is_slow(method: str) -> bool:
    """Whether a method is left out of most seeds."""
    return method.split(":")[0] in SLOW


def run_cell(
    method: Method,
    name: str,
    scene: Scene,
    checks: tuple[str, ...] = tuple(CHECKS),
    before: Cell | None = None,
) -> Cell:
    """Judge one method on one scene; a method that cannot run there says why.

    What of the cell `before` still holds is kept.
    """
    start = time.perf_counter()
    module = module_of(method)
    wanted = checks if before is None else stale_checks(before, module, checks) or checks
    kept = before if before is not None and before.findings and wanted != checks else None
    code = {module: fingerprint(module)}
    everything = code | {m: fingerprint(m) for m in sorted({module_of(CHECKS[c]) for c in wanted})}
    cell: dict[str, Any] = {"setting": scene.name, "seed": scene.seed, "method": name}
    try:
        findings = judge(method, scene, wanted)
    except NotApplicableError as reason:
        missing = isinstance(reason, MissingPackageError)
        return Cell(**cell, skipped=str(reason), unavailable=missing, code=code)
    except TxmError as error:
        return Cell(**cell, error=str(error), code=everything)
    # A check that does not apply here may change without this cell being run again.
    used = {module_of(CHECKS[c]) for c, finding in findings.items() if finding.figures}
    code |= {m: everything[m] for m in sorted(used)}  # sets differ from process to process
    seconds = time.perf_counter() - start
    if kept is not None:
        code |= {m: digest for m, digest in kept.code.items() if m not in everything}
        findings = {**kept.findings, **findings}
        seconds += kept.seconds
    return Cell(**cell, findings=findings, seconds=round(seconds, 3), code=code)


def cell_path(folder: Path, setting: str, seed: int, method: str) -> Path:
    """Where a cell is kept; a colon in a method's name becomes a dash."""
    return folder / "cells" / setting / f"{seed:03d}" / f"{method.replace(':', '-')}.json"


def write_cell(path: Path, cell: Cell) -> None:
    """Write at once or not at all; figures that are not finite become null."""
    findings = {
        name: {"passed": f.passed, "figures": {k: _finite(v) for k, v in f.figures.items()}}
        for name, f in cell.findings.items()
    }
    body = {"version": VERSION, **vars(cell), "findings": findings}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(body, indent=1))
    part.replace(path)


def _finite(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def read_cell(path: Path) -> Cell | None:
    """The cell, or None where it is missing or of another version of the judge."""
    if not path.exists():
        return None
    body = json.loads(path.read_text())
    if body.pop("version") != VERSION:
        return None
    nan = float("nan")
    body["findings"] = {
        name: Finding(f["passed"], {k: nan if v is None else v for k, v in f["figures"].items()})
        for name, f in body["findings"].items()
    }
    return Cell(**body)


def iterate_settings(plan: Plan) -> Iterator[dict[str, Any]]:
    """The plan's settings as JSON can hold them."""
    return (describe(setting) for setting in plan.settings)
