"""Ingest on the real broker: every input of the contract to its outcome, exactly once, whatever dies."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Producer
from prometheus_client import CollectorRegistry

from headrace.streams import kafka
from headrace.streams.clock import EventClock
from headrace.streams.ingest import Ingest
from headrace.streams.messages import MAX_BYTES
from headrace.streams.metrics import Metrics
from headrace.streams.partition import partition_of
from headrace.streams.records import Batch, Entry, Erasure, Event, Identity, Request, decode_batch
from headrace.streams.settings import Settings

if TYPE_CHECKING:
    from tests.conftest import MakeSettings, WaitFor

pytestmark = pytest.mark.kafka


@dataclass
class Running:
    ingest: Ingest
    metrics: Metrics

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"headrace_{name}_total", labels) or 0.0


@contextmanager
def running(settings: Settings) -> Iterator[Running]:
    """The role in a thread; an error of its own fails the test."""
    metrics = Metrics(CollectorRegistry(), "ingest")
    ingest, errors = Ingest(settings, metrics), []

    def run() -> None:
        try:
            ingest.run()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="ingest")
    thread.start()
    try:
        yield Running(ingest, metrics)
    finally:
        ingest.stop()
        thread.join(15)
    assert not thread.is_alive()
    assert not errors, errors


def shop(settings: Settings, **over: Any) -> Producer:
    return Producer(
        kafka.client_config(settings, **{"enable_idempotence": True, "partitioner": "murmur2_random", **over})
    )


def send(settings: Settings, topic: str, *values: Any, key: str | None = None) -> None:
    """Each value in its own message: bytes as they are, None as null, anything else as JSON."""
    producer = shop(settings)
    for value in values:
        raw = value if value is None or isinstance(value, bytes) else json.dumps(value).encode()
        producer.produce(settings.topic(topic), raw, key)
    assert producer.flush(30) == 0


def make_event(i: int, user_id: Any = "u1", **changes: Any) -> dict[str, Any]:
    return {
        "event_id": f"e{i}",
        "user_id": user_id,
        "item_id": "i1",
        "type": "click",
        "ts": time.time_ns() // 1_000_000,
        **changes,
    }


def ids(entries: list[Entry]) -> list[str]:
    return [entry.event_id for entry in entries if isinstance(entry, Event)]


def read(settings: Settings, topic: str) -> list[kafka.Message]:
    """All that is committed to the topic."""
    messages: list[kafka.Message] = []
    kafka.read_to_end(settings, settings.topic(topic), messages.append)
    return messages


def batches(settings: Settings) -> list[tuple[int, Batch]]:
    """(partition, batch) of all that is committed to `interactions`."""
    return [(m.partition(), decode_batch(value)) for m in read(settings, "interactions") if (value := m.value())]


def entries(settings: Settings) -> list[Entry]:
    return [entry for _, batch in batches(settings) for entry in batch.entries]


NOT_UTF8 = b'{"event_id": "\xff\xfe", "user_id": "u1"}'
BAD_EVENTS: list[tuple[Any, str]] = [
    (b"not json", "json"),
    (NOT_UTF8, "encoding"),
    (make_event(0, user_id=7), "type"),
    (make_event(0, context={"a": {"b": 1}}), "type"),
    ({"event_id": "e", "user_id": "u1"}, "missing"),
    (make_event(0, item_id=None), "missing"),
    (make_event(0, type="teleport"), "event_type"),
    (b'{"deep": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nesting"),
    (make_event(0, user_id=""), "id"),
    (make_event(0, item_id="i" * 10_000), "id"),
    (b"x" * (MAX_BYTES - 1_000), "json"),
    (json.dumps(make_event(0, value=float("nan"))).encode(), "json"),
    (make_event(0, value=1e300), "number"),
    (make_event(0, ts=1_790_000_000), "time"),
    (make_event(0, ts=time.time_ns() // 1_000_000 + 3_600_000), "time"),
]


def test_each_bad_event_is_a_dead_letter_and_stops_nothing(settings: MakeSettings, wait_for: WaitFor) -> None:
    """Every one between good ones, untouched, with its reason and where it came from."""
    mine = settings(topics={"events_partitions": 1})
    sent: list[Any] = [make_event(0)]
    for i, (bad, _) in enumerate(BAD_EVENTS, start=1):
        sent += [bad, make_event(i)]
    with running(mine) as role:
        send(mine, "events", *sent, key="the shop's key")
        good, bad = len(BAD_EVENTS) + 1, len(BAD_EVENTS)
        wait_for(lambda: role.count("ingest_messages", topic="events", outcome="accepted") == good)
        wait_for(lambda: role.count("ingest_messages", topic="events", outcome="dead") == bad)
        for reason, n in Counter(reason for _, reason in BAD_EVENTS).items():
            assert role.count("dead_letters", topic="events", reason=reason) == n
    assert ids(entries(mine)) == [f"e{i}" for i in range(good)]
    letters = read(mine, "dead-letters")
    assert len(letters) == bad
    for i, ((raw, reason), letter) in enumerate(zip(BAD_EVENTS, letters, strict=True)):
        headers = dict(letter.headers() or [])
        word, _, sentence = (headers["reason"] or b"").decode().partition(": ")
        assert word == reason and sentence
        assert headers["source"] == f"{mine.topic('events')}[0]@{2 * i + 1}".encode()
        assert letter.key() == b"the shop's key"
        assert letter.value() == (raw if isinstance(raw, bytes) else json.dumps(raw).encode())


def test_every_topic_of_the_shop(settings: MakeSettings, wait_for: WaitFor) -> None:
    """Requests, identities and erasures become entries; rules are counted; a null value is ignored and counted."""
    mine, now = settings(), time.time_ns() // 1_000_000
    good: dict[str, dict[str, Any]] = {
        "events": make_event(1, "nobody knows him", item_id="nor it"),
        "requests": {"request_id": "q1", "user_id": "u2", "ts": now, "k": 3, "exclude": ["i9"]},
        "identities": {"user_id": "u3", "anonymous_id": "a3", "ts": now},
        "erasures": {"user_id": "u4", "ts": now},
        "rules": {"rule_id": "no-tobacco", "action": "exclude", "where": {"category": "tobacco"}},
    }
    with running(mine) as role:
        for topic, message in good.items():
            key = "no-tobacco" if topic == "rules" else "k"
            send(mine, topic, message, {}, None, message | {"colour": "red", "size": 4}, key=key)
        for topic in good:
            accepted, ignored = (3, 0) if topic == "rules" else (2, 1)  # a null takes a rule back
            wait_for(lambda t=topic, n=accepted: role.count("ingest_messages", topic=t, outcome="accepted") == n)
            wait_for(lambda t=topic, n=ignored: role.count("ingest_messages", topic=t, outcome="ignored") == n)
            wait_for(lambda t=topic: role.count("dead_letters", topic=t, reason="missing") == 1)
            assert role.count("unknown_fields", topic=topic) == 2
    found = entries(mine)
    assert Counter(type(entry) for entry in found) == {Event: 2, Request: 2, Identity: 2, Erasure: 2}
    assert all(entry.sent_ms - now in range(60_000) for entry in found), "the Kafka timestamp of the shop's message"
    (request,) = {entry.request_id: entry for entry in found if isinstance(entry, Request)}.values()
    assert (request.user_id, request.k, request.exclude) == ("u2", 3, ["i9"])


def test_the_user_decides_the_partition_as_kafkas_own_partitioner_would(
    settings: MakeSettings, wait_for: WaitFor
) -> None:
    """Unkeyed, keyed by something else, placed by hand: each user's entries in one partition, in order."""
    mine = settings(topics={"events_partitions": 3, "interactions_partitions": 5})
    users = ["u1", "u22", "user-333", "öß", "漢字", *(f"u{i}" for i in range(100, 140))]
    partitions: dict[str, int] = {}

    def delivered(_error: object, message: Any) -> None:
        partitions[message.key().decode()] = message.partition()

    client = shop(mine)  # the reference: librdkafka's own murmur2 on a topic of as many partitions
    for user in users:
        client.produce(mine.topic("users-changelog"), b"", user.encode(), on_delivery=delivered)
    assert client.flush(30) == 0
    assert {user: partition_of(user, 5) for user in users} == partitions

    foreign = shop(mine, partitioner="consistent_random")
    for i, user in enumerate(users):
        for again, key in enumerate((None, b"foreign", user.encode())):
            event = make_event(3 * i + again, user)
            foreign.produce(mine.topic("events"), json.dumps(event).encode(), key, partition=i % 3)
    assert foreign.flush(30) == 0
    with running(mine) as role:
        wait_for(lambda: role.count("ingest_messages", topic="events", outcome="accepted") == 3 * len(users))
    seen: dict[str, list[str]] = defaultdict(list)
    for partition, batch in batches(mine):
        for entry in batch.entries:
            assert partition == partitions[entry.user_id]
            seen[entry.user_id] += ids([entry])
    assert seen == {user: [f"e{3 * i}", f"e{3 * i + 1}", f"e{3 * i + 2}"] for i, user in enumerate(users)}


