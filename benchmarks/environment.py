"""How fast the Gymnasium world is: steps a second, a step being one slate to one user. Prints and writes JSON.

    python benchmarks/environment.py [--seconds 3]

The e-commerce preset, 1,000 items of 64 dimensions, one thread. `slates` are given; `query` adds candidates and
features as a policy reads them; `linucb` also decides and learns. `alone` is one environment at a time, as agents of
other libraries use it. Time is the process's own (CPU): other processes on the machine do not count.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: one thread is what is measured
os.environ.setdefault("OMP_NUM_THREADS", "1")

from system import machine, write

from headrace.policy.registry import make
from headrace.simulation.presets import make_env, make_vector_env
from headrace.simulation.training import train

WORLD: dict[str, Any] = {"name": "ecommerce", "dim": 64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure")
    given = parser.parse_args()
    figures: dict[str, Any] = {"benchmark": "environment", "machine": machine(), "steps_per_s": {}}
    rates = figures["steps_per_s"]
    for candidates in (None, 120):
        kind = "all items" if candidates is None else f"{candidates} candidates"
        for size in (1, 64, 256):
            envs = make_vector_env(num_envs=size, action="slate", candidates=candidates, **WORLD)
            envs.reset(seed=0)
            envs.action_space.seed(0)
            actions = [envs.action_space.sample() for _ in range(8)]
            # With candidates the observation holds their features: what `Visitors.query` computes for a policy.
            what = "slates" if candidates is None else "query"
            rates[f"{what}, {kind}, {size} at once"] = _rate(lambda i, e=envs, a=actions: e.step(a[i % 8]), size, given)
    for action in ("item", "preference"):
        env = make_env(action=action, candidates=120 if action == "preference" else None, **WORLD)
        rates[f"alone, {action}"] = _rate(_alone(env), 1, given)
    policy = make("linucb", dim=64, alpha=0.2)
    envs = make_vector_env(num_envs=64, action="slate", candidates=120, **WORLD)
    began = time.process_time()
    steps = train(policy, envs, episodes=200).steps
    rates["linucb decides and learns, 120 candidates, 64 at once"] = round(steps / (time.process_time() - began))
    write("environment", figures)


def _alone(env: Any) -> Callable[[int], object]:
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(8)]

    def step(i: int) -> None:
        _, _, terminated, truncated, _ = env.step(actions[i % 8])
        if terminated or truncated:
            env.reset()

    return step


def _rate(step: Callable[[int], object], size: int, given: argparse.Namespace) -> int:
    """Steps a second of CPU time, the best of five stretches."""
    best, i = 0.0, 0
    for _ in range(5):
        began, done = time.process_time(), 0
        while time.process_time() - began < given.seconds / 5:
            step(i)
            i, done = i + 1, done + size
        best = max(best, done / (time.process_time() - began))
    return round(best)


def section(f: dict[str, Any]) -> str:
    """The part of docs/benchmarks.md."""
    return "\n".join(
        [
            "## The Gymnasium world\n",
            "Slates shown to users a second of one core's time: the e-commerce preset, 1,000 items of 64 dimensions"
            " (`benchmarks/environment.py`).\n",
            "| | steps a second |\n|---|---|",
            *(f"| {name} | {rate:,} |" for name, rate in f["steps_per_s"].items()),
            "",
        ]
    )


if __name__ == "__main__":
    main()
