"""Are the estimators right, and do their intervals keep their word? Prints JSON and keeps it.

    python benchmarks/evaluation.py [--quick] [--only coverage|obp]

1. The same numbers as obp 0.4.1 on the Open Bandit logs, random → bts and bts → random, with the same q̂; what obp does
   not have (self-normalised RIPS, cascade-DR) against the formula written out in loops.
2. Coverage of each kind of interval in 1,000 made-up logs with a known truth, users as clusters; the anytime interval
   under whoever looks after every user.
3. Relative errors on the Open Bandit logs beside obp's own pipeline, 30 bootstraps of the log.

obp: `pip install --no-deps obp==0.4.1`, beside scikit-learn, pandas and torch; without it `--only coverage` runs.
"""
# ruff: noqa: E402

from __future__ import annotations

import os
import sys

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import argparse
import csv
import gzip
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from headrace.policy.evaluation import estimators as single
from headrace.policy.evaluation import slate_estimators as slates
from headrace.policy.evaluation.estimators import Rounds
from headrace.policy.evaluation.reward_model import fit, folds

RESULT = Path(__file__).parent / "results" / "evaluation.json"
DATA = Path(__file__).parents[2] / "shared/data/obd_small"
POSITIONS = 3
Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the runs, and nothing is kept")
    parser.add_argument("--only", choices=("coverage", "obp"), help="one part; the figures of the other stay")
    given = parser.parse_args()
    # Beside this file: imported here, so that the module can be loaded from anywhere.
    sys.path.insert(0, str(Path(__file__).parent))
    from evaluation_coverage import coverage

    figures: Figures = json.loads(RESULT.read_text("utf-8")) if RESULT.exists() and not given.quick else {}
    if given.only != "obp":
        figures |= {"coverage": coverage(50 if given.quick else 1_000), "slates_against_loops": against_loops()}
    if given.only != "coverage":
        if why := _absent():
            sys.exit(f"nothing is compared with obp, as {why}; --only coverage runs without")
        figures |= {"same_as_obp": same_as_obp(), "open_bandit": relative_errors(2 if given.quick else 30)}
    text = json.dumps(figures, indent=2)
    print(text)
    if not given.quick:
        RESULT.write_text(text + "\n")


def _absent() -> str:
    try:
        import obp.ope  # noqa: F401
    except ImportError as error:
        return f"obp cannot be imported ({error})"
    return "" if DATA.exists() else f"{DATA.name} is not there"


# -- 1: the same numbers ----------------------------------------------------------------------------------------------


class Log:
    """One Open Bandit log as arrays."""

    def __init__(self, behaviour: str, campaign: str) -> None:
        with gzip.open(DATA / behaviour / campaign / f"{campaign}.csv.gz", "rt") as file:
            rows = sorted(csv.DictReader(file), key=lambda row: row["timestamp"])
        self.action = np.array([int(row["item_id"]) for row in rows])
        self.position = np.array([int(row["position"]) for row in rows]) - 1
        self.reward = np.array([float(row["click"]) for row in rows])
        self.pscore = np.array([float(row["propensity_score"]) for row in rows])
        names = [name for name in rows[0] if name.startswith("user_feature")]
        columns = []
        for name in names:
            values = [row[name] for row in rows]
            columns += [[float(v == word) for v in values] for word in sorted(set(values))[1:]]
        self.context = np.array(columns).T
        self.users = np.arange(len(rows))  # a row drawn twice stays in one fold

    def frequencies(self, n_actions: int) -> np.ndarray:
        """(A, 3): how often each action was chosen at each position, the marginal policy of this log."""
        table = np.zeros((n_actions, POSITIONS))
        np.add.at(table, (self.action, self.position), 1.0)
        return table / table.sum(axis=0)


