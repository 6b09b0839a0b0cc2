"""How much of the arm `policy` the policy itself decides: as much as cannot cost more than a stated loss. Pure.

Each user of the arm has a place in [0, 1) by hash. Below the share the policy decides, above it the control does; a
decision says who took it, so that its propensities are exact and the budget knows whose reward it is.
"""

from __future__ import annotations

import numpy as np

from headrace.policy.base import Arrays
from headrace.policy.conservative import Budget
from headrace.streams.state import short_hash

_SALT = "ramp"
_LATE = 1_000  # decisions that may be taken on one share before their rewards are known
_STEP = 0.01  # a share is told again when it has moved so far


def place(user_id: str) -> float:
    """A user's place in [0, 1), independent of his arm."""
    return short_hash(_SALT, user_id) / 2**64


class Ramp:
    """`loss` 0: the policy always decides."""

    def __init__(self, *, loss: float, planned: int) -> None:
        self._budget = Budget(loss=loss, planned=planned) if loss else None
        self.share = min(loss, 1.0) if loss else 1.0

    def shown(self, *, by_policy: bool, decisions: int) -> None:
        if self._budget is not None and decisions:
            self._budget.observed(np.full(decisions, float(by_policy)), np.zeros(decisions))

    def rewarded(self, *, by_policy: bool, reward: float) -> None:
        """As it comes: an outcome, a correction, a return."""
        if self._budget is not None:
            self._budget.corrected(np.array([float(by_policy)]), np.array([reward]))

    def move(self) -> bool:
        """Sets the share anew; True where it moved."""
        if self._budget is None:
            return False
        share = self._budget.share(_LATE)
        if abs(share - self.share) < _STEP and share not in (0.0, 1.0):
            return False
        before, self.share = self.share, share
        return before != share

    def arrays(self) -> Arrays:
        return {} if self._budget is None else {**self._budget.arrays(), "share": np.array([self.share])}

    def restore(self, arrays: Arrays) -> None:
        """Raises ValueError where the state is another's."""
        if self._budget is None:
            return
        self._budget.restore(arrays)
        self.share = float(arrays["share"][0]) if "share" in arrays else self.share
