"""Page–Hinkley's test for a fall of the mean (Page 1954; Hinkley 1971), on what a policy got less what it expected.

    m ← max(0, m - z - δ), a change where m > h      z = residual / its standard deviation, at most 5 in size

z is compared with 0, its mean where a model holds, or with its running mean where that is below 0: rewards that come
later than anybody waits for leave a constant gap, which is no change. Only a fall is one: where the world got better
than expected, what is done is not wrong, and the sums follow.

δ = .05 and h = 100 let a model that holds raise a false alarm once in millions of examples (Siegmund 1985, eq. 2.56:
e^(2δh) / 2δ², z normal). A fall by s standard deviations is found after about h / (s - δ) examples.
"""

from __future__ import annotations

import numpy as np

from headrace.policy.base import F64, Meta

DELTA, THRESHOLD = 0.05, 100.0
_CLIP = 5.0
_MEMORY = 4_096  # examples over which mean and standard deviation are taken


class PageHinkley:
    def __init__(self, *, warm_up: int) -> None:
        """For the first `warm_up` residuals, and again after each change, only their size is learned."""
        self._warm_up = warm_up
        self.changes = 0
        self._sum = 0.0  # m
        self._seen = 0.0  # residuals behind the mean square, _MEMORY at most
        self._mean = 0.0
        self._square = 0.0  # their mean square

    def see(self, residuals: F64) -> bool:
        """Whether a change shows after these (N,); from then on the test begins anew."""
        if not len(residuals):
            return False
        if self._seen >= self._warm_up and self._square > 0:
            z = ((residuals - min(self._mean, 0.0)) / np.sqrt(self._square)).clip(-_CLIP, _CLIP)
            path = self._sum + np.cumsum(-z - DELTA)
            above = path - np.minimum.accumulate(np.minimum(path, 0.0))
            self._sum = float(above[-1])
            if above.max() > THRESHOLD:
                self.changes += 1
                self._sum = self._seen = self._mean = self._square = 0.0
                return True
        self._seen = min(self._seen + len(residuals), max(_MEMORY, self._warm_up))
        rate = min(1.0, len(residuals) / self._seen)
        self._mean += rate * (float(residuals.mean()) - self._mean)
        self._square += rate * (float(np.square(residuals).mean()) - self._square)
        return False

    def state(self) -> Meta:
        return {
            "changes": self.changes,
            "sum": self._sum,
            "seen": self._seen,
            "mean": self._mean,
            "square": self._square,
        }

    def restore(self, meta: Meta) -> None:
        """What a policy without this test learned leaves it as it is."""
        if "changes" in meta:
            self.changes, self._sum = int(meta["changes"]), float(meta["sum"])
            self._seen, self._mean, self._square = (float(meta[name]) for name in ("seen", "mean", "square"))
