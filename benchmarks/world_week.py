"""A simulated week at full speed: what the policy earns beside its controls and the oracle. Prints lines of JSON.

    python benchmarks/world_week.py               the week, and the week with the users' states shuffled
    python benchmarks/world_week.py --aa 100      two equal arms in 100 seeded small worlds

World, worker and learner run in one process (simulation/loop.py). Equal seeds give equal figures on one machine.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import as_file, files
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: small products on two busy cores only get slower
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from headrace.simulation.intervals import Estimate, by_user
from headrace.simulation.loop import Loop, Models, Played, text_vectors
from headrace.simulation.settings import DAY_MS, WorldSettings
from headrace.simulation.tally import Decided, last_third
from headrace.simulation.world import World
from headrace.streams import configuration
from headrace.streams.settings import Settings

START_MS = 1_700_000_000_000
SMALL = {"items": 800, "arriving": 50, "users": 400}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=30_000, help="in the week; the demo has 30,000 (default)")
    parser.add_argument("--seed", type=int, default=0, help="of what happens in the world")
    parser.add_argument("--policy", help="what the arm called policy runs; default: as the demo")
    parser.add_argument("--aa", type=int, default=0, metavar="RUNS", help="compare two equal arms in so many worlds")
    parser.add_argument("--aa-events", type=int, default=2_000, help="in each of those")
    given = parser.parse_args()
    overrides: dict[str, Any] = {"policy": {"name": given.policy}} if given.policy else {}
    if given.aa:
        equal_arms(given.aa, given.aa_events, overrides)
    else:
        week(given.events, given.seed, overrides)


def week(events: int, seed: int, overrides: dict[str, Any]) -> None:
    settings = _settings(overrides)
    models = Models(settings)
    earned = {}
    for name, shuffled in (("week", False), ("week_with_shuffled_states", True)):
        world = World(WorldSettings(), start_ms=START_MS, seed=seed)
        loop = Loop(settings, world, text_vectors(settings, world.catalogue), models=models, shuffled=shuffled)
        begun = time.perf_counter()
        played = loop.run(events=events, start_ms=START_MS, span_ms=7 * DAY_MS)
        took = time.perf_counter() - begun
        arms = earned[name] = _arms(settings, played)
        best = max((n for n in arms if n not in ("policy", "oracle")), key=lambda n: arms[n].mean)
        gap = (arms["policy"].mean - arms[best].mean) / (arms["oracle"].mean - arms[best].mean)
        print(
            json.dumps(
                {
                    "benchmark": name,
                    "policy": settings.policy.name,
                    "seed": seed,
                    "events": played.events,
                    "events_per_s": round(played.events / took),
                    "decisions": played.decisions,
                    "versions": played.versions,
                    "arms": {n: _as_json(e) for n, e in arms.items()},
                    "best_control": best,
                    "ratio_to_best_control": round(arms["policy"].mean / arms[best].mean, 3),
                    "gap_closed_to_oracle": round(gap, 3),
                }
            ),
            flush=True,
        )
    as_they_are, shuffled_states = earned["week"]["policy"], earned["week_with_shuffled_states"]["policy"]
    print(
        json.dumps(
            {
                "benchmark": "what_the_state_is_worth",
                "as_they_are": _as_json(as_they_are),
                "shuffled": _as_json(shuffled_states),
                "intervals_apart": as_they_are.low > shuffled_states.high,
            }
        ),
        flush=True,
    )


def equal_arms(runs: int, events: int, overrides: dict[str, Any]) -> None:
    """Two arms that run the same policy: what sets them apart is chance alone."""
    base = _settings(overrides)
    models = Models(base)
    small = replace(WorldSettings(), **SMALL)
    vectors = text_vectors(base, World(small, start_ms=START_MS).catalogue)
    apart = differ = 0
    for run in range(runs):
        arms = {
            "salt": f"equal-{run}",
            "shares": {"policy": 0.5, "second": 0.5},
            "policies": {"second": base.policy.name},
        }
        settings = base.model_copy(update={"arms": type(base.arms)(**arms)})
        world = World(small, start_ms=START_MS, seed=run)
        loop = Loop(settings, world, vectors, models=models)
        decided = loop.run(events=events, start_ms=START_MS, span_ms=7 * DAY_MS).decided
        first, second = (_estimate([d for d in decided if d.arm == arm], level=0.95) for arm in ("policy", "second"))
        apart += first.low > second.high or second.low > first.high
        # Two independent means: the half-widths add as squares.
        half = np.hypot(first.high - first.low, second.high - second.low) / 2
        differ += abs(first.mean - second.mean) > half
    print(
        json.dumps(
            {
                "benchmark": "two_equal_arms",
                "policy": base.policy.name,
                "runs": runs,
                "events_each": events,
                "intervals_apart": int(apart),
                "difference_beyond_its_95_percent_interval": int(differ),
            }
        ),
        flush=True,
    )


def _settings(overrides: dict[str, Any]) -> Settings:
    with as_file(files("headrace.simulation").joinpath("demo.toml")) as path:
        return configuration.load(path, overrides)


def _arms(settings: Settings, played: Played) -> dict[str, Estimate]:
    third = last_third(played.decided)
    arms = {arm: _estimate([d for d in third if d.arm == arm]) for arm in settings.arms.shares}
    arms["oracle"] = _estimate([replace(d, reward=played.oracle[d.recommendation_id]) for d in third])
    return arms


def _estimate(decided: Sequence[Decided], *, level: float = 0.95) -> Estimate:
    users = np.array([int(d.user_id[1:]) for d in decided], np.int64)
    return by_user(users, np.array([d.reward for d in decided]), level=level)


def _as_json(e: Estimate) -> dict[str, Any]:
    return {
        "decisions": e.decisions,
        "reward_per_decision": round(e.mean, 4),
        "ci95": [round(e.low, 4), round(e.high, 4)],
    }


if __name__ == "__main__":
    main()
