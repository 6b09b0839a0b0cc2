"""A user's state: the exact, small truth that the changelog holds, packed to a few kilobytes.

Layout: a fixed header, then columns. What every event touches (history, seen ids, open decisions) is fixed-width
bytes, so
that an append is a slice and a concatenation; what few users have (`Notes`) is msgpack.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.streams.settings import Consumed

SCHEMA = 2
_READ = (1, SCHEMA)  # 1 had no generations: what was in a history then was every item's first content
_HEADER = struct.Struct("<BIHHHI")  # schema, events ever appended, history, seen, pending decisions, bytes of pending
_OPEN = struct.Struct("<12sQBBH")  # recommendation, ts, k, schema of the entry, arm's code
_KEY = struct.Struct("<Q")
_SECOND = struct.Struct("<I")
SEEN_OF_OTHERS = 8  # horizons of event ids that are remembered of merged ids, all together


class Credit(msgspec.Struct, array_like=True):
    """A purchase that earned: a `return` with its order and item takes it back."""

    order: int  # 64-bit hash of (order_id, item)
    recommendation: bytes
    position: int
    reward: float
    ts: int


class DecisionNotes(msgspec.Struct, array_like=True):
    """What is known of an open decision beyond its slate."""

    shown: list[int] | None = None  # positions an impression named
    altered: bool = False  # the shop showed something else
    named: bool = False  # an outcome named the decision
    rewards: dict[int, float] = {}  # position -> reward so far
    earned: dict[int, list[tuple[int, int, float, int]]] = {}  # position -> outcomes; unless rewards are sums
    shadow: bool = False  # it went to the side topic


class Notes(msgspec.Struct, array_like=True):
    """What few users have."""

    consumed: dict[int, int] = {}  # item key -> second it was last consumed
    texts: dict[int, bytes] = {}  # history key of a query or comment -> text_vectors.pack
    decisions: dict[bytes, DecisionNotes] = {}
    credits: list[Credit] = []
    taken: dict[int, int] = {}  # item key -> how often it was consumed, the latest last: where items may come again
    cart: dict[int, int] = {}  # item key -> second it was put into the cart
    shows: dict[int, list[int]] = {}  # item key -> seconds at which it was shown, where a rule says how often it may be
    known: int = 0  # 1 once an identity has named this id as its user
    merged: list[str] = []  # ids that were merged into this one, the latest last
    others: bytes = b""  # uint64 each: hashes of event ids that were sent under those, the latest last
    last: int = 0  # second of the latest event or request that is not in the history
    profiling: int = 0  # second of the latest choice: above 0 none is wanted, below 0 it is: people/optout.py
    profiling_ms: int = 0  # of that second


_encode_notes = msgspec.msgpack.Encoder().encode
_decode_notes = msgspec.msgpack.Decoder(Notes).decode


class OpenDecision(NamedTuple):
    recommendation: bytes  # 12 bytes
    ts: int
    arm: int
    keys: tuple[int, ...]  # item keys by position


def short_hash(*parts: str) -> int:
    """64 bits of BLAKE2b; parts are kept apart."""
    return int.from_bytes(hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest(), "little")


def seen_as(other: str, event: int) -> int:
    """The hash of an event's hash that was sent under another id."""
    return short_hash("as", other, str(event))


def _holds(ids: bytes, packed: bytes) -> bool:
    at = ids.find(packed)
    while at != -1 and at % 8:  # a match across two ids is none
        at = ids.find(packed, at + 1)
    return at != -1


