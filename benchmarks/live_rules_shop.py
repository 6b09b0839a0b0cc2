"""The shop, the rules and the checker of live_rules.py.

The checker knows rules as written and the catalogue's attributes, and nothing of the code under test.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from headrace.streams.models import Models
from headrace.streams.records import Item

T0 = 1_790_000_000_000
ITEMS, K = 5_000, 10
FREQUENCY = {"most": 3, "within": "1h"}
CATEGORIES = [f"c{i}" for i in range(20)]
BRANDS = [f"b{i}" for i in range(40)]


class Shop:
    """Items with attributes, as plain columns for the checker and as the worker's catalogue."""

    def __init__(self, models: Models, rng: np.random.Generator) -> None:
        self.names = [f"i{n}" for n in range(ITEMS)]
        self.row = {name: n for n, name in enumerate(self.names)}
        self.category = rng.integers(len(CATEGORIES), size=ITEMS)
        self.brand = rng.integers(len(BRANDS), size=ITEMS)
        self.price = np.round(rng.lognormal(3, 1, ITEMS), 2)
        self.margin = np.round(rng.uniform(0, 0.6, ITEMS), 3)
        self.stock = rng.integers(0, 50, ITEMS)
        self.new = rng.random(ITEMS) < 0.05  # known for less than 14 days
        text_dim = models.encoder.tower.text_dim
        centres = rng.standard_normal((len(CATEGORIES), text_dim))
        vectors = centres[self.category] + 0.8 * rng.standard_normal((ITEMS, text_dim))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        for n, name in enumerate(self.names):
            age = 2 if self.new[n] else 100
            models.items.apply(
                Item(
                    name, 0, n, vectors[n].astype(np.float16).tobytes(), name, price=float(self.price[n]),
                    category=CATEGORIES[self.category[n]], since_ms=T0 - age * 86_400_000,
                    attributes={
                        "brand": BRANDS[self.brand[n]], "margin": float(self.margin[n]), "stock": int(self.stock[n])
                    },
                )
            )  # fmt: skip
        models.items.settle()


def make_rule(number: int, rng: np.random.Generator) -> dict[str, Any]:
    """A rule of the kind that `number` stands for; what it names is drawn anew at every change."""
    kind = number % 10
    rule_id = f"rule-{number}"
    brand, category = str(rng.choice(BRANDS)), str(rng.choice(CATEGORIES))
    if kind in (0, 1):
        where: dict[str, Any] = {"brand": brand} if kind else {"category": category, "price": {">": 60}}
        return {"rule_id": rule_id, "action": "exclude", "where": where}
    if kind == 2:
        return {
            "rule_id": rule_id,
            "action": "exclude",
            "where": {"item_id": [f"i{n}" for n in rng.integers(ITEMS, size=20)]},
        }
    if kind == 3:
        return {
            "rule_id": rule_id,
            "action": "exclude",
            "where": {"stock": {"<": int(rng.integers(1, 4))}, "category": category},
        }
    if kind in (4, 5):
        value = float(np.round(rng.uniform(0.5, 3), 2))
        return {
            "rule_id": rule_id,
            "action": "boost",
            "where": {"brand": [brand, str(rng.choice(BRANDS))]},
            "value": value,
        }
    if kind == 6:
        return {
            "rule_id": rule_id,
            "action": "boost",
            "where": {"margin": {">": float(np.round(rng.uniform(0.3, 0.5), 3))}},
            "value": 1.2,
        }
    if kind == 7:
        return {
            "rule_id": rule_id,
            "action": "cap",
            "where": {"category": category, "price": {">": float(20 + number)}},
            "value": 2,
        }
    if kind == 8:
        return {"rule_id": rule_id, "action": "cap", "where": {"brand": brand}, "value": 1}
    return {"rule_id": rule_id, "action": "exclude", "where": {"category": category, "margin": {"<": 0.05}}}


