"""What an arm's test is worth when arms learn from each other's traffic: `python benchmarks/contamination.py`.

Champion and challenger learn while they are compared, half of the traffic each. What the test should find is the
truth: the lift between two worlds in which one of the two has all traffic, and learns from all of it. It finds
something else, by what the arms may learn from: `own` traffic alone (each learns from half as much), `all` traffic
(each learns from what the other explored), or `own`, with all of the champion's for the challenger too.
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
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from small_world import DIM, SCALARS, World, earned, examples

from headrace.policy.ranking import Ranking
from headrace.policy.registry import make

RESULT = Path(__file__).parent / "results" / "contamination.json"
SEED = 40_000
SHAPE: dict[str, Any] = {"dim": DIM, "scalars": SCALARS}
WORLD = World(0.05, candidates=30, personal=1.5)
BATCH, WARM, DECISIONS = 100, 2_000, 6_000
# Champion, challenger: what differs between them.
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a challenger that explores more": (
        {"name": "lints", "alpha": 0.02, "floor": 0.02},
        {"name": "lints", "alpha": 0.3},
    ),
    "a challenger that explores less": (
        {"name": "lints", "alpha": 0.3},
        {"name": "lints", "alpha": 0.02, "floor": 0.02},
    ),
    "a challenger of another kind": ({"name": "lints", "alpha": 0.1}, {"name": "linucb", "alpha": 0.1}),
    "a challenger that is the same": ({"name": "lints", "alpha": 0.1}, {"name": "lints", "alpha": 0.1, "seed": 1}),
}
REGIMES = ("own", "all", "champion's")


def make_of(options: dict[str, Any]) -> Ranking:
    policy = make(**SHAPE, **options)
    assert isinstance(policy, Ranking)
    return policy


class Arm:
    """A policy that serves `share` of the users; it remembers what it earned after the warm-up."""

    def __init__(self, policy: Ranking) -> None:
        self.policy, self.total, self.count = policy, 0.0, 0

    def serve(self, rows: int, random: np.random.Generator, *, counts: bool, first_id: int) -> Any:
        query, earns = WORLD.ask(rows, random)
        slates = self.policy.decide(query, 1)
        means = earned(earns, slates)
        if counts:
            self.total, self.count = self.total + means.sum(), self.count + rows
        return examples(query, slates, random.random(means.shape) < means, first_id)

    @property
    def value(self) -> float:
        return self.total / self.count


def alone(options: dict[str, Any], warm: Ranking | None, seed: int) -> float:
    """The truth: this policy has all traffic. Expected rewards, so that one run has little noise."""
    arm, random = Arm(warm or make_of(options)), np.random.default_rng(seed)
    for step in range(DECISIONS // BATCH):
        arm.policy.learn(arm.serve(BATCH, random, counts=True, first_id=step * BATCH))
    return arm.value


def tested(pair: tuple[dict[str, Any], dict[str, Any]], warm: Ranking, regime: str, seed: int) -> float:
    """The lift that a test finds between two arms with half of the traffic each."""
    champion, challenger = Arm(deepcopy(warm)), Arm(make_of(pair[1]))
    random = np.random.default_rng(seed)
    for step in range(DECISIONS // BATCH):
        of_champion = champion.serve(BATCH // 2, random, counts=True, first_id=2 * step * BATCH)
        of_challenger = challenger.serve(BATCH // 2, random, counts=True, first_id=(2 * step + 1) * BATCH)
        champion.policy.learn(of_champion)
        challenger.policy.learn(of_challenger)
        if regime == "all":
            champion.policy.learn(of_challenger)
        if regime in ("all", "champion's"):
            challenger.policy.learn(of_champion)
    return challenger.value / champion.value - 1


def make_warm(options: dict[str, Any], seed: int) -> Ranking:
    """The champion has served before: it starts with what it learned from `WARM` decisions."""
    arm, random = Arm(make_of(options)), np.random.default_rng(seed)
    for step in range(WARM // BATCH):
        arm.policy.learn(arm.serve(BATCH, random, counts=False, first_id=10**9 + step * BATCH))
    return arm.policy


def figures_of(pair: tuple[dict[str, Any], dict[str, Any]], runs: int) -> dict[str, Any]:
    truth, found = [], {regime: [] for regime in REGIMES}
    for run in range(runs):
        seed = SEED + 10 * run
        warm = make_warm(pair[0], seed)
        truth.append(alone(pair[1], None, seed + 1) / alone(pair[0], deepcopy(warm), seed + 1) - 1)
        for regime in REGIMES:
            found[regime].append(tested(pair, warm, regime, seed + 2))
    figures: dict[str, Any] = {"truth": _mean(np.array(truth)), "tests": {}}
    for regime, lifts in found.items():
        figures["tests"][regime] = {
            "lift": _mean(np.array(lifts)),
            "contamination": _mean(np.array(lifts) - np.array(truth)),
        }
    return figures


def _mean(values: np.ndarray) -> dict[str, float]:
    return {"mean": round(float(values.mean()), 4), "error": round(float(values.std(ddof=1) / np.sqrt(len(values))), 4)}


def section(f: dict[str, Any]) -> str:
    """Its part of docs/benchmarks.md."""
    lines = [
        "## What arms learn from each other\n",
        _SETTING.format(**f),
        "| challenger | true lift | found: own traffic | found: all traffic | found: champion's too |",
        "|---|---|---|---|---|",
    ]
    for name, pair in f["pairs"].items():
        cells = [name, _lift(pair["truth"])]
        cells += [
            f"{_lift(pair['tests'][r]['lift'])}, off by {_lift(pair['tests'][r]['contamination'])}" for r in REGIMES
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _lift(estimate: dict[str, float]) -> str:
    return f"{estimate['mean'] * 100:+.1f} ± {estimate['error'] * 100:.1f}"


_SETTING = """\
In per cent of the champion's value, ± one standard error over {runs} runs of {decisions:,} decisions in a small world
(`benchmarks/contamination.py`). The champion has learned from {warm:,} decisions before, the challenger from none. The
truth: the lift between two worlds in which one of them serves everybody and learns from all of it.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=24)
    parser.add_argument("--dry", action="store_true", help="keeps nothing")
    args = parser.parse_args()
    started, pairs = time.process_time(), {}
    for name, pair in PAIRS.items():
        pairs[name] = figures_of(pair, args.runs)
        print(name, json.dumps(pairs[name]), flush=True)
    figures = {
        "runs": args.runs,
        "decisions": DECISIONS,
        "warm": WARM,
        "pairs": pairs,
        "cpu_s": round(time.process_time() - started),
        "machine": platform.processor() or platform.machine(),
        "numpy": np.__version__,
    }
    if not args.dry:
        RESULT.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