def both_ways(campaign: str) -> list[tuple[str, Log, np.ndarray, float]]:
    """(name, log, target's distribution (A, 3), the target's value in its own log)."""
    random, bts = Log("random", campaign), Log("bts", campaign)
    n = int(max(random.action.max(), bts.action.max())) + 1
    return [
        (f"{campaign}: random → bts", random, bts.frequencies(n), float(bts.reward.mean())),
        (f"{campaign}: bts → random", bts, np.full((n, POSITIONS), 1 / n), float(random.reward.mean())),
    ]


def own_model(log: Log, n_actions: int, *, logistic: bool = False) -> np.ndarray:
    """q̂ (N, A): item, position and user features, cross-fitted."""
    n, size = len(log.action), n_actions + POSITIONS + log.context.shape[1] + 1
    x = np.zeros((n, size))
    x[np.arange(n), log.action] = 1
    x[np.arange(n), n_actions + log.position] = 1
    x[:, n_actions + POSITIONS : -1] = log.context
    x[:, -1] = 1
    fold = folds(log.users)
    model = fit(x, log.reward, fold, logistic=logistic)
    beta = model.coefficients[fold]
    besides = (x[:, n_actions:] * beta[:, n_actions:]).sum(axis=1, keepdims=True)
    scores = besides + beta[:, :n_actions]
    return 1 / (1 + np.exp(-scores)) if logistic else scores


def as_rounds(log: Log, target: np.ndarray, q: np.ndarray) -> Rounds:
    """`q` (N, A) at each row's own position."""
    pi = target[:, log.position].T  # (N, A)
    rows = np.arange(len(log.action))
    w = single.weights(pi[rows, log.action], log.pscore)
    return Rounds(log.reward, w, np.ones(len(rows), np.bool_), q[rows, log.action], (pi * q).sum(axis=1))


def ours(r: Rounds, tau: float, lam: float) -> dict[str, float]:
    return {
        "IPS": float(single.ips(r).mean()),
        "SNIPS": float(single.snips(r).mean()),
        "DM": float(single.dm(r).mean()),
        "DR": float(single.dr(r).mean()),
        "SNDR": float(single.sndr(r).mean()),
        "Switch-DR": float(single.switch_dr(r, tau).mean()),
        "DRos": float(single.dros(r, lam).mean()),
    }


def theirs(log: Log, target: np.ndarray, q: np.ndarray, tau: float, lam: float) -> dict[str, float]:
    """obp's estimators on the same arrays; `q` (N, A) or (N, A, 3)."""
    from obp import ope

    named = {
        "IPS": ope.InverseProbabilityWeighting(),
        "SNIPS": ope.SelfNormalizedInverseProbabilityWeighting(),
        "DM": ope.DirectMethod(),
        "DR": ope.DoublyRobust(),
        "SNDR": ope.SelfNormalizedDoublyRobust(),
        "Switch-DR": ope.SwitchDoublyRobust(tau=tau),
        "DRos": ope.DoublyRobustWithShrinkage(lambda_=lam),
    }
    n = len(log.action)
    given = {
        "reward": log.reward,
        "action": log.action,
        "pscore": log.pscore,
        "position": log.position,
        "action_dist": np.tile(target, (n, 1, 1)),
        "estimated_rewards_by_reg_model": q if q.ndim == 3 else np.repeat(q[:, :, None], POSITIONS, axis=2),
    }
    return {name: float(estimator.estimate_policy_value(**given)) for name, estimator in named.items()}


def same_as_obp() -> Figures:
    """The largest difference over both directions and both campaigns, with thresholds that bite; slates made up."""
    largest: dict[str, float] = {}
    for campaign in ("all", "men"):
        for _, log, target, _ in both_ways(campaign):
            q = own_model(log, len(target), logistic=True)
            mine, other = ours(as_rounds(log, target, q), 2.0, 3.0), theirs(log, target, q, 2.0, 3.0)
            for name in mine:
                largest[name] = max(largest.get(name, 0.0), abs(mine[name] - other[name]))
    return {"largest_difference": largest | slates_against_obp()}


