"""Imports point down by group; algorithms know arrays only; the command line starts without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "txmcorrect"

FOUNDATION = {
    "errors",
    "config",
    "result",
    "progress",
    "scan",
    "stream",
    "team",
    "formats",
    "matching",
    "memo",
    "working_grid",
}
FOUNDATION |= {"physics", "metrics", "allocation", "ahead"}
ALGORITHMS = {"diffusion", "stitch", "recon", "baselines", "simulate"}
# Each workflow with the package of parts that only it uses.
WORKFLOWS = {
    "info": {"info"},
    "synthesize": {"synthesize"},
    "prepare": {"prepare", "harvest"},
    "train": {"train", "training"},
    "correct": {"correct"},
    "mosaic": {"mosaic", "mosaicking"},
    "tomo": {"tomo", "tomography"},
    "restore": {"restore", "restoring"},
    "score": {"score", "scoring"},
    "api": {"api"},
}
GROUPS = [
    FOUNDATION,
    ALGORITHMS,
    {"weights", "volumes", "judge"},  # denoisers with their files; peers and scenes to judge by
    {"background"},
    {"report"},
    set().union(*WORKFLOWS.values()),
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, group in enumerate(GROUPS) for name in group}


def top(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """Yield every module that a file imports, wherever the import stands in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            whole = node.module == "txmcorrect"
            yield from (f"{node.module}.{a.name}" for a in node.names) if whole else [node.module]


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]
EDGES = {
    (top(path), name.split(".")[1], f"{path.relative_to(PACKAGE)} imports {name}")
    for path in FILES
    for name in imported(path)
    if name.startswith("txmcorrect.") and name != "txmcorrect.__version__"
}
CROSSING = [edge for edge in EDGES if edge[0] != edge[1]]


def test_every_module_belongs_to_a_group():
    assert {top(path) for path in FILES} <= RANK.keys()


def test_imports_point_down():
    assert [text for here, there, text in CROSSING if RANK[here] < RANK[there]] == []


def test_no_cycles():
    below = {name: {there for here, there, _ in CROSSING if here == name} for name in RANK}
    while leaves := [name for name, needs in below.items() if not needs & below.keys()]:
        for name in leaves:
            del below[name]
    assert sorted(below) == []


def test_workflows_do_not_import_each_other():
    family = {name: whole for whole, names in WORKFLOWS.items() for name in names}
    inside = [edge for edge in CROSSING if edge[0] in family and edge[1] in family]
    assert [text for here, there, text in inside if family[here] != family[there]] == []


def test_reports_know_the_foundation_only_and_serve_workflows_only():
    workflows = set().union(*WORKFLOWS.values())
    assert [t for here, there, t in CROSSING if here == "report" and there not in FOUNDATION] == []
    assert [t for here, there, t in CROSSING if there == "report" and here not in workflows] == []


@pytest.mark.parametrize("package", ["diffusion", "recon", "stitch"])
def test_algorithms_know_neither_paths_nor_settings(package):
    barred = {"pathlib", "os", "accelerate", "yaml", "h5py", "typer", "rich"}
    for path in sorted((PACKAGE / package).rglob("*.py")):
        names = set(imported(path))
        assert not {name.split(".")[0] for name in names} & barred, path.name
        assert not {"txmcorrect.config", "txmcorrect.formats", "txmcorrect.stream"} & {
            ".".join(name.split(".")[:2]) for name in names
        }, path.name


def test_no_module_shadows_the_standard_library():
    """`accelerate launch txmcorrect` puts this folder first on the path."""
    names = {top(path) for path in FILES} - {"__main__"}
    assert names & sys.stdlib_module_names == set()


HELP_WITHOUT_TORCH = """
import sys
from typer.testing import CliRunner
from txmcorrect.cli import COMMANDS, app
for arguments in ([], *([name] for name in COMMANDS)):
    result = CliRunner().invoke(app, [*arguments, "--help"])
    assert result.exit_code == 0, result.output
heavy = {"torch", "scipy", "h5py", "matplotlib", "accelerate"} & sys.modules.keys()
assert not heavy, f"imported: {heavy}"
"""


def test_help_imports_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-c", HELP_WITHOUT_TORCH], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
