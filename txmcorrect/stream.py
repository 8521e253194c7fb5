"""Blocks under a memory budget; work in progress that survives a kill; output in one rename."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from filelock import FileLock, Timeout

from txmcorrect.errors import OutputError
from txmcorrect.scan import Array

# Options that cannot change a single value of the result, so a resumed run may change them.
NEUTRAL = frozenset(
    ("config", "overwrite", "dry_run", "log_file", "verbose", "quiet", "memory", "strict", "idle")
)


def iter_blocks(
    n: int, h: int, w: int, memory: int, bytes_per_pixel: float, multiple: int = 1
) -> Iterator[tuple[int, int]]:
    """Cut n frames of h x w pixels into runs `(start, stop)` that fit a memory budget in bytes.

    Starts are multiples of `multiple`; a block has at least that many frames (the last may have
    fewer), even where the budget is smaller.
    """
    fitting = int(memory // max(h * w * bytes_per_pixel, 1))
    size = max(fitting // multiple, 1) * multiple
    for start in range(0, n, size):
        yield start, min(start + size, n)


def check_output(path: Path, overwrite: bool = False) -> None:
    """Refuse an output that could not be written, before any work is done.

    Raises
    ------
    OutputError : the folder is missing or closed to us, or the output exists.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise OutputError(f"{path}: its folder does not exist; create it (mkdir -p {folder})")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{path}: no right to write into {folder}; choose another output")
    if path.is_dir():
        raise OutputError(f"{path}: expected the name of a file, got a folder")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; replace it with --overwrite, or choose another output")