def test_the_largest_messages_pass(settings: MakeSettings, wait_for: WaitFor) -> None:
    """1 MB of text, and the message that grows most as msgpack: the settings of the topics fit what they must carry."""
    mine = settings(topics={"events_partitions": 1, "max_message_bytes": 2 * MAX_BYTES})
    grows = {f"{i:x}": 1 for i in range(70_000)}
    large = [make_event(1, type="post", text="x" * (MAX_BYTES - 300)), make_event(2, context=grows)]
    too_large = make_event(3, type="post", text="x" * MAX_BYTES)
    with running(mine) as role:
        send(mine, "events", *large, too_large, make_event(4))
        wait_for(lambda: role.count("ingest_messages", topic="events", outcome="accepted") == 3)
        wait_for(lambda: role.count("dead_letters", topic="events", reason="too_large") == 1)
    found = entries(mine)
    assert ids(found) == ["e1", "e2", "e4"]
    assert isinstance(found[1], Event) and found[1].context == grows
    assert len(read(mine, "dead-letters")[0].value() or b"") > MAX_BYTES


def test_reading_ahead_is_bounded_by_bytes(settings: MakeSettings, wait_for: WaitFor) -> None:
    """20 MB wait; of them never more than the buffer, and one take, is held."""
    mine = settings(topics={"events_partitions": 2}, ingest={"buffer_bytes": 2_097_152, "batch_bytes": 65_536})
    text = "x" * 10_000
    send(mine, "events", *(make_event(i, f"u{i % 50}", type="post", text=text) for i in range(2_000)))
    held = []
    with running(mine) as role:

        def all_accepted() -> bool:
            held.append(role.ingest.held_bytes)
            return role.count("ingest_messages", topic="events", outcome="accepted") == 2_000

        wait_for(all_accepted)
    assert 0 < max(held) <= 2 * 2_097_152
    assert Counter(ids(entries(mine))) == Counter(f"e{i}" for i in range(2_000))
    assert all(len(m.value() or b"") <= 65_536 + 100 for m in read(mine, "interactions"))


