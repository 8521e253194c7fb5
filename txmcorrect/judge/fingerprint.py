"""What code a figure came from: a digest of a module and of all of ours that it imports.

A cell of a comparison keeps the digests of the checks and of the method that made it, and is run
again when one of them changes. Comments, docstrings and layout do not count.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = "txmcorrect"
ROOT = Path(__file__).resolve().parents[1]


@cache
def fingerprint(module: str) -> str:
    """Twelve hexadecimal digits for `module` and everything of the package that it needs.

    A module outside of the package counts by its name alone.
    """
    digest = hashlib.sha256(module.encode())
    for name in sorted(needed(module)):
        digest.update(f"{name}:{_code(name)}".encode())
    return digest.hexdigest()[:12]


def needed(module: str) -> set[str]:
    """Modules of the package that `module` runs, itself among them."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found and _path(name) is not None:
            found.add(name)
            waiting += imported(name)
    return found


def imported(module: str) -> Iterator[str]:
    """Modules of the package that a module imports; of a package only the parts that are named."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                part = f"{node.module}.{alias.name}"
                yield part if _path(part) is not None else node.module


def _path(module: str) -> Path | None:
    """The file of a module of the package, or None."""
    head, *rest = module.split(".")
    if head != PACKAGE or not rest:
        return None
    base = ROOT.joinpath(*rest)
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


@cache
def _tree(module: str) -> ast.Module:
    path = _path(module)
    assert path is not None, module
    return ast.parse(path.read_text(encoding="utf-8"))


def _code(module: str) -> str:
    """The syntax tree of a module without docstrings, as text."""
    tree = ast.parse(ast.unparse(_tree(module)))  # a copy: trees are shared
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)
