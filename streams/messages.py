"""What the shop writes, as JSON: decoded and validated in one pass, or refused with a reason (docs/events.md).

Nothing here raises on bad input: every method of `Decoder` gives a record or a `Rejection`. A field that the contract
does not know makes msgspec's strict decoder stop, and only then is the message decoded again without it, and counted:
messages that keep to the contract never pay for the count.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Generic, Literal, NoReturn, TypeVar

import msgspec

from headrace.streams.people.optout import choice
from headrace.streams.records import Context, Erasure, Event, Identity, Request
from headrace.streams.rules.rule import Rule, fault
from headrace.streams.settings import Settings

MAX_BYTES = 1_048_576  # of a message's value
MIN_TIME_MS = 10**11  # March 1973 in milliseconds; a time in seconds stays below it until the year 5138
MAX_NUMBER = 1e15  # beyond it a double no longer holds hundredths
MAX_DIMENSIONS = 4_096
MAX_ITEMS = 10_000  # in `shown`, `candidates`, `exclude`
MAX_K = 100
MAX_POSITION = 9_999

Reason = Literal[
    "encoding",  # not UTF-8
    "json",  # not JSON
    "nesting",  # nested too deeply to be read
    "type",  # not an object, or a field of the wrong type
    "missing",  # a required field is not there
    "id",  # an id is empty, longer than 256 bytes or holds control characters
    "time",  # a time is in seconds, or too far in the future
    "number",  # out of range
    "vector",  # no dimensions, too many, or all zero
    "event_type",  # neither built in nor declared in the settings
    "placement",  # not declared in the settings
    "too_large",  # the message, or a list in it
    "rule",  # a rule whose value or where cannot be kept
    "conflict",  # a rule that cannot be in force beside another
]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Rejection(msgspec.Struct, frozen=True):
    """Why a message goes to `dead-letters`: a word from the closed list, and a sentence for a person."""

    reason: Reason
    sentence: str

    def headers(self, *, topic: str, partition: int, offset: int) -> list[tuple[str, str | bytes | None]]:
        """The dead letter's headers: `reason` (`word: sentence`) and `source` (`topic[partition]@offset`)."""
        return [
            ("reason", f"{self.reason}: {self.sentence}".encode()),
            ("source", f"{topic}[{partition}]@{offset}".encode()),
        ]


