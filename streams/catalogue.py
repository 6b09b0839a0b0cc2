"""The catalogue: the shop's items become vectors, which every worker reads.

One consumer reads `items` and hands each partition's messages to its `Shelf`; one thread encodes texts for all of them.
A second process takes half of the partitions, or, where there is one only, stands by.
"""

from __future__ import annotations

import logging
import signal
import time
from collections import defaultdict
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition
from prometheus_client import CollectorRegistry

from headrace.streams import http, kafka, topics
from headrace.streams.ends import EndsWatch
from headrace.streams.kafka import Message
from headrace.streams.metrics import Metrics
from headrace.streams.settings import Settings, cache_dir
from headrace.streams.shelf import Shelf
from headrace.streams.slots import claim
from headrace.streams.text_follow import Follow
from headrace.streams.text_vectors import TextVectors
from headrace.streams.texts import TextEncoder

_AT_ONCE = 2_000  # messages of one transaction
_IDLE_S = 0.2  # a poll that finds nothing
_BUSY_S = 0.005  # the same while texts are being encoded
_PATIENCE_S = 0.1  # a text just read is waited for so long; then its item is published without
_MAX_WAITING = 100_000  # texts without vector: beyond, `items` is not read on
_QUEUED_KBYTES = 16_384

_log = logging.getLogger("headrace.catalogue")


class Catalogue:
    """`run` blocks until `stop` is called. Raises Fatal where the next start must rebuild what was committed.

    `cache` is the file that keeps the texts' vectors, in the user's cache folder by default.
    """

    def __init__(self, settings: Settings, metrics: Metrics, *, cache: Path | None = None) -> None:
        self._settings = settings
        self._metrics = metrics
        self._cache = cache or cache_dir() / "texts.sqlite"
        self._follow = Follow(settings)
        self._texts = self._at_work(self._follow.start())
        self._shelves: dict[int, Shelf] = {}
        self._stopping = False
        self._assigned = False
        self._slot = claim(settings, "catalogue")
        self._consumer = self._open()
        metrics.text_encoder_info.labels(self._texts.version).set(1)

    def _at_work(self, encoder: TextEncoder) -> TextVectors:
        return TextVectors(encoder, cache=self._cache, batch=self._settings.catalogue.batch, metrics=self._metrics)

    @property
    def ready(self) -> bool:
        """Assigned, and every shelf recovered; also when there is nothing to do but to stand by."""
        return self._assigned

    def stop(self) -> None:
        """After the transaction in flight. Safe in a signal handler."""
        self._stopping = True

    def run(self) -> None:
        self._consumer.subscribe(
            [self._settings.topic("items")], on_assign=self._take, on_revoke=self._release, on_lost=self._release
        )
        reported_s = 0.0
        try:
            while not self._stopping:
                self._turn()
                if time.monotonic() - reported_s >= 1:
                    reported_s = time.monotonic()
                    self._report()
        finally:
            self._consumer.close()
            self._texts.close()
            self._follow.close()
            self._slot.lock.close()

    def _turn(self) -> None:
        """Read what there is, wait a moment for its texts, publish: all of it, and what older texts came to."""
        for partition, messages in self._poll().items():
            if partition in self._shelves:  # else revoked while we polled: the next owner reads it
                self._shelves[partition].read(messages)
        encoded = self._texts.take()
        until = time.monotonic() + _PATIENCE_S
        while not all(shelf.complete(encoded) for shelf in self._shelves.values()):
            if (left_s := until - time.monotonic()) <= 0:
                break
            encoded |= self._texts.take(left_s)
        for shelf in self._shelves.values():
            shelf.publish(encoded)
        if (encoder := self._follow.next()) is not None:
            self._change_over(encoder)

    def _change_over(self, encoder: TextEncoder) -> None:
        """Another text encoder from here on: every item is encoded anew."""
        before, self._texts = self._texts, self._at_work(encoder)
        before.close()
        self._metrics.text_encoder_info.remove(before.version)
        self._metrics.text_encoder_info.labels(encoder.version).set(1)
        _log.info("text encoder %s: all items are encoded anew", encoder.version)
        for shelf in self._shelves.values():
            shelf.encode_anew(self._texts)

    def _poll(self) -> dict[int, list[Message]]:
        """Waits for one message, then takes whatever else is there; by partition."""
        self._hold_back()
        found: dict[int, list[Message]] = defaultdict(list)
        first = kafka.consume(self._consumer, 1, _BUSY_S if len(self._texts) else _IDLE_S)
        for message in first and first + kafka.consume(self._consumer, _AT_ONCE, 0):
            if error := message.error():
                kafka.check(error)
            else:
                found[message.partition()].append(message)
        return found

    def _hold_back(self) -> None:
        """Texts wait in memory: where there are too many, the rest of a bulk load waits in Kafka."""
        assignment = self._consumer.assignment()
        if len(self._texts) > _MAX_WAITING:
            self._consumer.pause(assignment)
        else:
            self._consumer.resume(assignment)

    def _report(self) -> None:
        """Gauges, and for Kafka's own tools the group's committed offsets. We start from neither."""
        if not self._shelves:
            return
        for (_, partition), n_messages in kafka.lag(self._consumer).items():
            self._metrics.lag.labels("items", str(partition)).set(n_messages)
        available = sum(shelf.available for shelf in self._shelves.values())
        self._metrics.items.labels("available").set(available)
        self._metrics.items.labels("unavailable").set(sum(map(len, self._shelves.values())) - available)
        topic = self._settings.topic("items")
        applied = [TopicPartition(topic, number, shelf.next_offset) for number, shelf in self._shelves.items()]
        self._consumer.commit(offsets=applied, asynchronous=True)

    # -- assignment -----------------------------------------------------------------------------------------------

    def _open(self) -> Consumer:
        return kafka.consumer(
            self._settings,
            self._settings.topics.prefix + "catalogue",
            group_instance_id=self._slot.name,
            session_timeout_ms=10_000,
            fetch_wait_max_ms=20,
            fetch_queue_backoff_ms=5,
            fetch_max_bytes=self._settings.topics.large_message_bytes,
            queued_max_messages_kbytes=_QUEUED_KBYTES,
        )

    def _take(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for at in partitions:
            shelf = Shelf(
                at.partition,
                settings=self._settings,
                metrics=self._metrics,
                texts=self._texts,
            )
            shelf.recover()
            at.offset = shelf.next_offset
            self._shelves[at.partition] = shelf
        consumer.assign(partitions)
        self._assigned = True
        numbers = ", ".join(str(number) for number in sorted(self._shelves))
        _log.info("partitions of items: %s", numbers or "none, other processes read them all")

    def _release(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """No transaction is open here: `publish` ends what it begins."""
        self._assigned = False
        for at in partitions:
            self._shelves.pop(at.partition, None)
            self._metrics.lag.remove("items", str(at.partition))  # the next owner's to tell


def run(settings: Settings) -> None:
    """The role: blocks until SIGTERM or SIGINT. Raises HeadraceError in one line, Fatal where it must start again."""
    topics.require(settings)
    metrics = Metrics(CollectorRegistry(), "catalogue")
    catalogue = Catalogue(settings, metrics)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: catalogue.stop())
    server = http.serve(metrics, ready=lambda: catalogue.ready, alive=lambda: True, settings=settings)
    ends = EndsWatch(settings, metrics, ["items"])
    try:
        catalogue.run()
    finally:
        ends.close()
        server.close()
