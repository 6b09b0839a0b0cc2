"""Rewards that come late and positions that are looked at less: what the learner makes of both. Writes JSON.

    python benchmarks/delay.py [--seeds 10] [--quick]

**Delay.** A stream of decisions; what is shown is learned at once, and half of all conversions come after that: their
delays are log-normal, with a median equal to the time between two updates of the policy that serves. Linear Thompson
sampling chooses, so what it is told decides what it is told next. Four ways to learn, each with its own traffic:
`no_delay` (conversions at once: what there is to reach), `share` (headrace's: what has come over the share that has),
`as_told` (zero at once, corrected when a conversion comes), `fake_negative` (Ktena et al. 2019, equation 7, with the
model's own p). Bias is of the predicted rate of what is shown, against the truth, at the end of the stream.

**Positions.** Slates of ten are examined as (1 + k)^-0.5 and by a curve that is no power law; a tenth of the traffic is
random. What ranking is worth with the estimated weights, with the feature `place`, with both and with neither; and
how near the weights come. The learner is the running system's: book, estimates and policy, without Kafka.
"""

# ruff: noqa: E402

from __future__ import annotations

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy is loaded

import argparse
import heapq
import json
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from late_rewards import DIM, F64, HOUR, START, FakeNegatives, Learner, Truth, new_book, outcome, predicted, show
from numpy.typing import NDArray

from headrace.policy.base import Examples, Query
from headrace.policy.registry import make
from headrace.streams.records import Opened, Outcome, Transition, Transitions

RESULT = Path(__file__).parent / "results" / "delay.json"


# -- delay ------------------------------------------------------------------------------------------------------------


