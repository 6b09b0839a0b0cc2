"""A million slates under fifty rules that change all the time: `python benchmarks/live_rules.py [--slates N]`.

The worker's own way from asks to slates (encode, candidates, features, policy, message), in process, without Kafka.
Every slate is checked against the rules as written (live_rules_shop.py). What deciding costs is the ratio of the same
batches with and without rules, in turn; `--cost` measures that alone, on a machine that does nothing else. One thread;
fixed seeds.
"""
# ruff: noqa: E402

from __future__ import annotations

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from live_rules_shop import CATEGORIES, ITEMS, STANDING_RULES, T0, Checker, Shop, make_rule
from scipy.stats import chi2

from headrace.policy.base import Query
from headrace.policy.checks import make_examples
from headrace.streams.describe import Ask
from headrace.streams.models import Models, load_models
from headrace.streams.policies import Served
from headrace.streams.records import item_key
from headrace.streams.rules.book import RuleBook
from headrace.streams.rules.exposure import Exposure
from headrace.streams.rules.in_force import NoRules
from headrace.streams.rules.personal import note_shown
from headrace.streams.rules.standing import Standing
from headrace.streams.settings import Settings
from headrace.streams.state import UserState

RESULT = Path(__file__).parent / "results" / "live_rules.json"
CHANGING = 43  # rules that change, beside the seven that stay
USERS = 4_000
BATCH = 64
SLATES = 1_000_000
CHANGE_EVERY = 4  # batches from one change of a rule to the next
PAIRED = 400  # batches decided with and without rules, for the cost
STEP_MS = 250  # of event time, from a batch to the next
_decode = msgspec.json.decode


class Live:
    """The book as the worker holds it, and the rules that it has in force, as written."""

    def __init__(self, settings: Settings) -> None:
        self.book = RuleBook(settings)
        self.offset = 0
        self.changes = 0

    def change(self, rule: dict[str, Any]) -> None:
        self.book.put(rule["rule_id"], json.dumps(rule).encode(), self.offset)
        self.offset += 1
        self.changes += 1

    def in_force(self, now: int) -> list[dict[str, Any]]:
        return [
            {"rule_id": r.rule_id, "action": r.action, "where": r.where or {}, "value": r.value}
            for r in self.book.in_force(now)
        ]


def states_of(shop: Shop, rng: np.random.Generator, settings: Settings) -> list[UserState]:
    states = []
    for _ in range(USERS):
        state = UserState()
        taste = rng.integers(len(CATEGORIES), size=2)
        mine = np.flatnonzero(np.isin(shop.category, taste))
        for n in rng.choice(mine, size=int(rng.integers(3, 20)), replace=False):
            state.append(item_key(shop.names[n]), type_code=1, ts=T0 - 1_000, window=settings.worker.history)
        states.append(state)
    return states


def asks_of(users: list[int], states: list[UserState], rng: np.random.Generator, now: int) -> list[Ask]:
    streams = rng.integers(1 << 63, size=len(users)).tolist()
    return [
        Ask(
            f"u{user}", states[user], "policy", "event", f"e{stream}", now, now, "default", {},
            stream.to_bytes(12, "little"), stream, None,
        )
        for user, stream in zip(users, streams, strict=True)
    ]  # fmt: skip


def learned(models: Models, name: str) -> None:
    """The arm's policy, as if it had learned from 1,500 shown places."""
    policy: Any = models.policies._served[name].policy
    policy.learn(make_examples(policy, n=1_500))
    models.policies._served[name] = Served(name, 1, policy)


