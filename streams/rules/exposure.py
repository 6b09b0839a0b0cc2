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
from collections.abc import Iterable, Sequence
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
        return self.plans(placement, share, [k])[0]

    def plans(self, placement: str, share: Share, ks: Sequence[int]) -> list[Plan]:
        """The same for several, one after the other."""
        least, most = [0] * len(ks), list(ks)
        if share.least is not None:
            least = self._whole(_name(placement, share, "least"), share.least, ks)
        if share.most is not None:
            most = list(map(max, self._whole(_name(placement, share, "most"), share.most, ks), least))
        return list(map(Plan, least, most))

    def settle(self, placement: str, share: Share, k: int, plan: Plan, placed: int, *, size: int | None = None) -> None:
        """The slate holds `placed` of the group among its `size` items; None: k."""
        self.settle_all(placement, share, [k], [plan], [placed], [k if size is None else size])

    def settle_all(
        self, placement: str, share: Share, ks: Sequence[int], plans: Sequence[Plan], placed: Sequence[int],
        sizes: Sequence[int],
    ) -> None:  # fmt: skip
        """The same for several, one after the other."""
        for at, (bound, part) in enumerate((("least", share.least), ("most", share.most))):
            name = _name(placement, share, bound)
            account = self.accounts.get(name)
            if part is None or account is None:
                continue
            for k, plan, n, size in zip(ks, plans, placed, sizes, strict=True):
                credit = max(CREDIT * share.window * k, 1.0)
                account = min(max(account + plan[at] - n - part * (k - size), -credit), credit)
            self.accounts[name] = account

    def keep(self, names: Iterable[tuple[str, Share]]) -> None:
        """Forgets the accounts of all rules but these, by placement."""
        known = {_name(placement, share, bound) for placement, share in names for bound in ("least", "most")}
        for name in self.accounts.keys() - known:
            del self.accounts[name]

    def _whole(self, name: str, share: float, ks: Sequence[int]) -> list[int]:
        account, wholes = self.accounts.get(name, 0.0), []
        for k in ks:
            due = account + share * k
            whole = min(max(math.floor(due + 1e-9), 0), k)
            account = due - whole
            wholes.append(whole)
        self.accounts[name] = account
        return wholes


def _name(placement: str, share: Share, bound: str) -> str:
    return f"{placement}\0{share.rule_id}\0{bound}"
