"""What the outcomes at one position of a decision earn: r = f(outcomes), under a named version. Pure.

    worth    what one outcome counts by itself: its type's weight × 1, value, quantity or both
    f        sum (all of them), first or last (by event time), max (the largest)

f is a function of the set of outcomes: the order in which they arrive has no say. A return takes its purchase out of
the set. State and action say whose outcomes these are (the decision, the position); what comes after it, the next state
and the time until then, is learned from by steps (policy.base.Steps), not by the reward.

The version is the settings' name and a hash of all that r depends on: with a changed weight it is another version.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from headrace.streams.settings import EventType, Settings
from headrace.streams.state import short_hash


class Earned(NamedTuple):
    """One outcome that counts. `event` is a hash of its event, `order` of its order line (0: none, nothing returns)."""

    ts: int
    event: int
    worth: float
    order: int = 0
    kind: int = 0  # place of its type in Rewards.kinds


class Rewards:
    """The reward function of the settings."""

    def __init__(self, settings: Settings) -> None:
        self._types = settings.event_types
        self.function = settings.decisions.reward_function
        earning = {name: rule for name, rule in sorted(settings.event_types.items()) if rule.reward or name == "return"}
        self.kinds = tuple(earning)
        said = [self.function, *(f"{n} {t.reward!r} {t.times} {t.window}" for n, t in earning.items())]
        self.version = f"{settings.decisions.reward_version}-{short_hash(*said) & 0xFFFFFFFF:08x}"

    def worth(self, kind: str, value: float | None, quantity: float | None) -> float:
        """What one outcome of this type counts by itself; 0 for a type that the settings do not know."""
        rule = self._types.get(kind)
        return 0.0 if rule is None else _worth(rule, value, quantity)

    def earns(self, kind: str) -> bool:
        rule = self._types.get(kind)
        return rule is not None and rule.reward != 0

    def chosen(self, earned: Sequence[Any]) -> Sequence[Any]:
        """Those of the outcomes (as Earned) that make up the reward: all of them, or one."""
        if self.function == "sum" or len(earned) < 2:
            return earned
        if self.function == "max":
            return [max(earned, key=lambda e: (e[2], -e[0], -e[1]))]
        choose = min if self.function == "first" else max
        return [choose(earned, key=lambda e: (e[0], e[1]))]

    def total(self, earned: Sequence[Any]) -> float:
        """r of a set of outcomes, 0 for none."""
        return math.fsum(e[2] for e in self.chosen(earned))


def _worth(rule: EventType, value: float | None, quantity: float | None) -> float:
    """Weight × 1, value, quantity, or both; a missing factor counts as 1."""
    value = 1.0 if value is None else value
    quantity = 1.0 if quantity is None else quantity
    factor = {"one": 1.0, "value": value, "quantity": quantity, "value_quantity": value * quantity}[rule.times]
    return rule.reward * factor
