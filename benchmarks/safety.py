"""A poisoned policy is taken back, and learning costs little: `python benchmarks/safety.py [--runs N]`.

Poison: a version that was learned well is replaced by a bad one while an arm serves, beside a control arm of a tenth
of the traffic and with a daily cycle in the clicks. Counted: decisions of the bad version until the alarm, and alarms
in a healthy arm. Conservative exploration: a policy that knows nothing learns beside the popular baseline. Counted:
runs in which the expected reward of all that was shown ever falls below 95 % of what the baseline would have earned.
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
from pathlib import Path
from typing import Any

import numpy as np
from small_world import DIM, SCALARS, World, earned, examples, expected

from headrace.policy.conservative import Budget, Conservative
from headrace.policy.evaluation.guardrails import Alarm, Guardrails
from headrace.policy.ranking import Ranking
from headrace.policy.registry import make

RESULT = Path(__file__).parent / "results" / "safety.json"
SEED, TUNING_SEED = 30_000, 0  # figures are reported from the one, choices were made on the other
RATES = (0.03, 0.1, 0.3)  # clicks a decision that the healthy policy earns
CALL = 5  # decisions that a worker reports at a time
SHAPE: dict[str, Any] = {"dim": DIM, "scalars": SCALARS}


# -- a poisoned version -----------------------------------------------------------------------------------------------


def make_learned(seed: int) -> Ranking:
    world, policy, random = World(0.2), make("lints", **SHAPE, alpha=0.1), np.random.default_rng(seed)
    for batch in range(100):
        query, earns = world.ask(100, random)
        slates = policy.decide(query, 1)
        policy.learn(examples(query, slates, random.random((100, 1)) < earned(earns, slates), batch * 100))
    return policy


def poisoned(policy: Ranking, how: str, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays, meta = policy.snapshot()
    random = np.random.default_rng(seed)
    weights = arrays["serve.weights"].copy()
    if how == "signs turned":
        weights = -weights
    elif how == "weights shuffled":
        weights = random.permuted(weights, axis=1)
    elif how == "weights × 1,000":
        weights = weights * 1_000
    elif how == "not a number":
        weights[0, 3] = np.nan
    return {**arrays, "serve.weights": weights}, meta


def pool_of(policy: Ranking, *, seed: int, rows: int = 20_000) -> dict[str, np.ndarray]:
    """Many decisions of one version: relative reward, 1/p and candidates, from which runs draw."""
    query, earns = World(0.2).ask(rows, np.random.default_rng(seed))
    slates = policy.decide(query, 1)
    return {"earns": earned(earns, slates)[:, 0], "inverse": 1 / slates.propensities[:, 0]}


def stop_after(
    guard: Guardrails, pool: dict[str, np.ndarray], control: np.ndarray, *, scale: float, decisions: int, start: int,
    version: int, random: np.random.Generator, cycle: float, propensities: bool = True,
) -> tuple[int | None, Alarm | None]:  # fmt: skip
    """Feeds `decisions` of the arm, and a seventh as many of the control arm; returns where an alarm stopped it."""
    draws = random.integers(0, len(pool["earns"]), decisions)
    phase = 1 + cycle * np.sin(2 * np.pi * (start + np.arange(decisions)) / 20_000)
    clicks = random.random(decisions) < scale * phase * pool["earns"][draws]
    by_call = np.add.reduceat(clicks, np.arange(0, decisions, CALL)).tolist()
    inverse = pool["inverse"][draws].tolist()
    held = random.random(decisions // 7) < scale * phase[::7][: decisions // 7] * random.choice(control, decisions // 7)
    for call, reward in enumerate(by_call):
        alarm = None
        for observed in inverse[call * CALL : (call + 1) * CALL] if propensities else ():
            alarm = alarm or guard.decided(version, expected=20.0, observed=observed)
        alarm = guard.rewarded(arm="policy", version=version, decisions=CALL, reward=float(reward)) or alarm
        if call % 7 == 6:
            block = slice(call // 7 * CALL, (call // 7 + 1) * CALL)
            guard.rewarded(arm="popular", version=0, decisions=CALL, reward=float(held[block].sum()))
        if alarm:
            return (call + 1) * CALL, alarm
    return None, None


def poison_figures(runs: int, first: int, *, cycle: float = 0.3) -> dict[str, Any]:
    policy = make_learned(first)
    healthy = pool_of(policy, seed=first + 1)
    control = pool_of(make("popular", **SHAPE), seed=first + 2)["earns"]
    bad: dict[str, dict[str, np.ndarray]] = {}
    for how in ("signs turned", "weights shuffled"):
        copy = make("lints", **SHAPE, alpha=0.1)
        copy.restore(*poisoned(policy, how, first))
        bad[how] = pool_of(copy, seed=first + 3)
    bad["earns nothing"] = healthy | {"earns": np.zeros_like(healthy["earns"])}
    # Served greedily and logged as if the floor were kept: every shown item has the chance it was not given.
    bad["propensities of another policy"] = healthy | {"inverse": np.full_like(healthy["inverse"], 1 / 0.905)}
    figures: dict[str, Any] = {"before_serving": before_serving(policy, first), "rates": {}}
    for number, rate in enumerate(RATES):
        scale, at_rate = rate / healthy["earns"].mean(), {}
        for place, (how, pool) in enumerate(bad.items()):
            took, rules = [], {}
            for run in range(runs):
                random = np.random.default_rng([first, number, place, run])
                guard = Guardrails(control="popular")
                good = {"scale": scale, "random": random, "cycle": cycle}
                start = int(random.integers(0, 20_000))
                early = {"decisions": 6_000, "start": start, "version": 1, "propensities": False}
                if stop_after(guard, healthy, control, **early, **good)[1]:
                    guard.reset()
                at, alarm = stop_after(guard, pool, control, decisions=3_000, start=start + 6_000, version=2, **good)
                took.append(at or np.inf)
                if alarm:
                    rules[alarm.rule] = rules.get(alarm.rule, 0) + 1
            at_rate[how] = {
                "earns": round(float(pool["earns"].mean() / healthy["earns"].mean()), 3),
                "within_500": float(np.mean(np.array(took) <= 500)),
                "rules": rules,
                **{f"p{q}": _finite(np.quantile(took, q / 100, method="inverted_cdf")) for q in (50, 95, 100)},
            }
        alarms, healthy_decisions = 0, 20_000
        for run in range(runs):
            guard, random, done = Guardrails(control="popular"), np.random.default_rng([first, number, 99, run]), 0
            while done < healthy_decisions:
                at, alarm = stop_after(
                    guard, healthy, control, scale=scale, decisions=healthy_decisions - done, start=done, version=1,
                    random=random, cycle=cycle,
                )  # fmt: skip
                done += at or healthy_decisions
                alarms += alarm is not None
                guard.reset()
        figures["rates"][str(rate)] = {
            "poison": at_rate,
            "healthy_decisions": runs * healthy_decisions,
            "false_alarms": alarms,
        }
        print(rate, json.dumps(figures["rates"][str(rate)]), flush=True)
    return figures


def before_serving(policy: Ranking, seed: int) -> dict[str, str]:
    """What the check of a snapshot says, after 30 healthy versions of a policy that goes on learning."""
    guard, world, random = Guardrails(), World(0.2), np.random.default_rng(seed)
    learner = make("lints", **SHAPE, alpha=0.1)
    for batch in range(30):
        query, earns = world.ask(200, random)
        slates = learner.decide(query, 1)
        learner.learn(examples(query, slates, random.random((200, 1)) < earned(earns, slates), batch * 200))
        alarm = guard.check_arrays(*learner.snapshot())
        assert alarm is None, alarm
    found = {}
    for how in ("weights × 1,000", "not a number"):
        alarm = guard.check_arrays(*poisoned(policy, how, seed))
        found[how] = alarm.rule if alarm else "served"
    return found


def _finite(decisions: float) -> int | None:
    return int(decisions) if np.isfinite(decisions) else None


# -- conservative exploration -----------------------------------------------------------------------------------------


def explore(kind: str, seed: int, *, decisions: int, batch: int) -> dict[str, Any]:
    """One run: `kind` is conservative, policy alone or baseline alone."""
    world, random = World(0.15), np.random.default_rng(seed)
    most = 0.0 if kind == "baseline" else 1.0
    policy, baseline = make("lints", **SHAPE, alpha=0.3, seed=seed), make("popular", **SHAPE)
    both = Conservative(policy, baseline, budget=Budget(), batch=batch, most=most)
    shown, safe, shares = [], [], []
    for step in range(decisions // batch):
        query, earns = world.ask(batch, random)
        shares.append(both.share if kind != "policy" else 1.0)
        slates = (policy if kind == "policy" else both).decide(query, world.k)
        means = earned(earns, slates)
        rewards = (random.random(means.shape) < means).astype(np.float64)
        shown.append(means.sum(axis=1))
        safe.append(expected(earns, baseline.distributions(query, slates.index)[0]))
        if kind != "policy":
            both.observed(query, slates, rewards)
        policy.learn(examples(query, slates, rewards, step * batch))
    ratio = np.cumsum(np.concatenate(shown)) / np.cumsum(np.concatenate(safe))
    query, earns = world.ask(4_000, np.random.default_rng(SEED - 1))
    first = np.full((4_000, 1), -1)
    first[:, 0] = 0
    final = expected(earns, policy.distributions(query, first)[0]).mean()
    usual = expected(earns, baseline.distributions(query, first)[0]).mean()
    half = next((i * batch for i, share in enumerate(shares) if share >= 0.5), None)
    return {"worst": float(ratio[100:].min()), "total": float(ratio[-1]), "final": float(final / usual), "half": half}


def exploration_figures(runs: int, first: int, *, decisions: int = 8_000, batch: int = 50) -> dict[str, Any]:
    figures: dict[str, Any] = {"decisions": decisions, "batch": batch, "runs": runs, "loss": 0.05}
    for kind in ("conservative", "policy", "baseline"):
        found = [explore(kind, first + run, decisions=decisions, batch=batch) for run in range(runs)]
        worst = np.array([run["worst"] for run in found])
        final = np.array([run["final"] for run in found])
        figures[kind] = {
            "kept_95": float((worst >= 0.95).mean()),
            "worst_p5": round(float(np.quantile(worst, 0.05)), 4),
            "worst": round(float(worst.min()), 4),
            "final_beats_baseline": float((final > 1).mean()) if kind != "baseline" else 0.0,
            "final_to_baseline": round(float(final.mean()), 4) if kind != "baseline" else 1.0,
            "total_to_baseline": round(float(np.mean([run["total"] for run in found])), 4),
            "half_the_traffic_after": _median([run["half"] for run in found]),
        }
        print(kind, json.dumps(figures[kind]), flush=True)
    return figures


def _median(found: list[int | None]) -> int | None:
    return _finite(np.quantile([np.inf if at is None else at for at in found], 0.5, method="inverted_cdf"))


# -- the page ---------------------------------------------------------------------------------------------------------


def section(f: dict[str, Any]) -> str:
    """Its part of docs/benchmarks.md."""
    rates = f["poison"]["rates"]
    lines = [
        "## Safety\n",
        _POISON.format(runs=f["runs"]),
        "| usually earns | the bad version | earns of that | caught within 500 | decisions, median | 95 % |",
        "|---|---|---|---|---|---|",
    ]
    for rate, found in rates.items():
        for how, p in found["poison"].items():
            took = [f"{p[key]:,}" if p[key] else "not within 3,000" for key in ("p50", "p95")]
            cells = [f"{float(rate):.0%}", how, f"{p['earns']:.0%}", f"{p['within_500']:.1%}", *took]
            lines.append(f"| {' | '.join(cells)} |")
    healthy = "; ".join(
        f"{found['false_alarms']} in {found['healthy_decisions']:,} decisions at {float(rate):.0%}"
        for rate, found in rates.items()
    )
    before = "; ".join(f"{how}: {rule}" for how, rule in f["poison"]["before_serving"].items())
    e = f["exploration"]
    lines += [
        "",
        f"False alarms of a healthy policy: {healthy}. Refused before a single decision: {before}.\n",
        _EXPLORATION.format(**e),
        "| who decides | ≥ 95 % at every time | worst run | learned policy beats the baseline | its value"
        " | earned in all | half of the traffic after |",
        "|---|---|---|---|---|---|---|",
    ]
    names = {"conservative": "conservative", "policy": "the policy from the start", "baseline": "the baseline for ever"}
    for kind, name in names.items():
        c = e[kind]
        after = f"{c['half_the_traffic_after']:,} decisions" if c["half_the_traffic_after"] is not None else "never"
        cells = [name, f"{c['kept_95']:.1%}", f"{c['worst']:.3f}", f"{c['final_beats_baseline']:.1%}"]
        lines.append(f"| {' | '.join(cells)} | {c['final_to_baseline']:.3f} | {c['total_to_baseline']:.3f} | {after} |")
    return "\n".join([*lines, ""])


_POISON = """\
{runs} runs each: a version that was learned well serves, then a bad one, with a daily cycle of ± 30 % in the clicks and
a control arm beside it with a seventh as much traffic (`benchmarks/safety.py`). To reach: taken back within 5 s or 500
decisions.
"""
_EXPLORATION = """\
{runs} runs of {decisions:,} decisions, the budget moved every {batch}: the expected reward of what was shown against
what the baseline would have earned, at every time after the first 100 decisions. To reach: ≥ 95 % in ≥ 95 % of the
runs, while the learned policy beats the baseline in ≥ 90 %. The baseline itself falls short of its own expectation now
and then, by what its floor happens to draw.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--tune", action="store_true", help="on the seeds for tuning; keeps nothing")
    parser.add_argument("--only", choices=["poison", "exploration"])
    args = parser.parse_args()
    started, first = time.process_time(), TUNING_SEED if args.tune else SEED
    figures: dict[str, Any] = {"runs": args.runs}
    if args.only != "exploration":
        figures["poison"] = poison_figures(args.runs, first)
    if args.only != "poison":
        figures["exploration"] = exploration_figures(args.runs, first)
    figures |= {
        "cpu_s": round(time.process_time() - started),
        "machine": platform.processor() or platform.machine(),
        "numpy": np.__version__,
    }
    if not (args.tune or args.only):
        RESULT.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
