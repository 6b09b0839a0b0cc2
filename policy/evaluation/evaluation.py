"""A target policy judged by the log of another: every estimator with its interval, or why there is no number.

    evaluate(log, ...) -> Evaluation     raises Refused

What is refused, and why, is in `_refuse`; which estimate is the headline, in `_headline`. docs/evaluation.md says both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from headrace.policy.base import F64, I64, Bool
from headrace.policy.evaluation import estimators as single
from headrace.policy.evaluation import intervals, slate_estimators
from headrace.policy.evaluation.estimators import Rounds
from headrace.policy.evaluation.intervals import Diagnostics, Interval
from headrace.policy.evaluation.reward_model import Predictions

MIN_ESS = 100.0
_DETERMINISTIC = 0.01  # at most this share of choices may have propensity 1
_OFF = 0.05, 5.0  # calibration: off by more than both, absolutely and in standard errors
_BY_A_MODEL = ("DM", "Switch-DR", "DRos")  # a model's word where weights are left out or shrunk
_CAP = 20.0  # empirical-Bernstein cuts weights here


class Refused(ValueError):
    """No number that could be stood behind. `str()` is the reason, in one line."""


@dataclass(frozen=True)
class Logged:
    """N decisions of up to k positions, in the order they were taken, and what the target would have done.

    Where a slate has no item, `propensities` and `target` are 1 and `shown` is False. `choices` is how many candidates
    a position had. `positions` are labels: with k = 1 a row may stand for any position of its page. `known` are the
    rows for which `model` has a prediction; rows of `model` are those rows.
    """

    rewards: F64  # (N, k)
    propensities: F64  # (N, k) μ(a_j | items above)
    target: F64  # (N, k) π(a_j | items above)
    shown: Bool  # (N, k)
    choices: I64  # (N, k)
    positions: I64  # (N, k)
    users: I64  # (N,)
    model: Predictions | None = None
    known: I64 | None = None  # (M,) rows

    def take(self, rows: I64) -> Logged:
        """Some of the decisions, without a model."""
        columns = ("rewards", "propensities", "target", "shown", "choices", "positions", "users")
        return Logged(**{name: getattr(self, name)[rows] for name in columns})


@dataclass(frozen=True)
class Estimate:
    """One estimator's word. `ess` and `largest` are of the weights that it uses; None where it uses none.

    Where its weights carry too little (`sound` False) it has a value for the curious and no interval. Neither have DM,
    Switch-DR and DRos: nothing in the log tells how wrong a model is where no weight corrects it.
    """

    name: str
    value: float
    error: float  # standard error, by user
    interval: Interval | None  # bootstrap by user
    decisions: int
    sound: bool
    ess: float | None = None
    largest: float | None = None
    bernstein: Interval | None = None
    anytime: Interval | None = None


@dataclass(frozen=True)
class AtPosition:
    """One position, a showing: what it earned, and would earn under the target."""

    position: int
    showings: int
    logged: float
    value: float
    interval: Interval | None  # None where `ess` is too small
    ess: float
    largest: float


@dataclass(frozen=True)
class Evaluation:
    decisions: int
    users: int
    slates: bool  # whether a decision has several positions
    logged: Estimate
    estimates: list[Estimate]
    headline: str  # the name of one of them
    because: str  # why that one
    positions: list[AtPosition]
    diagnostics: Diagnostics  # of the weights of single positions
    cascade: Diagnostics  # of the weights of positions with all above them, where they carry least

    @property
    def best(self) -> Estimate:
        """The headline's estimate."""
        return next(e for e in self.estimates if e.name == self.headline)


def evaluate(
    log: Logged, *, min_ess: float = MIN_ESS, level: float = 0.95, draws: int = 1_000, seed: int = 0
) -> Evaluation:
    """Raises Refused where the log cannot carry the target, or the headline's effective sample is below `min_ess`."""
    _refuse_log(log)
    ratios = single.weights(log.target, log.propensities)
    diagnostics = intervals.diagnose(ratios, log.shown.astype(np.float64), log.users)
    cascade = intervals.diagnose_worst(slate_estimators.cumulative(ratios), log.shown.astype(np.float64), log.users)
    _refuse_weights(diagnostics, min_ess)
    slates = log.rewards.shape[1] > 1
    table = _table(log, min_ess=min_ess, level=level, draws=draws, seed=seed)
    logged, estimates = table[0], table[1:]
    headline, because = _headline(estimates, slates=slates, decisions=len(log.users))
    return Evaluation(
        decisions=len(log.users),
        users=len(np.unique(log.users)),
        slates=slates,
        logged=logged,
        estimates=estimates,
        headline=headline,
        because=because,
        positions=_positions(log, ratios, min_ess=min_ess, level=level, draws=draws, seed=seed),
        diagnostics=diagnostics,
        cascade=cascade,
    )


