"""Ingest: what the shop writes, read, validated and re-keyed into micro-batches, exactly once (docs/events.md).

One consumer reads every topic of the shop and hands each partition's messages to its `Source`, which does the rest in a
thread of its own. Scale out by starting more processes: the group shares the partitions.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import defaultdict

from confluent_kafka import Consumer, KafkaError, TopicPartition
from prometheus_client import CollectorRegistry

from headrace.streams import http, kafka, topics
from headrace.streams.ends import EndsWatch
from headrace.streams.errors import Fatal
from headrace.streams.kafka import Message
from headrace.streams.metrics import Metrics
from headrace.streams.settings import Settings
from headrace.streams.slots import claim
from headrace.streams.source import SOURCES, ReadAhead, Source
from headrace.streams.watermarks import TickPace

_AT_ONCE = 2_000  # messages handed over in one go
_POLL_S = 0.2
_DRAIN_S = 7.0
_STUCK_S = 300.0
_OUTAGE_S = 60.0  # a transaction cannot outlive transaction.timeout.ms

_log = logging.getLogger("headrace.ingest")


class Ingest:
    """`run` blocks until `stop` is set. Raises Fatal where the next start must rebuild what was committed."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._topics = {settings.topic(name): name for name in SOURCES}
        self._sources: dict[tuple[str, int], Source] = {}
        self._read_ahead = ReadAhead(settings.ingest.buffer_bytes // 2)  # librdkafka's queue has the other half
        self._pace = TickPace(settings.ingest.tick)
        self._stop = threading.Event()
        self._assigned = False
        self._turned_s = time.monotonic()
        self._reported: dict[tuple[str, int], int] = {}
        self._slot = claim(settings, "ingest")
        self._consumer = self._open()

    @property
    def ready(self) -> bool:
        """Assigned, and every source recovered."""
        return self._assigned

    @property
    def alive(self) -> bool:
        """The loop turned a while ago: it turns while Kafka is away too, and waits longest in a rebalance."""
        return time.monotonic() - self._turned_s < _STUCK_S

    @property
    def held_bytes(self) -> int:
        """Read and not yet committed, beside what librdkafka has read ahead."""
        return self._read_ahead.held

    def stop(self) -> None:
        """What was read is committed within 7 s, or read again by whoever comes next."""
        self._stop.set()

    def run(self) -> None:
        self._consumer.subscribe(
            list(self._topics), on_assign=self._take, on_revoke=self._release, on_lost=self._abandon
        )
        counted_s = 0.0
        while not self._stop.is_set():
            self._turned_s = time.monotonic()
            self._hand_over(self._poll())
            self._wait_for_room()
            self._check_sources()
            if time.monotonic() - counted_s >= 1:
                counted_s = time.monotonic()
                self._report()
        self._drain()

    # -- reading --------------------------------------------------------------------------------------------------

    def _open(self) -> Consumer:
        half_kbytes = max(self._settings.ingest.buffer_bytes // 2_048, 1)
        return kafka.consumer(
            self._settings,
            self._settings.topics.prefix + "ingest",
            group_instance_id=self._slot.name,
            session_timeout_ms=10_000,
            heartbeat_interval_ms=1_000,  # how soon a member learns that another has come
            partition_assignment_strategy="roundrobin",
            # The broker gathers what comes within the linger: a fetch a message costs it more than messages.
            fetch_wait_max_ms=max(1, self._settings.ingest.linger),
            fetch_min_bytes=65_536,
            fetch_error_backoff_ms=20,
            fetch_queue_backoff_ms=5,  # the default, 1 s, is how long a full queue would stay unread
            fetch_max_bytes=max(self._settings.ingest.buffer_bytes // 2, self._settings.topics.large_message_bytes),
            queued_max_messages_kbytes=half_kbytes,
            topic_metadata_refresh_interval_ms=5_000,
            enable_partition_eof=True,
        )

    def _poll(self) -> list[Message]:
        """Waits for one message, then takes whatever else is there: freshness first, and large takes under load."""
        first = kafka.consume(self._consumer, 1, _POLL_S)
        return first and first + kafka.consume(self._consumer, _AT_ONCE, 0)

    def _hand_over(self, messages: list[Message]) -> None:
        waiting: dict[tuple[str, int], list[Message]] = defaultdict(list)
        ended = set()
        for message in messages:
            at = (message.topic(), message.partition())
            error = message.error()
            if error is None:
                waiting[at].append(message)
                ended.discard(at)
            elif error.code() == KafkaError._PARTITION_EOF:
                ended.add(at)
            else:
                kafka.check(error)
        for at, some in waiting.items():
            if at in self._sources:  # else revoked while we polled: the next owner reads it
                self._sources[at].put(some)
        for at in ended & self._sources.keys():
            self._sources[at].caught_up()

    def _wait_for_room(self) -> None:
        """Back-pressure. Where a broker that is away keeps it up, the consumer stays in its group, reading nothing."""
        if self._read_ahead.wait_for_room(5):
            return
        while not self._stop.is_set():
            self._turned_s = time.monotonic()
            self._consumer.pause(self._consumer.assignment())
            self._hand_over(self._poll())
            self._check_sources()
            if self._read_ahead.wait_for_room(0.5):
                break
        self._consumer.resume(self._consumer.assignment())

    def _check_sources(self) -> None:
        for source in self._sources.values():
            if source.failure is not None:
                self._metrics.commits.labels("failed").inc()
                raise Fatal(f"{source.name}: {source.failure}") from source.failure

    def _report(self) -> None:
        """Lag, to Prometheus and, by the group's committed offsets, to Kafka's own tools. We start from neither."""
        if not self._sources:
            return
        for (topic, partition), n_messages in kafka.lag(self._consumer).items():
            self._metrics.lag.labels(self._topics[topic], str(partition)).set(n_messages)
        applied = {(topic, partition): source.next_offset for (topic, partition), source in self._sources.items()}
        if applied != self._reported:  # a commit that waits for a broker that is away may fence us when it is back
            self._reported = applied
            offsets = [TopicPartition(topic, partition, offset) for (topic, partition), offset in applied.items()]
            self._consumer.commit(offsets=offsets, asynchronous=True)

    # -- assignment -----------------------------------------------------------------------------------------------

    def _take(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Every source fences, recovers and says where to read on; all of them at once."""
        for at in partitions:
            self._sources[at.topic, at.partition] = source = Source(
                self._topics[at.topic],
                at.partition,
                settings=self._settings,
                metrics=self._metrics,
                read_ahead=self._read_ahead,
                pace=self._pace,
            )
            source.start()
        for at in partitions:
            source = self._sources[at.topic, at.partition]
            while not source.recovered.wait(0.1):
                self._check_sources()
                if self._stop.is_set():
                    consumer.assign([])
                    return
            at.offset = source.next_offset
        consumer.assign(partitions)
        self._assigned = True
        names = ", ".join(sorted(source.name for source in self._sources.values()))
        _log.info("reading %s", names or "nothing: other processes read all partitions")

    def _release(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Waits for the transactions in flight; what is queued is the next owner's."""
        self._check_sources()
        self._abandon(_consumer, partitions)

    def _abandon(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Lost: the partitions have a new owner, who has fenced us. A commit in flight may fail, and does no harm."""
        if not self._end(partitions, drain=False, timeout_s=_OUTAGE_S):
            raise Fatal(f"a transaction did not end within {_OUTAGE_S:.0f} s: starting again")

    def _end(self, partitions: list[TopicPartition], *, drain: bool, timeout_s: float) -> bool:
        """False: a transaction was still open after `timeout_s`."""
        self._assigned = False
        ending = [source for at in partitions if (source := self._sources.pop((at.topic, at.partition), None))]
        for source in ending:
            source.stop(drain=drain)
            self._metrics.lag.remove(source.topic, str(source.partition))  # the next owner's to tell
        until = time.monotonic() + timeout_s
        return all([source.join(until - time.monotonic()) for source in ending])

    def _drain(self) -> None:
        held = [TopicPartition(topic, partition) for topic, partition in self._sources]
        if not self._end(held, drain=True, timeout_s=_DRAIN_S):
            _log.warning(
                "stopped while Kafka was away: what was read and not committed is read again at the next start"
            )
            return
        self._consumer.close()
        self._slot.lock.close()


def run(settings: Settings) -> None:
    """The role: blocks until SIGTERM or SIGINT. Raises HeadraceError in one line, Fatal where it must start again."""
    metrics = Metrics(CollectorRegistry(), "ingest")
    ingest = Ingest(settings, metrics)
    server = http.serve(metrics, ready=lambda: ingest.ready, alive=lambda: ingest.alive, settings=settings)
    topics.require(settings)  # nothing to drain yet: a signal that comes while Kafka is away ends us at once
    ends = EndsWatch(settings, metrics, SOURCES)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ingest.stop())
    try:
        ingest.run()
    finally:
        ends.close()
        server.close()
