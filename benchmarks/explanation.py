"""How often the reason that a slate gives is what leave-one-out says, and what reasons cost.

    python benchmarks/explanation.py [--events 12000] [--slates 1000]

No Kafka: the worker's engine and the learner of the running system in the demo's world (`simulation.loop`), with the
default encoders. Once something is learned, decisions of the second half are taken again by each policy, and of every
shown item each of the user's ten latest history entries is left out in turn, in plain code: the history is encoded
anew without it, every signal computed anew, and the item scored by the deciding policy. The entry whose removal lowers
the score most is what leave-one-out says; where none lowers it, no entry is to be named.
"""
# ruff: noqa: E402

from __future__ import annotations

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before numpy: as the roles run
    os.environ[_name] = "1"

import argparse
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from headrace.policy.base import Query
from headrace.simulation.loop import Loop, text_vectors
from headrace.simulation.settings import DAY_MS, WorldSettings
from headrace.simulation.world import World
from headrace.streams.candidates import RECENT
from headrace.streams.describe import Ask, Describer, Table
from headrace.streams.own import own_counts, own_items
from headrace.streams.policies import Served
from headrace.streams.reasons.attribution import Attribution
from headrace.streams.reasons.told import _ENOUGH
from headrace.streams.recent import NEAR, recent_of
from headrace.streams.rules.exposure import Exposure
from headrace.streams.scalars import scalars
from headrace.streams.settings import Settings
from headrace.streams.state import UserState

RESULT = Path(__file__).parent / "results" / "explanation.json"
START_MS = 1_790_000_000_000
POLICIES = ("neural_linear", "squarecb", "item_to_item")  # the last learns nothing and decides in the others' loop
K, BATCHES, TIMED, ENTRIES = 10, (8, 64), 12, (10, 5, 3)


# -- the reference ----------------------------------------------------------------------------------------------------


def without(state: UserState, j: int) -> UserState:
    """The state without its j-th latest history entry, nor the count that it brought."""
    left = UserState.unpack(state.pack())
    left.reorder(np.delete(np.arange(len(left.types)), len(left.types) - 1 - j))
    left.count = len(left.types)
    return left


def windowed(describer: Describer, state: UserState) -> UserState:
    """A history that holds just what the encoder reads of it."""
    held = int(describer.encoder.held(np.array([state.count]))[0])
    short = UserState.unpack(state.pack())
    short.reorder(np.arange(len(short.types) - held, len(short.types)))
    short.count = held
    return short


def left_out(describer: Describer, policy: Any, ask: Ask, query: Query, shown: np.ndarray, rows: np.ndarray) -> Any:
    """Scores (1 + h, k) of the shown items: as it was, then without each entry of what the encoder reads. `shown` (k,)
    are places among the candidates, `rows` (k,) rows of the catalogue."""
    short = windowed(describer, ask.state)
    entries = len(short.types)
    asks = [replace(ask, user_id=f"left out {j}", state=without(short, j)) for j in range(entries)]
    encoded = describer.encode(asks).states if asks else np.zeros((0, query.states.shape[1]), np.float32)
    for one in asks:
        describer.encoder.evict(one.user_id)
    signals = [query.scalars[0, shown]]
    for j in range(entries):
        signals.append(_scalars(describer, replace(ask, state=without(ask.state, j)), rows))
    many = 1 + entries
    asked = Query(
        states=np.concatenate([query.states, encoded]),
        contexts=np.repeat(query.contexts, many, axis=0),
        keys=np.repeat(query.keys[:, shown], many, axis=0),
        items=np.repeat(query.items[:, shown], many, axis=0),
        scalars=np.stack(signals),
        mask=np.ones((many, len(shown)), np.bool_),
        streams=np.zeros(many, np.uint64),
    )
    return policy.distributions(asked, np.full((many, 1), -1, np.int64))[1]


