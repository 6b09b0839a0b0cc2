"""What is in force at a placement, as arrays over the catalogue's rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.policy.base import F32, I32

Members = NDArray[np.bool_]  # (capacity + 1,) the rows that a rule's `where` matches


@dataclass(frozen=True, eq=False)
class InForce:
    """One object as long as neither the rules of the placement nor what they ask of the catalogue change."""

    version: int = -1  # offset in `rules` up to which rules are known
    allowed: Members | None = None  # by `exclude` and `only`; None: everything
    boosts: F32 | None = None  # (capacity + 1,) product of the factors; None: no item has one
    boosting: list[tuple[str, Members, float]] = field(default_factory=list)  # id, members, factor: what `boosts` holds
    caps: list[tuple[str, I32, int]] = field(default_factory=list)  # id, group by row (-1 in none), most a slate
    pins: list[tuple[str, int, Members]] = field(default_factory=list)  # id, position, members; by position
    # id, members, least and most share of the places, window in slates
    shares: list[tuple[str, Members, float | None, float | None, int]] = field(default_factory=list)
    frequency: list[tuple[str, Members | None, int, int]] = field(default_factory=list)  # id, members, most, within ms
    excluding: list[str] = field(default_factory=list)  # ids of `exclude` and `only`


class Rules(Protocol):
    """Who knows the rules: rules/standing.py."""

    def at(self, placement: str, now: int) -> InForce:
        """At event time `now` (ms)."""
        ...


class NoRules:
    """Nothing is in force anywhere."""

    _nothing = InForce()

    def at(self, placement: str, now: int) -> InForce:
        return self._nothing
