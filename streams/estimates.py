"""What the learner estimates to learn rightly: how late outcomes come, how much each position is looked at. Pure.

Estimates are made anew now and then, as tables; a decision is learned by the table in force when it was opened, so that
what it teaches is a function of the log. Tables travel in the learner's checkpoint, more than a restart reads of,
with the counts as of the last of them: what was counted since stands in what is read again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from headrace.policy import delays, positions
from headrace.policy.base import F64, I64, Arrays, Meta

PART = "estimates"
_POSITIONS = 100  # the longest slate
_FIRST = 256  # opened decisions after which the first table is made; then each time they have doubled
_KEPT = 64  # tables: four books' worth, and no restart reads further back than two
_LEAST = 50  # outcomes of a type below which their delays are not estimated


@dataclass(frozen=True)
class Table:
    """In force for what is opened after the message at `offset`, the `opened`th decision's."""

    offset: int
    opened: int
    multipliers: F64  # (kinds, stages) of rewards that have come: see policy/delays.py
    examination: F64  # (placements, positions) θ: see policy/positions.py

    @cached_property
    def factors(self) -> list[list[float]]:
        """`multipliers`, to be looked up one at a time."""
        factors: list[list[float]] = self.multipliers.tolist()
        return factors

    def theta(self, placement: int) -> F64 | None:
        """θ by position, None where nothing is known of it."""
        row: F64 = self.examination[placement]
        return None if (row == 1).all() else row


class Estimates:
    """The tables, and the counts that the next one is made from."""

    def __init__(
        self, kinds: Sequence[str], placements: Iterable[str], *, size: int, outstanding: bool, position_weights: bool
    ) -> None:
        """`kinds` are the types that earn; `size` is the book's, for which at least sixteen tables are made. What is
        not allowed for (`outstanding`, `position_weights`) is estimated all the same."""
        self._kinds, self._placements = tuple(kinds), {name: i for i, name in enumerate(placements)}
        self.outstanding, self.position_weights = outstanding, position_weights
        self._every = max(1, size // 16)
        self._first = min(_FIRST, size)
        self._tables: list[Table] = []
        self._since = 0  # decisions opened since the last table
        self._shown = np.zeros((len(self._placements), _POSITIONS), np.int64)  # of random slates
        self._rewarded = np.zeros_like(self._shown)
        self._counted = self._shown.copy(), self._rewarded.copy()  # as of the last table
        self.known = -1  # up to here tables and counts are those of a checkpoint
        self.changed = False  # since the last snapshot

    def placement(self, name: str) -> int:
        return self._placements.get(name, 0)

    def in_force(self, offset: int) -> Table | None:
        """The table by which what the message at `offset` opens is learned."""
        at = bisect_left(self._tables, offset, key=lambda table: table.offset)
        return self._tables[at - 1] if at else None

    def count_shown(self, placement: int, position: int, offset: int) -> None:
        """A position of a random slate was shown."""
        if offset > self.known and position < _POSITIONS:
            self._shown[placement, position] += 1

    def count_rewarded(self, placement: int, position: int, offset: int) -> None:
        """It earned something, for the first time."""
        if offset > self.known and position < _POSITIONS:
            self._rewarded[placement, position] += 1

    def opened(self, offset: int) -> None:
        last = self._tables[-1].offset if self._tables else -1
        if offset > last:
            self._since += 1

    def due(self, offset: int) -> bool:
        if offset <= self.known:
            return False
        last = self._tables[-1].opened if self._tables else 0
        return self._since >= (min(last, self._every) if last else self._first)

    def make(self, offset: int, ages: I64, outcomes: Iterable[tuple[int, int, int]]) -> None:
        """A table after the message at `offset`: `ages` (ms) of the decisions shown, (kind, delay, age) of outcomes."""
        came = np.array(list(outcomes), np.int64).reshape(-1, 3)
        multipliers = np.ones((len(self._kinds), delays.STAGES))
        for kind in range(len(self._kinds)):
            mine = came[came[:, 0] == kind]
            if len(mine) >= _LEAST:
                multipliers[kind] = delays.multipliers(delays.shares(mine[:, 1], mine[:, 2], ages))
        theta = np.ones(self._shown.shape)
        for row in range(len(theta)):
            theta[row] = positions.examination(self._shown[row], self._rewarded[row])
        opened = self._since + (self._tables[-1].opened if self._tables else 0)
        # As float32, as it travels: what is learned by a table must not depend on whether it has.
        self._tables.append(Table(offset, opened, _travelled(multipliers), _travelled(theta)))
        del self._tables[:-_KEPT]
        self._counted = self._shown.copy(), self._rewarded.copy()
        self._since, self.changed = 0, True

    # -- checkpoint ---------------------------------------------------------------------------------------------------

    def snapshot(self) -> tuple[Arrays, Meta]:
        tables, self.changed = self._tables, False
        return {
            "offsets": np.array([t.offset for t in tables], np.int64),
            "opened": np.array([t.opened for t in tables], np.int64),
            "multipliers": _stacked([t.multipliers for t in tables], (len(self._kinds), delays.STAGES)),
            "examination": _stacked([t.examination for t in tables], self._shown.shape),
            "shown": self._counted[0],
            "rewarded": self._counted[1],
        }, {"layout": self._layout}

    def restore(self, arrays: Arrays, meta: Meta) -> None:
        """Raises ValueError where the types that earn or the placements have changed since."""
        if meta.get("layout") != self._layout:
            raise ValueError(f"the estimates are of {meta.get('layout')!r}, now it is {self._layout!r}")
        self._tables = [
            Table(int(at), int(opened), m.astype(np.float64), e.astype(np.float64))
            for at, opened, m, e in zip(
                arrays["offsets"], arrays["opened"], arrays["multipliers"], arrays["examination"], strict=True
            )
        ]
        self._shown, self._rewarded = arrays["shown"].copy(), arrays["rewarded"].copy()
        self._counted = self._shown.copy(), self._rewarded.copy()
        self.known, self._since = self._tables[-1].offset if self._tables else -1, 0

    @property
    def _layout(self) -> str:
        return f"1 {','.join(self._kinds)} {','.join(self._placements)}"


def _travelled(table: F64) -> F64:
    return table.astype(np.float32).astype(np.float64)


def _stacked(tables: list[Any], shape: tuple[int, ...]) -> Any:
    return np.stack(tables).astype(np.float32) if tables else np.zeros((0, *shape), np.float32)