def delayed(method: str, seed: int, *, rounds: int, decisions: int) -> dict[str, float]:
    """Reward per decision over the stream, and the relative bias of the predicted rate after the first ten rounds."""
    truth = Truth(seed, base=0.1, spread=0.05)
    chance = np.random.default_rng([seed, 2])
    policy = make("lints", dim=DIM, alpha=0.2, seed=seed)
    book = new_book(rounds * decisions, outstanding=method == "share")
    learner = (FakeNegatives if method == "fake_negative" else Learner)(policy, book)
    coming: list[tuple[int, str, int]] = []  # (ts, name, opened)
    earned = 0.0
    late = total = 0
    expected, true = [], []
    for n in range(rounds):
        ts, end = START + n * HOUR, START + (n + 1) * HOUR
        shown = show(policy, truth.query(decisions, candidates=20), truth, k=1, ts=ts, tag=f"{n}")
        earned += float(shown.rates.sum())
        learner.take(shown.opened, ts)
        for i in np.flatnonzero(chance.random(decisions) < shown.rates[:, 0]).tolist():
            delay = int(chance.lognormal(np.log(HOUR), 1.2))
            late, total = late + (delay > HOUR), total + 1
            heapq.heappush(coming, (ts + (1_000 if method == "no_delay" else delay), shown.names[i], ts))
        for until in range(ts, end + 1, HOUR // 6):
            records: list[Transition] = []
            while coming and coming[0][0] <= until:
                at, name, opened_ts = heapq.heappop(coming)
                records.append(outcome(name, 0, at, opened_ts))
            learner.take(records, until)
        truth.renew()
        if n >= 10:
            query = truth.query(500, candidates=20)
            best = policy.decide(query, 1).index[:, 0]
            items = query.items[np.arange(500), best]
            asked = Examples(
                query.states, query.contexts, items, query.scalars[:, 0], np.ones(500), np.zeros(500, np.int64),
                np.zeros(500), np.ones(500, np.bool_), np.zeros(500, np.uint64),
            )  # fmt: skip
            expected.append(float(predicted(policy, asked).mean()))
            true.append(float(truth.rates(query.states, items[:, None].astype(np.float64)).mean()))
    half = len(true) // 2
    return {
        "reward": earned / rounds / decisions,
        "late": late / max(total, 1),
        "bias": float(np.mean(expected) / np.mean(true) - 1),
        "bias_at_the_end": float(np.mean(expected[half:]) / np.mean(true[half:]) - 1),
    }


METHODS = ("no_delay", "share", "as_told", "fake_negative")


def delay_figures(seeds: int, *, rounds: int, decisions: int) -> dict[str, Any]:
    runs = {m: [delayed(m, s, rounds=rounds, decisions=decisions) for s in range(seeds)] for m in METHODS}
    reached = {m: [r["reward"] / b["reward"] for r, b in zip(runs[m], runs["no_delay"], strict=True)] for m in METHODS}
    return {
        "seeds": seeds,
        "rounds": rounds,
        "decisions_a_round": decisions,
        "late": float(np.mean([r["late"] for r in runs["share"]])),
        "methods": {
            m: {
                "reward_of_no_delay": _mean(reached[m]),
                "bias": _mean([r["bias"] for r in runs[m]]),
                "bias_at_the_end": _mean([r["bias_at_the_end"] for r in runs[m]]),
            }
            for m in METHODS
        },
    }


# -- positions --------------------------------------------------------------------------------------------------------

CURVES = {
    "power law": (1.0 + np.arange(10)) ** -0.5,
    "a fold after three": np.array([1, 0.92, 0.85, 0.5, 0.45, 0.42, 0.4, 0.38, 0.37, 0.36]),
}
VARIANTS = {  # (θ, the feature `place`)
    "neither": (False, False),
    "place": (False, True),
    "theta": (True, False),
    "theta and place": (True, True),
}


def positioned(variant: str, curve: F64, seed: int, *, rounds: int, decisions: int) -> dict[str, float]:
    """Slates of ten; a fifth of the traffic is random. The value of greedy slates at the end, and θ's error."""
    uses_theta, uses_place = VARIANTS[variant]
    truth = Truth(seed, base=0.15, spread=0.07)
    chance = np.random.default_rng([seed, 3])
    policy, random = make("lints", dim=DIM, alpha=0.2, seed=seed), make("random", dim=DIM)
    kept: list[NDArray[np.int64]] = []

    def change(e: Examples) -> Examples:
        return replace(e, positions=kept[-1] if uses_place else np.zeros_like(e.positions))

    book = new_book(20_000, position_weights=uses_theta)
    learner = Learner(policy, book, change)
    for n in range(rounds):
        ts = START + n * HOUR
        for chooser, share, tag in ((policy, 0.8, "p"), (random, 0.2, "r")):
            query = truth.query(int(decisions * share), candidates=40)
            shown = show(chooser, query, truth, k=10, ts=ts, tag=f"{tag}{n}")
            clicked = np.argwhere(chance.random(shown.rates.shape) < curve * shown.rates)
            clicks: list[Transition] = [outcome(shown.names[i], int(p), ts + 1_000, ts) for i, p in clicked.tolist()]
            for records in (shown.opened, clicks):
                kept.append(_positions(records))
                learner.take(records, ts)
        truth.renew()
    query = truth.query(2_000, candidates=40)
    best = np.argsort(-_scores(policy, query), axis=1)[:, :10]
    rates = truth.rates(query.states, query.items.astype(np.float64))
    value = (np.take_along_axis(rates, best, axis=1) * curve).sum(axis=1).mean()
    oracle = (np.sort(rates, axis=1)[:, ::-1][:, :10] * curve).sum(axis=1).mean()
    by_chance = rates.mean() * curve.sum()
    found = {"gap_closed": float((value - by_chance) / (oracle - by_chance))}
    return found


def recovered(curve: F64, seed: int, *, slates: int) -> dict[str, float]:
    """θ from random slates alone: its relative error by position."""
    truth, chance = Truth(seed, base=0.15, spread=0.07), np.random.default_rng([seed, 4])
    random, book = make("random", dim=DIM), new_book(16_000)
    for n in range(slates // 1_000):
        shown = show(random, truth.query(1_000, candidates=40), truth, k=10, ts=START, tag=f"{n}")
        clicked = np.argwhere(chance.random(shown.rates.shape) < curve * shown.rates)
        records = [*shown.opened, *(outcome(shown.names[i], int(p), START, START) for i, p in clicked.tolist())]
        book.read(Transitions(0, n, START, False, records), n)
    table = book._estimates.in_force(slates) if book._estimates is not None else None
    theta = table.theta(0) if table is not None else None
    error = np.ones(10) if theta is None else np.abs(theta[:10] / curve - 1)
    return {"mean": float(error.mean()), "largest": float(error.max())}


def _positions(records: list[Transition]) -> NDArray[np.int64]:
    if records and isinstance(records[0], Opened):
        return np.tile(np.arange(10), len(records))
    return np.array([r.positions[0] for r in records if isinstance(r, Outcome)], np.int64)


def _scores(policy: Any, query: Query) -> F64:
    e = (query.states[:, None], query.contexts[:, None], query.items, query.scalars)
    x = policy._features.joint(*e)
    scores: F64 = x @ policy.regression.theta
    return scores


def position_figures(seeds: int, *, rounds: int, decisions: int) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "seeds": seeds,
        "slates": rounds * decisions,
        "random": 0.2,
        "curves": {},
        "recovered": {},
    }
    for name, curve in CURVES.items():
        runs = {
            v: [positioned(v, curve, s, rounds=rounds, decisions=decisions) for s in range(seeds)] for v in VARIANTS
        }
        figures["curves"][name] = {
            v: {key: _mean([r[key] for r in found]) for key in found[0]} for v, found in runs.items()
        }
        figures["recovered"][name] = {}
        for slates in (6_000, 60_000):
            errors = [recovered(curve, s, slates=slates) for s in range(seeds)]
            figures["recovered"][name][slates] = {key: _mean([e[key] for e in errors]) for key in errors[0]}
    return figures


def _mean(values: list[float]) -> dict[str, float]:
    """Mean and the half-width of its 95 % interval over seeds."""
    half = 1.96 * np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return {"mean": round(float(np.mean(values)), 4), "half": round(float(half), 4)}


# -- the page ---------------------------------------------------------------------------------------------------------


def section(f: dict[str, Any]) -> str:
    return "\n".join([*_delay_lines(f["delay"]), *(_position_lines(f["positions"]) if "positions" in f else []), ""])


def _delay_lines(d: dict[str, Any]) -> list[str]:
    said = {
        "no_delay": "conversions at once: what there is to reach",
        "share": "what has come ÷ the share that has (the default)",
        "as_told": "0 at once, corrected later",
        "fake_negative": "fake-negative weighting (Ktena et al. 2019)",
    }
    lines = [
        "## Rewards that come late, positions looked at less\n",
        f"`benchmarks/delay.py`: {d['late']:.0%} of conversions come after the next update; linear Thompson sampling,"
        f" {d['rounds']} updates of {d['decisions_a_round']} decisions, {d['seeds']} seeds; a tenth of the items is new"
        " with every update.\n",
        "| what is learned | reward, of no delay | bias of the predicted rate | in the second half |",
        "|---|---|---|---|",
    ]
    for name, m in d["methods"].items():
        cells = [m["reward_of_no_delay"], m["bias"], m["bias_at_the_end"]]
        shares = [f"{c['mean']:+.1%} ± {c['half']:.1%}" for c in cells]
        lines.append(f"| {said[name]} | {shares[0].removeprefix('+')} | {shares[1]} | {shares[2]} |")
    return [*lines, "| to reach | ≥ 97 % | within 2 % | |\n"]


def _position_lines(p: dict[str, Any]) -> list[str]:
    lines = [
        f"Slates of ten whose positions are looked at less and less: {p['slates']:,}, a fifth of them random,"
        f" {p['seeds']} seeds. Gap closed: from random slates to the best, by slates of the learned scores.\n",
        "| examination | learned with | gap closed |",
        "|---|---|---|",
    ]
    for curve, variants in p["curves"].items():
        for name, v in variants.items():
            gap = v["gap_closed"]
            lines.append(f"| {curve} | {name} | {gap['mean']:.1%} ± {gap['half']:.1%} |")
    lines += [
        "",
        "θ alone, from random slates: relative error over ten positions, means over seeds. To reach: within 5 %.\n",
        "| examination | random slates | mean error | largest error |",
        "|---|---|---|---|",
    ]
    for curve, by_size in p["recovered"].items():
        for slates, error in by_size.items():
            lines.append(
                f"| {curve} | {int(slates):,} | {error['mean']['mean']:.1%} | {error['largest']['mean']:.1%} |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="a small run that is not kept")
    given = parser.parse_args()
    started = time.process_time()
    small = given.quick
    figures = {
        "benchmark": "delay",
        "numpy": np.__version__,
        "python": platform.python_version(),
        "delay": delay_figures(given.seeds, rounds=20 if small else 48, decisions=100 if small else 300),
        "positions": position_figures(
            min(given.seeds, 2 if small else 5), rounds=5 if small else 20, decisions=200 if small else 500
        ),
    }
    figures["cpu_s"] = round(time.process_time() - started)
    text = json.dumps(figures, indent=2)
    if not small:
        RESULT.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