def slates_against_obp() -> dict[str, float]:
    from obp import ope

    rng = np.random.default_rng(0)
    n, k = 1_000, 4
    mu, pi = rng.uniform(0.05, 1, (n, k)), rng.uniform(0.05, 1, (n, k))
    rewards, shown = rng.uniform(0, 1, (n, k)), np.ones((n, k), np.bool_)
    ratios = pi / mu
    flat = {
        "slate_id": np.repeat(np.arange(n), k),
        "reward": rewards.ravel(),
        "position": np.tile(np.arange(k), n),
    }

    def whole(x: np.ndarray) -> np.ndarray:
        return np.repeat(x.prod(axis=1), k)

    found = {
        "SIPS": (slates.sips, ope.SlateStandardIPS(len_list=k), ("pscore", whole(mu), whole(pi))),
        "IIPS": (
            slates.iips,
            ope.SlateIndependentIPS(len_list=k),
            ("pscore_item_position", mu.ravel(), pi.ravel()),
        ),
        "RIPS": (
            slates.rips,
            ope.SlateRewardInteractionIPS(len_list=k),
            ("pscore_cascade", np.cumprod(mu, axis=1).ravel(), np.cumprod(pi, axis=1).ravel()),
        ),
    }
    differences = {}
    for name, (mine, other, (argument, of_mu, of_pi)) in found.items():
        value = other.estimate_policy_value(**flat, **{argument: of_mu, f"evaluation_policy_{argument}": of_pi})
        differences[name] = abs(float(mine(ratios, rewards, shown).sum(axis=1).mean()) - float(value))
    return differences


def against_loops() -> dict[str, float]:
    """Self-normalised RIPS and cascade-DR as their papers write them, in plain loops."""
    rng = np.random.default_rng(0)
    n, k = 500, 4
    ratios, rewards = rng.uniform(0.2, 3, (n, k)), rng.uniform(0, 1, (n, k))
    q, v, shown = rng.uniform(0, 1, (n, k)), rng.uniform(0, 1, (n, k)), np.ones((n, k), np.bool_)
    above = [[float(np.prod(ratios[i, :j])) for j in range(k + 1)] for i in range(n)]
    normalised = sum(
        sum(above[i][j + 1] * rewards[i, j] for i in range(n)) / sum(above[i][j + 1] for i in range(n))
        for j in range(k)
    )
    cascade = 0.0
    for i in range(n):
        for j in range(k):
            cascade += above[i][j + 1] * (rewards[i, j] - q[i, j]) + above[i][j] * v[i, j]
    mine = slates.cascade_dr(ratios, rewards, shown, q=q, v=v).sum(axis=1).mean()
    return {
        "SNRIPS": abs(float(slates.snrips(ratios, rewards, shown).sum(axis=1).mean()) - normalised),
        "cascade-DR": abs(float(mine) - cascade / n),
    }


# -- 3: relative errors -----------------------------------------------------------------------------------------------


def relative_errors(bootstraps: int) -> Figures:
    """|estimate - truth| / truth over bootstraps of the log: ours, and obp's estimators with obp's regression model.

    Both take τ and λ by our rule. The truth is the target's own log, itself about 40 clicks: ± 16 %.
    """
    found: Figures = {}
    for name, log, target, truth in both_ways("all"):
        mine: dict[str, list[float]] = {}
        other: dict[str, list[float]] = {}
        for b in range(bootstraps):
            part = resampled(log, np.random.default_rng([5, b]))
            for kept, q in ((mine, own_model(part, len(target))), (other, obps_model(part, len(target)))):
                at_position = q if q.ndim == 2 else q[np.arange(len(q)), :, part.position]
                r = as_rounds(part, target, at_position)
                # obp divides by zero where λ and a weight are 0.
                tau, lam = single.best_tau(r), min(max(single.best_lambda(r), 1e-9), 1e12)
                values = ours(r, tau, lam) if kept is mine else theirs(part, target, q, tau, lam)
                for estimator, value in values.items():
                    kept.setdefault(estimator, []).append(abs(value - truth) / truth)
        found[name] = {
            "truth": truth,
            "headrace": {e: [float(np.mean(x)), float(np.std(x))] for e, x in mine.items()},
            "obp": {e: [float(np.mean(x)), float(np.std(x))] for e, x in other.items()},
        }
    return {"bootstraps": bootstraps, "directions": found}


