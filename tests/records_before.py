"""The structs that travel, as the release before has them (commit 0e0ff4b): frozen, to read what today's code writes.

Never change this file with the code; when a release is made, write it anew from that release, and tests/data with it.
"""

from __future__ import annotations

import struct

import msgspec

Context = dict[str, str | float | bool]


class Event(msgspec.Struct, array_like=True, tag_field="kind", tag=1, gc=False, frozen=True):
    event_id: str
    user_id: str
    type: str
    ts: int
    sent_ms: int
    item_id: str | None = None
    value: float | None = None
    quantity: float | None = None
    order_id: str | None = None
    recommendation_id: str | None = None
    position: int | None = None
    placement: str | None = None
    text: str | None = None
    context: Context | None = None
    shown: list[str] | None = None


class Request(msgspec.Struct, array_like=True, tag_field="kind", tag=2, gc=False, frozen=True):
    request_id: str
    user_id: str
    ts: int
    sent_ms: int
    k: int | None = None
    placement: str | None = None
    anchor_item_id: str | None = None
    candidates: list[str] | None = None
    exclude: list[str] | None = None
    context: Context | None = None


class Identity(msgspec.Struct, array_like=True, tag_field="kind", tag=3, gc=False, frozen=True):
    user_id: str
    anonymous_id: str
    ts: int
    sent_ms: int


class Erasure(msgspec.Struct, array_like=True, tag_field="kind", tag=4, gc=False, frozen=True):
    user_id: str
    ts: int
    sent_ms: int


Entry = Event | Request | Identity | Erasure


class Batch(msgspec.Struct, array_like=True, gc=False, frozen=True):
    source: str
    watermark: int
    idle: bool = False
    tick: bool = False
    entries: list[Entry] = []


class Item(msgspec.Struct, array_like=True, gc=False, frozen=True):
    item_id: str
    source: int
    offset: int
    vector: bytes
    vector_hash: str
    price: float | None = None
    category: str | None = None
    available: bool = True
    title: str | None = None
    removed: bool = False
    sent_ms: int = 0
    pending: bool = False
    generation: int = 0
    text_version: str = ""


class Opened(msgspec.Struct, array_like=True, tag_field="kind", tag=1, gc=False, frozen=True):
    recommendation_id: str
    user_id: str
    ts: int
    sent_ms: int
    placement: str
    arm: str
    policy: str
    policy_version: int
    encoder_version: str
    trigger_kind: str
    trigger_id: str
    slate: list[str]
    propensities: bytes
    state: bytes
    context: bytes
    items: bytes
    scalars: bytes
    candidates: bytes
    explored: bytes
    all_items: bytes = b""
    all_scalars: bytes = b""
    busy: bool = False
    encoder_serial: int = 0


class Outcome(msgspec.Struct, array_like=True, tag_field="kind", tag=2, gc=False, frozen=True):
    recommendation_id: str
    outcome_id: str
    type: str
    ts: int
    sent_ms: int
    positions: list[int]
    reward: float
    value: float | None
    quantity: float | None
    matched: str
    reward_version: str
    user_id: str
    arm: str = ""
    opened_ts: int = 0
    order: int = 0
    busy: bool = False


class Closed(msgspec.Struct, array_like=True, tag_field="kind", tag=3, gc=False, frozen=True):
    recommendation_id: str
    user_id: str
    arm: str
    opened_ts: int
    ts: int
    closed_as: str
    shown: list[int]
    rewards: list[float]
    reward_version: str
    next_recommendation_id: str | None = None
    elapsed_ms: int | None = None
    next_state: bytes | None = None


class Behaviour(msgspec.Struct, array_like=True, tag_field="kind", tag=4, gc=False, frozen=True):
    item: int
    type: str
    ts: int
    previous: bytes


class Erased(msgspec.Struct, array_like=True, tag_field="kind", tag=5, gc=False, frozen=True):
    user_id: str
    ts: int


Transition = Opened | Outcome | Closed | Behaviour | Erased


class Transitions(msgspec.Struct, array_like=True, gc=False, frozen=True):
    partition: int
    offset: int
    event_time: int
    tick: bool
    records: list[Transition]


class PolicyVersion(msgspec.Struct, array_like=True, gc=False, frozen=True):
    part: str
    policy: str
    version: int
    offset: int
    replay_from: int
    created_ms: int
    sha256: str
    arrays: bytes
    meta: dict[str, str | int | float]


SCHEMA = 2


HEADER = struct.Struct("<BIHHHI")


OPEN = struct.Struct("<12sQBBH")


class Credit(msgspec.Struct, array_like=True):
    order: int
    recommendation: bytes
    position: int
    reward: float
    ts: int


class DecisionNotes(msgspec.Struct, array_like=True):
    shown: list[int] | None = None
    altered: bool = False
    named: bool = False
    rewards: dict[int, float] = {}
    earned: dict[int, list[tuple[int, int, float, int]]] = {}


class Notes(msgspec.Struct, array_like=True):
    consumed: dict[int, int] = {}
    texts: dict[int, bytes] = {}
    decisions: dict[bytes, DecisionNotes] = {}
    credits: list[Credit] = []
    taken: dict[int, int] = {}


class Progress(msgspec.Struct, array_like=True):
    offset: int = -1
    clock: dict[str, tuple[int, bool]] = {}
    event_time: int = 0
    counts: dict[str, int] = {}
