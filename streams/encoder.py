"""Histories → user states, a step an event, from an exported user encoder; without torch.

The state is a function of the history alone, bit for bit: it is what stepping from the start of the *encoded window*
gives, and that start follows from the number of events. A cache only saves the steps already taken; whatever was
evicted, whoever is encoded together, the same steps give the same bits (tests/streams/test_encoder.py).

    window 50, block 25      events  1 … 50   start  0
                             events 51 … 75   start 25      the last 26 to 50 events
                             events 76 … 100  start 50      …

When the start moves on, the state from the new start must be at hand: a user's *next* window, which begins one block
later, is stepped along with the current one. Rebuilding would cost as many steps, all of them at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from headrace.export.artifact import Artifact
from headrace.export.names import GAP_THRESHOLDS
from headrace.streams import user_artifact

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Lookup = Callable[[NDArray[np.uint64], NDArray[np.uint8]], F32]

_LEAST_ROWS = 256
_MOST_CHANGED = 100_000  # keys remembered as changed: beyond, everything is rebuilt
_GAPS = np.array(GAP_THRESHOLDS, np.int64)


class History(NamedTuple):
    """What a user did, oldest first; L = min(count, window). `count` is of all events ever appended."""

    user: str
    count: int  # type: ignore[assignment]
    keys: NDArray[np.uint64]  # (L,) what `lookup` turns into vectors
    types: NDArray[np.uint8]  # (L,) export.names.type_code
    seconds: NDArray[np.uint32]  # (L,) Unix time
    generations: NDArray[np.uint8]  # (L,) which of a key's contents `lookup` is asked for


class Encoded(NamedTuple):
    """What histories came to; row by row."""

    states: F32  # (B, dim) unit rows, zero for a user without events
    before: F32  # (B, dim) without the latest event
    sums: F32  # (B, sums, dim) the decaying sums in it: see sums.py

    def take(self, members: Sequence[int]) -> Encoded:
        at = list(members)
        return Encoded(self.states[at], self.before[at], self.sums[at])


class _Work(NamedTuple):
    """Windows to be stepped, the longest way first, and the events that they lack; w windows, n events."""

    rows: I64  # (w,) in the cache
    lengths: I64  # (w,) events to step, ≥ 1
    begins: I64  # (w,) which event comes first
    fresh: NDArray[np.bool_]  # (w,) nothing comes before: begun with this
    vectors: F32  # (n, dim)
    types: I64  # (n,)
    gaps: I64  # (n,) buckets


class UserEncoder:
    """Raises ArtifactMismatch if `artifact_dir` cannot serve, beside the text encoder `text` where one is given.

    `cache_bytes` bounds the states kept between calls; at least those of a small call are kept whatever it says.
    For one thread at a time.
    """

    def __init__(
        self,
        artifact_dir: Path | str,
        *,
        cache_bytes: int,
        window: int = 50,
        threads: int = 1,
        text: Artifact | None = None,
    ) -> None:
        loaded = user_artifact.load(artifact_dir, text=text, threads=threads)
        self.tower, self.version = loaded.tower, loaded.version
        self.dim, self.text_dim = loaded.dim, loaded.text_dim
        self.window = window
        self.block = max(1, window // 2)
        self._steps = {n: _Step(graph, n, dim=self.dim, cache=loaded.cache) for n, graph in loaded.steps.items()}
        self.sums = loaded.sums
        rows = max(_LEAST_ROWS, cache_bytes // (4 * (loaded.cache + 2 * self.dim)))
        self._caches = np.zeros((rows, loaded.cache), np.float32)
        self._states, self._before = np.zeros((2, rows, self.dim), np.float32)
        self._free_rows = list(range(rows - 1, -1, -1))
        self._users: OrderedDict[str, int] = OrderedDict()  # → slot; least recently used first
        self._free = list(range(rows - 1, -1, -1))
        # By slot. A user's window number w begins with event w · block and lies in the row of the parity of w.
        self._rows = np.full((rows, 2), -1, np.int64)
        self._windows = np.full((rows, 2), -1, np.int64)  # the numbers of the windows that lie there
        self._counts = np.zeros(rows, np.int64)  # events up to which they are stepped
        self._last_keys = np.zeros(rows, np.uint64)  # of the event stepped last
        self._last_seconds = np.zeros(rows, np.uint32)
        self._current = np.zeros(rows, np.int64)  # the count of changes (`changed`) up to which that holds
        self._changed: dict[int, int] = {}  # key → count of changes when `lookup` last changed its answer
        self._changes = 0
        self.hits = 0  # users encoded from where the cache had left them
        self.rebuilt = 0  # users encoded from their whole window
        smallest = min(self._steps)
        self.sums.measure(self._steps[smallest].of, users=smallest, cache=loaded.cache, dim=self.dim)

    @property
    def cached_users(self) -> int:
        return len(self._users)

    def project(self, vectors: F32) -> F32:
        """Text space (N, text_dim) → unit rows (N, dim). Zero rows stay zero."""
        return self.tower.vectors(vectors)

    def encode(self, histories: Sequence[History], lookup: Lookup) -> F32:
        """States (B, dim): see `encoded`."""
        return self.encoded(histories, lookup).states

    def encoded(self, histories: Sequence[History], lookup: Lookup) -> Encoded:
        """What each history comes to.

        `lookup` gives the vectors in the state's space (n, dim) for n keys with their generations, zero rows for the
        unknown. It is asked once for many users, only for the events that are new to the cache, and must answer the
        same for ever, or `changed` must be called.
        """
        states, before = np.zeros((2, len(histories), self.dim), np.float32)
        found = Encoded(states, before, np.zeros((len(histories), self.sums.count, self.dim), np.float32))
        part: dict[str, int] = {}  # users, with their place; one who comes twice is encoded twice, in order
        for place, history in enumerate(histories):
            if history.user in part or 2 * len(part) + 2 > len(self._states):  # two windows a user must fit in
                self._encode_part(part, histories, lookup, found)
                part = {}
            if history.count:
                part[history.user] = place
        self._encode_part(part, histories, lookup, found)
        return found

    def held(self, counts: I64) -> I64:
        """How many of the latest events (B,) the state of a history of `counts` (B,) events is made of."""
        return counts - self._first(counts) * self.block

    def _first(self, counts: I64) -> I64:
        """The number of the window that holds the whole of what is encoded."""
        return -(-np.maximum(counts - self.window, 0) // self.block)

    def _encode_part(self, part: dict[str, int], histories: Sequence[History], lookup: Lookup, found: Encoded) -> None:
        if part:
            places = list(part.values())
            rows = self._encode([histories[place] for place in places], lookup)
            found.states[places], found.before[places] = self._states[rows], self._before[rows]
            sums = self._caches[rows, -self.sums.count * self.dim :]
            found.sums[places] = sums.reshape(-1, self.sums.count, self.dim)

    def changed(self, keys: Collection[int]) -> None:
        """`lookup` says something else of these keys from now on: users with one of them in their history are rebuilt,
        each when he comes."""
        if not keys:
            return
        self._changes += 1
        self._changed.update(dict.fromkeys(keys, self._changes))
        if len(self._changed) > _MOST_CHANGED:
            self.flush()

    def flush(self) -> None:
        """Forgets all users' caches; what comes is rebuilt."""
        self._changed.clear()
        for user in list(self._users):
            self.evict(user)

    def evict(self, user: str) -> None:
        """Forgets a user's cache: needed when his history was changed and not only appended to."""
        slot = self._users.pop(user, None)
        if slot is not None:
            self._free.append(slot)
            self._free_rows.extend(row for row in self._rows[slot].tolist() if row >= 0)
            self._rows[slot] = self._windows[slot] = -1
            self._counts[slot] = 0

    def _encode(self, histories: Sequence[History], lookup: Lookup) -> I64:
        """The cache's rows (B,) with the states of different users, who have events and fit into the cache together."""
        all_ = _Columns.of(histories)
        if short := np.flatnonzero(all_.counts - all_.lengths > np.maximum(all_.counts - self.window, 0)).tolist():
            count, held = all_.counts[short[0]], all_.lengths[short[0]]
            raise ValueError(f"a history of {count} events must hold the last {self.window}, not {held}")
        slots = self._slots([history.user for history in histories])
        known = self._known(slots, all_, histories)
        # Windows wanted: the one that holds the whole of what is encoded, and, where it has begun, the next.
        first = self._first(all_.counts)
        begun = np.flatnonzero((first + 1) * self.block < all_.counts)
        who = np.concatenate([np.arange(len(slots)), begun])
        windows = np.concatenate([first, first[begun] + 1])
        at = (slots[who], windows & 1)
        for place in np.flatnonzero(self._rows[at] < 0).tolist():
            self._rows[at[0][place], at[1][place]] = self._free_row()
        there = (known[who] > 0) & (self._windows[at] == windows)
        done = np.where(there, known[who], windows * self.block)
        hits = int(there[: len(slots)].sum())
        self.hits, self.rebuilt = self.hits + hits, self.rebuilt + len(slots) - hits
        lengths = all_.counts[who] - done
        if lengths.any():
            work = self._work(all_, who, self._rows[at], lengths, ~there, lookup)
            self._counts[slots] = 0  # until all of it is done nothing of it holds
            self._step(work)
        self._windows[at] = windows
        self._counts[slots] = all_.counts
        self._last_keys[slots], self._last_seconds[slots] = all_.keys[all_.ends - 1], all_.seconds[all_.ends - 1]
        self._current[slots] = self._changes
        rows: I64 = self._rows[slots, first & 1]
        return rows

    def _slots(self, users: list[str]) -> I64:
        slots = [self._users.get(user, -1) for user in users]
        for user, slot in zip(users, slots, strict=True):
            if slot >= 0:
                self._users.move_to_end(user)
        for place, slot in enumerate(slots):
            if slot < 0:
                while not self._free:
                    self.evict(next(iter(self._users)))
                slots[place] = self._users[users[place]] = self._free.pop()
        return np.array(slots, np.int64)

    def _free_row(self) -> int:
        while not self._free_rows:
            self.evict(next(iter(self._users)))
        return self._free_rows.pop()

    def _known(self, slots: I64, all_: _Columns, histories: Sequence[History]) -> I64:
        """Up to which event (B,) the cache holds for each history; 0 where it is another than the cached one, shorter,
        or of items that have changed."""
        known = self._counts[slots]
        place = known - 1 - (all_.counts - all_.lengths)  # of the event stepped last, which must still be there
        seen = all_.ends - all_.lengths + np.clip(place, 0, all_.lengths - 1)
        same = (all_.keys[seen] == self._last_keys[slots]) & (all_.seconds[seen] == self._last_seconds[slots])
        known = np.where((known <= all_.counts) & (same | (place < 0)), known, 0)
        since = self._current[slots]
        for user in np.flatnonzero((known > 0) & (since != self._changes)).tolist():
            if any(self._changed.get(key, 0) > since[user] for key in histories[user].keys.tolist()):
                known[user] = 0
        return known

    def _work(
        self, all_: _Columns, who: I64, rows: I64, lengths: I64, fresh: NDArray[np.bool_], lookup: Lookup
    ) -> _Work:
        """`who` (w,): whose window it is. Events that two windows of a user lack are looked up once."""
        lacking = np.zeros(len(all_.counts), np.int64)
        np.maximum.at(lacking, who, lengths)
        offsets = np.cumsum(lacking) - lacking
        users = np.repeat(np.arange(len(lacking)), lacking)
        events = (all_.ends - lacking - offsets)[users] + np.arange(len(users))
        at = all_.seconds[events].astype(np.int64)
        before = all_.seconds[np.maximum(events - 1, (all_.ends - all_.lengths)[users])]
        order = np.argsort(-lengths, kind="stable")
        order = order[: int((lengths > 0).sum())]
        return _Work(
            rows=rows[order],
            lengths=lengths[order],
            begins=(offsets + lacking)[who[order]] - lengths[order],
            fresh=fresh[order],
            vectors=lookup(all_.keys[events], all_.generations[events]),
            types=all_.types[events].astype(np.int64),
            gaps=np.searchsorted(_GAPS, at - before, side="right"),  # events out of order: no gap
        )

    def _step(self, work: _Work) -> None:
        self._caches[work.rows[work.fresh]] = 0
        self._states[work.rows[work.fresh]] = 0
        smallest, largest = min(self._steps), max(self._steps)
        for step in range(int(work.lengths[0])):
            active = int(np.searchsorted(-work.lengths, -step, side="left"))  # windows with more than `step` events
            begin = 0
            while begin < active:
                size = largest if active - begin > largest // 2 else smallest
                some = slice(begin, min(begin + size, active))
                event = work.begins[some] + step
                gaps = work.gaps[event]
                if step == 0:
                    gaps[work.fresh[some]] = 0  # nothing comes before a window
                self._step_rows(size, work.rows[some], event, work, gaps)
                begin += size

    def _step_rows(self, size: int, rows: I64, event: I64, work: _Work, gaps: I64) -> None:
        """One event for up to `size` windows. What the rows beyond hold does not matter: no row depends on another."""
        n, step = len(rows), self._steps[size]
        np.take(self._caches, rows, axis=0, out=step.cache[:n], mode="clip")  # "clip" writes in place
        np.take(work.vectors, event, axis=0, out=step.vectors[:n], mode="clip")
        step.types[:n] = work.types[event]
        step.gaps[:n] = gaps
        step.run()
        self._caches[rows] = step.new_cache[:n]
        self._before[rows] = self._states[rows]
        self._states[rows] = step.state[:n]


