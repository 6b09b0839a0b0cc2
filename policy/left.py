"""Which candidates are left of each decision, for draws that are even over them."""

from __future__ import annotations

import numpy as np

from headrace.policy.base import I64, Bool


class Left:
    """The candidates left in each row: the r-th one, and taking one out, cost the same for every n."""

    def __init__(self, mask: Bool) -> None:
        rows, n = mask.shape
        self.count = mask.sum(axis=1)
        self._start: I64 = np.arange(rows) * n
        order = np.argsort(~mask, axis=1, kind="stable")  # the first `count` of a row are those left
        place = np.empty_like(order)
        np.put_along_axis(place, order, np.arange(n)[None, :], axis=1)
        self._order, self._place = order.ravel(), place.ravel()

    def there(self) -> Bool:
        """(B, n) True for those left."""
        there: Bool = self._place.reshape(len(self.count), -1) < self.count[:, None]
        return there

    def nth(self, rank: I64) -> I64:
        nth: I64 = self._order[self._start + rank]
        return nth

    def drop(self, gone: Bool) -> None:
        """Takes the candidates of `gone` (B, n) out. Those left in a row that loses several stand in their order from
        there on; a row that loses one loses it as by `remove`, others stay as they are: what another decision loses
        changes no draw."""
        gone = gone & self.there()
        several = gone.sum(axis=1)
        one = np.flatnonzero(several == 1)
        self.remove(one, gone[one].argmax(axis=1))
        rows, n = np.flatnonzero(several > 1), gone.shape[1]
        again = Left(self.there()[rows] & ~gone[rows])
        self.count[rows] = again.count
        self._order.reshape(-1, n)[rows] = again._order.reshape(-1, n)
        self._place.reshape(-1, n)[rows] = again._place.reshape(-1, n)

    def remove(self, rows: I64, gone: I64) -> None:
        self.count[rows] -= 1
        start = self._start[rows]
        last = self._order[start + self.count[rows]]
        place = self._place[start + gone]
        self._order[start + place] = last
        self._place[start + last] = place
        self._place[start + gone] = self.count[rows]
