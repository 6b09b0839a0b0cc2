"""What a user took before, and how often: what he may take again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from headrace.streams.scalars import own_count
from headrace.streams.state import UserState

Own = dict[int, int]  # row -> times, in the order of `own_items`


def own_items(state: UserState, rows: Mapping[int, int]) -> Own:
    """The items of a user's history and those consumed before it, most often first, then latest first.

    `rows` maps item keys to rows; an item that is not in it is left out. An item counts as often as it was consumed, or
    as it stands in the history, whichever is more: a view and the purchase after it are one.
    """
    times: dict[int, int] = Counter(state.history_keys()[::-1].tolist())
    taken = {} if state.notes is None else state.notes.taken
    for key in reversed(taken):
        times[key] = max(times.get(key, 0), taken[key])
    if len(taken) or max(times.values(), default=1) > 1:
        times = dict(sorted(times.items(), key=_most_first))
    return {row: count for key, count in times.items() if (row := rows.get(key)) is not None}


def _most_first(item: tuple[int, int]) -> int:
    return -item[1]


def own_counts(own: Sequence[Own], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """The scalar `own_count` (B, n) of candidates by row."""
    times = np.zeros(rows.shape, np.float32)
    for i, mine in enumerate(own):
        if mine:
            times[i] = [mine.get(row, 0) for row in rows[i].tolist()]
    return own_count(times)
