"""What was not heard of again is forgotten: anonymous ids, aliases, erasure marks, by event time.

Changelog keys wait in buckets of event time. A bucket is looked at once its time has come: what was heard of meanwhile
waits in a later bucket, the rest goes. So everything is looked at about once in its time to live, and nothing is
searched; an event costs nothing here. After a recovery the buckets are made again from what the changelog holds.
Whether somebody has lapsed follows from his last event and the clock alone, also where his bucket was not looked at
yet.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Generic, TypeVar

from headrace.streams.changelog import ALIAS, ERASED, Alias, decode_alias
from headrace.streams.people.anonymous import anonymity
from headrace.streams.people.optout import refused
from headrace.streams.settings import Settings
from headrace.streams.state import UserState

if TYPE_CHECKING:
    from headrace.streams.step import Step

_DAY_MS = 86_400_000
_AT_ONCE = 2_000  # keys looked at a record, or a sixteenth of a bucket


Key = TypeVar("Key")


class Buckets(Generic[Key]):
    """Keys by the number of their bucket, each once a bucket, in the order they came."""

    def __init__(self) -> None:
        self._held: dict[int, dict[Key, None]] = {}
        self._order: list[int] = []  # a heap

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def __getitem__(self, bucket: int) -> dict[Key, None]:
        return self._held[bucket]

    def add(self, bucket: int, key: Key) -> None:
        held = self._held.get(bucket)
        if held is None:
            held = self._held[bucket] = {}
            heapq.heappush(self._order, bucket)
        held[key] = None

    def passed(self, last: int) -> list[int]:
        """Numbers of the buckets up to `last`, in order."""
        if not self._order or self._order[0] > last:
            return []
        return sorted(bucket for bucket in self._order if bucket <= last)

    def take(self, bucket: int, keys: list[Key] | None = None) -> None:
        """Removes keys of a bucket, or all of it."""
        held = self._held.get(bucket)
        if held is None:
            return
        for key in keys or ():
            held.pop(key, None)
        if keys is None or not held:
            del self._held[bucket]
            self._order.remove(bucket)
            heapq.heapify(self._order)


class Lapses:
    """The rules of the settings: in which bucket something lapses. None: never."""

    def __init__(self, settings: Settings) -> None:
        given = settings.identities
        self._anonymous_ms, self._known_ms = given.anonymous_ttl, given.known_ttl
        shortest = min(filter(None, (given.anonymous_ttl, given.known_ttl)), default=_DAY_MS)
        self._width_ms = min(max(shortest // 24, 60_000), 3_600_000)
        widest = max(t.window for t in settings.event_types.values()) + settings.decisions.grace
        # An id without events for so long would have lapsed; and no outcome of its slates can come any more.
        self.alias_ms = max(given.anonymous_ttl, widest) if given.anonymous_ttl else 0
        # A message from before an erasure can lie in a topic of the shop for its retention.
        self._erased_ms = max(30 * _DAY_MS, 2 * settings.topics.retention)
        self.by_looks = anonymity(settings)

    def now(self, ms: int) -> int:
        """The last bucket whose time has come."""
        return ms // self._width_ms - 1

    def known(self, user: str, state: UserState) -> bool:
        """Whether this id is a user's: by its looks where the settings say what is anonymous, else by an identity."""
        if self.by_looks is not None:
            return not self.by_looks(user)
        return state.notes is not None and bool(state.notes.known)

    def of_state(self, user: str, state: UserState, *, otherwise_ms: int = 0) -> int | None:
        """`otherwise_ms`: the event time that counts where the state tells none, or does not lapse: who wants no
        profiling would be profiled again. He is looked at as others are, as he may take it back."""
        last = otherwise_ms if refused(state) else 1000 * state.last_second() or otherwise_ms
        return self._bucket(last, self._known_ms if self.known(user, state) else self._anonymous_ms)

    def of_alias(self, alias: Alias) -> int | None:
        return self._bucket(alias.at, self.alias_ms)

    def of_erasure(self, raw: bytes) -> int | None:
        return self._bucket(int.from_bytes(raw, "little"), self._erased_ms)

    def of(self, key: bytes, raw: bytes, *, otherwise_ms: int = 0) -> int | None:
        """Of a changelog record."""
        if key.startswith(b"u"):
            return self.of_state(key[1:].decode(), UserState.unpack(raw), otherwise_ms=otherwise_ms)
        if key.startswith(ALIAS):
            return self.of_alias(decode_alias(raw))
        return self.of_erasure(raw) if key.startswith(ERASED) else None

    def over(self, user: str, state: UserState, now_ms: int) -> bool:
        """Whether a state has lapsed at this event time."""
        ttl = self._known_ms if self.known(user, state) else self._anonymous_ms
        if not ttl or refused(state):
            return False
        first = (self.now(now_ms) + 1) * self._width_ms - ttl  # heard of then or later: still there
        return not state.heard_since(-(-first // 1000)) and state.last_second() > 0

    def _bucket(self, last_ms: int, ttl_ms: int) -> int | None:
        return (last_ms + ttl_ms) // self._width_ms if ttl_ms else None


def forget(step: Step, user: str, state: UserState) -> UserState:
    """The user lapses: his open decisions close with what they earned, the rest is as if it had never been, also that
    other ids were merged into him."""
    while state.pending_count:
        closed = step.decisions.close_oldest(state, now=step.clock.now, user_id=user)
        step.closed(closed.arm, closed.closed_as)
        step.records.append(closed)
    step.counts["expired", "known" if step.engine.lapses.known(user, state) else "anonymous"] += 1
    step.engine.recommender.evict(user)
    step.people.let_go(user, state.notes.merged if state.notes is not None else [])
    step.touched[user] = UserState()
    step.gone.add(user)
    return step.touched[user]


def sweep(step: Step) -> None:
    """Looks at what waits in buckets whose time has come, some of it a record."""
    engine, lapses = step.engine, step.engine.lapses
    last = lapses.now(step.clock.now)
    left = 0
    for bucket in engine.lapsing.passed(last):
        held = engine.lapsing[bucket]
        left = left or max(_AT_ONCE, len(held) // 16)
        keys = list(islice(held, left))
        left -= len(keys)
        for key, then in _found(step, keys):
            if then > last:
                step.effects.lapses.setdefault(then, []).append(key)
            elif key.startswith(b"u"):
                user = key[1:].decode()
                forget(step, user, step.touched.get(user) or UserState.unpack(engine.states[key]))
            else:
                step.marks[key] = None
                step.counts["expired", "alias" if key.startswith(ALIAS) else "erasure"] += 1
        step.effects.swept.append((bucket, keys))
        if left <= 0:
            return


def _found(step: Step, keys: list[bytes]) -> Iterator[tuple[bytes, int]]:
    """Those keys that still say something which lapses, with the bucket in which it does by now."""
    lapses, states = step.engine.lapses, step.engine.states
    for key in keys:
        user = key[1:].decode() if key.startswith(b"u") else None
        raw = step.marks.get(key) or step.erasures.get(key) or states.get(key)
        state = step.touched.get(user) if user is not None else None
        if user in step.gone or (state is None and raw is None):
            continue
        if user is None:
            then = lapses.of(key, raw or b"")
        else:
            state = state or UserState.unpack(raw or b"")
            then = lapses.of_state(user, state, otherwise_ms=step.clock.now if refused(state) else 0)
        if then is not None:
            yield key, then


def register(step: Step) -> None:
    """What this record adds to the changelog waits for its time. The key is kept as one object with the state's."""
    lapses, effects = step.engine.lapses, step.effects
    for key, raw in effects.changes.items():
        if raw is None or key in step.engine.states:
            continue
        if key.startswith(b"u"):
            user = key[1:].decode()
            then = lapses.of_state(user, step.touched[user], otherwise_ms=step.clock.now)
        else:
            then = lapses.of(key, raw)
        if then is not None:
            effects.lapses.setdefault(then, []).append(key)
