"""Whether a challenger may take over: a lower bound on its lift that holds at every look, however often one looks.

The estimate is the difference of two ratios, reward a shown decision; its standard error knows that one user's
decisions hang together (ledger.Value). Its bound is an asymptotic confidence sequence: the normal mixture of Robbins
(1970) with an estimated variance (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2021, arXiv 2103.06476). Users who
come back make the estimate move *less* than new ones would, so that looks resemble each other more than the sequence
assumes: this errs on the safe side (Slepian's inequality).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from headrace.policy.evaluation.ledger import Ledger, Value

Decision = Literal["promote", "keep", "waiting"]
_BEYOND = 10.0  # lifts and bounds are cut to ± this: more is not known, only that it is large


@dataclass(frozen=True)
class Verdict:
    """What the evidence says now. `lift`, `lower` and `upper` are in units of the champion's value: .1 is 10 % better.

    They are finite always, cut to ±10. `promote` if and only if `lower` > margin; `keep` when `upper` < margin: the
    challenger is not better by the margin, and its traffic is better spent on another; else `waiting`.
    """

    challenger: str
    champion: str
    decision: Decision
    lift: float
    lower: float
    upper: float
    champion_value: float  # reward a shown decision
    challenger_value: float
    decisions: int  # shown, of both arms
    reason: str  # one line for people


class Gate:
    """Compares arms by a ledger; holds no state of its own."""

    def __init__(
        self,
        *,
        margin: float = 0.0,
        error: float = 0.05,
        min_decisions: int = 1_000,
        planned: int = 50_000,
        min_clusters: float = 40.0,
    ) -> None:
        """`margin`: by what share of the champion's value a challenger must be better. `error`: the chance that a
        challenger that is not is ever promoted, over all looks. `min_decisions`: shown by each arm before anything is
        said. `planned`: decisions of both arms, at an even split, at which the bound is closest; it holds everywhere.
        `min_clusters`: user buckets that must carry each arm's variance, below which the normal law is not trusted.

        Raises ValueError for a value out of range.
        """
        if not 0 < error < 0.5:
            raise ValueError(f"error is {error}: choose one between 0 and 0.5")
        if not 0 <= margin < 10:
            raise ValueError(f"margin is {margin}: choose one from 0 to 10, as a share of the champion's value")
        if min_decisions < 1 or planned < 1 or min_clusters < 1:
            raise ValueError("min_decisions, planned and min_clusters must be at least 1")
        self.margin, self.error = margin, error
        self.min_decisions, self.planned, self.min_clusters = min_decisions, planned, min_clusters

    def verdict(self, ledger: Ledger, *, champion: str, challenger: str, challengers: int = 1) -> Verdict:
        """May be asked after every decision. `challengers` is how many compete for the place: they share `error`.

        After a promotion, and for a new challenger, start a new ledger: each ledger is a new test with its own `error`.
        """
        old, new = ledger.value(champion), ledger.value(challenger)
        decisions = int(old.decisions + new.decisions)
        unit = abs(old.mean)
        lift = _relative(new.mean - old.mean, unit)
        lower, upper = -_BEYOND, _BEYOND
        too_little = self._too_little(champion, old) or self._too_little(challenger, new)
        if not too_little:
            # At the margin: new - (1 + margin) old, and its variance; the two arms' users are others.
            error = math.sqrt(new.variance + (1 + self.margin) ** 2 * old.variance)
            # Decisions at an even split that would tell as much as these do: 4 / (1/n + 1/m).
            at = 4 / (1 / old.decisions + 1 / new.decisions)
            width = error * boundary(at, error=self.error / challengers, planned=self.planned)
            lower = _relative(new.mean - old.mean - width, unit)
            upper = _relative(new.mean - old.mean + width, unit)
        decision: Decision = "waiting"
        if too_little:
            reason = too_little
        else:
            between = f"{lift:+.1%} ({lower:+.1%} to {upper:+.1%}) over {decisions:,} shown decisions"
            if lower > self.margin:
                decision, reason = "promote", f"better: {between}"
            elif upper < self.margin:
                decision, reason = "keep", f"not better by the margin of {self.margin:.1%}: {between}"
            else:
                reason = f"not yet clear: {between}"
        return Verdict(challenger, champion, decision, lift, lower, upper, old.mean, new.mean, decisions, reason)

    def _too_little(self, arm: str, value: Value) -> str:
        if value.decisions < self.min_decisions:
            return f"{arm} has {value.decisions:,.0f} of the {self.min_decisions:,} shown decisions that are needed"
        if value.clusters < self.min_clusters:
            return f"{arm}'s rewards come from too few users yet: {value.clusters:.0f} of {self.min_clusters:.0f}"
        return ""


def boundary(at: float, *, error: float, planned: float) -> float:
    """Standard errors by which a sequence of means may exceed the truth, at any time, with a chance of at most `error`:

        √( 2 (t + ρ) / t · log(1 + √((t + ρ) / ρ) / (2 error)) )

    t = `at`: the one-sided normal mixture, with ρ such that it is smallest at t = `planned`. Over a half-normal drift
    the mixture martingale of a Brownian motion S is 2 √(ρ / (t + ρ)) exp(S² / 2(t + ρ)) Φ(S / √(t + ρ)); at this
    boundary it is above 1 / error, since Φ(x) ≥ 1 - exp(-x²/2) / 2. (Howard, Ramdas, McAuliffe and Sekhon 2021, arXiv
    1810.08240, section 3.2; as a confidence sequence: Waudby-Smith et al. 2021, appendix on one-sided sequences.)
    """
    rho = planned * _tuning(error)
    return _mixture(at / rho, error)


def _mixture(ratio: float, error: float) -> float:
    """The boundary at t / ρ = `ratio`."""
    return math.sqrt(2 * (1 + 1 / ratio) * math.log1p(math.sqrt(1 + ratio) / (2 * error)))


_tuned: dict[float, float] = {}


def _tuning(error: float) -> float:
    """ρ / planned with the smallest boundary at `planned`."""
    if error not in _tuned:
        _tuned[error] = min(np.geomspace(1e-3, 1, 500).tolist(), key=lambda share: _mixture(1 / share, error))
    return _tuned[error]


def _relative(difference: float, unit: float) -> float:
    """`difference` in units of the champion's value, cut."""
    if unit <= 0:
        return math.copysign(_BEYOND, difference) if difference else 0.0
    return min(max(difference / unit, -_BEYOND), _BEYOND)