class UserState:
    """One user's state, unpacked. `count` is the number of events ever appended to the history."""

    __slots__ = ("count", "generations", "keys", "notes", "pending", "pending_count", "seconds", "seen", "types")

    def __init__(self) -> None:
        self.count = 0
        self.keys = b""  # uint64 each, oldest first
        self.types = b""  # uint8 each
        self.seconds = b""  # uint32 each
        self.generations = b""  # uint8 each: which of its contents an item had (contents.py)
        self.seen = b""  # uint64 each: hashes of event ids, oldest first
        self.pending = b""  # open decisions, oldest first
        self.pending_count = 0
        self.notes: Notes | None = None

    @classmethod
    def unpack(cls, raw: bytes) -> UserState:
        """Raises ValueError for a schema that this release does not read."""
        schema, count, history, seen, pending_count, pending = _HEADER.unpack_from(raw)
        if schema not in _READ:
            raise ValueError(f"user state of schema {schema}: this release reads schema {SCHEMA}")
        state = cls.__new__(cls)
        at = _HEADER.size
        state.count = count
        state.keys = raw[at : (at := at + 8 * history)]
        state.types = raw[at : (at := at + history)]
        state.seconds = raw[at : (at := at + 4 * history)]
        state.generations = bytes(history) if schema == 1 else raw[at : (at := at + history)]
        state.seen = raw[at : (at := at + 8 * seen)]
        state.pending = raw[at : (at := at + pending)]
        state.pending_count = pending_count
        state.notes = _decode_notes(raw[at:]) if at < len(raw) else None
        return state

    def pack(self) -> bytes:
        header = _HEADER.pack(
            SCHEMA, self.count, len(self.types), len(self.seen) // 8, self.pending_count, len(self.pending)
        )
        notes = self.notes
        if notes is not None and not any(msgspec.structs.astuple(notes)):
            notes = None
        tail = b"" if notes is None else _encode_notes(notes)
        history = (self.keys, self.types, self.seconds, self.generations)
        return b"".join((header, *history, self.seen, self.pending, tail))

    # -- seen ids -----------------------------------------------------------------------------------------------------

    def see(self, event: int, *, horizon: int) -> bool:
        """True if this id is new; it is then remembered among the last `horizon`."""
        packed = _KEY.pack(event)
        if _holds(self.seen, packed):
            return False
        self.seen = (self.seen + packed)[-8 * horizon :]
        return True

    def see_as(self, other: str, event: int, *, horizon: int) -> bool:
        """The same of an id that was sent under the id `other`, which has become this user."""
        if self.saw_as(other, event):
            return False
        notes = self.note()
        notes.others = (notes.others + _KEY.pack(seen_as(other, event)))[-8 * SEEN_OF_OTHERS * horizon :]
        return True

    def saw_as(self, other: str, event: int) -> bool:
        """Whether an id was seen under the id `other` of the same user."""
        if self.notes is None or not self.notes.others:
            return False
        return _holds(self.notes.others, _KEY.pack(seen_as(other, event)))

    # -- history ------------------------------------------------------------------------------------------------------

    def insert(self, key: int, *, type_code: int, ts: int, window: int, generation: int = 0) -> bool:
        """Appends, or puts where it belongs in time; True where that was not the end."""
        second = min(ts // 1000, 0xFFFFFFFF)
        seconds = np.frombuffer(self.seconds, np.uint32)
        at = int(np.searchsorted(seconds, second, side="right"))
        held = len(seconds)
        self.append(key, type_code=type_code, ts=ts, window=window + 1, generation=generation)
        if at < held:
            order = np.insert(np.arange(held), at, held)
            self.reorder(order)
        self.keys, self.types = self.keys[-8 * window :], self.types[-window:]
        self.seconds, self.generations = self.seconds[-4 * window :], self.generations[-window:]
        return at < held

    def reorder(self, order: NDArray[np.int64]) -> None:
        """The history becomes its entries `order`."""
        self.keys = np.frombuffer(self.keys, np.uint64)[order].tobytes()
        self.types = np.frombuffer(self.types, np.uint8)[order].tobytes()
        self.seconds = np.frombuffer(self.seconds, np.uint32)[order].tobytes()
        self.generations = np.frombuffer(self.generations, np.uint8)[order].tobytes()

    def append(self, key: int, *, type_code: int, ts: int, window: int, generation: int = 0) -> None:
        self.count += 1
        self.keys = (self.keys + _KEY.pack(key))[-8 * window :]
        self.types = (self.types + bytes((type_code,)))[-window:]
        self.seconds = (self.seconds + _SECOND.pack(min(ts // 1000, 0xFFFFFFFF)))[-4 * window :]
        self.generations = (self.generations + bytes((generation,)))[-window:]
        if self.notes is not None and len(self.notes.texts) > window:
            kept = set(self.history_keys().tolist())
            self.notes.texts = {k: v for k, v in self.notes.texts.items() if k in kept}

    def history_keys(self) -> NDArray[np.uint64]:
        return np.frombuffer(self.keys, np.uint64)

    def nth_latest_second(self, n: int) -> int | None:
        """When the n-th latest history event was, in seconds; None where there are fewer."""
        return int(_SECOND.unpack_from(self.seconds, len(self.seconds) - 4 * n)[0]) if len(self.types) >= n else None

    def last_second(self) -> int:
        """When something was last heard of this user, by event time; 0 where nothing tells."""
        held = int(np.frombuffer(self.seconds, np.uint32).max()) if self.seconds else 0
        latest = max(held, self.notes.last if self.notes is not None else 0)
        return latest or max((decision.ts for decision in self.decisions()), default=0) // 1000

    def heard_since(self, second: int) -> bool:
        """Whether something was heard of this user then or later."""
        if len(self.seconds) and _SECOND.unpack_from(self.seconds, len(self.seconds) - 4)[0] >= second:
            return True
        return self.last_second() >= second

    def touch(self, ts: int) -> None:
        """Something was heard of this user at `ts` (ms) that does not enter his history."""
        notes = self.note()
        notes.last = max(notes.last, ts // 1000)

    @property
    def empty(self) -> bool:
        """Whether it says nothing: as if there were none."""
        held = self.count or self.seen or self.pending
        return not held and (self.notes is None or not any(msgspec.structs.astuple(self.notes)))

    def note(self) -> Notes:
        if self.notes is None:
            self.notes = Notes(consumed={}, texts={}, decisions={}, credits=[], taken={}, cart={}, shows={}, merged=[])
        return self.notes

    # -- consumed items -----------------------------------------------------------------------------------------------

    def consume(self, key: int, *, second: int, rules: Consumed) -> None:
        """An item is consumed. Of more than `rules.cap` the one consumed longest ago is forgotten; of counts, which are
        kept where items may come again, the smallest is, and of equal ones the oldest."""
        notes, cap = self.note(), rules.cap
        before = notes.consumed.pop(key, None) is not None
        notes.consumed[key] = second
        while len(notes.consumed) > cap:
            del notes.consumed[next(iter(notes.consumed))]
        if rules.repeats and cap:
            notes.taken[key] = notes.taken.pop(key, int(before)) + 1
            while len(notes.taken) > cap:
                del notes.taken[min((k for k in notes.taken if k != key), key=notes.taken.__getitem__, default=key)]

    # -- open decisions -----------------------------------------------------------------------------------------------

    def open(self, recommendation: bytes, *, ts: int, arm: int, keys: bytes) -> None:
        """`keys`: item keys by position, uint64 little-endian."""
        self.pending += _OPEN.pack(recommendation, ts, len(keys) // 8, 1, arm) + keys
        self.pending_count += 1

    def decisions(self) -> Iterator[OpenDecision]:
        """Oldest first."""
        at = 0
        while at < len(self.pending):
            recommendation, ts, k, _, arm = _OPEN.unpack_from(self.pending, at)
            at += _OPEN.size
            yield OpenDecision(recommendation, ts, arm, struct.unpack_from(f"<{k}Q", self.pending, at))
            at += 8 * k

    def oldest_ts(self) -> int | None:
        """Event time of the oldest open decision."""
        return int(_OPEN.unpack_from(self.pending)[1]) if self.pending else None

    def close_oldest(self) -> None:
        k = _OPEN.unpack_from(self.pending)[2]
        recommendation = self.pending[:12]
        self.pending = self.pending[_OPEN.size + 8 * k :]
        self.pending_count -= 1
        if self.notes is not None:
            self.notes.decisions.pop(recommendation, None)

    def shows(self, key: int) -> bool:
        """A quick no: False only if no open decision's slate holds the item."""
        return _KEY.pack(key) in self.pending