def resampled(log: Log, rng: np.random.Generator) -> Log:
    drawn = rng.integers(0, len(log.action), len(log.action))
    part = Log.__new__(Log)
    for name, column in vars(log).items():
        setattr(part, name, column[drawn])
    return part


def obps_model(log: Log, n_actions: int) -> np.ndarray:
    """obp's RegressionModel with scikit-learn's logistic regression as it comes: (N, A, 3), three folds."""
    from obp.ope import RegressionModel
    from sklearn.linear_model import LogisticRegression

    model = RegressionModel(base_model=LogisticRegression(max_iter=1_000), n_actions=n_actions, len_list=POSITIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predicted: np.ndarray = model.fit_predict(
            context=log.context,
            action=log.action,
            reward=log.reward.astype(int),
            pscore=log.pscore,
            position=log.position,
            n_folds=3,
            random_state=12345,
        )
    return predicted


# -- the page ---------------------------------------------------------------------------------------------------------


def section(figures: Figures) -> str:
    """Its part of docs/benchmarks.md."""
    cover = figures["coverage"]
    same = figures["same_as_obp"]["largest_difference"] | figures["slates_against_loops"]
    lines = [
        "## Judging a policy by a log\n",
        _SAME.format(largest=max(same.values()), names=", ".join(same)),
        _COVERED.format(runs=cover["runs"], users=cover["users"], slates=cover["slate_users"][0]),
        f"| interval, 95 %, {cover['runs']:,} runs | held the truth | median width | to reach |",
        "|---|---|---|---|",
    ]
    for name, held in cover["held"].items():
        width = cover["median_width"].get(name)
        aim = "" if name.startswith("fixed-sample") or name.endswith("below 100") else "≥ 94 %"
        lines.append(f"| {name} | {held:.1%} | {'' if width is None else f'{width:.3f}'} | {aim} |")
    ess = ", ".join(f"{name} {value:.0f}" for name, value in cover["median_ess"].items())
    lines += ["", f"Median effective samples: {ess}.\n", _ERRORS.format(runs=figures["open_bandit"]["bootstraps"])]
    for name, found in figures["open_bandit"]["directions"].items():
        lines += [f"| {name}, truth {found['truth']:.4f} | headrace | obp |", "|---|---|---|"]
        for estimator, (mean, spread) in found["headrace"].items():
            theirs_mean, theirs_spread = found["obp"][estimator]
            lines.append(f"| {estimator} | {mean:.3f} ± {spread:.3f} | {theirs_mean:.3f} ± {theirs_spread:.3f} |")
        lines.append("")
    return "\n".join(lines)


_SAME = """\
Largest difference to obp 0.4.1 on the Open Bandit logs (all and men, random → bts and bts → random, the same q̂), on
made-up slates, and to the formulas in plain loops where obp has none: {largest:.0e}. To reach: 1e-9. Estimators:
{names}.
"""
_COVERED = """\
{runs:,} made-up logs with a known truth: {users} users ({slates} for slates of three) with tastes of their own, one to
eight decisions each. *Looked at after every user*: wrong once is wrong.
"""
_ERRORS = """\
Relative errors on the Open Bandit logs, mean ± standard deviation over {runs} bootstraps of the log. The truth is the
target's own log, about 40 clicks, so that it is itself uncertain by 16 %. headrace: ridge as in `headrace evaluate`;
obp: its RegressionModel with scikit-learn's logistic regression; τ and λ by our rule for both. The target bts is its
log's frequencies of items by position.
"""


if __name__ == "__main__":
    main()
