"""Processes that work on one run: who am I, how many are we; named pieces of work that they share.

Accelerate tells rank and size and carries one word at the start of each output. Everything else goes
through the part folder, so that a piece is shared, kept across kills and done once by the same means,
whatever the number of processes before and after.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from txmcorrect.ahead import in_order
from txmcorrect.errors import OutputError, TxmError
from txmcorrect.scan import Array
from txmcorrect.stream import PartFolder

log = logging.getLogger(__name__)
T = TypeVar("T")
Arrays = Mapping[str, Array]
Make = Callable[[int], Arrays]
Progress = Callable[[int, int], None]
POLL = 0.05  # seconds between looks at what the others did
STALLED = 3600.0  # seconds in which no process finishes anything: something is wrong


@dataclass(frozen=True)
class Team:
    """One process among those of a run; `device` is what it works on, "" where it may choose."""

    rank: int = 0
    size: int = 1
    device: str = ""

    def falls_to_us(self, number: int) -> bool:
        """Whether piece `number` is ours. The rule is fixed, so nobody needs to ask."""
        return number % self.size == self.rank

    def first_of_all(self, make: Callable[[], T]) -> T:
        """Call `make` in rank 0, then, where that went well, in the others.

        Raises
        ------
        OutputError : rank 0 failed (in the others); what `make` raises (in rank 0).
        """
        if self.size == 1:
            return make()
        if self.rank > 0:
            reason = self._hear(None)
            if reason:
                raise OutputError(f"rank 0 stopped: {reason}")
            return make()
        try:
            made = make()
        except BaseException as error:
            self._hear(str(error) or type(error).__name__)
            raise
        self._hear("")
        return made

    def _hear(self, word: str | None) -> str:
        """What rank 0 says, in every rank."""
        from accelerate.utils import broadcast_object_list

        words = [word]
        try:
            broadcast_object_list(words, from_process=0)
        except RuntimeError as error:  # the other end has closed
            raise OutputError(f"rank {self.rank}: the other processes are gone ({error})") from None
        return words[0] or ""


@contextmanager
def assembled(device: str) -> Iterator[Team]:
    """Join the other processes that a launcher started (`accelerate launch`, torchrun), if any.

    `device` is `auto`, `cpu` or `cuda`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Team()
        return
    import torch
    from accelerate import PartialState

    on_cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        yield Team(
            state.process_index, state.num_processes, "" if on_cpu else f"cuda:{state.device.index}"
        )
    finally:
        state.destroy_process_group()


def _end_with(launcher: int) -> None:
    """End this process when its launcher is gone: nobody would, and it would hold the output."""
    while os.getppid() == launcher:
        time.sleep(1)
    os._exit(1)  # as sudden as any kill, which the part folder survives


class Pieces(Protocol):
    """Numbered pieces of work of several kinds, each a few arrays."""

    def each(
        self, kind: str, count: int, make: Make, progress: Progress | None = None
    ) -> Iterator[Arrays]:
        """Yield pieces `0..count` of a kind in order; `make(i)` makes one that nobody has made yet."""
        ...

    def get(self, kind: str, number: int, only: Collection[str] = ()) -> Arrays:
        """A piece that was made before; of its arrays `only` these, where given."""
        ...


class InMemory:
    """Pieces that live as long as this object, for arrays that never were files."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, int], Arrays] = {}

    def each(
        self, kind: str, count: int, make: Make, progress: Progress | None = None
    ) -> Iterator[Arrays]:
        for number in range(count):
            self._made[kind, number] = make(number)
            if progress is not None:
                progress(number + 1, count)
            yield self._made[kind, number]

    def get(self, kind: str, number: int, only: Collection[str] = ()) -> Arrays:
        return self._made[kind, number]


class Shared:
    """Pieces in a part folder: what one process made, in this run or one before, all have.

    `workers` threads make pieces at a time. Names begin with `prefix`. All pieces fall to the process
    to which number `whole` falls, where it is given: work within one part of a whole that is shared.

    Raises
    ------
    OutputError : another process failed or fell silent, or the disk is full.
    """

    def __init__(
        self,
        part: PartFolder,
        team: Team,
        workers: int = 1,
        prefix: str = "",
        whole: int | None = None,
    ) -> None:
        self.part, self.team, self.workers = part, team, workers
        self.prefix, self.whole = prefix, whole

    def each(
        self, kind: str, count: int, make: Make, progress: Progress | None = None
    ) -> Iterator[Arrays]:
        names = [piece_name(self.prefix + kind, number) for number in range(count)]
        stored = self.part.names()
        mine = [
            number
            for number, name in enumerate(names)
            if self._is_ours(number) and name not in stored
        ]
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for number, arrays in zip(
                    mine, in_order(pool, make, mine, self.workers), strict=True
                ):
                    self.part.save_arrays(names[number], **arrays)
                    if progress is not None:
                        progress(number + 1, count)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        self.wait(names)
        if progress is not None:
            progress(count, count)
        for name in names:
            yield self.part.load_arrays(name)

    def get(self, kind: str, number: int, only: Collection[str] = ()) -> Arrays:
        return self.part.load_arrays(piece_name(self.prefix + kind, number), only)

    def parts(self, kind: str, count: int) -> list[Shared]:
        """Shares for the numbered parts of a whole, each part done by one process."""
        return [
            Shared(self.part, self.team, self.workers, f"{kind}{number:04d}-", number)
            for number in range(count)
        ]

    def is_ours(self) -> bool:
        """Whether this part, one of `parts`, falls to this process."""
        return self._is_ours(0)

    def _is_ours(self, number: int) -> bool:
        return self.team.falls_to_us(number if self.whole is None else self.whole)

    def wait_for_rank_0(self) -> None:
        """Return once rank 0 has assembled the output and dropped the folder, or has failed."""
        while self.part.path.exists() and not self.part.failures() and not self.part.is_free():
            time.sleep(10 * POLL)

    def wait(self, names: Collection[str], progress: Progress | None = None) -> None:
        """Return once all these shards exist, whoever makes them."""
        wanted, last, before = set(names), time.monotonic(), -1
        while not wanted <= self.part.names():
            self.part.refresh()
            self._look_after_others()
            done = len(self.part.names())
            if done != before:
                before, last = done, time.monotonic()
            elif time.monotonic() - last > STALLED:
                raise OutputError(
                    f"{self.part.out}: no process has finished anything for {STALLED:.0f} s; "
                    "stop them all and run the same command again"
                )
            if progress is not None:
                progress(len(wanted & self.part.names()), len(wanted))
            time.sleep(POLL)

    def _look_after_others(self) -> None:
        failed = self.part.failures()
        if failed:
            rank, reason = min(failed.items())
            raise OutputError(f"{self.part.out}: rank {rank} stopped: {reason}")
        if self.team.rank > 0 and self.part.is_free():
            raise OutputError(f"{self.part.out}: rank 0 is gone; run the same command again")

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Let the others know when this process fails: they need not wait for it."""
        try:
            yield
        except BaseException as error:
            if self.team.size > 1:
                said = str(error) if isinstance(error, TxmError) else repr(error)
                self.part.note_failure(said or type(error).__name__)
            raise


def piece_name(kind: str, number: int) -> str:
    """Name of a piece's shard."""
    return f"{kind}-{number:05d}"
