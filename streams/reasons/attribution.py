"""What each of a user's latest entries does for the items of a slate: how much lower they would be scored without it.

The states without an entry come from the encoder's sums (sums.py), the features without it are formed anew
(left_out.py), and the policy that decided scores the shown items again. benchmarks/explanation.py holds this against
leaving entries out of the history itself.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from headrace.export.names import GAP_THRESHOLDS
from headrace.policy.base import Policy
from headrace.streams.candidates import RECENT
from headrace.streams.describe import Describer, Table
from headrace.streams.reasons.left_out import scalars_without
from headrace.streams.recent import NONE

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
_GAPS = np.array(GAP_THRESHOLDS, np.int64)


class Attribution:
    """Of what a `describer` has just described; `entries` are looked at, 1 to 10."""

    def __init__(self, describer: Describer, entries: int = RECENT) -> None:
        self._describer = describer
        self._entries = np.arange(entries)

    def lowered(self, table: Table, policy: Policy, chosen: I64, scores: F32) -> F32:
        """How much lower (B, h, k) without each of the h latest entries, latest first; 0 where there is no entry.

        `chosen` (B, k) are the slates' candidates, `scores` (B, k) what `policy` gave them.
        """
        at = np.arange(len(chosen))[:, None]
        query, rows = table.query, table.rows[at, chosen]
        shown = replace(
            query, keys=query.keys[at, chosen], items=query.items[at, chosen], scalars=query.scalars[at, chosen],
            mask=query.mask[at, chosen],
        )  # fmt: skip
        scalars = scalars_without(
            self._describer.items, self._describer.policies, table.recent, [ask.state for ask in table.asks], rows,
            shown.items, shown.scalars,
            entries=len(self._entries),
        )  # fmt: skip
        lower = policy.lowered(shown, scores, self._states(table), scalars)
        return np.where((table.recent.codes[:, : len(self._entries)] != NONE)[:, :, None], lower, np.float32(0))

    def _states(self, table: Table) -> F32:
        """(B, h, d)."""
        recent, encoder = table.recent, self._describer.encoder
        first = recent.anchored.astype(np.int64)[:, None]  # what is being looked at is not in the state
        at = np.arange(len(first))[:, None]
        here = np.minimum(first + self._entries, RECENT)
        before = np.minimum(here + 1, RECENT)
        held = encoder.held(recent.counts)
        seconds = recent.seconds
        vectors = self._vectors(recent.rows[at, here], recent.keys[at, here], recent.generations[at, here], held)
        last = held[:, None] <= self._entries + 1
        gap = seconds[at, here] - seconds[at, before]
        bridged = seconds[at, np.maximum(here - 1, 0)] - seconds[at, before]
        types = np.where(held[:, None] > self._entries, recent.codes[at, here], 0).astype(np.int64)
        states = encoder.sums.without(
            table.query.states, table.encoded.before, table.encoded.sums, vectors, types,
            np.where(last, 0, np.searchsorted(_GAPS, gap, side="right")),
            np.where(last, 0, np.searchsorted(_GAPS, bridged, side="right")),
            held,
        )  # fmt: skip
        if recent.anchored.any():
            moved = np.concatenate([table.query.states[:, None], states[:, :-1]], axis=1)
            states = np.where(recent.anchored[:, None, None], moved, states)
        return states

    def _vectors(self, rows: I64, keys: NDArray[np.uint64], generations: NDArray[np.uint8], held: I64) -> F32:
        """(B, h, d) of the entries as the state has them."""
        items = self._describer.items
        vectors = items.vectors[rows]
        other = ~items.current(rows, generations) & (held[:, None] > self._entries)
        if other.any():  # an item's content of before, or words
            vectors[other] = self._describer.lookup(keys[other], generations[other])
        return vectors
