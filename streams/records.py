"""What travels between headrace's own roles: msgpack arrays, typed, one union a topic.

Internal: documented in docs/events.md, free to change between minor versions (fields are only appended, so that a
record of the release before is read).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import msgspec

Context = dict[str, str | float | bool]


# -- interactions: ingest → worker ------------------------------------------------------------------------------------


class Event(msgspec.Struct, array_like=True, tag_field="kind", tag=1, gc=False, frozen=True):
    """One validated event. `sent_ms` is the Kafka timestamp of the shop's message."""

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
    via: list[str] | None = None  # ids that it was forwarded from, the first the one it was sent as: people/identity.py


class Request(msgspec.Struct, array_like=True, tag_field="kind", tag=2, gc=False, frozen=True):
    """One validated request for a slate."""

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
    via: list[str] | None = None  # as in Event


class Identity(msgspec.Struct, array_like=True, tag_field="kind", tag=3, gc=False, frozen=True):
    """An anonymous id turns out to be a known user."""

    user_id: str
    anonymous_id: str
    ts: int
    sent_ms: int


class Erasure(msgspec.Struct, array_like=True, tag_field="kind", tag=4, gc=False, frozen=True):
    """Forget this user: what is older than `ts` is dropped when it comes."""

    user_id: str
    ts: int
    sent_ms: int
    of: str = ""  # sent by the partition of this user, into whom `user_id` had been merged
    among: list[str] = []  # ids that were merged into `of`: `user_id` is his where its alias leads to him or to these


class MergeAsk(msgspec.Struct, array_like=True, tag_field="kind", tag=5, gc=False, frozen=True):
    """From the partition of `into`: what `user_id` is, it is to be. `named` and `user` are those of the identity."""

    user_id: str
    into: str
    named: str
    user: str
    known: bool  # `user` had been a user before the message
    ts: int
    sent_ms: int
    via: list[str] = []


class Carried(msgspec.Struct, array_like=True, tag_field="kind", tag=6, gc=False, frozen=True):
    """From the partition of `sent_as`: all that was known of that id, which `user_id` is now. `state` is packed."""

    user_id: str
    sent_as: str
    state: bytes
    ts: int
    sent_ms: int
    via: list[str] = []
    due: Event | None = None
    requests: list[Request] = []


class Unalias(msgspec.Struct, array_like=True, tag_field="kind", tag=7, gc=False, frozen=True):
    """From the partition of `of`: it can keep no note of this id any more; what comes under it is a new user's."""

    user_id: str
    of: str
    ts: int
    sent_ms: int
    among: list[str] = []  # as in Erasure


Entry = Event | Request | Identity | Erasure | MergeAsk | Carried | Unalias
"""What ingest writes, and what one partition's worker writes to another's: MergeAsk, Carried, Unalias."""


