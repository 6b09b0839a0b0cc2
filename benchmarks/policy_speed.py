"""How fast policies decide and learn, on one core: `python benchmarks/policy_speed.py` prints JSON and keeps it.

Fixed seeds; medians of the CPU time of one thread, so that a neighbour on the machine decides little. BLAS is held to
one thread; that must be said before numpy is loaded, hence the order of imports.
"""
# ruff: noqa: E402

from __future__ import annotations

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from headrace.policy.behaviour import Behaviour, CoOccurrence, Popularity
from headrace.policy.checks import make_examples, make_query
from headrace.policy.registry import POLICIES, make
from headrace.policy.slates import Votes, sample

RESULT = Path(__file__).parent / "results" / "policy_speed.json"
SHAPE = {"decisions": 64, "candidates": 120, "k": 10, "dim": 64, "scalars": 10, "contexts": 4, "draws": 32}
LEARN_BATCHES = (10, 100, 1_000)


def median_s(run: Callable[[], object], *, repeats: int = 40) -> float:
    run()
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        run()
        taken.append(time.process_time() - started)
    return float(np.median(taken))


def policy_figures(name: str) -> dict[str, float]:
    policy = make(name, dim=SHAPE["dim"], contexts=SHAPE["contexts"], draws=SHAPE["draws"])
    rows = SHAPE["decisions"]
    policy.learn(make_examples(policy, n=1_500))
    query = make_query(policy, rows=rows, n=SHAPE["candidates"])
    figures = {"decide_us": median_s(lambda: policy.decide(query, SHAPE["k"])) / rows * 1e6}
    for n in LEARN_BATCHES:
        learner = make(name, dim=SHAPE["dim"], contexts=SHAPE["contexts"])
        examples = make_examples(learner, n=n)
        # Below 2,048 examples, where the trunk of neural-linear is trained for the first time: that is timed apart.
        repeats = 2_000 // n - 1 if name == "neural_linear" else 20
        figures[f"examples_per_s_by_{n}"] = n / median_s(
            lambda e=examples, p=learner: p.learn(e), repeats=max(1, repeats)
        )
    snapshot = policy.snapshot()[0]
    figures["snapshot_bytes"] = sum(array.nbytes for array in snapshot.values())
    return figures


def slate_figures() -> dict[str, float]:
    """Drawing alone: votes of 32 draws are there already."""
    random = np.random.default_rng(0)
    rows, n = SHAPE["decisions"], SHAPE["candidates"]
    votes = random.standard_normal((rows, SHAPE["draws"], n)).astype(np.float32)
    mask, streams = np.ones((rows, n), np.bool_), np.arange(rows, dtype=np.uint64)
    figures = {}
    for kind, spread in (("contested", 1.0), ("settled", 0.05)):
        scores = votes[:, :1] + np.float32(spread) * votes
        taken = median_s(
            lambda s=scores: sample(Votes(s.copy(), mask), mask, s[:, 0], SHAPE["k"], floor=0.1, streams=streams)
        )
        figures[f"votes_{kind}_us"] = taken / rows * 1e6
    return figures


def training_figures() -> dict[str, float]:
    policy = make("neural_linear", dim=SHAPE["dim"], contexts=SHAPE["contexts"])
    policy.prepare_to_learn()
    first_id = 0
    worst = {}
    for label, until in (("first_training", 2_100), ("training_of_a_full_memory", 66_000)):
        slowest = 0.0
        while first_id < until:
            examples = make_examples(policy, n=500, seed=first_id, first_id=first_id)
            started = time.process_time()
            policy.learn(examples)
            slowest = max(slowest, time.process_time() - started)
            first_id += 500
        worst[f"{label}_s"] = slowest
    return worst


def behaviour_figures() -> dict[str, float]:
    random = np.random.default_rng(0)
    keys = random.integers(1, 2**63, 20_000, dtype=np.uint64)

    def drawn(*shape: int) -> np.ndarray:
        return keys[np.minimum(random.zipf(1.2, shape) - 1, len(keys) - 1)]

    def batch(n: int, second: int) -> Behaviour:
        items, bought = drawn(n, 5), random.random(n) < 0.05
        times = 1_790_000_000_000 + second * 1_000 + np.sort(random.integers(0, 1_000, n))
        return Behaviour(items[:, 0], np.where(bought, 5.0, 1.0), bought, times, items[:, 1:])

    popularity, pairs = Popularity(), CoOccurrence()
    for second in range(60):
        events = batch(5_000, second)
        popularity.learn(events)
        pairs.learn(events)
    some = [batch(500, 60 + i) for i in range(20)]
    started = time.process_time()
    for events in some:
        popularity.learn(events)
        pairs.learn(events)
    learned = time.process_time() - started
    recent, candidates = drawn(64, 5), drawn(64, 120)
    return {
        "behaviour_events_per_s": 500 * len(some) / learned,
        "co_occurrence_scores_ms": median_s(lambda: pairs.scores(recent, candidates)) * 1e3,
        "popularity_scores_ms": median_s(lambda: popularity.scores(candidates)) * 1e3,
        "neighbours_of_320_ms": median_s(lambda: pairs.neighbours(recent.ravel(), 16)) * 1e3,
    }


def main() -> None:
    figures = {
        "machine": platform.processor() or platform.machine(),
        "numpy": np.__version__,
        "shape": SHAPE,
        "policies": {name: policy_figures(name) for name in POLICIES},
        "slates": slate_figures(),
        "neural_linear": training_figures(),
        "behaviour": behaviour_figures(),
    }
    text = json.dumps(figures, indent=2)
    RESULT.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
