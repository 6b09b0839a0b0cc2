"""After a reversal of tastes: rounds until a policy is back at 90 % of the oracle. `python benchmarks/drift.py`

A linear bandit over φ: every round a user with a random state s meets K random items a, and the one shown pays
g·(s ⊙ a) and noise. After `BEFORE` rounds g turns into -g: whatever was liked is disliked. Each policy learns from
every round at once. Back is the first round from which on the expected reward of `WINDOW` rounds is at least 90 % of
the oracle's.
"""
# ruff: noqa: E402

from __future__ import annotations

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from headrace.policy.base import Examples, Query
from headrace.policy.registry import make

RESULT = Path(__file__).parent / "results" / "drift.json"
SEEDS = 12
DIM, ITEMS, NOISE = 12, 10, 0.5
BEFORE, AFTER = 3_000, 8_000  # rounds; a policy that is not back by then counts as AFTER
WINDOW = 100
DISCOUNT = 0.998
_FLOOR = 0.01
_OPTIONS: dict[str, dict[str, Any]] = {
    "": {},
    "discount": {"discount": DISCOUNT},
    "change_detector": {"change_detector": True},
    "both": {"discount": DISCOUNT, "change_detector": True},
}
POLICIES = ("linucb", "lints", "squarecb")
TO_REACH = 0.5  # of the rounds of linucb that forgets nothing


def play(name: str, options: dict[str, Any], seed: int) -> dict[str, float]:
    """One run; the world, users, items and noise, depends on the seed alone."""
    random = np.random.default_rng((seed, 0xD71F7))
    g = random.standard_normal(DIM)
    g /= np.linalg.norm(g)
    policy = make(name, dim=DIM, scalars=(), floor=_FLOOR, alpha=0.3, seed=seed, **options)
    ratio = np.zeros((BEFORE + AFTER, 2))  # expected reward, the oracle's
    no_context, no_scalars = np.zeros((1, 0), np.float32), np.zeros((1, ITEMS, 0), np.float32)
    mask, keys = np.ones((1, ITEMS), np.bool_), np.arange(ITEMS, dtype=np.uint64)[None]
    detected_before = 0
    for t in range(BEFORE + AFTER):
        s, a = _unit(random.standard_normal((1, DIM))), _unit(random.standard_normal((1, ITEMS, DIM)))
        noise = random.normal(0, NOISE)
        if t == BEFORE:
            g = -g
            detected_before = policy.fading.changes if hasattr(policy, "fading") else 0
        worth = np.sqrt(DIM) * (s * a[0]) @ g
        streams = random.integers(0, 2**63, 1, dtype=np.uint64)
        slate = policy.decide(Query(s, no_context, keys, a, no_scalars, mask, streams), 1)
        shown = int(slate.index[0, 0])
        policy.learn(
            Examples(
                states=s, contexts=no_context, items=a[:, shown], scalars=no_scalars[:, 0],
                propensities=slate.propensities[:, 0], positions=np.zeros(1, np.int64),
                rewards=worth[[shown]] + noise, fresh=np.ones(1, np.bool_), ids=np.array([t], np.uint64),
            )
        )  # fmt: skip
        ratio[t] = worth[shown], worth.max()
        if t >= BEFORE + WINDOW and (back := _share(ratio[t - WINDOW + 1 : t + 1])) >= 0.9:
            break
    rounds = t + 1 - WINDOW - BEFORE if back >= 0.9 else AFTER
    return {
        "rounds": rounds,
        "before": _share(ratio[BEFORE - 1_000 : BEFORE]),
        "false_alarms": detected_before,
    }


def _share(ratio: Any) -> float:
    got, best = ratio.sum(axis=0)
    return float(got / best)


def _unit(x: Any) -> Any:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def run(*, seeds: int, policies: tuple[str, ...]) -> dict[str, Any]:
    runs: dict[str, Any] = {}
    for name in policies:
        for label, options in _OPTIONS.items():
            played = [play(name, options, seed) for seed in range(seeds)]
            rounds = [p["rounds"] for p in played]
            runs[f"{name} {label}".strip()] = {
                "rounds": rounds,
                "median": float(np.median(rounds)),
                "before": float(np.mean([p["before"] for p in played])),
                "false_alarms": int(sum(p["false_alarms"] for p in played)),
            }
            print(name, label, runs[f"{name} {label}".strip()], flush=True)
    undiscounted = np.array(runs["linucb"]["rounds"])
    for figures in runs.values():
        figures["of_linucb"] = float(np.median(np.array(figures["rounds"]) / undiscounted))
    return {
        "shape": {
            "seeds": seeds, "dim": DIM, "items": ITEMS, "noise": NOISE, "before": BEFORE, "after": AFTER,
            "window": WINDOW, "discount": DISCOUNT,
        },
        "runs": runs,
    }  # fmt: skip


def section(f: dict[str, Any]) -> str:
    shape = f["shape"]
    rows = [
        f"| {name} | {r['median']:,.0f} | {r['of_linucb']:.2f} | {r['before']:.1%} | {r['false_alarms']} |"
        for name, r in f["runs"].items()
    ]
    return "\n".join(
        [
            "## After a reversal of tastes\n",
            f"A linear bandit of {shape['dim']} dimensions and {shape['items']} items a round, {shape['seeds']} seeds;"
            f" after {shape['before']:,} rounds the taste turns round. Rounds until {shape['window']} rounds together"
            f" earn 90 % of the oracle's reward; to reach: half of what linucb needs that forgets nothing. The"
            f" discount is {shape['discount']} (`benchmarks/drift.py`).\n",
            "| policy | rounds, median | of linucb's, median | of the oracle before | false alarms in all runs |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--policies", nargs="+", default=list(POLICIES))
    parser.add_argument("--dry", action="store_true", help="write nothing")
    args = parser.parse_args()
    figures = run(seeds=args.seeds, policies=tuple(args.policies))
    if not args.dry:
        RESULT.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
