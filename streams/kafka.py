"""Kafka clients as headrace uses them: one configuration, transactions that survive an outage, reads to a known end.

The order on taking over a partition is `transactional_producer` (nobody else can commit any more), then
`fence_and_read` (what is committed is known), then work. DESIGN notes behind each step are in docs/decisions/.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, cast

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from headrace.streams.errors import Fatal, SettingsError
from headrace.streams.insight.cost import traffic
from headrace.streams.settings import Settings

FENCE_KEY = b"\0fence"
Headers = list[tuple[str, str | bytes | None]]
OnRecord = Callable[[bytes | None, bytes | None], None]

_log = logging.getLogger("headrace.kafka")
_SAY_AGAIN_S = 5.0


class Message(Protocol):
    """confluent_kafka.Message, which cannot be built in Python: tests make their own of this shape."""

    def topic(self) -> str: ...
    def partition(self) -> int: ...
    def offset(self) -> int: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def headers(self) -> Sequence[tuple[str, bytes | None]] | None: ...
    def timestamp(self) -> tuple[int, int]: ...
    def error(self) -> KafkaError | None: ...


class _Outage:
    """Says that the broker is away in one line every few seconds, whatever number of clients notices it."""

    def __init__(self) -> None:
        self._said = float("-inf")

    def __call__(self, error: KafkaError | str) -> None:
        now = time.monotonic()
        if now - self._said >= _SAY_AGAIN_S:
            self._said = now
            _log.warning("Kafka: %s", error if isinstance(error, str) else error.str())


say_outage = _Outage()


# -- clients ----------------------------------------------------------------------------------------------------------


def client_config(settings: Settings, **over: Any) -> dict[str, Any]:
    """The properties of one client: ours, then all of `[kafka]`, then `over` (an underscore stands for a dot)."""
    return {
        "bootstrap.servers": settings.bootstrap,
        "client.id": "headrace",
        "log_level": 2,  # librdkafka writes every failed connection to stderr; `error_cb` says it once in a while
        "error_cb": say_outage,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1_000,
        "message.max.bytes": settings.topics.large_message_bytes,
        **settings.kafka,
        **{name.replace("_", "."): value for name, value in over.items()},
    }


def consumer(settings: Settings, group_id: str, **over: Any) -> Consumer:
    """A consumer of committed records that commits no offsets of its own accord."""
    ours = {"auto_offset_reset": "earliest", "enable_auto_commit": False, "isolation_level": "read_committed"}
    return Consumer(client_config(settings, group_id=group_id, **{**ours, **over}))


def admin(settings: Settings) -> AdminClient:
    """Raises SettingsError where librdkafka does not know a property under `[kafka]`, or its value."""
    try:
        return AdminClient(client_config(settings))
    except KafkaException as error:
        raise SettingsError(
            f"[kafka] {error.args[0].str()}: mend it; librdkafka's CONFIGURATION.md lists the names"
        ) from error


def transactional_producer(settings: Settings, transactional_id: str, **over: Any) -> Producer:
    """The only writer under this id from now on: whoever wrote before is fenced, and what hung is aborted.

    Waits for a broker that is away. Raises Fatal where Kafka refuses for good.
    """
    # The default retry backoff (100 ms) is waited out by every second transaction, as its first request finds the
    # coordinator still busy with the one before: p50 103 ms against 3 ms.
    ours = {"linger_ms": 0, "retry_backoff_ms": 2}
    producer = Producer(client_config(settings, transactional_id=transactional_id, **{**ours, **over}))
    with contextlib.suppress(KafkaException):
        producer.list_topics(timeout=5)  # connects; else librdkafka asks for the coordinator again only in 500 ms
    while True:
        try:
            producer.init_transactions(30)
            return producer
        except KafkaException as error:
            _retriable_or_fatal(error, f"cannot take over the transactional id {transactional_id}")


def produce(
    producer: Producer,
    topic: str,
    *,
    value: bytes | None,
    key: bytes | None = None,
    partition: int = -1,
    headers: Headers | None = None,
    timestamp: int = 0,
    on_delivery: Callable[[KafkaError | None, Message], None] | None = None,
) -> None:
    """Queues one record; waits where librdkafka's queue is full. `partition` -1: by key; `timestamp` 0: now."""
    traffic.written += len(key or b"") + len(value or b"")
    options: dict[str, Any] = {"headers": headers} if headers else {}
    if on_delivery is not None:
        options["on_delivery"] = on_delivery
    while True:
        try:
            producer.produce(topic, value, key, partition=partition, timestamp=timestamp, **options)
            return
        except BufferError:
            producer.poll(0.05)


def commit(producer: Producer, *, timeout_s: float = 5) -> bool:
    """Commits the open transaction, trying again each `timeout_s` while the broker is away.

    Returns True if it had to try again: then open a new producer before the next transaction, because librdkafka
    numbers no transactions (its issue 5423) and the late end of this one could end the next. Raises Fatal where the
    transaction cannot be committed: memory is then ahead of the log.
    """
    retried = False
    while True:
        try:
            producer.commit_transaction(timeout_s)
            return retried
        except KafkaException as error:
            _retriable_or_fatal(error, "a transaction was not committed")
            retried = True


def consume(client: Consumer, limit: int, timeout_s: float) -> list[Message]:
    """Up to `limit` messages, waiting for them up to `timeout_s`; errors are among them (see `check`)."""
    found = cast(list[Message], client.consume(limit, timeout_s))
    traffic.read += sum(len(message.key() or b"") + len(message.value() or b"") for message in found)
    return found


