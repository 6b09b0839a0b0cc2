"""Are the propensities that are logged those that slates are drawn with? `python benchmarks/exactness.py`

Thompson sampling decides 1,000 times, every other policy 100 times (`--decisions 1000`: each as often). Each decision
is drawn again 100,000 times with other streams, and χ² compares how often each candidate came with the distribution of
that position, given the logged items above it. A policy scores a decision once, its distribution is then drawn from by
`slates.sample`, as `decide` does: the same query would score the same.

And what the demo's log is worth for judging others: the effective sample size of the uniform policy, position by
position, in a log of simulation/loop.py under the demo's settings.
"""
# ruff: noqa: E402

from __future__ import annotations

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from headrace.policy.checks import learned, make_query
from headrace.policy.choices import EpsilonGreedy, InverseGap
from headrace.policy.names import POLICIES
from headrace.policy.registry import make
from headrace.policy.slates import Choice, Greedy, Mixture, Softmax, Votes, sample, uniforms

RESULT = Path(__file__).parent / "results" / "exactness.json"
DECISIONS = {"lints": 1_000}
OTHERS, REDRAWS = 100, 100_000  # decisions of the other policies; redraws of each
CANDIDATES, POSITIONS, DRAWS, FLOOR = 6, 3, 16, 0.1
EXPECTED = 5  # in a cell of χ² at least: rarer ones are put together
EVENTS = 30_000  # in the log: as many as the demo plays
TO_REACH = 0.05


def repeated(choice: Choice, row: int, times: int) -> Choice:
    """One row of a choice from which nothing was removed, many times over, without the padding."""

    def again(array: Any) -> Any:
        return np.repeat(array[row : row + 1, ..., :CANDIDATES], times, axis=0)

    mask = np.ones((times, CANDIDATES), np.bool_)
    if isinstance(choice, Greedy):
        return Greedy(again(choice._scores), mask)
    if isinstance(choice, Votes):
        return Votes(again(choice._by_row), mask)
    if isinstance(choice, Softmax):
        return Softmax(again(choice._logits), mask)
    if isinstance(choice, EpsilonGreedy):
        return EpsilonGreedy(again(choice._greedy._scores), mask, epsilon=choice._epsilon)
    if isinstance(choice, InverseGap):
        return InverseGap(again(choice._scores), mask, gamma=choice._gamma)
    assert isinstance(choice, Mixture), f"no way to repeat a {type(choice).__name__}"
    return Mixture(repeated(choice._first, row, times), repeated(choice._second, row, times), float(choice._of_first))


def p_values(name: str, *, decisions: int, redraws: int) -> list[list[float]]:
    """One of each decision that can be tested, by position."""
    from scipy.stats import chi2

    policy: Any = make(name, dim=6, contexts=2, floor=FLOOR, draws=DRAWS, seed=1)
    if policy.learns:
        policy = learned(policy, batches=3, n=40)  # young: what it thinks of a candidate is not settled
    query = make_query(policy, rows=decisions, n=CANDIDATES, seed=2)
    query.mask[:] = True
    logged = policy.decide(query, POSITIONS)
    probabilities, _ = policy.distributions(query, logged.index)
    _, choice = policy._ranked(policy._padded(query))
    mask, scores = np.ones((redraws, CANDIDATES), np.bool_), np.zeros((redraws, CANDIDATES), np.float32)
    found: list[list[float]] = [[] for _ in range(POSITIONS)]
    for row in range(decisions):
        first = np.uint64(row * redraws)
        streams = (uniforms(np.arange(redraws, dtype=np.uint64) + first, 0) * 2.0**53).astype(np.uint64)
        drawn = sample(repeated(choice, row, redraws), mask, scores, POSITIONS, floor=FLOOR, streams=streams).index
        for j in range(POSITIONS):
            expected = len(drawn) * probabilities[row, j]
            counts = np.bincount(drawn[:, j], minlength=CANDIDATES)
            assert not counts[expected == 0].any(), "drew what has no chance"
            rare = expected < EXPECTED
            cells = np.append(expected[~rare], expected[rare].sum())
            seen = np.append(counts[~rare], counts[rare].sum())
            cells, seen = cells[cells > 0], seen[cells > 0]
            if len(cells) > 1 and len(drawn) >= 100:
                found[j].append(float(chi2.sf((np.square(seen - cells) / cells).sum(), len(cells) - 1)))
            drawn = drawn[drawn[:, j] == logged.index[row, j]]
    return found