STANDING_RULES: list[dict[str, Any]] = [
    {"rule_id": "in-stock", "action": "exclude", "where": {"stock": {"<": 1}}},
    {"rule_id": "campaign", "action": "pin", "where": {"brand": "b7", "price": {"<": 30}}, "value": 0},
    {"rule_id": "one-a-brand", "action": "cap", "value": {"by": "brand", "most": 2}},
    {"rule_id": "mixed", "action": "cap", "value": {"by": "category", "most": 4}},
    {"rule_id": "newcomers", "action": "share", "where": {"age": {"<": "14d"}}, "value": {"least": 0.1}},
    {"rule_id": "house-brand", "action": "share", "where": {"brand": "b3"}, "value": {"most": 0.05}},
    {"rule_id": "not-again", "action": "frequency", "value": FREQUENCY},
]  # fmt: skip


class Checker:
    """Counts what the slates break, by the rules as written."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.violations: Counter[str] = Counter()
        self.short = self.unmet = 0
        self.places: Counter[str] = Counter()
        self.windows: dict[str, list[float]] = {"newcomers": [], "house-brand": []}
        self._window: Counter[str] = Counter()

    def matches(self, where: dict[str, Any]) -> np.ndarray:
        shop = self.shop
        found = np.ones(ITEMS, np.bool_)
        for name, wanted in where.items():
            if name == "item_id":
                mine = np.zeros(ITEMS, np.bool_)
                mine[[shop.row[item] for item in wanted]] = True
            elif name == "brand":
                names = wanted if isinstance(wanted, list) else [wanted]
                mine = np.isin(shop.brand, [BRANDS.index(brand) for brand in names])
            elif name == "category":
                mine = shop.category == CATEGORIES.index(wanted)
            elif name == "age":
                mine = shop.new
            else:
                column = getattr(shop, name)
                mine = np.ones(ITEMS, np.bool_)
                for sign, bound in wanted.items():
                    mine &= column < bound if sign == "<" else column > bound
            found &= mine
        return found

    def check(
        self,
        rows: list[list[int]],
        told: list[list[str]],
        users: list[int],
        rules: list[dict[str, Any]],
        shows: dict[int, list[tuple[int, int]]],
        now: int,
    ) -> None:
        matched = {rule["rule_id"]: self.matches(rule["where"]) for rule in rules}
        slates = np.full((len(rows), K), -1)
        for row, slate in zip(slates, rows, strict=True):
            row[: len(slate)] = slate
        there, told_of = slates >= 0, [set(unmet) for unmet in told]
        sizes = there.sum(axis=1)
        self.short += int((sizes < K).sum())
        self.unmet += sum(map(bool, told))
        self.violations["short without a word"] += sum(
            size < K and not unmet for size, unmet in zip(sizes.tolist(), told, strict=True)
        )
        self.violations["repeated"] += sum(len(set(slate)) < len(slate) for slate in rows)
        for rule in rules:
            inside = matched[rule["rule_id"]][slates] & there
            if rule["action"] == "exclude":
                self.violations["exclude"] += int(inside.any(axis=1).sum())
            elif rule["action"] == "pin":
                held = inside[:, rule["value"]].tolist()
                self.violations["pin"] += sum(
                    not met and rule["rule_id"] not in unmet for met, unmet in zip(held, told_of, strict=True)
                )
            elif rule["action"] == "cap" and isinstance(rule["value"], int):
                self.violations["cap"] += int((inside.sum(axis=1) > rule["value"]).sum())
            elif rule["action"] == "cap":
                values = np.where(there, getattr(self.shop, rule["value"]["by"])[slates], -1 - np.arange(K))
                same = (values[:, :, None] == values[:, None, :]).sum(axis=2)
                self.violations["cap"] += int((same.max(axis=1) > rule["value"]["most"]).sum())
        for slate, user in zip(rows, users, strict=True):
            seen = Counter(row for row, ms in shows.get(user, ()) if ms > now - 3_600_000)
            self.violations["frequency"] += any(seen[item] >= FREQUENCY["most"] for item in slate)
            shows.setdefault(user, []).extend((item, now) for item in slate)
        self._window["slates"] += len(rows)
        self._window["places"] += int(there.sum())
        for name in self.windows:
            self._window[name] += int((matched[name][slates] & there).sum())
        if self._window["slates"] >= 10_000:
            for name, shares in self.windows.items():
                shares.append(self._window[name] / self._window["places"])
            self._window.clear()