def cost(models: Models, book: Live, shop: Shop, states: list[UserState], rng: np.random.Generator) -> dict[str, float]:
    """CPU time of the same batches with and without rules, in turn."""
    recommender, describer = models.recommender, models.recommender.describer
    rules, without = describer.rules, NoRules()
    taken: dict[str, list[float]] = {"with": [], "without": []}
    exposure = Exposure()
    for batch in range(PAIRED):
        asks = asks_of(rng.integers(USERS, size=BATCH).tolist(), states, rng, T0)
        if batch % CHANGE_EVERY == 0:
            book.change(make_rule(int(rng.integers(CHANGING)), rng))
        for name in ("with", "without") if batch % 2 else ("without", "with"):
            describer.rules = rules if name == "with" else without
            started = time.process_time()
            recommender.decide(asks, now=T0, exposure=exposure)
            taken[name].append(time.process_time() - started)
    describer.rules = rules
    medians = {name: float(np.median(seconds[20:])) for name, seconds in taken.items()}
    return {
        "us_a_slate_without": round(medians["without"] / BATCH * 1e6, 1),
        "us_a_slate_with": round(medians["with"] / BATCH * 1e6, 1),
        "ratio": round(medians["with"] / medians["without"], 3),
    }


def played(
    models: Models, live: Live, shop: Shop, states: list[UserState], rng: np.random.Generator, slates: int
) -> Checker:
    """Decides and checks, while a rule changes every few batches."""
    checker, exposure = Checker(shop), Exposure()
    shows: dict[int, list[tuple[int, int]]] = {}
    for batch in range(slates // BATCH):
        now = T0 + batch * STEP_MS
        if batch % CHANGE_EVERY == 0:
            live.change(make_rule(int(rng.integers(CHANGING)), rng))
        # Without replacement: a user gets one slate a batch.
        users = rng.choice(USERS, size=BATCH, replace=False).tolist()
        asks = asks_of(users, states, rng, now)
        decided = models.recommender.decide(asks, now=now, exposure=exposure)
        rows, told = [], []
        for user, decision in zip(users, decided, strict=True):
            slate = {"items": []} if decision is None else _decode(decision.message)
            rows.append([shop.row[item["item_id"]] for item in slate["items"]])
            told.append(slate.get("unmet", []))
            keys = [item_key(shop.names[row]) for row in rows[-1]]
            note_shown(states[user], keys, second=now // 1000, since=now // 1000 - 3_600)
        checker.check(rows, told, users, live.in_force(now), shows, now)
        if batch % 400 == 0:
            since = now - 3_600_000
            shows = {user: [(row, at) for row, at in seen if at > since] for user, seen in shows.items()}
    return checker


def drawn_as_told(
    models: Models, states: list[UserState], rng: np.random.Generator, *, times: int = 20_000
) -> list[float]:
    """p-values of chi² tests: first positions, and second ones after the most frequent first, of ten decisions."""
    describer, policies = models.recommender.describer, models.policies
    found = []
    for _ in range(10):
        ask = asks_of([int(rng.integers(USERS))], states, rng, T0 + 4_000_000_000)
        table = describer.describe(ask, describer.encode(ask), False, ask[0].ts, Exposure())
        assert table.bound.constraints is not None
        many = {name: np.repeat(getattr(table.query, name), times, axis=0) for name in table.query.__dataclass_fields__}
        many["streams"] = rng.integers(1 << 63, size=times).astype(np.uint64)
        policy = policies.serving("policy", "u0").policy
        shown = policy.decide(Query(**many), 2, table.bound.constraints.take([0] * times)).index
        first = int(np.bincount(shown[:, 0]).argmax())
        told, _ = policy.distributions(table.query, np.array([[first, first]]), table.bound.constraints)
        after = shown[shown[:, 0] == first]
        second = policy.distributions(table.query, after[:1], table.bound.constraints)[0][0, 1]
        for counts, p in (
            (np.bincount(shown[:, 0], minlength=len(told[0, 0])), told[0, 0]),
            (np.bincount(after[:, 1], minlength=len(second)), second),
        ):
            expected = p * counts.sum()
            large = expected >= 5
            rest_counts, rest = counts[~large].sum(), expected[~large].sum()
            statistic = ((counts - expected)[large] ** 2 / expected[large]).sum() + (
                (rest_counts - rest) ** 2 / rest if rest > 1 else 0
            )
            found.append(float(chi2.sf(statistic, max(int(large.sum()) - 1 + (rest > 1), 1))))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slates", type=int, default=SLATES)
    parser.add_argument("--cost", action="store_true", help="measure only what deciding costs, and keep the rest")
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    settings = Settings(
        arms={"shares": {"policy": 1.0}}, policy={"name": "lints"}, rules={"attributes": ["brand", "margin", "stock"]}
    )
    models = load_models(settings)
    shop = Shop(models, rng)
    learned(models, "lints")
    live = Live(settings)
    for rule in STANDING_RULES:
        live.change(rule)
    for number in range(CHANGING):
        live.change(make_rule(number, rng))
    models.recommender.describer.rules = Standing(settings, models.items, live.book)
    states = states_of(shop, rng, settings)
    costs = cost(models, live, shop, states, rng)
    if given.cost:
        figures = json.loads(RESULT.read_text("utf-8")) | {"cost": costs}
        RESULT.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
        print(json.dumps(costs))
        return
    p_values = drawn_as_told(models, states, rng)
    started, changes = time.time(), live.changes
    checker = played(models, live, shop, states, rng, given.slates)
    figures = {
        "benchmark": "live_rules",
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "policy": "lints",
        "items": ITEMS,
        "slates": given.slates // BATCH * BATCH,
        "rules": len(STANDING_RULES) + CHANGING,
        "in_force_at_the_end": len(live.book.in_force(T0)),
        "changes": live.changes - changes,
        "seconds": round(time.time() - started),
        "violations": {name: count for name, count in checker.violations.items() if count},
        "slates_too_short": checker.short,
        "slates_with_a_rule_unmet": checker.unmet,
        "least_10_percent_new_items": [
            round(share, 4) for share in (min(checker.windows["newcomers"]), max(checker.windows["newcomers"]))
        ],
        "most_5_percent_of_a_brand": round(max(checker.windows["house-brand"]), 4),
        "chi2_p_values": {
            "tests": len(p_values),
            "smallest": min(p_values),
            "below_0.05": sum(p < 0.05 for p in p_values),
        },
        "cost": costs,
    }
    RESULT.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    print(json.dumps(figures))


def section(figures: dict[str, Any]) -> str:
    """Its part of docs/benchmarks.md."""
    cost, chi = figures["cost"], figures["chi2_p_values"]
    low, high = figures["least_10_percent_new_items"]
    broken = sum(figures["violations"].values())
    short, unmet = figures["slates_too_short"], figures["slates_with_a_rule_unmet"]
    us = f"{cost['us_a_slate_with']:.0f} and {cost['us_a_slate_without']:.0f} µs"
    return f"""## Rules that change all the time

`make bench NAME=live_rules`: {figures["slates"]:,} slates of ten by `{figures["policy"]}` out of {figures["items"]:,}
items under {figures["rules"]} rules of every action, which changed {figures["changes"]:,} times meanwhile; each slate
checked against the rules as written.

| | measured | wanted |
|---|---|---|
| slates that break a rule | {broken:,} | 0 |
| slates too short, or with a rule unmet, and saying so | {short:,}, {unmet:,} | |
| new items' share, at least 10 %, in every 10,000 slates | {low:.2%} to {high:.2%} | ± 1 point |
| a brand's share, at most 5 % | up to {figures["most_5_percent_of_a_brand"]:.2%} | ± 1 point |
| chi² tests of drawn against told below 0.05 | {chi["below_0.05"]} of {chi["tests"]} | about 1 in 20 |
| deciding with rules over without, batches of {BATCH} | {cost["ratio"]:.2f} ({us}) | ≤ 1.3 |
"""


if __name__ == "__main__":
    main()