def policy_figures(name: str, *, decisions: int, redraws: int) -> dict[str, Any]:
    by_position = p_values(name, decisions=decisions, redraws=redraws)
    return {
        "decisions": decisions,
        "tests": [len(p) for p in by_position],
        "below_1_percent": [float((np.array(p) < 0.01).mean()) for p in by_position],
        "smallest": min(min(p) for p in by_position),
    }


def log_figures(events: int) -> dict[str, Any]:
    """ESS / N of the uniform target: (Σw)² / Σw² / N with w = (1 / n_left) / propensity, all arms together and each."""
    from importlib.resources import as_file, files

    from headrace.simulation.loop import Loop, text_vectors
    from headrace.simulation.settings import DAY_MS, WorldSettings
    from headrace.simulation.world import World
    from headrace.streams import configuration
    from headrace.streams.records import Opened

    start_ms = 1_700_000_000_000
    with as_file(files("headrace.simulation") / "demo.toml") as demo:
        settings = configuration.load(demo)
    world = World(WorldSettings(), start_ms=start_ms, seed=0)
    loop = Loop(settings, world, text_vectors(settings, world.catalogue))
    weights: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    apply = loop.learning.apply

    def keep(transitions: Any, offset: int) -> Any:
        for record in transitions.records:
            if isinstance(record, Opened):
                propensities = np.frombuffer(record.propensities, "<f8")
                n = len(record.candidates) // 8
                for j, p in enumerate(propensities.tolist()):
                    for group in ("all", record.arm):
                        weights[group][j].append(1 / (n - j) / p)
        return apply(transitions, offset)

    loop.learning.apply = keep  # type: ignore[method-assign]
    loop.run(events=events, start_ms=start_ms, span_ms=7 * DAY_MS)
    return {
        "events": events,
        "floor": settings.policy.floor,
        "decisions": len(weights["all"][0]),
        "ess": {
            arm: [float(np.sum(w) ** 2 / np.square(w).sum() / len(w)) for _, w in sorted(by_position.items())]
            for arm, by_position in weights.items()
        },
        "largest_weight": float(max(max(w) for w in weights["all"].values())),
    }


def section(f: dict[str, Any]) -> str:
    shape, log = f["shape"], f["log"]
    rows = []
    for name, p in f["policies"].items():
        shares = ", ".join(f"{share:.1%}" for share in p["below_1_percent"])
        tests = f"{p['decisions']:,} | {sum(p['tests']):,}"
        rows.append(f"| {name} | {tests} | {shares} | {p['smallest'] * sum(p['tests']):.2g} |")
    ess = [f"| {arm} | {min(by_position):.1%} | {by_position[0]:.1%} |" for arm, by_position in log["ess"].items()]
    return "\n".join(
        [
            "## Propensities are exact\n",
            f"Slates of {shape['positions']} from {shape['candidates']} candidates, each decision drawn again"
            f" {shape['redraws']:,} times; χ² of every position given the logged items above it. Of exact propensities"
            " 1 % of the tests fall below .01, and the smallest p-value times the number of tests is"
            " hardly ever below .01 (`benchmarks/exactness.py`).\n",
            "| policy | decisions | tests | below .01, by position | smallest p × tests |\n|---|---|---|---|---|",
            *rows,
            "",
            f"The demo's log ({log['decisions']:,} decisions, floor {log['floor']}) for the uniform target: effective"
            f" sample size as a share of the decisions; to reach: 5 % of the whole log. The largest weight is"
            f" {log['largest_weight']:.1f}.\n",
            "| arm | worst position | first position |\n|---|---|---|",
            *ess,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--decisions", type=int, help="of every policy")
    parser.add_argument("--redraws", type=int, default=REDRAWS)
    parser.add_argument("--policies", nargs="+", default=list(POLICIES))
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--dry", action="store_true", help="write nothing")
    args = parser.parse_args()
    shape = {"redraws": args.redraws, "candidates": CANDIDATES, "positions": POSITIONS}
    figures: dict[str, Any] = {"shape": shape, "policies": {}}
    for name in args.policies:
        decisions = args.decisions or DECISIONS.get(name, OTHERS)
        figures["policies"][name] = policy_figures(name, decisions=decisions, redraws=args.redraws)
        print(name, figures["policies"][name], flush=True)
    figures["log"] = log_figures(args.events)
    print(figures["log"], flush=True)
    if not args.dry:
        RESULT.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
