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
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from headrace.policy.base import Examples, Query
from headrace.policy.behaviour import Behaviour, CoOccurrence, Popularity
from headrace.policy.checks import make_examples, make_query
from headrace.policy.registry import POLICIES, make
from headrace.policy.ridge import Ridge
from headrace.policy.slates import Votes, sample

RESULT = Path(__file__).parent / "results" / "policy_speed.json"
SHAPE = {"decisions": 64, "candidates": 120, "k": 10, "dim": 64, "scalars": 10, "contexts": 4, "draws": 32}
LEARN_BATCHES = (10, 100, 1_000)
LINEAR = ("epsilon_greedy", "softmax", "squarecb", "linucb", "lints")
USERS, CANDIDATES, DIMS = 256, 100, (16, 64)  # of the target
ACTIONS, FEATURES = 10, 16
BATCH, ROUNDS = 1_024, 30_720  # decisions learned from at once; in all


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
    for n in LEARN_BATCHES if policy.learns else ():
        learner: Any = make(name, dim=SHAPE["dim"], contexts=SHAPE["contexts"])
        examples = make_examples(learner, n=n)
        # Below 2,048 examples, where the trunk of neural-linear is trained for the first time: that is timed apart.
        repeats = 2_000 // n - 1 if name == "neural_linear" else 20
        regression = learner.head if name == "neural_linear" else learner.regression
        taken = median_s(lambda e=examples, p=learner, r=regression: (p.learn(e), r.theta), repeats=max(1, repeats))
        figures[f"examples_per_s_by_{n}"] = n / taken
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


def rank_one_us(size: int) -> float:
    """One example, estimate included."""
    regression = Ridge(size, ridge=1.0)
    random = np.random.default_rng(0)
    one, fresh = np.ones(1), np.ones(1, np.bool_)
    taken = []
    for x in random.standard_normal((2_000, 1, size)) / np.sqrt(size):
        started = time.perf_counter()
        regression.learn(x, one, fresh)
        _ = regression.theta
        taken.append(time.perf_counter() - started)
    return float(np.median(taken[200:])) * 1e6


def users_per_s(name: str, dim: int) -> dict[str, float]:
    """First positions alone, and slates of ten."""
    policy = make(name, dim=dim, contexts=SHAPE["contexts"])
    if policy.learns:
        policy.learn(make_examples(policy, n=1_500))
    query = make_query(policy, rows=USERS, n=CANDIDATES)
    return {f"slates_of_{k}": USERS / median_s(lambda k=k: policy.decide(query, k), repeats=15) for k in (1, 10)}


def bandit_rounds_per_s(name: str, *, disjoint: bool) -> float:
    """Decide and learn, `BATCH` rounds at a time.

    Disjoint: 16 features of the context, and each of ten actions has weights of its own. Otherwise every action has 16
    features, and all share their weights.
    """
    random = np.random.default_rng(0)
    if disjoint:
        policy = make(name, dim=ACTIONS, scalars=(), contexts=FEATURES, outer=True)
        items = np.repeat(np.eye(ACTIONS, dtype=np.float32)[None], BATCH, axis=0)
    else:
        policy = make(name, dim=FEATURES, scalars=())
        items = random.random((BATCH, ACTIONS, FEATURES), np.float32) / 4
    rows = np.arange(BATCH)
    taken = []
    for start in range(0, ROUNDS, BATCH):
        query = Query(
            states=np.zeros((BATCH, policy.dim), np.float32),
            contexts=random.random((BATCH, policy.contexts), np.float32),
            keys=np.repeat(np.arange(ACTIONS, dtype=np.uint64)[None], BATCH, axis=0),
            items=items,
            scalars=np.zeros((BATCH, ACTIONS, 0), np.float32),
            mask=np.ones((BATCH, ACTIONS), np.bool_),
            streams=(start + rows).astype(np.uint64),
        )
        rewards = random.random((BATCH, ACTIONS))
        started = time.process_time()
        slates = policy.decide(query, 1)
        chosen = slates.index[:, 0]
        policy.learn(
            Examples(
                states=query.states, contexts=query.contexts, items=items[rows, chosen], scalars=query.scalars[:, 0],
                propensities=slates.propensities[:, 0], positions=np.zeros(BATCH, np.int64),
                rewards=rewards[rows, chosen], fresh=np.ones(BATCH, np.bool_), ids=query.streams,
            )
        )  # fmt: skip
        taken.append(time.process_time() - started)
    return float(BATCH / np.median(taken))


