"""Tiles made when wanted, the last few kept: pairs come back to the same ones again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Items by number, at most `keep` of them in memory.

    Parameters
    ----------
    make : number -> item. keep : how many of the items last used stay.
    """

    def __init__(self, make: Callable[[int], T], keep: int):
        self.make, self.keep = make, keep
        self.kept: dict[int, T] = {}

    def __getitem__(self, index: int) -> T:
        item = self.kept.pop(index) if index in self.kept else self.make(index)
        self.kept[index] = item  # last in the dict is last used
        while len(self.kept) > self.keep:
            del self.kept[next(iter(self.kept))]
        return item