class Batch(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """One record of `interactions`: a micro-batch in the order read, or a tick when `entries` is empty.

    `source` is the source, as `topic/partition`. `watermark` is the largest event time (ms) that this source has
    read, 0
    where unknown. An `idle` source holds no partition's event time back: that is the smallest watermark among the
    sources
    that are not idle, or the largest of all where every one is. It never falls. `tick`: nothing else would have been
    written now; the learner cuts a version here.
    """

    source: str
    watermark: int
    idle: bool = False
    tick: bool = False
    entries: list[Entry] = []


# -- item-vectors: catalogue → worker ---------------------------------------------------------------------------------


class Item(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """One item as the catalogue knows it; the key is the item id. Keys with a zero byte first are the catalogue's own.

    `vector` is float16, L2-normalised, shape (text_dim,), empty for a cold id. `vector_hash` names its content.
    `source` and `offset` are the coordinates of the shop's message: a record with an older offset is ignored.
    `pending`: the vector follows in a record of the same offset; until then the one known so far stands.
    `removed`: such a record stays in the topic, so that whoever reads it learns of the removal.
    `sent_ms`: when the shop sent the message; 0 where the record brings nothing that was waited for.
    """

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
    generation: int = 0  # the number of the content that the vector is made of, or was last: contents.py
    text_version: str = ""  # of the text encoder whose space the vector lies in; "": by the release before
    attributes: dict[str, str | float | bool] = {}  # what rules ask for, as far as the settings say to carry it
    since_ms: int = 0  # when the item was first known; 0: by the release before


# -- transitions: worker → learner ------------------------------------------------------------------------------------


class Opened(msgspec.Struct, array_like=True, tag_field="kind", tag=1, gc=False, frozen=True):
    """A decision with all that learning needs. Arrays are little-endian bytes.

    k = items in the slate, n = candidates, d = state, m = scalar features, c = context features.
    """

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
    slate: list[str]  # k item ids
    propensities: bytes  # float64 (k,)
    state: bytes  # float32 (d,)
    context: bytes  # float32 (c,)
    items: bytes  # float16 (k, d): the slate's item vectors in the state's space
    scalars: bytes  # float32 (k, m)
    candidates: bytes  # uint64 (n,): item keys
    explored: bytes  # uint8 (k,)
    # Of a sampled share of decisions (decisions.full_share), all that it takes to score every candidate again:
    all_items: bytes = b""  # float16 (n, d), in the order of `candidates`
    all_scalars: bytes = b""  # float32 (n, m)
    busy: bool = False  # the user is a crawler, or acts like one: nothing is learned from this
    encoder_serial: int = 0  # of the announcement by which the encoder serves, 0 for the settings' own
    rules: list[str] = []  # ids of the rules that bound this slate
    rules_at: int = -1  # offset in `rules` up to which rules were known
    constraints: bytes = b""  # where `all_items` is there and rules bound: what they came to (rules/logged.py)
    shadow: bool = False  # it went to the side topic: nobody saw it unless the shop says so
    restricted: bool = False  # rules chose what the first position could hold: it does not tell the candidates' number
    entries: bytes = b""  # uint64 (h,) keys, then uint8 (h,) types: the latest history entries, latest first
    lowered: bytes = b""  # float16 (h, k): how much lower each item would be scored without each of them


class Outcome(msgspec.Struct, array_like=True, tag_field="kind", tag=2, gc=False, frozen=True):
    """What the user did with a decision, at once. An impression is an outcome whose `positions` were shown.

    `reward` is by how much this outcome changes the reward (of each position) under `reward_version`; of a `return` it
    is negative. `order` names the order line, a `return`'s the one that it takes back.
    `matched` is "id" (the event named the decision) or "item" (the latest decision that showed the item).
    """

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
    order: int = 0  # 64-bit hash, 0: none
    busy: bool = False  # as in Opened


class Closed(msgspec.Struct, array_like=True, tag_field="kind", tag=3, gc=False, frozen=True):
    """The end of a decision. `closed_as`: shown, unshown, altered (the shop showed something else), erased.

    `shown` are the positions shown, `rewards` their rewards, in the same order.
    """

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
    elapsed_ms: int | None = None  # from this decision to the next; None where there is none (terminal)
    next_state: bytes | None = None  # float32 (d,)


class Behaviour(msgspec.Struct, array_like=True, tag_field="kind", tag=4, gc=False, frozen=True):
    """One interaction with an item, for popularity and co-occurrence. `previous` are the item keys before it, latest
    first."""

    item: int
    type: str
    ts: int
    previous: bytes  # uint64 (≤ 4,)


class Erased(msgspec.Struct, array_like=True, tag_field="kind", tag=5, gc=False, frozen=True):
    """This user was erased: his open decisions end here."""

    user_id: str
    ts: int


Transition = Opened | Outcome | Closed | Behaviour | Erased


class Transitions(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """One record of `transitions`: what one record of `interactions` led to."""

    partition: int
    offset: int
    event_time: int
    tick: bool
    records: list[Transition]


# -- policy-versions: learner → worker --------------------------------------------------------------------------------


class PolicyVersion(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """One record of `policy-versions`, keyed by `part`: the learner's committed checkpoint and what the workers serve.

    `part` is the policy's name, or a shard of it (`item_to_item/17`). `offset` is the last `transitions` offset this
    part
    has learned from, `replay_from` the offset from which a restart must read to rebuild what is not in `arrays`.
    """

    part: str
    policy: str
    version: int
    offset: int
    replay_from: int
    created_ms: int
    sha256: str
    arrays: bytes  # safetensors
    meta: dict[str, str | int | float]


# -- policy-commands: a person → learner ------------------------------------------------------------------------------


class Command(msgspec.Struct, frozen=True):
    """What somebody wants of the learner, as JSON. `action`: freeze, unfreeze, pin, promote, rollback of a policy; ramp
    of an arm, whose name `policy` then is; live, shadow of all."""

    command_id: str
    action: str
    policy: str
    who: str
    why: str
    ts: int
    version: int | None = None
    share: float | None = None


# -- encoder-versions: a person → learner, workers, catalogue ----------------------------------------------------------


class Announcement(msgspec.Struct, frozen=True):
    """Which encoders are to serve, as JSON. `user` and `text` are what the settings `encoder.artifact` and
    `catalogue.text_model` could say; each version is the one that must be found there.

    `origin`: "command", or "settings" where the learner found other artifacts in its settings than the last time.
    """

    user: str
    user_version: str
    text: str
    text_version: str
    who: str
    why: str
    ts: int
    origin: str = "command"


def encode(record: msgspec.Struct) -> bytes:
    return _encoder.encode(record)


_encoder = msgspec.msgpack.Encoder()
decode_batch = msgspec.msgpack.Decoder(Batch).decode
decode_item = msgspec.msgpack.Decoder(Item).decode
decode_transitions = msgspec.msgpack.Decoder(Transitions).decode
decode_policy_version = msgspec.msgpack.Decoder(PolicyVersion).decode
encode_command = msgspec.json.Encoder().encode
decode_command = msgspec.json.Decoder(Command).decode
encode_announcement = msgspec.json.Encoder().encode
decode_announcement = msgspec.json.Decoder(Announcement).decode


_TRANSITIONS_BYTES = 400_000  # a record of `transitions` stays under a broker's usual 1 MB


def pack_transitions(
    partition: int, offset: int, event_time: int, *, tick: bool, records: list[Transition]
) -> Iterator[bytes]:
    """One record of `transitions`, or several where one would be too large; the tick stands on the last."""
    chunk: list[Transition] = []
    size = 0
    for record in records:
        weight = _weight(record)
        if chunk and size + weight > _TRANSITIONS_BYTES:
            yield encode(Transitions(partition, offset, event_time, False, chunk))
            chunk, size = [], 0
        chunk.append(record)
        size += weight
    yield encode(Transitions(partition, offset, event_time, tick, chunk))


def _weight(record: Transition) -> int:
    """At most about so many bytes: ids may be 256 bytes long."""
    if isinstance(record, Opened):
        arrays = len(record.items) + len(record.candidates) + len(record.scalars) + len(record.state)
        arrays += len(record.all_items) + len(record.all_scalars)
        return arrays + 700 + 300 * len(record.slate)
    return 1_200


def item_key(item_id: str) -> int:
    """The 64-bit key of an item inside headrace: BLAKE2b of its id. Two of 10⁶ items collide with probability
    3·10⁻⁸."""
    return int.from_bytes(hashlib.blake2b(item_id.encode(), digest_size=8).digest(), "little")
