"""Every file below a folder, told by content: samples, references, or why neither."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from txmcorrect.errors import FormatError
from txmcorrect.formats import holds_references_alone, open_references, open_scan
from txmcorrect.formats.source import natural_key, sniff
from txmcorrect.scan import References, Scan


@dataclass
class Harvest:
    """Scans of samples; references with the file each came from; files of no use, with the reason."""

    scans: list[Scan] = field(default_factory=list)
    references: list[tuple[Path, References]] = field(default_factory=list)
    unusable: list[tuple[Path, str]] = field(default_factory=list)


def collect(raw: Path, refs: Path, pattern: str | None, sources: dict[str, Any]) -> Harvest:
    """Open all samples below `raw` and all references below `refs`.

    Files below `raw` whose name or path there fits `pattern`, and files that hold nothing else,
    are references too; so are the flats inside scans. What lies in `refs` is no sample.

    Raises
    ------
    FormatError : `raw` or `refs` does not exist, or a folder cannot be listed.
    """
    found = Harvest()
    for path in walk(refs):
        _add(found, path, sources, is_reference=True)
    inside = refs.resolve()
    for path in walk(raw):
        if inside not in (path.resolve(), *path.resolve().parents):
            named = pattern is not None and _fits(path, raw, pattern)
            _add(found, path, sources, named or holds_alone(path))
    return found


def walk(root: Path) -> Iterator[Path]:
    """Yield the files below a folder in natural order, or the file itself; hidden ones are skipped.

    Raises
    ------
    FormatError : there is no such file or folder, or a folder cannot be listed.
    """
    if not root.exists():
        raise FormatError(f"{root}: no such file or folder")
    if root.is_file():
        yield root
        return

    def refuse(error: OSError) -> None:
        raise FormatError(f"{error.filename}: cannot be listed ({error.strerror})")

    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        files = [Path(folder, name) for name in names if not name.startswith(".")]
        yield from sorted(files, key=natural_key)


def _fits(path: Path, root: Path, pattern: str) -> bool:
    """Whether a file's name, or its path below the root, fits a shell pattern, in any case."""
    below = str(path.relative_to(root)) if path != root else path.name
    return any(fnmatch(text.lower(), pattern.lower()) for text in (path.name, below))


def holds_alone(path: Path) -> bool:
    """Like `holds_references_alone`; damaged files are left to be reported by their reader."""
    try:
        return holds_references_alone(path)
    except FormatError:
        return False


def _add(found: Harvest, path: Path, sources: dict[str, Any], is_reference: bool) -> None:
    """Open a file into the harvest, or record why not."""
    try:
        if not sniff(path):
            found.unusable.append((path, "not a data file"))
        elif is_reference:
            found.references += [(path, group) for group in open_references(path, **sources)]
        else:
            scan = open_scan(path, **sources)
            found.scans.append(scan)
            found.references += [(path, group) for group in scan.flats]
    except FormatError as error:
        found.unusable.append((path, str(error)))


def unit_of(path: Path, frames: int) -> Path:
    """What a file belongs to: itself when it is a stack, its folder when it is a single image."""
    return path if frames > 1 else path.parent