# -- what is refused --------------------------------------------------------------------------------------------------


def _refuse_log(log: Logged) -> None:
    shown = log.shown
    if not len(log.users) or not shown.any():
        raise Refused("the log holds no decision that was shown")
    p = log.propensities[shown]
    bad = int((~((p > 0) & (p <= 1))).sum())
    if bad:
        raise Refused(f"{bad:,} of {p.size:,} propensities are not in (0, 1]: log the probability of each choice")
    if not np.isfinite(log.rewards[shown]).all():
        raise Refused("a reward is not a finite number")
    certain = float(((p >= 1 - 1e-9) & (log.choices[shown] > 1)).mean())
    if certain > _DETERMINISTIC:
        raise Refused(
            f"{certain:.0%} of the choices had propensity 1: a deterministic log says nothing of other choices; let "
            "the logging policy explore"
        )
    if not log.rewards[shown].any():
        raise Refused("no reward at all: every reward in the log is 0")


def _refuse_weights(found: Diagnostics, min_ess: float) -> None:
    if found.largest == 0:
        raise Refused("the target would never have chosen what was logged: every weight is 0")
    if found.ess < min_ess:
        raise Refused(_too_small(found.ess, min_ess, round(found.ess / found.share)))
    if not _calibrated(found):
        raise Refused(
            f"the weights average {found.calibration:.3f} ± {found.calibration_error:.3f} where true propensities give "
            "1: they are not those of the choices, or choices that the target makes had none"
        )


def _calibrated(found: Diagnostics) -> bool:
    off = abs(found.calibration - 1)
    return off <= _OFF[0] or off <= _OFF[1] * found.calibration_error


def _too_small(ess: float, wanted: float, decisions: int) -> str:
    return (
        f"the effective sample is {ess:.0f} of {decisions:,} decisions, {wanted:g} are wanted: log more, explore more, "
        "choose a target nearer to the log, or lower --min-ess"
    )


def _headline(estimates: list[Estimate], *, slates: bool, decisions: int) -> tuple[str, str]:
    """The one estimate to read first: the first sound one that knows at least half of the decisions.

    Of slates cascade-DR, then SNRIPS. Then, position by position, SNDR, and SNIPS last, which the log's own weights
    carry or nothing is said at all.
    """
    sound = {e.name for e in estimates if e.sound and 2 * e.decisions >= decisions}
    if slates:
        for name in ("cascade-DR", "SNRIPS"):
            if name in sound:
                return name, "a position's reward may depend on the items above it"
    note = ", each position by itself, as the weights of whole slates carry too little" if slates else ""
    if "SNDR" in sound:
        return "SNDR", f"doubly robust, self-normalised{note}"
    return "SNIPS", f"self-normalised{note}"


# -- the table --------------------------------------------------------------------------------------------------------


def _table(log: Logged, *, min_ess: float, level: float, draws: int, seed: int) -> list[Estimate]:
    """The logged policy's own value first, then every estimator."""
    free = _model_free(log)
    estimates = _with_intervals(log, free, min_ess=min_ess, level=level, draws=draws, seed=seed)
    if log.model is not None and log.known is not None and len(log.known):
        part = log.take(log.known) if len(log.known) < len(log.users) else log
        modelled = _modelled(part, log.model)
        estimates += _with_intervals(part, modelled, min_ess=min_ess, level=level, draws=draws, seed=seed)
    return [_exact_intervals(log, e, level=level) for e in estimates]


def _with_intervals(
    log: Logged, contributions: dict[str, F64], *, min_ess: float, level: float, draws: int, seed: int
) -> list[Estimate]:
    sums = intervals.by_user(np.stack(list(contributions.values()), axis=1), log.users)
    # No value lies beyond what the rewards allow.
    positions = log.shown.sum() / max(len(log.users), 1)
    low, high = (float(x) * float(positions) for x in _range(log))
    found = [
        Interval(max(i.low, low), min(i.high, high))
        for i in intervals.bootstrap(sums, level=level, draws=draws, seed=seed)
    ]
    ratios = single.weights(log.target, log.propensities)
    shown = log.shown.astype(np.float64)
    of_positions = intervals.diagnose(ratios, shown, log.users)
    of_cascades = intervals.diagnose_worst(slate_estimators.cumulative(ratios), shown, log.users)
    of_slates = intervals.diagnose(ratios.prod(axis=1, keepdims=True), np.ones((len(ratios), 1)), log.users)
    uses = {"RIPS": of_cascades, "SNRIPS": of_cascades, "cascade-DR": of_cascades, "SIPS": of_slates}
    estimates = []
    for e, name in enumerate(contributions):
        weighed = None if name in ("logged", "DM") else uses.get(name, of_positions)
        sound = weighed is None or (weighed.ess >= min_ess and _calibrated(weighed))
        estimates.append(
            Estimate(
                name,
                float(sums.means[e]),
                float(sums.errors[e]),
                found[e] if sound and name not in _BY_A_MODEL else None,
                len(log.users),
                sound and name not in _BY_A_MODEL,
                weighed.ess if weighed else None,
                weighed.largest if weighed else None,
            )
        )
    return estimates


