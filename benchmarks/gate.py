"""How often the gate promotes what it should not, and how soon what it should: `python benchmarks/gate.py [--runs N]`.

A shop at a 3 % base rate: users who differ in how often they come and how readily they click, a daily cycle in both
traffic and clicks, half of the rewards up to days late. Users are split into arms by chance; the gate looks after every
1,000 decisions. Beside it, on the same runs: the test most people would run, a z-test that takes decisions for
independent and looks as often, and the cluster-robust test at a fixed horizon.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headrace.policy.evaluation.gate import Gate
from headrace.policy.evaluation.ledger import Ledger, Value

RESULT = Path(__file__).parent / "results" / "gate.json"
SEED, TUNING_SEED = 20_000, 0  # figures are reported from the one, choices were made on the other
WORLD: dict[str, float] = {
    "base_rate": 0.03,
    "users": 20_000,  # at a time
    "stay_days": 7,  # then another user takes the place
    "activity_sigma": 1.0,  # of the log of how often a user comes
    "readiness": 30,  # a user's rate is Beta with this precision: correlation of one user's decisions = 1 / 31
    "decisions_an_hour": 1_000,
    "traffic_cycle": 0.6,  # ± over the day
    "reward_cycle": 0.3,
    "delayed": 0.5,  # share of rewards that come later
    "mean_delay_h": 24,
}
DECISIONS, LOOK = 500_000, 1_000
FIXED_Z = 1.6449 + 0.8416  # one-sided test at 5 % with a power of 80 %


@dataclass(frozen=True)
class Scenario:
    lift: float
    challenger_share: float = 0.5
    margin: float = 0.0


SCENARIOS = {
    "equal": Scenario(0.0),
    "equal, 20 % of traffic": Scenario(0.0, challenger_share=0.2),
    "3 % worse": Scenario(-0.03),
    "10 % worse": Scenario(-0.1),
    "5 % better, margin of 5 %": Scenario(0.05, margin=0.05),
    "10 % better": Scenario(0.1),
    "10 % better, 20 % of traffic": Scenario(0.1, challenger_share=0.2),
    "20 % better": Scenario(0.2),
}


@dataclass(frozen=True)
class Log:
    """One run's decisions, in order, and when each reward is known, in looks."""

    bucket: np.ndarray
    challenger: np.ndarray
    shown: np.ndarray  # look by which it was shown
    known: np.ndarray  # look by which its reward is known
    reward: np.ndarray


