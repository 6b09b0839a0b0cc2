"""The latest fresh examples with the rewards known for them so far, oldest first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.policy.base import F32, F64, I64, U64, Examples

_COLUMNS = ("states", "contexts", "items", "scalars", "positions", "rewards")
_ALL = (*_COLUMNS, "weights")


@dataclass(frozen=True)
class Remembered:
    """Arrays as in base.Examples, without what only a log needs."""

    states: F32
    contexts: F32
    items: F32
    scalars: F32
    positions: I64
    rewards: F64
    weights: F64  # 1 where an example has none


class Memory:
    """A ring of `capacity` examples. What it holds depends on the latest examples alone, not on when it was begun."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._added = 0
        self._ring: dict[str, NDArray[Any]] = {}  # allocated by the first example: a policy that only serves has none
        self._ids = np.zeros(0, np.uint64)
        self._owners = np.zeros(0, np.uint64)
        self._slots: dict[int, int] = {}

    def __len__(self) -> int:
        return min(self._added, self.capacity)

    def add(self, examples: Examples) -> tuple[I64, F64]:
        """Takes fresh examples in, oldest out, and corrects the rewards of those it holds.

        Returns, for each row (N,), how many newer fresh examples there are after the batch, -1 where the row's example
        is not held, and the reward it had before the row.
        """
        n = len(examples.rewards)
        if not self._ring and n:
            self._allocate(examples)
        rows = np.flatnonzero(examples.fresh)
        kept = rows[-self.capacity :]
        slots = (self._added + len(rows) - len(kept) + np.arange(len(kept))) % self.capacity
        for old in self._ids[slots[: max(0, self._added + len(rows) - self.capacity)]].tolist():
            self._slots.pop(old, None)
        for name in _COLUMNS:
            self._ring[name][slots] = getattr(examples, name)[kept]
        self._ring["weights"][slots] = 1.0 if examples.weights is None else examples.weights[kept]
        self._ids[slots] = examples.ids[kept]
        self._owners[slots] = 0 if examples.owners is None else examples.owners[kept]
        self._slots.update(zip(examples.ids[kept].tolist(), slots.tolist(), strict=True))
        self._added += len(rows)
        return self._correct(examples)

    def _correct(self, examples: Examples) -> tuple[I64, F64]:
        newer, before = np.full(len(examples.rewards), -1), np.zeros(len(examples.rewards))
        rows = np.flatnonzero(examples.fresh)[-self.capacity :]
        newer[rows] = np.arange(len(rows))[::-1]
        for row in np.flatnonzero(~examples.fresh).tolist():
            slot = self._slots.get(int(examples.ids[row]))
            if slot is not None:
                rewards = self._ring["rewards"]
                newer[row] = (self._added - 1 - slot) % self.capacity
                before[row] = rewards[slot]
                rewards[slot] += examples.rewards[row]
        return newer, before

    def _allocate(self, examples: Examples) -> None:
        for name in _COLUMNS:
            like = getattr(examples, name)
            self._ring[name] = np.zeros((self.capacity, *like.shape[1:]), like.dtype)
        self._ring["weights"] = np.zeros(self.capacity)
        self._ids = np.zeros(self.capacity, np.uint64)
        self._owners = np.zeros(self.capacity, np.uint64)

    def forget(self, owners: U64) -> None:
        """Blanks the examples of these owners. Each keeps its place, with the weight 0: others are as old as before."""
        gone = np.flatnonzero((self._owners != 0) & np.isin(self._owners, owners))
        for slot in gone.tolist():
            self._slots.pop(int(self._ids[slot]), None)
        for ring in (*self._ring.values(), self._ids, self._owners):
            ring[gone] = 0

    def all(self) -> Remembered:
        """Copies, oldest first: the same for a ring begun long ago and one rebuilt from the latest examples."""
        size = len(self)
        order = (self._added - size + np.arange(size)) % self.capacity
        return Remembered(**{name: self._ring[name][order] for name in _ALL})
