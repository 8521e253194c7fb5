"""What a workflow returns to the command line."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """Outcome of one run: files written, one line to say, exit code (3: not trusted under --strict)."""

    outputs: tuple[Path, ...] = field(default=())
    message: str = ""
    exit_code: int = 0