def test_ticks_tell_every_partition_the_time(settings: MakeSettings, wait_for: WaitFor) -> None:
    """Also the partitions without entries; when the shop is silent event time moves on; it never falls."""
    mine = settings(
        topics={"events_partitions": 2, "interactions_partitions": 3}, ingest={"tick": 50, "idle_after": 300}
    )
    start = time.time_ns() // 1_000_000
    old = start - 86_400_000  # an old log, whose time stands still until the log ends
    with running(mine) as role:
        send(mine, "events", *(make_event(i, f"u{i}", ts=old + i) for i in range(50)))

        def clocks() -> dict[int, EventClock]:
            known = {partition: EventClock({}, 0) for partition in range(3)}
            for partition, batch in batches(mine):
                after = known[partition].advanced(batch)
                assert after.now >= known[partition].now
                known[partition] = after
            return known

        wait_for(lambda: all(clock.now >= old + 49 + 1_000 for clock in clocks().values()), 10)
        elapsed = time.time_ns() // 1_000_000 - start
        assert all(clock.now <= old + 49 + elapsed for clock in clocks().values())
        assert role.count("ingest_messages", topic="events", outcome="accepted") == 50
    ticks = [batch for _, batch in batches(mine) if not batch.entries]
    assert any(not batch.idle for batch in ticks), "while events came"
    assert any(batch.idle for batch in ticks), "when they had stopped"
    assert any(batch.tick for batch in ticks), "the learner is told to cut a version"


def test_duplicates_pass(settings: MakeSettings, wait_for: WaitFor) -> None:
    """Only the worker's state knows a duplicate: ingest changes nothing."""
    mine = settings()
    event = make_event(1)
    with running(mine) as role:
        send(mine, "events", event, event, key="u1")
        send(mine, "events", event, key="u1")
        wait_for(lambda: role.count("ingest_messages", topic="events", outcome="accepted") == 3)
    assert ids(entries(mine)) == ["e1"] * 3


def test_it_goes_on_where_it_stopped_and_shares_with_a_second(settings: MakeSettings, wait_for: WaitFor) -> None:
    """Stopped, started, joined by another process while events come: each event once."""
    mine = settings()
    with running(mine) as role:
        send(mine, "events", *(make_event(i, f"u{i}") for i in range(100)))
        wait_for(lambda: role.count("ingest_messages", topic="events", outcome="accepted") == 100)
    send(mine, "events", *(make_event(i, f"u{i}") for i in range(100, 200)))
    with running(mine) as first:
        wait_for(lambda: first.ingest.ready)
        with running(mine) as second:
            sent = 200

            def shared() -> bool:
                """The group is balanced when it is, and a producer without keys fills one partition at a time."""
                nonlocal sent
                send(mine, "events", *(make_event(i, f"u{i}") for i in range(sent, sent + 20)))
                sent += 20
                return second.count("ingest_messages", topic="events", outcome="accepted") > 0

            wait_for(shared)

            def accepted() -> float:
                return sum(r.count("ingest_messages", topic="events", outcome="accepted") for r in (first, second))

            wait_for(lambda: accepted() == sent - 100)
    assert Counter(ids(entries(mine))) == Counter(f"e{i}" for i in range(sent))