class ShopItem(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One message of `items`. `vector` is the shop's own, 1 to 4096 finite numbers, not all zero."""

    item_id: str
    title: str | None = None
    text: str | None = None
    category: str | None = None
    price: float | None = None
    available: bool | None = None  # absent: available
    attributes: dict[str, Any] | None = None
    vector: list[float] | None = None


class _Event(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    event_id: str
    user_id: str
    type: str
    ts: int
    item_id: str | None = None
    value: float | None = None
    quantity: float | None = None
    order_id: str | None = None
    recommendation_id: str | None = None
    position: int | None = None
    placement: str | None = None
    text: str | None = None
    context: dict[str, str | float | bool | None] | None = None
    shown: list[str] | None = None


class _Request(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    request_id: str
    user_id: str
    ts: int
    k: int | None = None
    placement: str | None = None
    anchor_item_id: str | None = None
    candidates: list[str] | None = None
    exclude: list[str] | None = None
    context: dict[str, str | float | bool | None] | None = None


class _Identity(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    user_id: str
    anonymous_id: str
    ts: int


class _Erasure(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    user_id: str
    ts: int


class _Refused(Exception):
    def __init__(self, reason: Reason, sentence: str) -> None:
        self.rejection = Rejection(reason, sentence)


T = TypeVar("T", bound=msgspec.Struct)


class Decoder:
    """Reads the shop's messages by the contract and the settings' event types and placements.

    `unknown` is called with the topic's name and how many unknown fields an accepted message carried.
    """

    def __init__(self, settings: Settings, *, unknown: Callable[[str, int], None] | None = None) -> None:
        self._types = settings.event_types
        self._placements = settings.placements
        self._attributes = settings.rules.attributes
        self._max_ahead_ms = settings.ingest.max_ahead
        self._event = _Json("events", _Event, unknown)
        self._request = _Json("requests", _Request, unknown)
        self._identity = _Json("identities", _Identity, unknown)
        self._erasure = _Json("erasures", _Erasure, unknown)
        self._item = _Json("items", ShopItem, unknown)
        self._rule = _Json("rules", Rule, unknown)

    def event(self, raw: bytes, *, now_ms: int, sent_ms: int) -> Event | Rejection:
        """`now_ms` is the wall clock, against which a future time is refused; `sent_ms` the Kafka timestamp."""
        try:
            m = self._event(raw)
            kind = self._types.get(m.type)
            if kind is None:
                _refuse(
                    "event_type",
                    f"unknown event type {_clip(m.type)}: use a built-in one or declare it in [event_types]",
                )
            _check_id("event_id", m.event_id)
            _check_id("user_id", m.user_id)
            self._check_time(m.ts, now_ms)
            chooses = choice(m.type, m.item_id, m.text) is not None
            item_id = m.item_id if kind.item != "none" else None
            if item_id is not None:
                _check_id("item_id", item_id)
            elif kind.item == "required" and not chooses:
                _refuse("missing", f"a {m.type} needs item_id")
            text = m.text if kind.text != "none" or chooses else None
            if kind.text == "required" and not text:
                _refuse("missing", f"a {m.type} needs text")
            _check_ids(order_id=m.order_id, recommendation_id=m.recommendation_id, placement=m.placement)
            _check_number("value", m.value)
            _check_number("quantity", m.quantity)
            if m.position is not None and not 0 <= m.position <= MAX_POSITION:
                _refuse("number", f"position must be 0 to {MAX_POSITION}")
            _check_list("shown", m.shown)
            return Event(
                m.event_id,
                m.user_id,
                m.type,
                m.ts,
                sent_ms,
                item_id,
                m.value,
                m.quantity,
                m.order_id,
                m.recommendation_id,
                m.position,
                m.placement,
                text,
                _context(m.context),
                m.shown,
            )
        except _Refused as refused:
            return refused.rejection

    def request(self, raw: bytes, *, now_ms: int, sent_ms: int) -> Request | Rejection:
        try:
            m = self._request(raw)
            _check_id("request_id", m.request_id)
            _check_id("user_id", m.user_id)
            self._check_time(m.ts, now_ms)
            if m.k is not None and not 1 <= m.k <= MAX_K:
                _refuse("number", f"k must be 1 to {MAX_K}")
            if m.placement is not None:
                self._check_placement(m.placement)
            _check_ids(anchor_item_id=m.anchor_item_id)
            _check_list("candidates", m.candidates)
            _check_list("exclude", m.exclude)
            return Request(
                m.request_id,
                m.user_id,
                m.ts,
                sent_ms,
                m.k,
                m.placement,
                m.anchor_item_id,
                m.candidates,
                m.exclude,
                _context(m.context),
            )
        except _Refused as refused:
            return refused.rejection

    def identity(self, raw: bytes, *, now_ms: int, sent_ms: int) -> Identity | Rejection:
        try:
            m = self._identity(raw)
            _check_id("user_id", m.user_id)
            _check_id("anonymous_id", m.anonymous_id)
            self._check_time(m.ts, now_ms)
            return Identity(m.user_id, m.anonymous_id, m.ts, sent_ms)
        except _Refused as refused:
            return refused.rejection

    def erasure(self, raw: bytes, *, now_ms: int, sent_ms: int) -> Erasure | Rejection:
        try:
            m = self._erasure(raw)
            _check_id("user_id", m.user_id)
            self._check_time(m.ts, now_ms)
            return Erasure(m.user_id, m.ts, sent_ms)
        except _Refused as refused:
            return refused.rejection

    def item(self, raw: bytes) -> ShopItem | Rejection:
        try:
            m = self._item(raw)
            _check_id("item_id", m.item_id)
            if m.price is not None and not 0 <= m.price <= MAX_NUMBER:
                _refuse("number", f"price must be 0 to {MAX_NUMBER:g}")
            if m.vector is not None:
                _check_vector(m.vector)
            return m
        except _Refused as refused:
            return refused.rejection

    def rule(self, raw: bytes) -> Rule | Rejection:
        try:
            m = self._rule(raw)
            _check_id("rule_id", m.rule_id)
            if m.placement != "*":
                self._check_placement(m.placement)
            if m.until is not None:
                _check_past(m.until, "until")
            if (sentence := fault(m, attributes=self._attributes)) is not None:
                _refuse("rule", sentence)
            return m
        except _Refused as refused:
            return refused.rejection

    def _check_time(self, ts: int, now_ms: int) -> None:
        _check_past(ts, "ts")
        if ts > now_ms + self._max_ahead_ms:
            _refuse("time", f"ts {_clip(ts)} is more than {self._max_ahead_ms // 1000} s in the future")

    def _check_placement(self, placement: str) -> None:
        if placement not in self._placements:
            known = ", ".join(sorted(self._placements))
            _refuse(
                "placement", f"unknown placement {_clip(placement)}: use one of {known} or declare it in [placements]"
            )


class _Json(Generic[T]):
    """One topic's decoder: strict, and where that stops, again without the fields that the contract does not know."""

    def __init__(self, topic: str, kind: type[T], unknown: Callable[[str, int], None] | None) -> None:
        self._topic = topic
        self._known = frozenset(kind.__struct_encode_fields__)
        self._strict: Callable[[bytes], T] = msgspec.json.Decoder(kind).decode
        self._unknown = unknown

    def __call__(self, raw: bytes) -> T:
        if len(raw) > MAX_BYTES:
            _refuse("too_large", f"{len(raw)} bytes: a message of up to {MAX_BYTES} is read")
        try:
            return self._strict(raw)
        except msgspec.ValidationError:
            # The order of fields decides which fault msgspec meets first: only the second look tells the outcome.
            return self._read_known(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            _refuse_undecodable(raw, error)

    def _read_known(self, raw: bytes) -> T:
        try:
            raw.decode()  # msgspec does not look into the strings it skips
            fields = _fields(raw)
            known = {name: value for name, value in fields.items() if name in self._known}
            decoded = self._strict(msgspec.json.encode(known))
            if self._unknown is not None:
                self._unknown(self._topic, len(fields) - len(known))
            return decoded
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            _refuse_undecodable(raw, error)


_fields: Callable[[bytes], dict[str, msgspec.Raw]] = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def _refuse(reason: Reason, sentence: str) -> NoReturn:
    raise _Refused(reason, sentence)


def _refuse_undecodable(raw: bytes, error: Exception) -> NoReturn:
    """msgspec's own sentence names the field; its first words tell the reason apart."""
    sentence = str(error)
    try:
        raw.decode()
    except UnicodeDecodeError as not_utf8:
        _refuse("encoding", f"not UTF-8 at byte {not_utf8.start}")
    if isinstance(error, RecursionError):
        _refuse("nesting", "nested too deeply to be read")
    if not isinstance(error, msgspec.ValidationError):
        _refuse("json", sentence)
    if sentence.startswith("Object missing required field"):
        _refuse("missing", sentence)
    if "out of range" in sentence:
        _refuse("number", sentence)
    _refuse("type", sentence)


def _check_id(name: str, value: str) -> None:
    if 0 < len(value) <= 64 and value.isprintable():  # at most 256 bytes, and nothing printable is a control character
        return
    size = len(value.encode())
    if not 1 <= size <= 256:
        _refuse("id", f"{name} has {size} bytes: an id has 1 to 256")
    if _CONTROL.search(value):
        _refuse("id", f"{name} {_clip(value)} holds control characters")


def _check_ids(**ids: str | None) -> None:
    for name, value in ids.items():
        if value is not None:
            _check_id(name, value)


def _check_list(name: str, ids: list[str] | None) -> None:
    if ids is None:
        return
    if len(ids) > MAX_ITEMS:
        _refuse("too_large", f"{name} holds {len(ids)} ids: at most {MAX_ITEMS}")
    for value in ids:
        _check_id(name, value)


def _check_past(time_ms: int, name: str) -> None:
    """Refuses what is earlier than 10^11, and what no clock will reach."""
    if time_ms < MIN_TIME_MS:
        _refuse("time", f"{name} {_clip(time_ms)} is before 10^11: times are Unix milliseconds, not seconds")
    if time_ms > MAX_NUMBER:
        _refuse("time", f"{name} is too large: times are Unix milliseconds")


def _check_number(name: str, value: float | None) -> None:
    if value is not None and not -MAX_NUMBER <= value <= MAX_NUMBER:
        _refuse("number", f"{name} {value:g} is out of range: at most {MAX_NUMBER:g}")


def _check_vector(vector: list[float]) -> None:
    if not 1 <= len(vector) <= MAX_DIMENSIONS:
        _refuse("vector", f"vector has {len(vector)} dimensions: 1 to {MAX_DIMENSIONS}")
    for value in vector:
        _check_number("vector", value)
    if not math.hypot(*vector) > 0:
        _refuse("vector", "vector is all zero: leave it out instead")


def _context(context: dict[str, str | float | bool | None] | None) -> Context | None:
    """Nulls are dropped: a field that is null is a field that is not there."""
    if context is None:
        return None
    for value in context.values():
        if isinstance(value, float):
            _check_number("context", value)
    return {name: value for name, value in context.items() if value is not None}


def _clip(value: str | int) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