def vowpalwabbit_rounds_per_s() -> dict[str, float]:
    """Its own driver reads the rounds from a text file, decides and learns; CPU time of all its threads."""
    try:
        import vowpalwabbit
    except ImportError:
        print("vowpalwabbit is not installed: its rate is left out (pip install --group bench)")
        return {}
    random = np.random.default_rng(0)
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        shared, disjoint = Path(folder) / "adf", Path(folder) / "cb"
        with shared.open("w") as by_action, disjoint.open("w") as by_context:
            for _ in range(ROUNDS):
                action, cost = random.integers(ACTIONS), random.random()
                by_context.write(f"{action + 1}:{cost:.3f}:0.1 |c {_features(random.random(FEATURES))}\n")
                for a, features in enumerate(random.random((ACTIONS, FEATURES))):
                    label = f"0:{cost:.3f}:0.1 " if a == action else ""
                    by_action.write(f"{label}|a {_features(features)}\n")
                by_action.write("\n")
        for name, arguments in {
            "squarecb": f"--cb_explore_adf --squarecb -d {shared}",
            "epsilon-greedy": f"--cb_explore_adf --epsilon 0.05 -d {shared}",
            "epsilon-greedy, disjoint": f"--cb_explore {ACTIONS} --epsilon 0.05 -d {disjoint}",
        }.items():
            taken = []
            for _ in range(5):
                started = time.process_time()
                vowpalwabbit.Workspace(f"{arguments} --quiet").finish()  # the driver runs to the file's end
                taken.append(time.process_time() - started)
            rates[name] = ROUNDS / float(np.median(taken))
    return rates


def _features(values: Any) -> str:
    return " ".join(f"f{i}:{value:.4f}" for i, value in enumerate(values))


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


def section(f: dict[str, Any]) -> str:
    shape, rounds = f["shape"], f["rounds_per_s"]
    learned = {
        name: f"{p['examples_per_s_by_100']:,.0f}" if "examples_per_s_by_100" in p else "–"
        for name, p in f["policies"].items()
    }
    alone = [f"| {name} | {p['decide_us']:.0f} | {learned[name]} |" for name, p in f["policies"].items()]
    users = [
        f"| {name} | " + " | ".join(f"{by[dim][k]:,.0f}" for dim in by for k in by[dim]) + " |"
        for name, by in f["users_per_s"].items()
    ]
    ours = [f"| {name} | {r['shared']:,.0f} | {r['disjoint']:,.0f} |" for name, r in rounds["headrace"].items()]
    theirs = rounds["vowpalwabbit"]
    if theirs:
        ours += [
            f"| vowpalwabbit --cb_explore_adf --squarecb | {theirs['squarecb']:,.0f} | |",
            f"| vowpalwabbit epsilon-greedy | {theirs['epsilon-greedy']:,.0f}"
            f" | {theirs['epsilon-greedy, disjoint']:,.0f} |",
        ]
    rank_one = ", ".join(f"{us:.0f} µs at d = {size}" for size, us in f["rank_one_us"].items())
    return "\n".join(
        [
            "## Policies alone\n",
            f"Slates of {shape['k']} from {shape['candidates']} candidates, {shape['decisions']} decisions at once,"
            " one thread.\n",
            "| policy | µs a decision | examples learned a second, in batches of 100, new estimates included |",
            "|---|---|---|",
            *alone,
            "",
            f"One example of the regression, rank-1 update and new estimate: {rank_one} (to reach: 30 µs at 64).\n",
            f"Users decided for a second, {USERS} at once with {CANDIDATES} candidates each, one thread (to reach:"
            " 20,000):\n",
            "| policy | d = 16, one position | d = 16, slates of 10 | d = 64, one position | d = 64, slates of 10 |",
            "|---|---|---|---|---|",
            *users,
            "",
            f"Rounds a second of CPU time, deciding and learning: {ACTIONS} actions, {FEATURES} features. Shared: every"
            " action has its features, all share the weights. Disjoint: the features are the context's, every action"
            " has weights of its own, which here is a full Bayesian regression over all of them, there a gradient step"
            f" on one action's. headrace decides and learns {BATCH:,} rounds at a time, vowpalwabbit one at a time from"
            " a text file that it parses (to reach: twice its rate).\n",
            "| policy | shared | disjoint |\n|---|---|---|",
            *ours,
            "",
        ]
    )


def main() -> None:
    figures = {
        "machine": platform.processor() or platform.machine(),
        "numpy": np.__version__,
        "shape": SHAPE,
        "policies": {name: policy_figures(name) for name in POLICIES},
        "rank_one_us": {size: rank_one_us(size) for size in (16, 64, 160)},
        "users_per_s": {name: {dim: users_per_s(name, dim) for dim in DIMS} for name in POLICIES},
        "rounds_per_s": {
            "headrace": {
                name: {
                    "shared": bandit_rounds_per_s(name, disjoint=False),
                    "disjoint": bandit_rounds_per_s(name, disjoint=True),
                }
                for name in LINEAR
            },
            "vowpalwabbit": vowpalwabbit_rounds_per_s(),
        },
        "slates": slate_figures(),
        "neural_linear": training_figures(),
        "behaviour": behaviour_figures(),
    }
    text = json.dumps(figures, indent=2)
    RESULT.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
