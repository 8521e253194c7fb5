"""Tables, JSON, pictures and pages of an evaluation, written at once or not at all."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from txmcorrect.config import EvaluateSettings
from txmcorrect.errors import TxmError
from txmcorrect.stream import atomic_output


def write_text(path: Path, text: str) -> Path:
    """Write a text file, replacing an older one."""
    with atomic_output(path, overwrite=True) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def replace_between(path: Path, name: str, text: str) -> Path:
    """Replace what stands between `<!-- table: NAME -->` and `<!-- end of table: NAME -->`.

    Raises
    ------
    TxmError : the file cannot be read, or has no such place.
    """
    start, end = f"<!-- table: {name} -->", f"<!-- end of table: {name} -->"
    try:
        before, rest = path.read_text(encoding="utf-8").split(start)
        _, after = rest.split(end, 1)
    except (OSError, ValueError):
        raise TxmError(
            f"{path}: expected a text file with `{start}` once and `{end}` after it, got none; "
            "add both lines where the table should stand"
        ) from None
    return write_text(path, f"{before}{start}\n{text}\n{end}{after}")


def write_json(path: Path, body: Any) -> Path:
    """Write JSON; figures that are not finite become null."""
    return write_text(path, json_text(body) + "\n")


def json_text(body: Any) -> str:
    """JSON text; figures that are not finite become null."""
    return json.dumps(_plain(body), indent=1)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def markdown_table(rows: Sequence[Sequence[object]], header: Sequence[object]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(c) for c in line) + " |" for line in lines)


def number(value: float) -> str:
    """Four significant digits; empty where it is not finite."""
    return f"{value:.4g}" if math.isfinite(value) else ""


def say(settings: EvaluateSettings, text: str) -> None:
    """Print what was asked for, unadorned, so that it can be piped."""
    if settings.json_output or not settings.quiet:
        sys.stdout.write(text + "\n")
