"""What takes a bad policy back within a few hundred decisions: four rules, each with a bound on its false alarms.

    not_finite    a published array or number is NaN or infinite                            check_arrays
    norm          what is served is many times larger than in the versions before           check_arrays
    calibration   the logged propensities are not the chances that items were drawn with    decided
    reward        the arm earns far less than it did, and the control arm does not          rewarded

The last two watch for a *change* and may go on for ever. Both are e-detectors (Shin, Ramdas and Rinaldo 2023, arXiv
2203.03532): with every update a wealth is multiplied by a factor of mean ≤ 1 as long as all is well, and lifted to 1
where it has fallen below. The mean time to a false alarm is then at least the threshold, counted in updates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from headrace.policy.base import F64, Arrays, Meta

Rule = Literal["reward", "calibration", "norm", "not_finite"]
_DROPS = (0.1, 0.3)  # shares of its usual reward that a bad policy may have left: what the reward rule bets on
_BETS = (-0.9, -0.2, 0.02, 0.1, 0.5)  # on Σ 1/p: negative ones as a share of the largest that cannot go broke
_RICH = 1e300
_BLOCK = 20  # decisions at least from which the usual reward is taken
_SOON = 150  # decisions without any reward that are to be enough for an alarm where rewards are frequent
_SUMS = frozenset(("precision", "moment", "squares"))  # over examples: traffic alone makes them grow
_RECORDS = frozenset(("held", "replay", "adam"))  # examples themselves, and an optimiser's sums over them
_NO_NORM = 1e-9
_SMALL_NORM = 1.0  # an array whose entries' root mean square is below this × `norm_ratio` is never too large


@dataclass(frozen=True)
class Alarm:
    rule: Rule
    reason: str  # one line for people


class Guardrails:
    """Watches one arm whose policy learns. Deterministic: the same feed gives the same alarms, also after `restore`.

    After an alarm: serve `last_good`, freeze, and call `reset` when a version is trusted again.
    """

    def __init__(
        self,
        *,
        arm: str = "policy",
        control: str | None = None,
        floor: float = 0.1,
        decisions_per_false_alarm: float = 1e6,
        memory: float = 5_000.0,
        tolerance: float = 0.2,
        warm_up: int = 1_000,
        trusted: int = 500,
        norm_ratio: float = 10.0,
    ) -> None:
        """`arm` is guarded, `control` is an arm that learns nothing, or None. `floor` is the policy's.

        `decisions_per_false_alarm`: how many decisions of a healthy arm there may be to one false alarm of the reward
        rule; more makes it slower where rewards are rare. `memory`: over how many decisions the usual reward is
        averaged. `tolerance`: by what share rewards may fall without suspicion (the hour of the day). `warm_up`:
        decisions before the reward rule says anything. `trusted`: so many decisions after it began a version counts as
        good. `norm_ratio`: how many times larger than before an array may be.

        Raises ValueError for a value out of range.
        """
        if not 0 < floor < 1:
            raise ValueError(f"floor is {floor}: choose one between 0 and 1")
        if min(decisions_per_false_alarm, memory, warm_up, trusted) < 1 or norm_ratio <= 1 or not 0 <= tolerance < 0.5:
            raise ValueError(
                "a limit of the guardrails is out of range: at least 1, norm_ratio > 1, tolerance in [0, 0.5)"
            )
        self.arm, self.control = arm, control
        self._every, self._memory, self._warm_up = decisions_per_false_alarm, memory, warm_up
        self._trusted, self._norm_ratio = trusted, norm_ratio
        self._tolerance, self._exponent = tolerance, min(_lundberg(theta, tolerance) for theta in _DROPS)
        down = floor / (1 - floor)  # 1/p is at most n / floor, so this bet against the rest cannot go broke
        self._bets = [bet * down if bet < 0 else bet for bet in _BETS]
        self._norms: dict[str, float] = {}  # log of the root mean square, averaged over versions
        self._versions_checked = 0
        self._own = _Average(memory)
        self._variance = _Average(memory)  # Σ (r - expected)²
        self._control_usual, self._control_now = _Average(4 * memory), _Average(memory / 5)
        self._seen = 0.0  # decisions of the arm
        self._begins: list[tuple[int, float]] = []  # (version, decisions seen when it came)
        self._good_until = 0.0  # decisions seen when all was last well
        self.reset()

    def reset(self) -> None:
        """Forgets suspicion, keeps what is usual: after a rollback, or when the arm is released."""
        self._suspicion = [0.0] * len(_DROPS)  # log-wealth of the reward rule
        self._pending = (0.0, 0.0)  # decisions and reward that are not yet part of what is usual
        self._wealth = [1.0] * len(_BETS)
        self._begins = [
            (version, begin) for version, begin in self._begins if begin + self._trusted <= self._good_until
        ]

    # -- a new version ------------------------------------------------------------------------------------------------

    def check_arrays(self, arrays: Arrays, meta: Meta) -> Alarm | None:
        """A snapshot before it is published or served. Without an alarm its norms become part of what is usual."""
        for name in sorted(arrays):
            array = arrays[name]
            if array.dtype.kind in "fc" and not np.isfinite(array).all():
                return Alarm("not_finite", f"{name} holds a number that is not finite")
        for key in sorted(meta):
            if isinstance(value := meta[key], float) and not math.isfinite(value):
                return Alarm("not_finite", f"{key} is {value}")
        norms = {name: _log_norm(array) for name, array in arrays.items() if _sized(name, array)}
        slack = math.log(self._norm_ratio)
        for name in sorted(norms):
            usual = max(self._norms.get(name, norms[name]), math.log(_SMALL_NORM))
            if norms[name] > usual + slack:
                times = math.exp(norms[name] - usual)
                return Alarm("norm", f"{name} is {times:,.0f} times as large as in the versions before")
        self._versions_checked += 1
        part = 1 / min(self._versions_checked, 20)
        before = self._norms
        self._norms = {name: norm * part + before.get(name, norm) * (1 - part) for name, norm in norms.items()}
        return None

    # -- propensities -------------------------------------------------------------------------------------------------

    def decided(self, version: int, *, expected: float, observed: float) -> Alarm | None:
        """Some decisions of the arm: `expected` Σ candidates, `observed` Σ 1/p of each slate's first position.

        E[1/p] is the number of candidates if p is the chance that the item was drawn with. One update a call: call it
        for each decision, which is five times as quick as for five at a time.
        """
        if not (math.isfinite(expected) and math.isfinite(observed)):
            return Alarm("calibration", f"version {version} logs propensities that are not above 0")
        if expected <= 0:
            return None
        excess = observed / expected - 1
        for i, bet in enumerate(self._bets):
            self._wealth[i] = min(max(self._wealth[i], 1.0) * max(1 + bet * excess, 0.0), _RICH)
        if sum(self._wealth) / len(self._bets) < self._every:
            return None
        side = "too small" if self._bets[self._wealth.index(max(self._wealth))] > 0 else "too large"
        return Alarm("calibration", f"the propensities that version {version} logs are {side}")

    # -- rewards ------------------------------------------------------------------------------------------------------

    def rewarded(self, *, arm: str, version: int, decisions: int, reward: float) -> Alarm | None:
        """`decisions` shown decisions of one arm and the reward they earned within a short horizon.

        The feed: each shown decision once, when its horizon has passed (seconds to a minute: its clicks), with all
        that it earned until then, for the arm and its control alike. Or, where that is easier, decisions when they are
        shown (reward 0) and rewards when they come (decisions 0): then an alarm is late by the usual delay. Small
        calls are quicker than large ones. Other arms are ignored. Later rewards (purchases) are the gate's matter.
        """
        if not math.isfinite(reward):
            return Alarm("not_finite", f"a reward of version {version} is {reward}")
        if arm == self.control:
            self._control_usual.add(decisions, reward)
            self._control_now.add(decisions, reward)
        if arm != self.arm:
            return None
        if not self._begins or version > self._begins[-1][0]:
            self._begins.append((version, self._seen))
        self._seen += decisions
        self._pending = (self._pending[0] + decisions, self._pending[1] + reward)
        self._variance.add(decisions, (reward - decisions * self._own.mean()) ** 2)
        usual, spread = self._own.mean() * self._movement_of_control() * (1 - self._tolerance), self._spread()
        if self._own.weight >= self._warm_up and usual > 0 and spread > 0:
            self._suspect(decisions, reward, usual, spread)
        highest = max(self._suspicion)
        if highest == 0:
            self._trust()
            return None
        if highest < self._threshold(usual / spread):
            return None
        n, r = self._pending
        got = f"{r / max(n, 1):.4g} a decision over the latest {n:,.0f}"
        return Alarm("reward", f"version {version} earns {got}; {usual:.4g} was to be expected")

    def _spread(self) -> float:
        """Variance of the reward for each unit of its mean: 1 - p where it is 0 or 1."""
        return self._variance.mean() / self._own.mean() if self._own.mean() > 0 else 0.0

    def _suspect(self, decisions: float, reward: float, usual: float, spread: float) -> None:
        """Log-likelihood of a drop to θ × usual against usual, Poisson with the variance `spread` × mean:

            s ← max(0, s + [n · usual · (1 - θ) + r · log θ] / spread)                         (Page 1954)

        For rewards of 0 or 1 the factor exp(…) has a mean ≤ 1 without any law assumed: 1 - p(1 - θ) ≤ exp(-p(1 - θ)).
        """
        for i, theta in enumerate(_DROPS):
            step = (decisions * usual * (1 - theta) + reward * math.log(theta)) / spread
            self._suspicion[i] = max(self._suspicion[i] + step, 0.0)

    def _threshold(self, rate: float) -> float:
        """Log-wealth at which there is one false alarm in `decisions_per_false_alarm`, or a dead policy is caught soon.

        A CUSUM whose steps drift by -D a decision comes back from its excursions after about exp(w h) / D decisions
        (Siegmund 1985, chapter II; w is Lundberg's exponent, 1 without tolerance). Where rewards are frequent a higher
        one is reached soon enough, and asked for. `rate` is the usual reward in units of its spread. How often healthy
        policies alarm is counted in benchmarks/safety.py.
        """
        drift = rate * max(-math.log(theta) - (1 - theta) for theta in _DROPS)
        certain = math.log(max(self._every * drift * len(_DROPS), 1.0)) / self._exponent
        soon = rate * (1 - min(_DROPS)) * _SOON
        return max(certain, min(soon, 20.0), 3.0)

    def _trust(self) -> None:
        """All is well: what was pending becomes usual."""
        self._good_until = self._seen
        n, r = self._pending
        if n >= _BLOCK:
            self._own.add(n, r)
            self._pending = (0.0, 0.0)
        while len(self._begins) > 1 and self._begins[1][1] + self._trusted <= self._good_until:
            del self._begins[0]

    def _movement_of_control(self) -> float:
        """How far the control arm has lately fallen below its usual reward: the hour of the day falls for both."""
        if self.control is None or self._control_usual.mean() <= 0:
            return 1.0
        prior = self._memory / 10  # decisions at its usual reward: few decisions say little
        usual = self._control_usual.mean()
        now = (self._control_now.total + prior * usual) / (self._control_now.weight + prior)
        return min(now / usual, 1.0)

    @property
    def last_good(self) -> int | None:
        """The newest version after whose begin the arm did well for `trusted` decisions; None before there is one."""
        good = [version for version, begin in self._begins if begin + self._trusted <= self._good_until]
        return good[-1] if good else None

    # -- state --------------------------------------------------------------------------------------------------------

    def arrays(self) -> Arrays:
        """Everything, as copies."""
        norms = {f"norm.{name}": np.array([norm]) for name, norm in self._norms.items()}
        averages = [self._own, self._variance, self._control_usual, self._control_now]
        return norms | {
            "averages": np.array([(a.weight, a.total) for a in averages]),
            "counts": np.array([self._seen, self._good_until, float(self._versions_checked)]),
            "begins": np.array(self._begins, np.float64).reshape(-1, 2),
            "suspicion": np.array(self._suspicion),
            "pending": np.array(self._pending),
            "wealth": np.array(self._wealth),
        }

    def restore(self, arrays: Arrays) -> None:
        """Becomes what `arrays` saw. Raises ValueError, and is unchanged, where something is missing."""
        shapes = {"averages": (4, 2), "counts": (3,), "pending": (2,), "suspicion": (len(_DROPS),)}
        shapes |= {"wealth": (len(_BETS),)}
        for name, shape in shapes.items():
            if name not in arrays or arrays[name].shape != shape:
                raise ValueError(f"the state of the guardrails lacks {name!r}, or it has another shape")
        begins = arrays.get("begins", np.zeros(0))
        if begins.ndim != 2 or begins.shape[1] != 2:
            raise ValueError("the state of the guardrails lacks 'begins', or it has another shape")
        averages = (self._own, self._variance, self._control_usual, self._control_now)
        for average, (weight, total) in zip(averages, arrays["averages"].tolist(), strict=True):
            average.weight, average.total = weight, total
        self._seen, self._good_until = float(arrays["counts"][0]), float(arrays["counts"][1])
        self._versions_checked = int(arrays["counts"][2])
        self._begins = [(int(version), float(begin)) for version, begin in begins.tolist()]
        self._suspicion = arrays["suspicion"].tolist()
        self._pending = (float(arrays["pending"][0]), float(arrays["pending"][1]))
        self._wealth = arrays["wealth"].tolist()
        self._norms = {name[5:]: float(array[0]) for name, array in arrays.items() if name.startswith("norm.")}


class _Average:
    """A mean over about the latest `memory` units of weight."""

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self.weight = self.total = 0.0

    def add(self, weight: float, total: float) -> None:
        left = math.exp(-weight / self._memory)
        self.weight, self.total = self.weight * left + weight, self.total * left + total

    def mean(self) -> float:
        return self.total / self.weight if self.weight > 0 else 0.0


def _lundberg(theta: float, tolerance: float) -> float:
    """w > 0 at which exp(w · step) has the mean 1 while all is well: w (1 - θ) = (1 - θ^w) / (1 - tolerance)."""
    low, high = 0.5, 10.0
    for _ in range(60):
        w = (low + high) / 2
        low, high = (w, high) if w * (1 - theta) < (1 - theta**w) / (1 - tolerance) else (low, w)
    return low


def _sized(name: str, array: F64) -> bool:
    """Whether the size of an array says something of the policy, and not of how much it has seen."""
    *within, last = name.split(".")
    return array.dtype.kind == "f" and array.size > 0 and last not in _SUMS and _RECORDS.isdisjoint(within)


def _log_norm(array: F64) -> float:
    """log of the root mean square of the entries, at least that of `_NO_NORM`."""
    largest = max(float(np.abs(array).max()), _NO_NORM)
    scaled = float(np.square(array / largest, dtype=np.float64).mean())  # squares of what is huge would overflow
    return max(math.log(largest) + 0.5 * math.log(max(scaled, 1e-300)), math.log(_NO_NORM))