def make_log(scenario: Scenario, seed: int) -> Log:
    w, random = WORLD, np.random.default_rng(seed)
    places, days = int(w["users"]), 3 * DECISIONS / w["decisions_an_hour"] / 24
    users = places * (int(days / w["stay_days"]) + 2)
    activity = random.lognormal(0, w["activity_sigma"], places)
    rate = random.beta(w["base_rate"] * w["readiness"], (1 - w["base_rate"]) * w["readiness"], users)
    bucket = random.integers(0, 512, users)
    challenger = random.random(users) < scenario.challenger_share
    # Hours so long that each holds the traffic of its time of day.
    hours = np.arange(int(3 * DECISIONS / w["decisions_an_hour"]))
    traffic = w["decisions_an_hour"] * (1 + w["traffic_cycle"] * np.sin(2 * np.pi * hours / 24))
    hour = np.searchsorted(np.cumsum(traffic), np.arange(DECISIONS))
    readiness = 1 + w["reward_cycle"] * np.sin(2 * np.pi * hour / 24 + 1)
    place = np.searchsorted(np.cumsum(activity) / activity.sum(), random.random(DECISIONS)).clip(max=places - 1)
    generation = (hour / 24 / w["stay_days"] + random.random(places)[place]).astype(int)
    user = place + places * generation
    probability = rate[user] * readiness * np.where(challenger[user], 1 + scenario.lift, 1.0)
    late = random.random(DECISIONS) < w["delayed"]
    delay = np.where(late, random.exponential(w["mean_delay_h"], DECISIONS), 0)
    look = np.arange(DECISIONS) // LOOK
    known_at = np.searchsorted(hour, hour + np.ceil(delay).astype(int), side="left").clip(max=DECISIONS)
    known = np.maximum(look, np.where(late, known_at // LOOK, look))
    reward = (random.random(DECISIONS) < probability).astype(np.float64)
    return Log(bucket[user], challenger[user], look, known, reward)


@dataclass(frozen=True)
class Run:
    promoted: int | None  # decisions after which it was
    kept: int | None
    naive: int | None  # … by the z-test that peeks
    precision: np.ndarray  # by look: (base rate)² / variance of the difference, as the ledger has it
    lower: float  # at the end


def play(scenario: Scenario, gate: Gate, seed: int) -> Run:
    log, ledger = make_log(scenario, seed), Ledger(["champion", "challenger"])
    rewarded = np.flatnonzero(log.reward)
    rewarded = rewarded[np.argsort(log.known[rewarded], kind="stable")]
    ends = np.searchsorted(log.known[rewarded], np.arange(DECISIONS // LOOK), side="right")
    promoted = kept = naive = None
    precision, begin, verdict = np.zeros(DECISIONS // LOOK), 0, None
    for look, end in enumerate(ends):
        new, paid = slice(look * LOOK, (look + 1) * LOOK), rewarded[begin:end]
        begin = end
        for arm, mine in (("champion", False), ("challenger", True)):
            shown, came = log.bucket[new][log.challenger[new] == mine], log.bucket[paid][log.challenger[paid] == mine]
            ledger.add(arm, shown, np.ones(len(shown)), np.zeros(len(shown)))
            ledger.add(arm, came, np.zeros(len(came)), np.ones(len(came)))
        verdict = gate.verdict(ledger, champion="champion", challenger="challenger")
        at = (look + 1) * LOOK
        if promoted is None and verdict.decision == "promote":
            promoted = at
        if kept is None and verdict.decision == "keep":
            kept = at
        old, new_one = ledger.value("champion"), ledger.value("challenger")
        if naive is None and _naive_z(old, new_one, scenario.margin) > 1.6449:
            naive = at
        precision[look] = old.mean**2 / (old.variance + new_one.variance)
    assert verdict is not None
    return Run(promoted, kept, naive, precision, verdict.lower)


def _naive_z(old: Value, new: Value, margin: float) -> float:
    p, q = old.mean * (1 + margin), new.mean
    if min(old.decisions, new.decisions) < 1_000 or p <= 0:
        return 0.0
    return float((q - p) / np.sqrt(p * (1 - p) / old.decisions + q * (1 - q) / new.decisions))


def figures_of(scenario: Scenario, runs: list[Run]) -> dict[str, Any]:
    promoted = np.array([run.promoted or np.inf for run in runs])
    precision = np.mean([run.precision for run in runs], axis=0)
    figures: dict[str, Any] = {
        "lift": scenario.lift,
        "margin": scenario.margin,
        "challenger_share": scenario.challenger_share,
        "runs": len(runs),
        "promoted": float(np.isfinite(promoted).mean()),
        "kept": float(np.mean([run.kept is not None for run in runs])),
        "z_test_that_peeks": float(np.mean([run.naive is not None for run in runs])),
    }
    effect = scenario.lift - scenario.margin
    if effect > 0:
        enough = np.flatnonzero(effect**2 * precision >= FIXED_Z**2)
        fixed = int((enough[0] + 1) * LOOK) if len(enough) else None
        figures["fixed_horizon_decisions"] = fixed
        figures["median_decisions"] = _finite(np.quantile(promoted, 0.5, method="inverted_cdf"))
        figures["p80_decisions"] = _finite(np.quantile(promoted, 0.8, method="inverted_cdf"))
        if fixed:
            figures["median_to_fixed"] = round(float(np.median(promoted)) / fixed, 3)
            figures["promoted_by_fixed_horizon"] = float((promoted <= fixed).mean())
            figures["promoted_by_twice_the_horizon"] = float((promoted <= 2 * fixed).mean())
    return figures


def _finite(decisions: float) -> int | None:
    return int(decisions) if np.isfinite(decisions) else None


def section(f: dict[str, Any]) -> str:
    """The gate's part of docs/benchmarks.md."""
    lines = [
        "## The gate\n",
        _SETTING.format(**f, rate=f"{f['world']['base_rate']:.0%}"),
        "| challenger | promoted | seen to be no better | promoted by the z-test that peeks"
        " | decisions, median | fixed horizon | ratio | to reach |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, s in f["scenarios"].items():
        took, fixed, ratio = (s.get(key) for key in ("median_decisions", "fixed_horizon_decisions", "median_to_fixed"))
        cells = [
            name,
            *(f"{s[key]:.1%}" for key in ("promoted", "kept", "z_test_that_peeks")),
            f"{took:,}" if took else "",
            f"{fixed:,}" if fixed else "",
            f"{ratio:.2f}" if ratio else "",
            "≤ 5 %" if s["lift"] <= s["margin"] else "≥ 80 %, ratio ≤ 2" if s["lift"] == 0.1 else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


_SETTING = """\
{runs} runs of {decisions:,} shown decisions at a {rate} base rate, with users who come back, a daily cycle, and half of
the rewards late by a day in the mean; a look after every {look:,} decisions, error {error}, tuned to {planned:,}
decisions. The z-test looks as often and takes decisions for independent. The fixed horizon is that of a cluster-robust
one-sided test with a power of 80 % (`benchmarks/gate.py`).
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--only", action="append", help="these scenarios; the others stay as they are")
    parser.add_argument("--tune", action="store_true", help="on the seeds for tuning; keeps nothing")
    args = parser.parse_args()
    gate, first = Gate(), TUNING_SEED if args.tune else SEED
    figures: dict[str, Any] = {
        "runs": args.runs,
        "decisions": DECISIONS,
        "look": LOOK,
        "error": gate.error,
        "planned": gate.planned,
        "world": WORLD,
        "machine": platform.processor() or platform.machine(),
        "numpy": np.__version__,
    }
    kept = json.loads(RESULT.read_text("utf-8")) if RESULT.exists() else {}
    same = all(kept.get(key) == value for key, value in figures.items())
    scenarios: dict[str, Any] = kept["scenarios"] if same and args.only else {}
    for number, (name, scenario) in enumerate(SCENARIOS.items()):
        if args.only and name not in args.only:
            continue
        started, gate = time.process_time(), Gate(margin=scenario.margin)
        runs = [play(scenario, gate, first + 1_000 * number + i) for i in range(args.runs)]
        scenarios[name] = figures_of(scenario, runs) | {"cpu_s": round(time.process_time() - started)}
        print(name, json.dumps(scenarios[name], ensure_ascii=False), flush=True)
        if not args.tune:
            figures["scenarios"] = {name: scenarios[name] for name in SCENARIOS if name in scenarios}
            RESULT.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