@contextmanager
def disk_errors(path: Path, only_full: bool = False) -> Iterator[None]:
    """Turn a full disk (and, unless `only_full`, any other failure to write) into one line.

    h5py reports a full disk as OSError or RuntimeError with the system's text inside.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = getattr(error, "errno", None)
        full = number in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error)
        if full:
            raise OutputError(
                f"{path}: the disk is full; free some space and run the same command again"
            ) from None
        if only_full or not isinstance(error, OSError):
            raise
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None


@contextmanager
def atomic_output(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary name beside `path` to write to; it becomes `path` at the end, or nothing does.

    Raises
    ------
    OutputError : see `check_output`; the disk is full.
    """
    check_output(path, overwrite)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        with disk_errors(path, only_full=True):
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.absolute().parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Make a file's content, or a folder's names, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def run_signature(
    options: Mapping[str, Any], inputs: Iterable[Path], model_sha256: str = ""
) -> dict[str, str]:
    """Say what a result depends on; a run resumes only where all of it is the same.

    Parameters
    ----------
    options : resolved settings; those in `NEUTRAL` are left out.
    inputs : files and folders read; identity is name, size and time of change.
    model_sha256 : of the model file.
    """
    wanted = {name: value for name, value in options.items() if name not in NEUTRAL}
    described = {f"--{n.replace('_', '-')}": _canonical(v) for n, v in sorted(wanted.items())}
    listing = [list(_identities(path)) for path in inputs]
    digest = hashlib.sha256(_canonical(listing).encode()).hexdigest()
    return {**described, "the input": digest, "the model": model_sha256}


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _identities(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of change of a file, or of all files below a folder."""
    files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
    for file in files:
        if any(parent.suffix == ".part" for parent in file.parents):
            continue  # an output that is being written into the input's own folder
        stat = file.stat()
        yield str(file.resolve()), stat.st_size, stat.st_mtime_ns


class PartFolder:
    """`OUT.part/`: finished pieces of an output, kept across kills until the output is complete.

    A piece ("shard") is written under a temporary name, synced, renamed, and then entered with its
    checksum into an append-only journal, one per rank; a shard that is not in a journal, or does
    not match it, does not exist. Rank 0 holds the lock, which the system drops when a process
    dies; the other ranks open the folder after rank 0 has.

    Parameters
    ----------
    out : the output this work is for.
    signature : see `run_signature`.
    rank : number of this process among those of the run.
    overwrite : replace an existing output, and discard work of a run with another signature.

    Raises
    ------
    OutputError : the output exists, another run holds it, or an unfinished run had other settings.
    """

    def __init__(
        self, out: Path, signature: Mapping[str, str], rank: int = 0, overwrite: bool = False
    ) -> None:
        self.out = out
        self.path = out.with_name(out.name + ".part")
        self.rank = rank
        self._journal = self.path / f"journal.{rank}.jsonl"
        self._shards: dict[str, dict[str, Any]] = {}
        self._lock: FileLock | None = None
        if rank == 0:
            self._start(dict(signature), overwrite)
        elif self._stored_signature() != dict(signature):
            raise OutputError(f"{self.path}: rank {rank} has other options or inputs than rank 0")
        self._heal_journal()
        self.refresh(verify=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def names(self) -> set[str]:
        """Return the names of all finished shards known so far."""
        return set(self._shards)

    def meta(self, name: str) -> dict[str, Any]:
        """Return what was entered with a shard."""
        return self._shards[name]

    def save(self, name: str, data: bytes, **meta: Any) -> None:
        """Store a shard for good; `meta` must be JSON.

        Raises
        ------
        OutputError : the disk is full or cannot be written; what was stored before stays.
        """
        path = self._shard(name)
        temporary = path.with_suffix(f".{self.rank}.tmp")
        with disk_errors(self.path):
            try:
                _write_synced(temporary, data)
                os.replace(temporary, path)
                _sync(self.path)
            finally:
                temporary.unlink(missing_ok=True)
            entry = {**meta, "name": name, "sha256": hashlib.sha256(data).hexdigest()}
            self._enter(entry)
        self._shards[name] = entry

    def load(self, name: str) -> bytes:
        """Return a shard's bytes.

        Raises
        ------
        OutputError : it changed since it was stored, or is gone with its disk.
        """
        try:
            data = self._shard(name).read_bytes()
        except OSError as error:
            raise OutputError(
                f"{self.path}: {name} cannot be read ({error.strerror or error}); "
                "see that its disk is back, and run the same command again"
            ) from None
        if hashlib.sha256(data).hexdigest() != self._shards[name]["sha256"]:
            raise OutputError(
                f"{self.path}: {name} is damaged; run the same command again to redo it"
            )
        return data

    def save_arrays(self, name: str, **arrays: Array) -> None:
        """Store arrays, compressed, as one shard: key frames, and whatever else is dear."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        self.save(name, buffer.getvalue())

    def load_arrays(self, name: str, only: Collection[str] = ()) -> dict[str, Array]:
        """Return what `save_arrays` stored; `only` these arrays, where given."""
        with np.load(io.BytesIO(self.load(name)), allow_pickle=False) as stored:
            return {name: stored[name] for name in only or stored.files}

    def refresh(self, verify: bool = False) -> None:
        """Learn what all ranks have finished; `verify` checks every shard not yet known."""
        for entry in self._entries():
            name = entry.get("name")
            if name in self._shards or name is None:
                continue
            if not verify or self._is_intact(entry):
                self._shards[name] = entry

    def note_failure(self, reason: str) -> None:
        """Leave word for the other ranks of this run that this one has failed."""
        with suppress(OSError):
            (self.path / f"failed.{self.rank}").write_text(reason)

    def failures(self) -> dict[int, str]:
        """Ranks of this run that failed, and why."""
        found = {}
        for note in self.path.glob("failed.*"):
            with suppress(OSError):
                found[int(note.suffix[1:])] = note.read_text()
        return found

    def is_free(self) -> bool:
        """Whether nobody holds the lock: rank 0 has ended."""
        if not self.path.exists():
            return True
        lock = FileLock(self.path / "lock", timeout=0, thread_local=False)
        try:
            lock.acquire()
        except (Timeout, OSError):
            return False
        lock.release()
        return True

    def publish(self, assembled: Path) -> None:
        """Make a complete file, written inside this folder, the output; then drop the folder."""
        with disk_errors(self.out):
            _sync(assembled)
            stat = assembled.stat()
            self._enter({"finished": [stat.st_ino, stat.st_size]})
            os.replace(assembled, self.out)
            _sync(self.out.absolute().parent)
        self.remove()

    def remove(self) -> None:
        """Drop the folder and all that is in it."""
        self._wipe()
        for name in ("owner", "lock"):
            (self.path / name).unlink(missing_ok=True)
        with suppress(OSError):  # not empty: the next run has moved in already
            self.path.rmdir()
        self.close()

    def close(self) -> None:
        """Let go of the lock; the work stays for the next run."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _start(self, signature: dict[str, str], overwrite: bool) -> None:
        """Take the lock, and adopt or refuse what an earlier run left."""
        if not self.path.exists():
            check_output(self.out, overwrite)
        with disk_errors(self.path):
            self.path.mkdir(exist_ok=True)
        self._lock = self._take_lock()
        try:
            self._adopt(signature, overwrite)
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> FileLock:
        path, owner, who = self.path / "lock", self.path / "owner", ""
        lock = FileLock(path, timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            with suppress(FileNotFoundError):  # held for so short that it is not signed yet
                who = owner.read_text()
            raise OutputError(
                f"{self.out}: another run holds it ({who or 'just begun'}); "
                "wait for it, or choose another output"
            ) from None
        except (OSError, NotImplementedError) as error:
            raise OutputError(f"{path}: cannot be locked ({error})") from None
        if not path.exists():  # its holder finished and removed the folder in this very moment
            lock.release()
            raise OutputError(f"{self.out}: another run has just finished it; look, or run again")
        with disk_errors(self.path):
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        return lock

    def _adopt(self, signature: dict[str, str], overwrite: bool) -> None:
        if self._left_by_finished_run():
            self._wipe()
        for note in self.path.glob("failed.*"):  # of a run before
            note.unlink()
        stored = self._stored_signature()
        if self.out.exists() and not overwrite and stored is None:
            self.remove()
        check_output(self.out, overwrite)
        if stored is not None and stored != signature:
            if not overwrite:
                raise OutputError(self._difference(stored, signature))
            self._wipe()
        if stored != signature:
            with disk_errors(self.path):
                _write_synced(self.path / "signature.tmp", _canonical(signature).encode())
                os.replace(self.path / "signature.tmp", self.path / "signature.json")
                _sync(self.path)

    def _stored_signature(self) -> dict[str, str] | None:
        try:
            stored: dict[str, str] = json.loads((self.path / "signature.json").read_text())
        except FileNotFoundError:
            return None
        return stored

    def _difference(self, old: dict[str, str], new: dict[str, str]) -> str:
        """Name what an unfinished run had otherwise."""
        keys = [k for k in {**old, **new} if old.get(k) != new.get(k)]
        first = keys[0]
        detail = f" (was {old.get(first)}, is {new.get(first)})" if first[0] == "-" else ""
        return (
            f"{self.path} holds an unfinished run in which {first} differs{detail}; "
            "use the same to resume, or --overwrite to start anew"
        )

    def _left_by_finished_run(self) -> bool:
        """Tell whether the output is what this folder was for: a kill came after the rename."""
        if not self.out.is_file():
            return False
        stat = self.out.stat()
        return any(e.get("finished") == [stat.st_ino, stat.st_size] for e in self._entries())

    def _wipe(self) -> None:
        """Drop everything but the lock; the signature first, so that no half-wiped run resumes."""
        (self.path / "signature.json").unlink(missing_ok=True)
        for file in self.path.iterdir():
            if file.name not in ("lock", "owner"):
                file.unlink()
        self._shards.clear()

    def _heal_journal(self) -> None:
        """End a line that a kill left torn, so that the next one stands by itself."""
        torn = self._journal.exists() and not self._journal.read_bytes().endswith(b"\n")
        with disk_errors(self.path), self._journal.open("ab") as file:
            file.write(b"\n" if torn else b"")

    def _enter(self, entry: Mapping[str, Any]) -> None:
        with self._journal.open("ab") as file:
            file.write(_canonical(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _entries(self) -> Iterator[dict[str, Any]]:
        """Yield the journals' entries, the newest of each rank first; torn lines are passed over."""
        for journal in sorted(self.path.glob("journal.*.jsonl")):
            for line in reversed(journal.read_bytes().splitlines()):
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict):
                    yield entry

    def _shard(self, name: str) -> Path:
        return self.path / f"{name}.shard"

    def _is_intact(self, entry: Mapping[str, Any]) -> bool:
        try:
            with self._shard(entry["name"]).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == entry["sha256"]
        except FileNotFoundError:
            return False


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