def _scalars(describer: Describer, ask: Ask, rows: np.ndarray) -> np.ndarray:
    items = describer.items
    recent = recent_of([ask], items, lambda user: describer.asked.vectors(ask.state.notes))
    own = own_counts([own_items(ask.state, items.rows)], rows[None])
    return scalars(
        items, describer.policies, rows[None], items.vectors[rows[None]], history=recent.rows[:, :RECENT],
        recent=recent.near[:, : NEAR - 1], keys=recent.keys[:, :RECENT], own=own,
    )[0]  # fmt: skip


# -- the decisions ----------------------------------------------------------------------------------------------------


def learned(policy: str, events: int) -> tuple[Loop, list[Ask]]:
    """A loop that has learned, and the decisions of its second half."""
    settings = Settings(policy={"name": policy}, arms={"shares": {"policy": 0.5, "item_to_item": 0.5}})
    world = World(WorldSettings(items=1_000, arriving=50, users=1_000), start_ms=START_MS, seed=5)
    loop = Loop(settings, world, text_vectors(settings, world.catalogue))
    asks: list[Ask] = []
    decide = loop.recommender.decide

    def keep(asked: Sequence[Ask], **more: Any) -> Any:
        asks.extend(replace(ask, state=UserState.unpack(ask.state.pack())) for ask in asked)
        return decide(asked, **more)

    loop.recommender.decide = keep  # type: ignore[method-assign]
    loop.run(events=events, start_ms=START_MS, span_ms=3 * DAY_MS)
    loop.recommender.decide = decide  # type: ignore[method-assign]
    return loop, asks[len(asks) // 2 :]


def described(describer: Describer, asks: list[Ask]) -> Table:
    describer.encoder.flush()
    return describer.describe(asks, describer.encode(asks), False, asks[-1].ts, Exposure())


def agreement(loop: Loop, served: Served, asks: list[Ask]) -> dict[str, Any]:
    """Decisions are taken one by one, each as the worker would, and then left out of."""
    describer = loop.recommender.describer
    attribution = Attribution(describer)
    first, every, gone_by, older = [], [], [], []
    fewer: dict[int, list[bool]] = {n: [] for n in ENTRIES}
    for ask in asks:
        table = described(describer, [ask])
        slates = served.policy.decide(table.query, K, None)
        lowered = attribution.lowered(table, served.policy, np.maximum(slates.index, 0), slates.scores)[0]
        size = int((slates.index[0] >= 0).sum())
        shown = slates.index[0, :size]
        scores = left_out(describer, served.policy, ask, table.query, shown, table.rows[0, shown])
        drops = scores[0] - scores[1:]
        least = _ENOUGH * (1 + np.abs(scores[0]))
        said = _named(lowered[:, :size], least)
        truth = _named(drops[:RECENT], least)
        first.append(said[0] == truth[0])
        for n in ENTRIES:  # an entry's part is the same whoever is looked at beside it
            fewer[n].append(_named(lowered[:n, :size], least)[0] == truth[0])
        every.append((said == truth).mean())
        # What naming another costs: how much of the largest fall the named entry brings.
        at = np.arange(size)
        fall = np.maximum(drops[:RECENT].max(axis=0, initial=0), 0) if len(drops) else np.zeros(size)
        brought = np.where(said >= 0, drops[np.minimum(said, max(len(drops) - 1, 0)), at], 0) if len(drops) else fall
        gone_by.append(((said == truth) | (brought >= 0.9 * fall)).mean())
        older.append((_named(drops, least) >= RECENT).mean())
    return {
        "slates": len(asks),
        "first_item": round(float(np.mean(first)), 4),
        "every_item": round(float(np.mean(every)), 4),
        "within_a_tenth": round(float(np.mean(gone_by)), 4),
        "older_than_ten": round(float(np.mean(older)), 4),
        "first_item_by_entries": {str(n): round(float(np.mean(found)), 4) for n, found in fewer.items()},
    }


def _named(drops: np.ndarray, least: np.ndarray) -> np.ndarray:
    """The entry (k,) that lowers each item most, -1 for none."""
    if not len(drops):
        return np.full(len(least), -1)
    return np.where(drops.max(axis=0) > least, drops.argmax(axis=0), -1)


def cost(loop: Loop, asks: list[Ask], batch: int, entries: int) -> dict[str, float]:
    """CPU time of deciding, and of the reasons in it."""
    recommender = loop.recommender
    recommender._attribution = Attribution(recommender.describer, entries)
    asks = [ask for ask in asks if ask.arm == "policy"]
    spent = {"reasons": 0.0}
    why = recommender._why

    def timed(*given: Any) -> Any:
        began = time.process_time()
        told = why(*given)
        spent["reasons"] += time.process_time() - began
        return told

    whole, of_it = [], []
    recommender._why = timed  # type: ignore[method-assign]
    for _ in range(TIMED):
        for start in range(0, len(asks) - batch + 1, batch):
            part = asks[start : start + batch]
            spent["reasons"], began = 0.0, time.process_time()
            recommender.decide(part, now=part[-1].ts)
            whole.append(time.process_time() - began)
            of_it.append(spent["reasons"])
    recommender._why = why  # type: ignore[method-assign]
    return {
        "batch": batch,
        "entries": entries,
        "us_a_slate": round(float(np.median(whole)) / batch * 1e6, 1),
        "us_of_reasons": round(float(np.median(of_it)) / batch * 1e6, 1),
        "share": round(float(np.median(np.array(of_it) / np.array(whole))), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=12_000)
    parser.add_argument("--slates", type=int, default=1_000)
    given = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for name in POLICIES[:2]:
        loop, asks = learned(name, given.events)
        rng = np.random.default_rng(0)
        chosen = sorted(rng.choice(len(asks), min(given.slates, len(asks)), replace=False).tolist())
        sample = [asks[i] for i in chosen]
        costs = [cost(loop, asks[: 20 * max(BATCHES)], batch, n) for batch in BATCHES for n in ENTRIES]
        for policy in (name, *POLICIES[2:]) if name == POLICIES[0] else (name,):
            served = loop.policies._served[policy]
            found[policy] = agreement(loop, served, sample)
            if policy == name:
                found[policy]["cost"] = costs
            print(policy, found[policy], flush=True)
    figures = {
        "benchmark": "explanation",
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "events": given.events,
        "policies": found,
    }
    RESULT.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


def section(figures: dict[str, Any]) -> str:
    """Its part of docs/benchmarks.md."""
    rows = "\n".join(
        f"| {name} | {of['slates']:,} | {of['first_item']:.1%} | {of['every_item']:.1%} | {of['within_a_tenth']:.1%} |"
        f" {of['older_than_ten']:.1%} |"
        for name, of in figures["policies"].items()
    )
    costs = "\n".join(
        f"| {name} | {one['entries']} | {one['batch']} | {one['us_a_slate']:.0f} µs | {one['us_of_reasons']:.0f} µs |"
        f" {one['share']:.1%} | {of['first_item_by_entries'][str(one['entries'])]:.1%} |"
        for name, of in figures["policies"].items()
        for one in of.get("cost", ())
    )
    return f"""## The reasons of slates

`make bench NAME=explanation`: decisions in the demo's world, {figures["events"]:,} events; each of the user's ten
latest entries left out of the history in turn, encoded and scored anew. *Agrees*: the slate names the entry whose
removal lowers the item's score most, or none where none does (wanted: 95 % of 1,000 slates). *Within a tenth*: it does,
or names one that brings nine tenths of that fall. The last column: how often an entry before the latest ten would be
it, which is never named.

| policy | slates | agrees, first item | agrees, every item | within a tenth | older |
|---|---|---|---|---|---|
{rows}

What reasons cost, of deciding (wanted: at most 10 %), by how many entries are looked at (`explanations.entries`), and
how often the first item's reason then agrees with leaving out each of ten:

| policy | entries | batch | a slate | its reasons | share | agrees |
|---|---|---|---|---|---|---|
{costs}
"""


if __name__ == "__main__":
    main()
