"""Shares of the shown places kept over a window: how many a slate owes a group, and how many it may give it.

Error diffusion, one account a placement, rule and bound, in places:

    owed + share · k = whole places of this slate + what is carried on

A slate that holds more than it owed pays in advance, one that could not pay leaves a debt; both are carried on up to
CREDIT of the window's places, so that no window is further from the share than that, but one place at least: shares are
paid in whole ones. Places that a slate could not fill owe nothing. The account is the partition's own and is committed
with what it decided.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

CREDIT = 0.0025  # of a window's places


class Share(NamedTuple):
    """A rule's bounds as they bind: None where there is none."""

    rule_id: str
    least: float | None
    most: float | None
    window: int  # slates


class Plan(NamedTuple):
    """What one slate owes a rule's group, and what it may give it, in places."""

    least: int
    most: int


class Exposure:
    """The accounts of one partition. `copy` before a step, keep the copy when the step's effects are accepted."""

    def __init__(self, accounts: dict[str, float] | None = None) -> None:
        self.accounts: dict[str, float] = {} if accounts is None else accounts

    def copy(self) -> Exposure:
        return Exposure(dict(self.accounts))

    def plan(self, placement: str, share: Share, k: int) -> Plan:
        """For the next slate of k places; what it plans is counted as given until `settle` says what was."""
        least, most = 0, k
        if share.least is not None:
            least = self._whole(_name(placement, share, "least"), share.least, k)
        if share.most is not None:
            most = max(self._whole(_name(placement, share, "most"), share.most, k), least)
        return Plan(least, most)

    def settle(self, placement: str, share: Share, k: int, plan: Plan, placed: int, *, size: int | None = None) -> None:
        """The slate holds `placed` of the group among its `size` items; None: k."""
        credit = max(CREDIT * share.window * k, 1.0)
        free = 0 if size is None else k - size
        for bound, part, planned in (("least", share.least, plan.least), ("most", share.most, plan.most)):
            name = _name(placement, share, bound)
            if name in self.accounts and part is not None:
                account = self.accounts[name] + planned - placed - part * free
                self.accounts[name] = min(max(account, -credit), credit)

    def keep(self, names: Iterable[tuple[str, Share]]) -> None:
        """Forgets the accounts of all rules but these, by placement."""
        known = {_name(placement, share, bound) for placement, share in names for bound in ("least", "most")}
        for name in self.accounts.keys() - known:
            del self.accounts[name]

    def _whole(self, name: str, share: float, k: int) -> int:
        due = self.accounts.get(name, 0.0) + share * k
        whole = min(max(math.floor(due + 1e-9), 0), k)
        self.accounts[name] = due - whole
        return whole


def _name(placement: str, share: Share, bound: str) -> str:
    return f"{placement}\0{share.rule_id}\0{bound}"
