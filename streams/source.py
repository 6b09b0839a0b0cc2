"""One source: a partition of a topic that the shop writes, and the only writer of what it leads to.

Everything a source holds (producer, applied offset, watermark, queue) lives and dies with its assignment. Its thread
takes all that waits, and in one transaction writes the micro-batches, the dead letters, the ticks that are due and its
position; then again. What was not committed is read again by the next owner, from the position of the last commit.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from headrace.streams import kafka, records
from headrace.streams.batches import micro_batches
from headrace.streams.kafka import Message
from headrace.streams.messages import Decoder, Rejection
from headrace.streams.metrics import Metrics
from headrace.streams.records import Batch, Entry
from headrace.streams.rules.book import RuleBook, heard
from headrace.streams.rules.rule import Rule
from headrace.streams.settings import Settings
from headrace.streams.watermarks import Position, SourceClock, TickPace

OFFSETS_PARTITION = 0  # of `ingest-offsets`: one, so that a source finds its position whatever else changes
SOURCES = ("events", "requests", "identities", "erasures", "rules")
_AT_ONCE = 4_000  # messages in one transaction: the first one waits for the decoding of the last
_OVERHEAD_BYTES = 256  # of a queued message, beside its key and value

_log = logging.getLogger("headrace.ingest")
_decode_position = msgspec.json.Decoder(Position).decode
_encode_json = msgspec.json.Encoder().encode


class ReadAhead:
    """Counts the bytes that the sources hold in their queues, so that reading can wait for them."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self.held = 0
        self._changed = threading.Condition()

    def take(self, n_bytes: int) -> None:
        with self._changed:
            self.held += n_bytes

    def give(self, n_bytes: int) -> None:
        with self._changed:
            self.held -= n_bytes
            self._changed.notify_all()

    def wait_for_room(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.held <= self._limit, timeout_s)


@dataclass
class _Read:
    """What some messages came to."""

    entries: list[Entry] = field(default_factory=list)
    dead: list[tuple[Message, Rejection]] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)


