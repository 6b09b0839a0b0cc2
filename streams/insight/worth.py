"""What the arms are worth to the shop, in money and visits: counted by the worker, once, in its partitions' counts.

Two views of revenue. `attributed` is what a decision's slate led to, by that decision's arm. `all` is everything a user
buys, by the user's own arm, whether a slate led to it or not: only so is an arm comparable with a holdout, which has no
slates. Margin, returns and visits are by the user's arm. Money is counted in whole cents, so that sums are exact.
"""

from __future__ import annotations

import math
from collections import Counter

from headrace.streams.items import ItemStore
from headrace.streams.metrics import Metrics
from headrace.streams.policies import control_arm
from headrace.streams.records import Event, Outcome, Request, item_key
from headrace.streams.settings import NONE, Settings, policy_of_arm
from headrace.streams.shares import Shares
from headrace.streams.state import UserState

Counts = Counter[tuple[str, ...]]
LARGEST = 10**11  # cents an event: sums must fit 64 bits, and a thousand million is a typing error
COUNTED = frozenset(("revenue", "margin", "returned", "purchases", "unpriced", "visits"))  # names of its counts


class Worth:
    """Of one record: what its events and requests add to the counts."""

    def __init__(self, settings: Settings, items: ItemStore, shares: Shares, counts: Counts) -> None:
        self._rules, self._items, self._shares, self._counts = settings.worth, items, shares, counts

    def visit(self, entry: Event | Request, state: UserState) -> None:
        """A visit begins with what comes a while after the user was last heard of: call it before `state` hears this.

        The shop takes a return in, often by post: that is no visit.
        """
        last = state.last_second()
        if entry.ts - 1000 * last < self._rules.visit_gap or (isinstance(entry, Event) and entry.type == "return"):
            return
        self._counts["visits", self._shares.arm(entry.user_id), "return" if last else "first"] += 1

    def money(self, event: Event, outcome: Outcome | None, word: str | None) -> None:
        """What a purchase brings or a return takes back. `outcome` and `word` are those of Decisions.join: a repeat of
        an order line counts no more here than there."""
        if word == "duplicate" or not (event.type in self._rules.revenue or event.type == "return"):
            return
        cents, arm = self._cents(event), self._shares.arm(event.user_id)
        if not cents:
            self._counts["unpriced", event.type] += 1
        elif event.type == "return":
            self._counts["returned", arm] += cents
        else:
            self._counts["purchases", arm] += 1
            self._counts["revenue", "all", arm] += cents
            self._counts["margin", arm] += round(cents * self._margin(event))
            if outcome is not None and outcome.arm:
                self._counts["revenue", "attributed", outcome.arm] += cents

    def _cents(self, event: Event) -> int:
        """Price × quantity. Where the event names no price, the catalogue's of now; 0 where nobody knows one."""
        price = self._of_item(event, "price") if event.value is None else event.value
        amount = 100 * price * (1.0 if event.quantity is None else event.quantity)
        return round(min(amount, LARGEST)) if amount > 0 else 0

    def _margin(self, event: Event) -> float:
        """The item's margin as a share of its price, 0 to 1; 0 where the catalogue gives none."""
        share = self._of_item(event, self._rules.margin)
        return max(0.0, min(share, 1.0)) if share == share else 0.0

    def _of_item(self, event: Event, name: str) -> float:
        """A number that the catalogue has of the event's item; NaN where it has none."""
        column = self._items.numbers(name)
        row = self._items.rows.get(item_key(event.item_id or ""))
        return math.nan if column is None or row is None else float(column[row])


def report(name: tuple[str, ...], amount: int, metrics: Metrics) -> None:
    """One committed count on the process's metrics; money as money."""
    match name:
        case ("revenue", kind, arm):
            metrics.revenue.labels(arm, kind).inc(amount / 100)
        case ("margin", arm):
            metrics.margin.labels(arm).inc(amount / 100)
        case ("returned", arm):
            metrics.returned.labels(arm).inc(amount / 100)
        case ("purchases", arm):
            metrics.purchases.labels(arm).inc(amount)
        case ("unpriced", kind):
            metrics.unpriced.labels(kind).inc(amount)
        case ("visits", arm, kind):
            metrics.visits.labels(arm, kind).inc(amount)


def control(settings: Settings) -> str:
    """The arm that the others' worth is held against: a holdout, else the gate's control; "": none."""
    arms = settings.arms.shares
    return next((arm for arm in arms if policy_of_arm(settings, arm) == NONE), control_arm(settings))


def declare(settings: Settings, metrics: Metrics) -> None:
    """Every arm is there from the start, at 0: a counter first seen at a sum has no increase."""
    for arm in settings.arms.shares:
        for kind in ("attributed", "all"):
            metrics.revenue.labels(arm, kind)
        for kind in ("first", "return"):
            metrics.visits.labels(arm, kind)
        for family in (metrics.purchases, metrics.margin, metrics.returned):
            family.labels(arm)
    if held_against := control(settings):
        metrics.worth_control.labels(held_against).set(1)
