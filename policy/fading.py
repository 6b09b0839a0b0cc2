"""What a linear policy forgets: an old example weighs less (discounting), and all of it after a detected change.

Every unit of weight of a fresh example fades all that came before it by the discount γ: an example of weight w is w
examples one after the other, whose own weights add up to 1 + γ + … = (1 - γ^w) / (1 - γ). So batches change nothing,
weight 2 is the example twice, and weight 0 leaves no trace. A correction weighs what is left of its example, which
therefore must be known: the latest examples are held by id. A correction whose example is no longer held weighs what
the oldest held one does: less than 1 % of a fresh one, as long as γ is at most .99993.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

import numpy as np

from headrace.policy.base import F64, Arrays, Examples, Meta
from headrace.policy.page_hinkley import PageHinkley

KEPT = 0.05  # of all that was learned, when a change is detected
_NEGLIGIBLE = 0.01
_LARGEST_CAPACITY = 65_536
_JUDGED_WITHIN = 16_384  # examples held so that late rewards can still be counted before they are judged
_SETTLED = 4  # times the mean age of corrections: of exponential delays 98 % are over
_TOO_LATE = 0.05  # of the corrections for examples no longer held: beyond it nothing is judged
_RATE = 1 / 256  # at which both are followed


@dataclass(frozen=True)
class Weighed:
    """Of one batch, as things are after it."""

    fade: float  # what is left of all that was learned before
    weights: F64  # (N,) of each row, a correction's that of its example
    squared: F64  # (N,) the same with γ² for γ: D-LinUCB's second matrix


@dataclass(slots=True, eq=False)
class _Held:
    number: int  # counted from the first example
    clock: float  # when it was learned
    residual: float  # reward known so far, less what was predicted
    weight: float


class Fading:
    """Its clock runs by -log γ a unit of weight: what is left of a moment is exp(clock then - clock now)."""

    def __init__(self, *, discount: float = 1.0, change_detector: bool = False, warm_up: int = 0) -> None:
        """The detector's `warm_up` is in examples. Raises ValueError unless 0 < discount ≤ 1."""
        if not 0 < discount <= 1:
            raise ValueError(f"discount is {discount}: choose one above 0 and at most 1")
        self._rate = -float(np.log(discount))
        self.detector = PageHinkley(warm_up=warm_up) if change_detector else None
        lasting = np.ceil(-np.log(_NEGLIGIBLE) / self._rate) if self._rate else 0
        self._capacity = int(max(min(lasting, _LARGEST_CAPACITY), _JUDGED_WITHIN if change_detector else 0))
        self._clock = 0.0
        self._number = self._judged = 0  # fresh examples seen; of a snapshot, those judged
        self._delay = 0.0  # mean age, in examples, at which corrections come
        self._too_late = 0.0  # share of them whose example is no longer held
        self._held: OrderedDict[int, _Held] = OrderedDict()
        self._unjudged: deque[_Held] = deque()
        self._packed: Arrays = {}  # held examples of a snapshot, until somebody learns: who only serves needs none

    @property
    def changes(self) -> int:
        """Changes detected so far."""
        return self.detector.changes if self.detector else 0

    def weigh(self, e: Examples, predicted: F64) -> Weighed:
        """Moves on by one batch. `predicted` (N,) are the rewards that the policy expected before it."""
        weights = np.ones(len(e.rewards)) if e.weights is None else e.weights
        if not (self._capacity and len(weights)):
            return Weighed(1.0, weights, weights)
        self._unpack()
        before = self._clock
        self._hold(e, predicted, weights)
        if self.detector and self._change_seen(self.detector):
            self._clock -= float(np.log(KEPT))
        clock = self._clock + self._rate * np.where(e.fresh, weights, 0.0).cumsum()
        self._clock = float(clock[-1])
        oldest = next(iter(self._held.values())).clock if self._held else before
        for row, (id_, fresh) in enumerate(zip(e.ids.tolist(), e.fresh.tolist(), strict=True)):
            held = self._held.get(id_)
            if not fresh:
                clock[row] = held.clock if held else oldest
            elif held:
                held.clock = float(clock[row])
        left = np.exp(clock - self._clock)
        return Weighed(
            fade=float(np.exp(before - self._clock)),
            weights=left * _one_after_the_other(weights, self._rate),
            squared=left**2 * _one_after_the_other(weights, 2 * self._rate),
        )

    def _hold(self, e: Examples, predicted: F64, weights: F64) -> None:
        """Takes fresh examples in, oldest out, and adds corrections to those held."""
        rows = zip(
            e.ids.tolist(), e.fresh.tolist(), e.rewards.tolist(), predicted.tolist(), weights.tolist(), strict=True
        )
        for id_, fresh, reward, expected, weight in rows:
            held = self._held.get(id_)
            if fresh:
                if held:  # shown again under the same id: the later one counts
                    del self._held[id_]
                    if held in self._unjudged:
                        self._unjudged.remove(held)
                held = self._held[id_] = _Held(self._number, self._clock, reward - expected, weight)
                self._number += 1
                if self.detector:
                    self._unjudged.append(held)
                continue
            self._too_late += ((not held) - self._too_late) * _RATE
            if held:
                held.residual += reward
                self._delay += (self._number - 1 - held.number - self._delay) * _RATE
        while len(self._held) > self._capacity:
            _, held = self._held.popitem(last=False)
            if self._unjudged and self._unjudged[0] is held:
                self._unjudged.popleft()

    def _change_seen(self, detector: PageHinkley) -> bool:
        """Whether those examples whose rewards are in by now say that what was learned holds no longer."""
        wait = _SETTLED * self._delay
        if self._too_late > _TOO_LATE or wait > self._capacity:
            return False
        settled = self._number - wait
        residuals = []
        while self._unjudged and self._unjudged[0].number < settled:
            held = self._unjudged.popleft()
            if held.weight > 0:
                residuals.append(held.weight * held.residual)
        seen = detector.see(np.array(residuals))
        if seen:
            self._unjudged.clear()  # predicted by what holds no longer
        return seen

    def state(self) -> tuple[Arrays, Meta]:
        """All of it; nothing where nothing fades."""
        if not self._capacity:
            return {}, {}
        self._unpack()
        held = list(self._held.values())
        judged = self._unjudged[0].number if self._unjudged else self._number
        arrays: Arrays = {
            "held.ids": np.array(list(self._held), np.uint64),
            "held.numbers": np.array([h.number for h in held], np.int64),
            "held.values": np.array([(h.clock, h.residual, h.weight) for h in held], np.float64).reshape(-1, 3),
        }
        meta: Meta = {"clock": self._clock, "number": self._number, "judged": judged}
        meta |= {"delay": self._delay, "too_late": self._too_late}
        return arrays, meta | (self.detector.state() if self.detector else {})

    def restore(self, arrays: Arrays, meta: Meta) -> None:
        """A snapshot of a policy that did not fade leaves this as it is. Raises ValueError where an array is wrong."""
        if not (self._capacity and "held.ids" in arrays):
            return
        ids, numbers, values = (arrays.get(f"held.{name}", np.zeros(0)) for name in ("ids", "numbers", "values"))
        if numbers.shape != ids.shape or values.shape != (len(ids), 3):
            raise ValueError("the snapshot's held examples are not of one length")
        self._clock, self._number = float(meta["clock"]), int(meta["number"])
        self._delay, self._too_late, self._judged = float(meta["delay"]), float(meta["too_late"]), int(meta["judged"])
        self._packed = {"ids": ids.copy(), "numbers": numbers.copy(), "values": values.copy()}
        if self.detector:
            self.detector.restore(meta)

    def _unpack(self) -> None:
        if not self._packed:
            return
        rows = zip(*(self._packed[name].tolist() for name in ("ids", "numbers", "values")), strict=True)
        self._held = OrderedDict((id_, _Held(number, *row)) for id_, number, row in rows)
        if self.detector:
            self._unjudged = deque(held for held in self._held.values() if held.number >= self._judged)
        self._packed = {}


def _one_after_the_other(weights: F64, rate: float) -> F64:
    """1 + γ + … + γ^(w - 1) for γ = exp(-rate), and between whole numbers what keeps that sum's form."""
    if not rate:
        return weights
    sums: F64 = np.expm1(-rate * weights) / np.expm1(-rate)
    return sums
