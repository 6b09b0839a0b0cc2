"""The shop's messages: the contract's bad inputs each get their reason, and no bytes whatever raise."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.streams import messages
from headrace.streams.messages import Decoder, Reason, Rejection, ShopItem
from headrace.streams.records import Erasure, Event, Identity, Request
from headrace.streams.rules.rule import Rule
from headrace.streams.settings import EventType, Settings, builtin_event_types

NOW = 1_790_000_000_000
SENT = NOW + 7

SETTINGS = Settings(event_types={**builtin_event_types(), "wave": EventType(item="none", text="none")})


@pytest.fixture
def unknown() -> Counter[str]:
    return Counter()


@pytest.fixture
def decoder(unknown: Counter[str]) -> Decoder:
    return Decoder(SETTINGS, unknown=lambda topic, n: unknown.update({topic: n}))


def make_event(**changes: Any) -> dict[str, Any]:
    event = {"event_id": "e1", "user_id": "u1", "item_id": "i1", "type": "click", "ts": NOW, **changes}
    return {name: value for name, value in event.items() if value is not ...}


def read(decoder: Decoder, event: dict[str, Any] | bytes) -> Event | Rejection:
    raw = event if isinstance(event, bytes) else json.dumps(event, ensure_ascii=False).encode()
    return decoder.event(raw, now_ms=NOW, sent_ms=SENT)


def reason_of(outcome: object) -> str:
    assert isinstance(outcome, Rejection), outcome
    assert outcome.reason in get_args(Reason)
    assert outcome.sentence
    return outcome.reason


def test_every_field_of_an_event_arrives(decoder: Decoder) -> None:
    event = make_event(
        value=19.9,
        quantity=2,
        order_id="o-55",
        recommendation_id="r-9c…",
        position=2,
        placement="home",
        text="nice",
        context={"device": "mobile", "screen": 2, "app": True, "gone": None},
        shown=["i1", "i2"],
    )
    assert read(decoder, event) == Event(
        event_id="e1",
        user_id="u1",
        type="click",
        ts=NOW,
        sent_ms=SENT,
        item_id="i1",
        value=19.9,
        quantity=2.0,
        order_id="o-55",
        recommendation_id="r-9c…",
        position=2,
        placement="home",
        text="nice",
        context={"device": "mobile", "screen": 2.0, "app": True},
        shown=["i1", "i2"],
    )


def test_the_event_type_says_what_is_needed(decoder: Decoder) -> None:
    assert isinstance(read(decoder, make_event(type="search", item_id=..., text="red shoes")), Event)
    assert isinstance(read(decoder, make_event(type="impression", item_id=..., shown=["i1"])), Event)
    wave = read(decoder, make_event(type="wave", text="not read"))
    assert isinstance(wave, Event) and wave.item_id is None and wave.text is None


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (b"", "json"),
        (b"not json", "json"),
        (b"null", "type"),
        (b"[]", "type"),
        (b'{"event_id": "e1"', "json"),
        (json.dumps(make_event()).encode() + b" x", "json"),
        (json.dumps(make_event()).encode("utf-16"), "encoding"),
        (b'{"event_id": "\xff\xfe"}', "encoding"),
        (json.dumps(make_event(extra="?")).encode().replace(b"?", b"\xff"), "encoding"),
        (json.dumps(make_event(extra=0)).encode().replace(b"0}", b"[" * 50_000 + b"]" * 50_000 + b"}"), "nesting"),
        (b"[" * 1_000_000, "type"),
        (make_event(context={"a": {"b": 1}}), "type"),
        (make_event(user_id=7), "type"),
        (make_event(ts=str(NOW)), "type"),
        (make_event(ts=NOW + 0.5), "type"),
        (make_event(shown="i1"), "type"),
        (make_event(event_id=...), "missing"),
        (make_event(user_id=...), "missing"),
        (make_event(type=...), "missing"),
        (make_event(ts=...), "missing"),
        (make_event(item_id=...), "missing"),
        (make_event(type="search", text=""), "missing"),
        (make_event(type="teleport"), "event_type"),
        (make_event(user_id=""), "id"),
        (make_event(item_id="i" * 10_000), "id"),
        (make_event(event_id="é" * 129), "id"),
        (make_event(user_id="a\x00b"), "id"),
        (make_event(user_id="a\x85b"), "id"),
        (make_event(order_id=""), "id"),
        (make_event(shown=["i1", ""]), "id"),
        (make_event(ts=NOW // 1000), "time"),
        (make_event(ts=-1), "time"),
        (make_event(ts=NOW + 300_001), "time"),
        (make_event(ts=10**400), "time"),
        (json.dumps(make_event(value=float("nan"))).encode(), "json"),
        (json.dumps(make_event(value=float("inf"))).encode(), "json"),
        (json.dumps(make_event(value=0)).encode().replace(b": 0", b": 1e999"), "number"),
        (json.dumps(make_event(value=0)).encode().replace(b": 0", b": " + b"9" * 5_000), "number"),
        (make_event(value=1e300), "number"),
        (make_event(context={"a": -1e300}), "number"),
        (make_event(position=-1), "number"),
        (make_event(position=10**30), "number"),
        (make_event(shown=["i"] * 10_001), "too_large"),
        (make_event(type="search", text="x" * messages.MAX_BYTES), "too_large"),
    ],
)
def test_a_bad_event_gets_its_reason(decoder: Decoder, event: dict[str, Any] | bytes, reason: str) -> None:
    assert reason_of(read(decoder, event)) == reason


@pytest.mark.parametrize(
    "event",
    [
        make_event(user_id="u" * 256),
        make_event(user_id="é" * 128),
        make_event(item_id="schuhe/größe 42 · \u00a0neu"),
        make_event(ts=10**11),
        make_event(ts=NOW + 300_000),
        make_event(value=None, context=None, shown=None),
        make_event(type="post", text="x" * (messages.MAX_BYTES - 200)),
    ],
)
def test_what_is_just_allowed_is_read(decoder: Decoder, event: dict[str, Any]) -> None:
    assert isinstance(read(decoder, event), Event)


def test_unknown_fields_are_ignored_and_counted(decoder: Decoder, unknown: Counter[str]) -> None:
    plain = read(decoder, make_event())
    assert unknown == {}
    assert read(decoder, make_event(colour="red", nested={"deep": [1, 2]}, ts=NOW)) == plain
    assert unknown == {"events": 2}
    assert reason_of(read(decoder, make_event(colour="red", ts="x"))) == "type"
    assert unknown == {"events": 2}, "a refused message counts as refused alone"


def test_requests(decoder: Decoder) -> None:
    request = {"request_id": "q1", "user_id": "u1", "ts": NOW, "k": 5, "candidates": ["i1"], "exclude": ["i9"]}

    def outcome(**changes: Any) -> Request | Rejection:
        return decoder.request(json.dumps(request | changes).encode(), now_ms=NOW, sent_ms=SENT)

    assert outcome() == Request("q1", "u1", NOW, SENT, 5, None, None, ["i1"], ["i9"], None)
    assert isinstance(outcome(placement="default"), Request)
    assert reason_of(outcome(placement="nowhere")) == "placement"
    assert reason_of(outcome(k=0)) == "number"
    assert reason_of(outcome(request_id="")) == "id"
    assert reason_of(outcome(candidates=[""])) == "id"


def test_identities_and_erasures(decoder: Decoder) -> None:
    raw = json.dumps({"user_id": "u1", "anonymous_id": "a1", "ts": NOW}).encode()
    assert decoder.identity(raw, now_ms=NOW, sent_ms=SENT) == Identity("u1", "a1", NOW, SENT)
    assert decoder.erasure(raw, now_ms=NOW, sent_ms=SENT) == Erasure("u1", NOW, SENT)
    late = json.dumps({"user_id": "u1", "anonymous_id": "a1", "ts": NOW // 1000}).encode()
    assert reason_of(decoder.identity(late, now_ms=NOW, sent_ms=SENT)) == "time"
    assert reason_of(decoder.erasure(late, now_ms=NOW, sent_ms=SENT)) == "time"


def test_items(decoder: Decoder) -> None:
    def outcome(**changes: Any) -> ShopItem | Rejection:
        return decoder.item(json.dumps({"item_id": "i7", **changes}).encode())

    full = {"title": "Shoe", "price": 89, "available": False, "attributes": {"sizes": [41, 42]}, "vector": [0.5, 1]}
    assert outcome(**full) == ShopItem(item_id="i7", **full)
    assert isinstance(outcome(), ShopItem)
    assert reason_of(outcome(vector=[])) == "vector"
    assert reason_of(outcome(vector=[0.0, 0])) == "vector"
    assert reason_of(outcome(vector=[1.0] * 4097)) == "vector"
    assert reason_of(outcome(vector=[1e300])) == "number"
    assert reason_of(outcome(vector=["a"])) == "type"
    assert reason_of(outcome(price=-1)) == "number"
    assert reason_of(outcome(item_id="")) == "id"


def test_rules(decoder: Decoder) -> None:
    def outcome(**changes: Any) -> Rule | Rejection:
        return decoder.rule(json.dumps({"rule_id": "r", "action": "exclude", **changes}).encode())

    assert isinstance(outcome(where={"category": "tobacco"}, until=NOW + 10**10), Rule)
    assert reason_of(outcome(action="hide")) == "type"
    assert reason_of(outcome(placement="nowhere")) == "placement"
    assert reason_of(outcome(until=NOW // 1000)) == "time"
    assert reason_of(outcome(value=1)) == "rule"
    assert reason_of(outcome(action="pin", where={"category": "a"}, value=-1)) == "rule"


def test_a_rejection_names_its_source() -> None:
    headers = Rejection("id", "too long").headers(topic="headrace.events", partition=3, offset=17)
    assert headers == [("reason", b"id: too long"), ("source", b"headrace.events[3]@17")]


ids = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=64)
numbers = st.floats(-1e15, 1e15)
events = st.builds(
    Event,
    event_id=ids,
    user_id=ids,
    type=st.sampled_from(["view", "purchase", "comment"]),
    ts=st.integers(10**11, NOW + 300_000),
    sent_ms=st.just(SENT),
    item_id=ids,
    value=st.none() | numbers,
    quantity=st.none() | numbers,
    order_id=st.none() | ids,
    recommendation_id=st.none() | ids,
    position=st.none() | st.integers(0, 9_999),
    placement=st.none() | ids,
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    context=st.none() | st.dictionaries(ids, ids | numbers | st.booleans(), max_size=4),
    shown=st.none() | st.lists(ids, max_size=4),
)
_decoder = Decoder(SETTINGS)


@given(events)
def test_what_a_shop_writes_is_what_is_read(event: Event) -> None:
    fields = {name: getattr(event, name) for name in event.__struct_fields__ if name != "sent_ms"}
    assert read(_decoder, fields) == event


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
fields = st.sampled_from(
    [
        "event_id",
        "request_id",
        "user_id",
        "item_id",
        "anonymous_id",
        "rule_id",
        "ts",
        "type",
        "action",
        "vector",
        "context",
    ]
)
anything = st.binary() | st.one_of(
    json_values, st.dictionaries(fields, json_values | st.just(NOW) | st.just("click"), max_size=8)
).map(lambda value: json.dumps(value).encode())


@given(anything)
def test_no_bytes_raise(raw: bytes) -> None:
    for outcome in (
        _decoder.event(raw, now_ms=NOW, sent_ms=SENT),
        _decoder.request(raw, now_ms=NOW, sent_ms=SENT),
        _decoder.identity(raw, now_ms=NOW, sent_ms=SENT),
        _decoder.erasure(raw, now_ms=NOW, sent_ms=SENT),
        _decoder.item(raw),
        _decoder.rule(raw),
    ):
        if isinstance(outcome, Rejection):
            assert reason_of(outcome)
            outcome.headers(topic="t", partition=0, offset=0)
