"""What a user's state would be without one of his latest events: from the encoder's decaying sums, without stepping.

    s = unit(b + t)      b = Σ_c mix_c unit(m_c)      m = Σ_p w(type_p, gap_p) γ^p x_p      (export/user_model.py)

p counts back from the latest event. Without event j the sums are known exactly: what is older moves one place up, and
the event after j follows another gap. t, what the transformer adds, is taken as it was; its length hardly varies and
is measured once. Before the latest event the encoder has been itself: that state is exact.

B = users, h = events looked at, J = sums, d = dim.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from headrace.export.names import GAP_BUCKETS

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Step = Callable[[F32, F32, I64, I64], tuple[F32, F32]]  # cache, vectors, types, gaps → cache, states
NAMES = ("mix", "sum_decay", "type_weight.weight", "gap_weight.weight")  # of the model's tensors
_EVENTS = 12  # of the histories that t's length is measured on


class Sums:
    """The weights of an encoder's sums."""

    def __init__(self, mix: F32, sum_decay: F32, type_weight: F32, gap_weight: F32) -> None:
        """mix, sum_decay (J,), the latter as logits; type_weight (types, J), gap_weight (buckets, J) as logarithms."""
        self.count = len(mix)
        self._mix, self._decay = mix, (1 / (1 + np.exp(-sum_decay))).astype(np.float32)
        self._types, self._gaps = type_weight, gap_weight
        self.length = 0.0  # of t

    def measure(self, step: Step, *, users: int, cache: int, dim: int) -> None:
        """Measures t's length: one event on the sums as they are and on none gives two states with the same t, so that
        |b + t| s - |b' + t| s' = b - b' says how long both are."""
        random = np.random.default_rng(0)
        after = np.zeros((users, cache), np.float32)
        for _ in range(_EVENTS):
            held = after
            vectors = _unit(random.standard_normal((users, dim)).astype(np.float32))
            event = vectors, random.integers(1, 16, users), random.integers(0, GAP_BUCKETS // 2, users)
            after = step(held, *event)[0].copy()
        size = self.count * dim
        emptied = held.copy()
        emptied[:, -size:] = 0
        known = []
        for start in (held, emptied):
            after, states = (array.copy() for array in step(start, *event))
            known.append((states, self._mixed(after[:, -size:].reshape(users, self.count, 1, dim))[:, 0]))
        lengths = []
        for s, b, other, without in zip(*known[0], *known[1], strict=True):
            (length, _), *_ = np.linalg.lstsq(np.stack([s, -other], axis=1), b - without, rcond=None)
            lengths.append(np.linalg.norm(length * s - b))
        self.length = float(np.median(lengths))

    def _mixed(self, sums: F32) -> F32:
        """(B, J, h, d) → b (B, h, d)."""
        scale = self._mix[:, None] / np.maximum(np.sqrt(np.einsum("bjhd,bjhd->bjh", sums, sums)), 1e-6)
        mixed: F32 = np.einsum("bjhd,bjh->bhd", sums, scale)
        return mixed

    def without(
        self, states: F32, before: F32, sums: F32, vectors: F32, types: I64, gaps: I64, bridged: I64, held: I64
    ) -> F32:
        """States (B, h, d) without each of the h latest events; where there is no such event, as they are.

        `states` and `before` (B, d): now, and before the latest event. `sums` (B, J, d). Of the events, latest first:
        `vectors` (B, h, d), `types` (B, h), the buckets of the gaps before them `gaps` (B, h) and of the gaps there
        would be without them `bridged` (B, h). `held` (B,): how many events the state is made of.
        """
        there = np.arange(vectors.shape[1]) < held[:, None]
        left = self.left(sums, vectors, types, gaps, bridged, held)
        b, now = self._mixed(left), self._mixed(sums[:, :, None])
        along = (states * now[:, 0]).sum(axis=1)
        length = along + np.sqrt(np.maximum(along**2 - (now[:, 0] ** 2).sum(axis=1) + self.length**2, 0))
        found = _unit((states * length[:, None])[:, None] + b - now)
        found[:, 0] = before
        return np.where(there[..., None], found, states[:, None])

    def left(self, sums: F32, vectors: F32, types: I64, gaps: I64, bridged: I64, held: I64) -> F32:
        """The sums (B, J, h, d) without each of the h latest events, exact; see `without`."""
        place = np.arange(vectors.shape[1])
        there = place < held[:, None]
        fading = (self._decay ** place[:, None]).astype(np.float32)  # (h, J)
        of_type = self._types[types]
        weights = np.exp(of_type + self._gaps[gaps]) * fading * there[..., None]  # (B, h, J)
        changed = np.exp(of_type[:, :-1] + self._gaps[bridged[:, 1:]]) * fading[:-1] * there[:, 1:, None]
        changed -= weights[:, :-1] * there[:, 1:, None]
        # m without j = m / γ + Σ_p share[j, p] x_p: what is newer than j keeps its place, j itself is gone.
        older = (1 / self._decay)[:, None, None]
        newer = np.tri(len(place), k=-1, dtype=np.float32)
        share = (newer * (1 - older) - np.eye(len(place), dtype=np.float32) * older) * weights.transpose(0, 2, 1)[
            :, :, None
        ]
        share[:, :, place[1:], place[:-1]] += changed.transpose(0, 2, 1)
        left: F32 = np.matmul(share.reshape(len(held), -1, len(place)), vectors).reshape(*share.shape[:3], -1)
        left += sums[:, :, None] * older
        return left


def _unit(x: F32) -> F32:
    scaled: F32 = x / np.maximum(np.sqrt(np.einsum("...d,...d->...", x, x)), 1e-6)[..., None]
    return scaled
