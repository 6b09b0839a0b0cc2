"""Online Retail II as invoices, and what foretells the next one without learning: for benchmarks/online_retail.py.

Judged is each invoice of the second half of the year, before its first line, for users with a purchase before it: of
its lines the share that stands among ten items. Lines are repeats, of an item that the user bought before, or first
purchases.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray

F32 = NDArray[np.float32]
SHOWN = 10
DAY_MS = 86_400_000


@dataclass(frozen=True)
class Invoice:
    """The lines of one purchase: item ids, one a line."""

    user: str
    ts: int
    lines: list[str]


def invoices_of(path: Path) -> list[Invoice]:
    """Purchases of known customers, by time; lines of one minute and more under one number are one invoice."""
    columns = pyarrow.parquet.read_table(
        path, columns=["Invoice", "StockCode", "Quantity", "InvoiceDate", "Customer ID"]
    ).to_pydict()
    zone = ZoneInfo("Europe/London")
    found: dict[tuple[str, str], Invoice] = {}
    times: dict[str, int] = {}
    for number, item, quantity, date, customer in zip(*columns.values(), strict=True):
        if customer is None or customer != customer or quantity <= 0:
            continue
        if date not in times:
            times[date] = int(datetime.fromisoformat(date).replace(tzinfo=zone).timestamp() * 1000)
        user = str(int(customer))
        found.setdefault((user, number), Invoice(user, times[date], [])).lines.append(item)
    return sorted(found.values(), key=lambda invoice: invoice.ts)


def middle_of(invoices: Sequence[Invoice]) -> int:
    """Unix ms: what comes before it is learned from, what comes after it is judged."""
    return (invoices[0].ts + invoices[-1].ts) // 2


class Tally:
    """Lines that stood among the ten, of all lines; repeats and first purchases apart."""

    def __init__(self) -> None:
        self.users: list[str] = []  # of each invoice
        self.counts: list[tuple[int, int, int, int]] = []  # hits and lines of its repeats, hits and lines of the others

    def add(self, invoice: Invoice, shown: Sequence[str], bought: Counter[str]) -> None:
        hits, lines = [0, 0], [0, 0]
        for line in invoice.lines:
            kind = line not in bought
            lines[kind] += 1
            hits[kind] += line in shown
        self.users.append(invoice.user)
        self.counts.append((hits[0], lines[0], hits[1], lines[1]))

    def figures(self) -> dict[str, Any]:
        totals = np.array(self.counts).sum(axis=0)
        shares = {kind: round(float(share), 4) for kind, share in zip(KINDS, _shares(totals), strict=True)}
        return {**shares, "lines": int(totals[1] + totals[3]), "invoices": len(self.counts)}


KINDS = ("all", "repeats", "first")


def _shares(counts: NDArray[Any]) -> NDArray[np.float64]:
    """counts (…, 4) → shares (…, 3) of all lines, of repeats, of first purchases."""
    hits = np.stack([counts[..., 0] + counts[..., 2], counts[..., 0], counts[..., 2]], axis=-1)
    lines = np.stack([counts[..., 1] + counts[..., 3], counts[..., 1], counts[..., 3]], axis=-1)
    found: NDArray[np.float64] = hits / np.maximum(lines, 1)
    return found


def gain(ours: Tally, theirs: Tally, *, draws: int = 2_000, seed: int = 0) -> dict[str, list[float]]:
    """By kind of line: the difference of the shares, and its 95 % interval by a bootstrap over users, in pairs."""
    assert ours.users == theirs.users
    users, of = np.unique(ours.users, return_inverse=True)
    both = np.zeros((len(users), 2, 4))
    np.add.at(both, of, np.stack([ours.counts, theirs.counts], axis=1))
    weights = np.random.default_rng(seed).multinomial(len(users), np.full(len(users), 1 / len(users)), size=draws)
    drawn = _shares(np.einsum("du,utc->dtc", weights, both))
    told = _shares(both.sum(axis=0))
    low, high = np.quantile(drawn[:, 0] - drawn[:, 1], [0.025, 0.975], axis=0)
    found = np.stack([told[0] - told[1], low, high], axis=1)
    return {kind: [round(float(x), 4) for x in row] for kind, row in zip(KINDS, found, strict=True)}


class Baselines:
    """What costs nothing, kept up to date with every invoice.

    own most frequent       the user's own items, most lines first
    co-occurrence           Σ over the items of his last invoice: in how many invoices both stood
    popular                 most lines so far
    … of what is new        the same among items that he has not bought
    """

    def __init__(self, invoices: Sequence[Invoice]) -> None:
        names = dict.fromkeys(line for invoice in invoices for line in invoice.lines)
        self._names = list(names)
        self._rows = {name: row for row, name in enumerate(names)}
        self._together = np.zeros((len(names), len(names)), np.float32)
        self._popular = np.zeros(len(names), np.float32)
        self._last: dict[str, NDArray[np.int64]] = {}
        self.bought: dict[str, Counter[str]] = defaultdict(Counter)
        self.tallies: dict[str, Tally] = defaultdict(Tally)

    def knows(self, user: str) -> bool:
        return user in self._last

    def learn(self, invoice: Invoice) -> None:
        self.bought[invoice.user].update(invoice.lines)
        rows = np.array([self._rows[line] for line in invoice.lines])
        np.add.at(self._popular, rows, 1)
        self._last[invoice.user] = items = np.unique(rows)
        self._together[np.ix_(items, items)] += 1
        self._together[items, items] -= 1

    def judge(self, invoice: Invoice) -> None:
        bought = self.bought[invoice.user]
        mine = np.array([self._rows[item] for item in bought])
        together = self._together[self._last[invoice.user]].sum(axis=0)
        own = [item for item, _ in bought.most_common(SHOWN)]
        found = {"own_most_frequent": own, "co_occurrence": self._top(together), "popular": self._top(self._popular)}
        found["co_occurrence_of_what_is_new"] = self._top(together, mine)
        found["popular_of_what_is_new"] = self._top(self._popular, mine)
        for name, shown in found.items():
            self.tallies[name].add(invoice, shown, bought)

    def _top(self, scores: F32, without: NDArray[np.int64] | None = None) -> list[str]:
        if without is not None:
            scores = scores.copy()
            scores[without] = -1
        best = np.argpartition(-scores, SHOWN)[:SHOWN]
        return [self._names[row] for row in best]