def check(error: KafkaError) -> None:
    """For a consumer's message that is an error: Fatal ends the role, anything else is said and waited out."""
    if error.fatal() or error.code() == KafkaError._FATAL:  # as a message it has the code alone
        raise Fatal(f"Kafka client beyond repair: {error.str()}")
    if error.code() != KafkaError._PARTITION_EOF:
        say_outage(error)


def _retriable_or_fatal(error: KafkaException, what: str) -> None:
    cause: KafkaError = error.args[0]
    if cause.fatal() or not cause.retriable():
        raise Fatal(f"{what}: {cause.str()}") from error
    say_outage(cause)


# -- bounded reads ----------------------------------------------------------------------------------------------------


def fence_and_read(
    settings: Settings,
    producer: Producer,
    topic: str,
    partition: int,
    on_record: OnRecord,
    fence_key: bytes = FENCE_KEY,
    start: int = 0,
) -> int:
    """Calls `on_record(key, value)` for every record committed to the partition before now; returns their number.

    `start`: those from this offset on. Raises Fatal where the partition ends before it.

    A fence record of our own is committed first and read up to: a broker killed between deciding a commit and writing
    its markers shows the decided records only with the successor's next commit. Call it once, on a new producer.
    """
    fence = _commit_fence(producer, topic, partition, fence_key)
    if fence < start:
        raise Fatal(f"{topic}[{partition}] was read up to {start} and ends at {fence}: made anew; starting again")
    reader = _reader(settings)
    reader.assign([TopicPartition(topic, partition, start)])
    count, reached = 0, -1
    try:
        while reached < fence:
            for message in consume(reader, 10_000, 0.05):
                if error := message.error():
                    check(error)
                    continue
                reached = message.offset()
                if reached < fence and message.key() != fence_key:
                    on_record(message.key(), message.value())
                    count += 1
    finally:
        reader.close()
    return count


def _commit_fence(producer: Producer, topic: str, partition: int, fence_key: bytes) -> int:
    """The offset of the committed fence. It is read up to by offset, as compaction may take the record itself."""
    offsets: list[int] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is None:
            offsets.append(message.offset())

    producer.begin_transaction()
    token = os.urandom(8).hex().encode()
    produce(producer, topic, key=fence_key, value=token, partition=partition, on_delivery=delivered)
    if commit(producer, timeout_s=60):
        raise Fatal(f"fencing {topic}[{partition}] was cut off by an outage: starting again")
    producer.poll(0)
    if not offsets:
        raise Fatal(f"the fence of {topic}[{partition}] was committed without a delivery report: starting again")
    return offsets[0]


def read_to_end(
    settings: Settings, topic: str, on_message: Callable[[Message], None], *, partition: int | None = None
) -> dict[int, int]:
    """Calls `on_message` for every committed record of the topic up to its present end; returns where to read on.

    `partition`: of this one alone. The result is {partition: next offset}. Raises Fatal where the topic does not exist.
    """
    reader = _reader(settings, enable_partition_eof=True)
    try:
        partitions = _partitions(reader, topic) if partition is None else [partition]
        reader.assign([TopicPartition(topic, number, 0) for number in partitions])
        next_offset: dict[int, int] = {}
        while len(next_offset) < len(partitions):
            for message in consume(reader, 10_000, 0.05):
                error = message.error()
                if error is None:
                    on_message(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    next_offset.setdefault(message.partition(), message.offset())
                else:
                    check(error)
        return next_offset
    finally:
        reader.close()


def _reader(settings: Settings, **over: Any) -> Consumer:
    """Assigned by hand, from offset 0, and never committing: its group exists in name only.

    (OFFSET_BEGINNING would be looked up, which costs 500 ms on a new client; an offset gone by retention is reset.)
    """
    return consumer(settings, "headrace-reader", fetch_wait_max_ms=20, **over)


def _partitions(reader: Consumer, topic: str) -> list[int]:
    while True:
        try:
            found = reader.list_topics(topic, timeout=5).topics[topic]
        except KafkaException as error:
            _retriable_or_fatal(error, f"cannot read {topic}")
            continue
        if found.error is not None:
            raise Fatal(f"topic {topic}: {found.error.str()}; create it with `headrace topics create`")
        return sorted(found.partitions)


def lag(client: Consumer, assignment: Iterable[TopicPartition] | None = None) -> dict[tuple[str, int], int]:
    """{(topic, partition): messages between this consumer's position and the end it last heard of}."""
    behind = {}
    for at in client.position(list(assignment if assignment is not None else client.assignment())):
        low, high = client.get_watermark_offsets(at, cached=True)
        if high >= 0:
            behind[at.topic, at.partition] = max(0, high - (at.offset if at.offset >= 0 else max(low, 0)))
    return behind


def ends(client: AdminClient, partitions: Iterable[tuple[str, int]]) -> dict[tuple[str, int], tuple[int, int]]:
    """{(topic, partition): (end of the partition, last stable offset)}.

    A last stable offset that stands still while the end moves on is a transaction that nobody ends: whoever reads
    committed records waits for it. Partitions that cannot be asked are left out.
    """
    asked = [TopicPartition(topic, partition) for topic, partition in partitions]
    latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
    levels = (IsolationLevel.READ_UNCOMMITTED, IsolationLevel.READ_COMMITTED)
    found = [
        client.list_offsets({at: latest for at in asked}, isolation_level=level, request_timeout=5) for level in levels
    ]
    result = {}
    for at in asked:
        try:
            high, stable = (futures[at].result().offset for futures in found)
        except KafkaException:
            continue
        result[at.topic, at.partition] = (high, stable)
    return result