class Source:
    def __init__(
        self,
        topic: str,
        partition: int,
        *,
        settings: Settings,
        metrics: Metrics,
        read_ahead: ReadAhead,
        pace: TickPace,
    ) -> None:
        """`topic` is one of SOURCES, without the prefix."""
        self.topic = topic
        self.partition = partition
        self.name = f"{topic}/{partition}"
        self.next_offset = 0  # where to read on, once recovered
        self.recovered = threading.Event()
        self.failure: BaseException | None = None
        self._settings = settings
        self._metrics = metrics
        self._read_ahead = read_ahead
        self._pace = pace
        self._transactional_id = f"{settings.topics.prefix}ingest.{topic}.{partition}"
        self._unknown: Counter[str] = Counter()
        decoder = Decoder(settings, unknown=lambda topic, n: self._unknown.update({topic: n}))
        self._decode = _decoding(decoder, topic)
        self._rules = RuleBook(settings) if topic == "rules" else None
        self._ticks = topic == "events"
        self._linger_ms = settings.ingest.linger
        self._begun_ms = 0
        self._queue: list[Message] = []
        self._wake = threading.Condition()
        self._caught_up = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"source {self.name}", daemon=True)

    # -- the consumer's thread ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Recovers, then works: both in a thread of its own. `next_offset` is known when it is `recovered`."""
        self._thread.start()

    def put(self, messages: list[Message]) -> None:
        self._read_ahead.take(_size(messages))
        with self._wake:
            self._queue += messages
            self._caught_up = False
            self._wake.notify()

    def caught_up(self) -> None:
        """All that the partition holds has been put."""
        with self._wake:
            self._caught_up = True
            self._wake.notify()

    def stop(self, *, drain: bool) -> None:
        """To end after the transaction in flight, or with `drain` when the queue is empty."""
        with self._wake:
            self._stopping = True
            if not drain:
                self._read_ahead.give(_size(self._queue))
                self._queue = []
            self._wake.notify()

    def join(self, timeout_s: float) -> bool:
        """False: not ended within the time."""
        self._thread.join(max(timeout_s, 0))
        return not self._thread.is_alive()

    # -- its own thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._recover()
            while (messages := self._wait()) is not None:
                self._apply(messages)
        except BaseException as error:  # the consumer's thread ends the process
            self.failure = error

    def _recover(self) -> None:
        """Nobody else writes for this source any more; what was committed is known, and nothing of it is read again."""
        started = time.perf_counter()
        self._producer = kafka.transactional_producer(self._settings, self._transactional_id)
        position = Position()

        def on_record(key: bytes | None, value: bytes | None) -> None:
            nonlocal position
            if key == self.name.encode() and value is not None:
                position = _decode_position(value)

        kafka.fence_and_read(
            self._settings, self._producer, self._settings.topic("ingest-offsets"), OFFSETS_PARTITION, on_record
        )
        self._clock = SourceClock(
            position,
            now_ms=_now_ms(),
            tick_ms=self._settings.ingest.tick,
            idle_after_ms=self._settings.ingest.idle_after,
        )
        self.next_offset = position.offset + 1
        if self._rules is not None:
            kafka.read_to_end(
                self._settings, self._settings.topic("rules"), self._recall_rule, partition=self.partition
            )
        self.recovered.set()
        self._metrics.recoveries.inc()
        self._metrics.recovery.observe(time.perf_counter() - started)

    def _recall_rule(self, message: Message) -> None:
        if self._rules is not None and message.offset() < self.next_offset:
            self._rules.put(*heard(message))

    def _wait(self) -> list[Message] | None:
        """Messages, or none where a tick is due; None: stop."""
        with self._wake:
            while not self._queue and not self._stopping:
                wait_ms = self._tick_due_ms() - _now_ms()
                if wait_ms <= 0:
                    return []
                self._wake.wait(min(wait_ms / 1_000, 60))
            if not self._queue:
                return None
            # Each transaction and each record costs every role the same, however little is in it.
            while len(self._queue) < _AT_ONCE and not self._stopping:
                early_ms = self._begun_ms + self._linger_ms - _now_ms()
                if early_ms <= 0:
                    break
                self._wake.wait(early_ms / 1_000)
            self._begun_ms = _now_ms()
            messages, self._queue = self._queue[:_AT_ONCE], self._queue[_AT_ONCE:]
            return messages

    def _apply(self, messages: list[Message]) -> None:
        """One transaction: 1 decode, 2 micro-batches, 3 dead letters, 4 ticks, 5 position, 6 commit, 7 count."""
        now_ms, started = _now_ms(), time.perf_counter()
        read = self._read(messages, now_ms=now_ms)
        decoded = time.perf_counter()
        self._producer.begin_transaction()
        sizes = self._write_batches(read.entries)
        for message, rejection in read.dead:
            self._write_dead_letter(message, rejection)
        self._write_ticks()
        next_offset = messages[-1].offset() + 1 if messages else self.next_offset
        self._write_position(next_offset)
        written = time.perf_counter()
        if kafka.commit(self._producer):
            # The end of that transaction may still come, and end the next: a new epoch shuts it out.
            self._producer = kafka.transactional_producer(self._settings, self._transactional_id)
            self._metrics.commits.labels("retried").inc()
        self.next_offset = next_offset
        self._read_ahead.give(_size(messages))
        self._metrics.commits.labels("committed").inc()
        for stage, seconds in (
            ("decode", decoded - started),
            ("produce", written - decoded),
            ("commit", time.perf_counter() - written),
        ):
            self._metrics.stage.labels(stage).observe(seconds)
        self._count(read, sizes)

    def _read(self, messages: list[Message], *, now_ms: int) -> _Read:
        read = _Read()
        decode = self._decode
        for message in messages:
            raw = message.value()
            kind, sent_ms = message.timestamp()
            refused = None
            if self._rules is not None:
                self._rules.put(*(rule := heard(message)))
                refused = self._rules.rejection(rule[0], now_ms)
            if raw is None:
                read.outcomes["accepted" if self.topic == "rules" else "ignored"] += 1  # a rule is taken back
                continue
            outcome = decode(raw, now_ms=now_ms, sent_ms=sent_ms if kind else now_ms)
            if isinstance(outcome, Rule):
                outcome = refused or outcome
            if isinstance(outcome, Rejection):
                read.dead.append((message, outcome))
                continue
            read.outcomes["accepted"] += 1
            if not isinstance(outcome, Rule):
                read.entries.append(outcome)
                self._clock.read(outcome.ts, now_ms=now_ms)
        return read

    def _write_batches(self, entries: list[Entry]) -> list[int]:
        """Returns the number of entries of each micro-batch."""
        interactions = self._settings.topic("interactions")
        sizes = []
        for partition, n_entries, record in micro_batches(
            entries,
            partitions=self._settings.topics.interactions_partitions,
            limit_bytes=self._settings.ingest.batch_bytes,
            source=self.name,
            watermark=self._clock.watermark,
            idle=not self._ticks,
        ):
            kafka.produce(self._producer, interactions, value=record, partition=partition)
            sizes.append(n_entries)
        return sizes

    def _write_dead_letter(self, message: Message, rejection: Rejection) -> None:
        topic = self._settings.topic(self.topic)
        headers = rejection.headers(topic=topic, partition=self.partition, offset=message.offset())
        key, value = message.key(), message.value()
        if _size([message]) > self._settings.topics.large_message_bytes - _OVERHEAD_BYTES:
            key = value = None  # dead-letters cannot take it: `source` says where it lies
        kafka.produce(self._producer, self._settings.topic("dead-letters"), key=key, value=value, headers=headers)

    def _write_ticks(self) -> None:
        """Tells every partition how far this source is, where a tick is due."""
        now_ms = _now_ms()
        if self._tick_due_ms() > now_ms:
            return
        tick = self._clock.tick(now_ms=now_ms)
        record = records.encode(Batch(self.name, tick.watermark, tick.idle, tick=self._pace.take(now_ms=now_ms)))
        for partition in range(self._settings.topics.interactions_partitions):
            kafka.produce(self._producer, self._settings.topic("interactions"), value=record, partition=partition)

    def _tick_due_ms(self) -> float:
        """Only events tell the time; what else the shop writes is idle for ever and holds no event time back."""
        return self._clock.due_ms(caught_up=self._caught_up) if self._ticks else float("inf")

    def _write_position(self, next_offset: int) -> None:
        value = _encode_json(self._clock.position(next_offset - 1))
        offsets = self._settings.topic("ingest-offsets")
        kafka.produce(self._producer, offsets, key=self.name.encode(), value=value, partition=OFFSETS_PARTITION)

    def _count(self, read: _Read, sizes: list[int]) -> None:
        for outcome, n_messages in read.outcomes.items():
            self._metrics.messages.labels(self.topic, outcome).inc(n_messages)
        for _, rejection in read.dead:
            self._metrics.messages.labels(self.topic, "dead").inc()
            self._metrics.dead_letters.labels(self.topic, rejection.reason).inc()
        for n_entries in sizes:
            self._metrics.batch_size.observe(n_entries)
        if self._unknown:
            self._metrics.unknown_fields.labels(self.topic).inc(self._unknown.total())
            self._unknown.clear()


def _decoding(decoder: Decoder, topic: str) -> Callable[..., Entry | Rule | Rejection]:
    """Called with the message's bytes, `now_ms` and `sent_ms`."""
    if topic == "rules":
        return lambda raw, **_: decoder.rule(raw)
    by_topic: dict[str, Callable[..., Entry | Rejection]] = {
        "events": decoder.event,
        "requests": decoder.request,
        "identities": decoder.identity,
        "erasures": decoder.erasure,
    }
    return by_topic[topic]


def _size(messages: list[Message]) -> int:
    return sum(len(m.value() or b"") + len(m.key() or b"") + _OVERHEAD_BYTES for m in messages)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
