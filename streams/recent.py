"""The latest entries of users' histories, as arrays: what features are made of, and what an explanation leaves out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headrace.streams.candidates import RECENT
from headrace.streams.records import item_key

if TYPE_CHECKING:
    from headrace.streams.describe import Ask
    from headrace.streams.items import ItemStore

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
ANCHOR = 254  # the code of the item that a request names as being looked at
LOST = 255  # in place of the generation, of a text that another text encoder has encoded
NONE = 255  # in place of a code: there is no entry
ENTRY_BYTES = 9  # of an entry, packed: a key and a type
NEAR = 6  # entries whose vectors are at hand: five make features, the sixth follows where one is left out
_WIDTH = RECENT + 1  # as much for all that is counted over the latest ten


@dataclass(frozen=True)
class Recent:
    """Latest first; a row a decision. What a request says is being looked at counts as the latest entry."""

    rows: I64  # (B, 11) in the catalogue, `items.none` where there is none
    keys: NDArray[np.uint64]  # (B, 11) 0 for none
    codes: NDArray[np.uint8]  # (B, 11) event types
    seconds: I64  # (B, 11)
    generations: NDArray[np.uint8]  # (B, 11)
    near: F32  # (B, 6, d) vectors of today
    counts: I64  # (B,) events ever appended
    anchored: NDArray[np.bool_]  # (B,) whether the latest entry is what is being looked at

    def take(self, members: list[int]) -> Recent:
        return Recent(*(getattr(self, field.name)[members] for field in fields(self)))

    def packed(self, entries: int) -> list[bytes]:
        """Keys and types of the first `entries` that are there, by decision, as `records.Opened.entries` has them."""
        codes = self.codes[:, :entries]
        counts = (codes != NONE).sum(axis=1).tolist()
        return [self.keys[i, :n].tobytes() + codes[i, :n].tobytes() for i, n in enumerate(counts)]


def recent_of(asks: Sequence[Ask], items: ItemStore, said: Callable[[str], dict[int, F32]]) -> Recent:
    """`said`: the vectors of a user's texts, by history key."""
    batch = len(asks)
    keys = np.zeros((batch, _WIDTH), np.uint64)
    codes = np.full((batch, _WIDTH), NONE, np.uint8)
    generations = np.zeros((batch, _WIDTH), np.uint8)
    seconds = np.zeros((batch, _WIDTH), np.int64)
    anchored = np.zeros(batch, np.bool_)
    for i, ask in enumerate(asks):
        state = ask.state
        anchor = ask.request.anchor_item_id if ask.request else None
        first = 0
        if anchor is not None:
            keys[i, 0], codes[i, 0], anchored[i], first = item_key(anchor), ANCHOR, True, 1
        last = -(_WIDTH - first) - 1
        latest = state.history_keys()[:last:-1]
        entries = slice(first, first + len(latest))
        keys[i, entries] = latest
        codes[i, entries] = np.frombuffer(state.types, np.uint8)[:last:-1]
        seconds[i, entries] = np.frombuffer(state.seconds, np.uint32)[:last:-1]
        generations[i, entries] = np.frombuffer(state.generations, np.uint8)[:last:-1]
        if state.notes is not None and state.notes.texts:
            known = said(ask.user_id)
            lost = [key in state.notes.texts and key not in known for key in latest.tolist()]
            generations[i, entries][lost] = LOST
    rows = items.rows_of(keys.reshape(-1).tolist()).reshape(keys.shape)
    near = items.vectors[rows[:, :NEAR]]
    for i, ask in enumerate(asks):
        if texts := said(ask.user_id):
            for j, key in enumerate(keys[i, :NEAR].tolist()):
                if key in texts:
                    near[i, j] = texts[key]
    counts = np.array([ask.state.count for ask in asks], np.int64)
    return Recent(rows, keys, codes, seconds, generations, near, counts, anchored)
