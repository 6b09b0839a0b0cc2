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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.export.artifact import Artifact
from headrace.export.names import GAP_THRESHOLDS
from headrace.streams import user_artifact

F32 = NDArray[np.float32]
Lookup = Callable[[NDArray[np.uint64], NDArray[np.uint8]], F32]

_LEAST_SLOTS = 256
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


@dataclass(slots=True)
class _Window:
    """A stretch of a user's events: stepped up to and without event number `done`, its state in row `slot`."""

    start: int
    done: int
    slot: int


@dataclass(slots=True)
class _User:
    windows: list[_Window] = field(default_factory=list)  # the current one, then the next
    last: tuple[int, int] = (0, 0)  # key and second of the event stepped last
    current: int = 0  # the count of changes (`changed`) up to which this is known to hold


class _Tokens(NamedTuple):
    """n events, and for each window at hand which of them comes first."""

    vectors: F32  # (n, dim)
    types: NDArray[np.int64]  # (n,)
    gaps: NDArray[np.int64]  # (n,) buckets
    begins: NDArray[np.int64]  # (windows,)


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
        self._steps = loaded.steps
        self._feeds = {size: self._empty_feeds(size, loaded.cache) for size in loaded.steps}
        slots = max(_LEAST_SLOTS, cache_bytes // (4 * (loaded.cache + self.dim)))
        self._caches = np.zeros((slots, loaded.cache), np.float32)
        self._states = np.zeros((slots, self.dim), np.float32)
        self._users: OrderedDict[str, _User] = OrderedDict()  # least recently used first
        self._free = list(range(slots - 1, -1, -1))
        self._changed: dict[int, int] = {}  # key → count of changes when `lookup` last changed its answer
        self._changes = 0
        self.hits = 0  # users encoded from where the cache had left them
        self.rebuilt = 0  # users encoded from their whole window

    def _empty_feeds(self, size: int, cache: int) -> dict[str, NDArray[Any]]:
        return {
            "cache": np.zeros((size, cache), np.float32),
            "vectors": np.zeros((size, self.dim), np.float32),
            "types": np.zeros(size, np.int64),
            "gaps": np.zeros(size, np.int64),
        }

    @property
    def cached_users(self) -> int:
        return len(self._users)

    def project(self, vectors: F32) -> F32:
        """Text space (N, text_dim) → unit rows (N, dim). Zero rows stay zero."""
        return self.tower.vectors(vectors)

    def encode(self, histories: Sequence[History], lookup: Lookup) -> F32:
        """States (B, dim), unit rows; zero for a user without events.

        `lookup` gives the vectors in the state's space (n, dim) for n keys with their generations, zero rows for the
        unknown. It is asked once for many users, only for the events that are new to the cache, and must answer the
        same for ever, or `changed` must be called.
        """
        states = np.zeros((len(histories), self.dim), np.float32)
        begin, end, met = 0, 0, set[str]()
        for end, history in enumerate(histories):
            # Two windows a user must fit into the cache at once; a user who comes twice is encoded twice, in order.
            if 2 * (end - begin) + 2 > len(self._states) or history.user in met:
                self._encode(histories[begin:end], lookup, states[begin:end])
                begin, met = end, set()
            met.add(history.user)
        self._encode(histories[begin:], lookup, states[begin:])
        return states

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
        known = self._users.pop(user, None)
        if known is not None:
            self._free.extend(window.slot for window in known.windows)

    def _encode(self, histories: Sequence[History], lookup: Lookup, states: F32) -> None:
        # 1. Which windows must be stepped, and over which events.
        for history in histories:
            if history.user in self._users:
                self._users.move_to_end(history.user)
        current = np.full(len(histories), -1, np.int64)
        work: list[tuple[_Window, History, int]] = []  # the last: where the user's new events begin
        for row, history in enumerate(histories):
            if history.count == 0:
                continue
            user = self._aligned(history)
            window = user.windows[0]
            current[row] = window.slot
            known = window.done > window.start
            self.hits, self.rebuilt = self.hits + known, self.rebuilt + (not known)
            stale = [window for window in user.windows if window.done < history.count]
            begin = min((window.done for window in stale), default=history.count)
            work.extend((window, history, begin) for window in stale)
        # 2. Step them, the longest way first, so that the windows still to be stepped are always the first ones.
        if work:
            work.sort(key=lambda job: job[0].done - job[1].count)
            self._step(work, self._tokens(work, lookup))
            for window, history, _ in work:
                window.done = history.count
        # 3. The states of the current windows.
        has_events = current >= 0
        states[has_events] = self._states[current[has_events]]

    def _aligned(self, history: History) -> _User:
        """The user with his current window and, where it has begun, his next; both as far as the cache has them."""
        user = self._users.get(history.user)
        first = history.count - len(history.keys)
        if first > max(0, history.count - self.window):
            raise ValueError(
                f"a history of {history.count} events must hold the last {self.window}, not {len(history.keys)}"
            )
        if user is not None and not (_continues(user, history, first) and self._holds(user, history)):
            self.evict(history.user)
            user = None
        if user is None:
            user = self._users[history.user] = _User(current=self._changes)
        start = -(-max(0, history.count - self.window) // self.block) * self.block
        wanted = [begin for begin in (start, start + self.block) if begin < history.count]
        if [window.start for window in user.windows] != wanted:
            kept = {window.start: window for window in user.windows}
            self._free.extend(window.slot for window in user.windows if window.start not in wanted)
            user.windows = [kept.get(begin) or self._opened(begin) for begin in wanted]
        user.last = int(history.keys[-1]), int(history.seconds[-1])
        return user

    def _holds(self, user: _User, history: History) -> bool:
        """Whether nothing of the history has changed since it was stepped."""
        since, user.current = user.current, self._changes
        return since == self._changes or all(self._changed.get(key, 0) <= since for key in history.keys.tolist())

    def _opened(self, start: int) -> _Window:
        while not self._free:
            self.evict(next(iter(self._users)))
        slot = self._free.pop()
        self._caches[slot] = 0
        return _Window(start, start, slot)

    def _tokens(self, work: list[tuple[_Window, History, int]], lookup: Lookup) -> _Tokens:
        """The new events of all users, one user after the other."""
        begins: dict[str, int] = {}  # user → his first new event's place among all
        keys, generations, types, seconds, before = [], [], [], [], []
        total = 0
        for _, history, begin in work:
            if history.user not in begins:
                place = begin - (history.count - len(history.keys))
                begins[history.user] = total
                total += history.count - begin
                keys.append(history.keys[place:])
                generations.append(history.generations[place:])
                types.append(history.types[place:])
                seconds.append(history.seconds[place:])
                before.append(history.seconds[max(0, place - 1)])
        at = np.concatenate(seconds).astype(np.int64)
        previous = np.concatenate([at[:1], at[:-1]])
        previous[list(begins.values())] = before
        buckets = np.searchsorted(_GAPS, at - previous, side="right")  # events out of order: no gap
        return _Tokens(
            vectors=lookup(np.concatenate(keys), np.concatenate(generations)),
            types=np.concatenate(types).astype(np.int64),
            gaps=buckets,
            begins=np.array([begins[history.user] + window.done - begin for window, history, begin in work], np.int64),
        )

    def _step(self, work: list[tuple[_Window, History, int]], tokens: _Tokens) -> None:
        slots = np.array([window.slot for window, _, _ in work], np.int64)
        lengths = np.array([history.count - window.done for window, history, _ in work], np.int64)
        fresh = np.array([window.done == window.start for window, _, _ in work], np.bool_)
        smallest, largest = min(self._steps), max(self._steps)
        for step in range(int(lengths[0])):
            active = int(np.searchsorted(-lengths, -step, side="left"))  # the windows with more than `step` events
            begin = 0
            while begin < active:
                size = largest if active - begin > largest // 2 else smallest
                rows = slice(begin, min(begin + size, active))
                event = tokens.begins[rows] + step
                gaps = tokens.gaps[event]
                if step == 0:
                    gaps[fresh[rows]] = 0  # nothing comes before a window
                self._step_rows(size, slots[rows], event, tokens, gaps)
                begin += size

    def _step_rows(
        self, size: int, slots: NDArray[np.int64], event: NDArray[np.int64], tokens: _Tokens, gaps: NDArray[np.int64]
    ) -> None:
        """One event for up to `size` windows. What the rows beyond hold does not matter: no row depends on another."""
        n = len(slots)
        feeds = self._feeds[size]
        np.take(self._caches, slots, axis=0, out=feeds["cache"][:n], mode="clip")  # "clip" writes in place
        np.take(tokens.vectors, event, axis=0, out=feeds["vectors"][:n], mode="clip")
        feeds["types"][:n] = tokens.types[event]
        feeds["gaps"][:n] = gaps
        caches, states = self._steps[size].run(None, feeds)
        self._caches[slots] = caches[:n]
        self._states[slots] = states[:n]


def _continues(user: _User, history: History, first: int) -> bool:
    """Whether the history is the cached one, perhaps with more appended: the event stepped last is where it was."""
    place = user.windows[0].done - 1 - first
    if not 0 <= place < len(history.keys):
        return history.count >= user.windows[0].done  # all that was stepped has left the history: nothing is reused
    return (int(history.keys[place]), int(history.seconds[place])) == user.last
