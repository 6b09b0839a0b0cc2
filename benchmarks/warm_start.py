"""A policy fitted from a log without propensities, on its first day: beside bestsellers, and beside a cold start.

    python benchmarks/warm_start.py [--seeds 10] [--slates 80] [--policy neural_linear] [--cold]

A small simulated shop has a week behind it in which nobody was shown a slate. Its log warms a policy; then the shop
opens to slates, half of the users with the policy and half with what is popular, and both know the log: histories,
popularity and co-occurrence alike. Each slate is worth what the world expects of it for its user then; the first
`--slates` of each arm count. World, worker and learner run in one process; equal seeds give equal figures on one
machine.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: small products on two busy cores only get slower
os.environ.setdefault("OMP_NUM_THREADS", "1")

import msgspec
import numpy as np
from system import machine, write

from headrace.simulation import loop as loops
from headrace.simulation.loop import Loop, Models, text_vectors
from headrace.simulation.settings import DAY_MS, WorldSettings
from headrace.simulation.warm_start import warm
from headrace.simulation.world import Interaction, World
from headrace.streams import configuration, start
from headrace.streams.messages import ShopItem
from headrace.streams.settings import Settings
from headrace.streams.versions import make_policy

START_MS = 1_700_000_000_000
SMALL = {"items": 800, "arriving": 50, "users": 400}
DAYS = 7
ARMS = ("warm", "popular", "cold")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--slates", type=int, default=80, help="the first so many of each arm count")
    parser.add_argument("--events", type=int, default=2_000, help="of the log")
    parser.add_argument("--policy", default="neural_linear")
    parser.add_argument(
        "--cold", action="store_true", help="also the same policy without its start: half as long again"
    )
    given = parser.parse_args()
    began = time.monotonic()
    models, runs = Models(Settings()), []
    for seed in range(given.seeds):
        runs.append(
            day_one(given.policy, seed, events=given.events, slates=given.slates, models=models, cold=given.cold)
        )
        print(seed, runs[-1], flush=True)
    figures = {
        "benchmark": "warm_start",
        "machine": machine(),
        "policy": given.policy,
        "seeds": given.seeds,
        "log_events": given.events,
        "slates_each": given.slates,
        "seconds": round(time.monotonic() - began),
        "runs": runs,
        **{name: round(float(np.mean([run[name] for run in runs])), 4) for name in ARMS if name in runs[0]},
        "lift_over_popular": _interval([run["warm"] - run["popular"] for run in runs]),
        "warm_was_better_in": sum(run["warm"] > run["popular"] for run in runs),
    }
    write("warm_start", figures)


def day_one(policy: str, seed: int, *, events: int, slates: int, models: Models, cold: bool = False) -> dict[str, Any]:
    """Expected reward a slate of the first `slates`: the warmed policy, what is popular beside it, a cold policy."""
    log, items = history(seed, events)
    with tempfile.TemporaryDirectory() as scratch:
        base = settings_of(policy)
        learner = make_policy(base, policy, dim=models.users.dim)
        warmed = warm(base, learner, items, [loops.as_event(event) for event in log], models=models)
        folder = start.write(Path(scratch) / "start", learner, behaviour=warmed.behaviour)
        warm_arms = first_slates(settings_of(policy, folder), seed, events, slates=slates, models=models)
        found = {"seed": seed, "lessons": warmed.lessons, "warm": warm_arms["policy"], "popular": warm_arms["popular"]}
    if cold:
        found["cold"] = first_slates(settings_of(policy), seed, events, slates=slates, models=models)["policy"]
    return found


def settings_of(policy: str, folder: Path | None = None) -> Settings:
    overrides = {
        "policy": {"name": policy, "start": str(folder or "")},
        "arms": {"shares": {"policy": 0.5, "popular": 0.5, "item_to_item": 0.0, "random": 0.0}},
    }
    with as_file(files("headrace.simulation").joinpath("demo.toml")) as path:
        return configuration.load(path, overrides)


def history(seed: int, events: int) -> tuple[list[Interaction], list[ShopItem]]:
    world, log = _world(seed), []
    catalogue = [msgspec.convert(world.catalogue.message(int(i)), ShopItem) for i in np.flatnonzero(world.live)]
    while len(log) < events:
        log += pages(world, len(log), events)
    return log[:events], catalogue


def pages(world: World, done: int, events: int) -> list[Interaction]:
    """One page of a week in which slates are shown to nobody."""
    ts = START_MS + done * DAYS * DAY_MS // events
    world.advance(ts)
    return [*world.due(ts), *world.visit(ts).events]


def first_slates(settings: Settings, seed: int, events: int, *, slates: int, models: Models) -> dict[str, float]:
    """The shop opens after its week; the mean over the first `slates` of each arm."""
    world, log = _world(seed), []
    while len(log) < events:
        log += pages(world, len(log), events)
    loop = _Watched(settings, world, text_vectors(settings, world.catalogue), models=models)
    loop.replay(log[:events])
    at = START_MS + DAYS * DAY_MS
    loop.run(events=20 * slates, start_ms=at, span_ms=DAYS * DAY_MS)
    few = {arm: len(worth) for arm, worth in loop.worth.items() if len(worth) < slates}
    if few:
        raise SystemExit(f"seed {seed}: only {few} slates were seen: run it with fewer --slates")
    return {arm: float(np.mean(worth[:slates])) for arm, worth in loop.worth.items()}


class _Watched(Loop):
    """Notes what each slate was worth to the user who saw it, by arm."""

    worth: dict[str, list[float]]

    def _show(self, user: int, slate: Any, ts: int) -> list[Interaction]:
        if not hasattr(self, "worth"):
            self.worth = {}
        items = [self.world.index[item.item_id] for item in slate.items]
        self.worth.setdefault(slate.policy.arm, []).append(self.world.expected(user, items, ts))
        return super()._show(user, slate, ts)


def _world(seed: int) -> World:
    return World(replace(WorldSettings(), **SMALL), start_ms=START_MS, seed=seed)


def _interval(differences: list[float]) -> dict[str, float]:
    d = np.array(differences)
    half = 2.262 * d.std(ddof=1) / len(d) ** 0.5  # Student's t, 9 degrees of freedom
    return {
        "mean": round(float(d.mean()), 4),
        "low": round(float(d.mean() - half), 4),
        "least": round(float(d.min()), 4),
    }


def section(f: dict[str, Any]) -> str:
    """The part of docs/benchmarks.md."""
    lift = f["lift_over_popular"]
    return "\n".join(
        [
            "## Warm start\n",
            f"{f['policy']}, fitted from a log of {f['log_events']:,} events without slates, on the first"
            f" {f['slates_each']} slates of each arm; {f['seeds']} runs of one small simulated shop"
            " (`benchmarks/warm_start.py`).\n",
            "| expected reward a slate | | to reach |\n|---|---|---|",
            f"| warm-started | {f['warm']:.3f} | |",
            f"| popular, beside it in the same shop | {f['popular']:.3f} | |",
            *([f"| the same policy, cold | {f['cold']:.3f} | |"] if "cold" in f else []),
            f"| warm-started − popular: mean, 95 % lower bound, worst seed | {lift['mean']:.3f}, {lift['low']:.3f},"
            f" {lift['least']:.3f} | > 0 |",
            f"| better than popular in | {f['warm_was_better_in']} of {f['seeds']} | all |",
            "",
        ]
    )


if __name__ == "__main__":
    main()
