"""What a slate may hold beyond the query's mask: business rules and diversity, as arrays.

They are applied before sampling: each changes the scores from which π is formed, or the candidates that a position is
drawn from. So every propensity stays the exact probability of the draw that was made.

At position j of a decision, in this order:

    a pin at j       the position is drawn from those of its members that are left
    quotas           once the positions still free are no more than the members still owed, only members are drawn
    a later pin      its last member left is kept for it
    caps             a group that has its most leaves the candidates for good

What cannot be met (no member is left) binds nothing: the slate is drawn as if it were not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.policy.base import F32, I32, I64, Bool


@dataclass(frozen=True)
class Cap:
    """At most `most` of each group in a slate."""

    groups: I32  # (B, n) the candidate's group, -1 in none
    most: I64  # (B,) ≥ 0


@dataclass(frozen=True)
class Pin:
    """Position `position` is drawn from `members`."""

    position: int
    members: Bool  # (B, n); of a decision without this pin all False


@dataclass(frozen=True)
class Quota:
    """At least `least` of `members` in a slate, wherever they stand."""

    members: Bool  # (B, n)
    least: I64  # (B,) ≥ 0


@dataclass(frozen=True)
class Constraints:
    """Of a batch of decisions, rows and candidates as in its Query."""

    boosts: F32 | None = None  # (B, n) > 0: a score above zero is multiplied by it, one below is divided
    penalty: F32 | None = None  # (B,) ≥ 0: λ of score - λ · spread · largest cosine with the items above (MMR)
    caps: tuple[Cap, ...] = ()
    pins: tuple[Pin, ...] = ()
    quotas: tuple[Quota, ...] = ()
    places: I64 | None = None  # (B,) of each slate, where that is fewer than are asked for; quotas are paid within them

    def take(self, rows: Sequence[int] | I64) -> Constraints:
        """Those of some decisions."""
        at = list(rows)
        return Constraints(
            boosts=None if self.boosts is None else self.boosts[at],
            penalty=None if self.penalty is None else self.penalty[at],
            caps=tuple(Cap(cap.groups[at], cap.most[at]) for cap in self.caps),
            pins=tuple(Pin(pin.position, pin.members[at]) for pin in self.pins),
            quotas=tuple(Quota(quota.members[at], quota.least[at]) for quota in self.quotas),
            places=None if self.places is None else self.places[at],
        )
