"""What became of each file and frame, in runs, as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Entry:
    """One file in one role; runs are `[first, last, fate, place]` with place the first's index."""

    path: Path
    role: str
    split: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    runs: list[list[Any]] = field(default_factory=list)
    reason: str = ""

    def note(self, frame: int, fate: str, place: int | None = None) -> None:
        """Record a frame: `fate` is the dataset it went to, at `place`, or why it was left out."""
        last = self.runs[-1] if self.runs else None
        if last and last[1] == frame - 1 and last[2] == fate:
            expected = None if last[3] is None else last[3] + frame - last[0]
            if expected == place:
                last[1] = frame
                return
        self.runs.append([frame, frame, fate, place])

    def as_dict(self) -> dict[str, Any]:
        frames = [
            {
                "first": a,
                "last": b,
                **({"left_out": fate} if at is None else {"dataset": fate, "at": at}),
            }
            for a, b, fate, at in self.runs
        ]
        facts = {"path": str(self.path), "role": self.role, "split": self.split, **self.about}
        return (
            {**facts, "frames": frames} if not self.reason else {**facts, "left_out": self.reason}
        )


def left_out(entries: list[Entry]) -> Counter[str]:
    """Count the frames left out by kind of reason (the words before its colon), files by theirs."""
    counts: Counter[str] = Counter()
    for entry in entries:
        for first, last, fate, place in entry.runs:
            if place is None:
                counts[_kind(fate)] += last - first + 1
    return counts


def _kind(reason: str) -> str:
    """First words of a reason."""
    for word in ("dead", "saturated", "duplicate", "dim", "unmatched"):
        if reason.startswith(word):
            return word
    return "without reference"