def _range(log: Logged) -> tuple[float, float]:
    """What one position can earn: taken from the log, 0 included."""
    inside = log.rewards[log.shown]
    return min(float(inside.min()), 0.0), max(float(inside.max()), 0.0)


def _by_column(log: Logged, estimate: Callable[[Rounds], F64], model: Predictions | None = None) -> F64:
    """Contributions (N,) of a single-action estimator, position by position."""
    ratios = single.weights(log.target, log.propensities)
    total = np.zeros(len(log.users))
    for j in range(log.rewards.shape[1]):
        q, v = (model.q[:, j], model.v[:, j]) if model else (None, None)
        total += estimate(Rounds(log.rewards[:, j], ratios[:, j], log.shown[:, j], q, v))
    return total


def _model_free(log: Logged) -> dict[str, F64]:
    """Contributions (N,) by name."""
    found = {
        "logged": _by_column(log, single.on_policy),
        "IPS": _by_column(log, single.ips),
        "SNIPS": _by_column(log, single.snips),
    }
    if log.rewards.shape[1] > 1:
        ratios = single.weights(log.target, log.propensities)
        for name, estimate in (
            ("SIPS", slate_estimators.sips),
            ("RIPS", slate_estimators.rips),
            ("SNRIPS", slate_estimators.snrips),
        ):
            found[name] = estimate(ratios, log.rewards, log.shown).sum(axis=1)
    return found


def _modelled(log: Logged, model: Predictions) -> dict[str, F64]:
    ratios = single.weights(log.target, log.propensities)
    # One threshold for all positions.
    flat = Rounds(log.rewards.ravel(), ratios.ravel(), log.shown.ravel(), model.q.ravel(), model.v.ravel())
    tau, lam = single.best_tau(flat), single.best_lambda(flat)
    found = {
        "DM": _by_column(log, single.dm, model),
        "DR": _by_column(log, single.dr, model),
        "SNDR": _by_column(log, single.sndr, model),
        "Switch-DR": _by_column(log, lambda r: single.switch_dr(r, tau), model),
        "DRos": _by_column(log, lambda r: single.dros(r, lam), model),
    }
    if log.rewards.shape[1] > 1:
        found["cascade-DR"] = slate_estimators.cascade_dr(
            ratios, log.rewards, log.shown, q=model.q_onwards, v=model.v_onwards
        ).sum(axis=1)
    return found


def _exact_intervals(log: Logged, e: Estimate, *, level: float) -> Estimate:
    """Adds the intervals that hold at every sample size, to the two estimates they are about."""
    if e.name not in ("logged", "IPS"):
        return e
    ratios = single.weights(log.target, log.propensities) if e.name == "IPS" else np.ones_like(log.rewards)
    shown = log.shown.astype(np.float64)
    least, most = _range(log)
    cap = _CAP if e.name == "IPS" else 1.0
    whole = intervals.bounded_below(log.rewards, ratios, shown, log.users, least=least, most=most)
    cut = intervals.bounded_below(log.rewards, ratios, shown, log.users, least=least, most=most, cap=cap)
    width = (most - least) * float(shown.sum(axis=1).max()) * cap
    return replace(
        e,
        bernstein=intervals.empirical_bernstein(cut, width=width, level=level),
        anytime=intervals.anytime(whole, level=level),
    )


def _positions(log: Logged, ratios: F64, *, min_ess: float, level: float, draws: int, seed: int) -> list[AtPosition]:
    """SNIPS of every position by itself, a showing."""
    found = []
    for label in np.unique(log.positions[log.shown]):
        row, column = np.nonzero(log.shown & (log.positions == label))
        r, w, users = log.rewards[row, column], ratios[row, column], log.users[row]
        here = np.ones(len(r), np.bool_)
        sums = intervals.by_user(np.stack([r, single.snips(Rounds(r, w, here))], axis=1), users)
        interval = intervals.bootstrap(sums, level=level, draws=draws, seed=seed)[1]
        weighed = intervals.diagnose(w[:, None], np.ones((len(w), 1)), users)
        logged, value = (float(m) for m in sums.means)
        told = interval if weighed.ess >= min_ess else None
        found.append(AtPosition(int(label), len(r), logged, value, told, weighed.ess, weighed.largest))
    return found