class _Step:
    """A step graph with its inputs and outputs in place: nothing is allocated a call."""

    def __init__(self, graph: onnxruntime.InferenceSession, size: int, *, dim: int, cache: int) -> None:
        self.cache, self.new_cache = np.zeros((2, size, cache), np.float32)
        self.vectors, self.state = np.zeros((2, size, dim), np.float32)
        self.types, self.gaps = np.zeros((2, size), np.int64)
        self._graph = graph
        self._binding = graph.io_binding()
        for name in ("cache", "vectors", "types", "gaps"):
            array = getattr(self, name)
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name in ("new_cache", "state"):
            array = getattr(self, name)
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def run(self) -> None:
        self._graph.run_with_iobinding(self._binding)

    def of(self, cache: F32, vectors: F32, types: I64, gaps: I64) -> tuple[F32, F32]:
        """A step of as many users as it takes; the answer holds until the next."""
        self.cache[:], self.vectors[:], self.types[:], self.gaps[:] = cache, vectors, types, gaps
        self.run()
        return self.new_cache, self.state


class _Columns(NamedTuple):
    """Histories one after the other; B users, N events."""

    keys: NDArray[np.uint64]  # (N,)
    types: NDArray[np.uint8]  # (N,)
    seconds: NDArray[np.uint32]  # (N,)
    generations: NDArray[np.uint8]  # (N,)
    counts: I64  # (B,) events ever appended
    lengths: I64  # (B,) events held
    ends: I64  # (B,) past the user's last event

    @classmethod
    def of(cls, histories: Sequence[History]) -> _Columns:
        _, counts, keys, types, seconds, generations = zip(*histories, strict=True)
        lengths = np.array(list(map(len, keys)), np.int64)
        return cls(
            np.concatenate(keys),
            np.concatenate(types),
            np.concatenate(seconds),
            np.concatenate(generations),
            np.array(counts, np.int64),
            lengths,
            np.cumsum(lengths),
        )
