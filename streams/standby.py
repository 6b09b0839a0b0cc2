"""Standby copies: the states of partitions that other workers own, followed so that taking one over reads little.

A thread of its own reads with confluent-kafka: Faust's standbys share the event loop with the decisions.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from confluent_kafka import Consumer, KafkaException, TopicPartition

from headrace.streams import kafka
from headrace.streams.changelog import PROGRESS
from headrace.streams.settings import Settings

_STALE_S = 240.0  # less than half of what the changelog keeps tombstones for: see topics.py
_ASK_S = 30.0


@dataclass
class PartitionState:
    """A partition of the users table as its changelog tells it, up to `position`: the next offset to read."""

    states: dict[bytes, bytes] = field(default_factory=dict)
    progress: bytes | None = None
    position: int = 0
    read_at: float = field(default_factory=time.monotonic)  # when nothing was known to be missing

    @property
    def stale(self) -> bool:
        """Whether tombstones after `position` may be gone already: reading on would keep what they removed."""
        return time.monotonic() - self.read_at > _STALE_S

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        if key is None or key == kafka.FENCE_KEY:
            return
        if key == PROGRESS:
            self.progress = value
        elif value is None:
            self.states.pop(key, None)
        else:
            self.states[key] = value


class Standbys:
    """Keeps copies up to date while they are followed; a copy is nobody else's meanwhile."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self.failure: BaseException | None = None
        self._settings, self._topic = settings, topic
        self._copies: dict[int, PartitionState] = {}
        self._changed = False
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def follow(self, copies: Mapping[int, PartitionState]) -> None:
        """These from now on, and no others: those that were followed are the caller's again when this returns."""
        with self._lock:
            self._copies, self._changed = dict(copies), True
        if copies and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="standby", daemon=True)
            self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(5)

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        reader = kafka.consumer(self._settings, "headrace-standby", fetch_wait_max_ms=500)
        try:
            while not self._stop.is_set():
                self._read(reader)
        except BaseException as error:
            self.failure = error
        finally:
            reader.close()

    def _read(self, reader: Consumer) -> None:
        with self._lock:
            if any(copy.stale for copy in self._copies.values()):  # this process stood still
                for copy in self._copies.values():
                    copy.states.clear()
                    copy.position = 0
                self._changed = True
            if self._changed:
                reader.assign([TopicPartition(self._topic, p, copy.position) for p, copy in self._copies.items()])
                self._changed = False
        messages = kafka.consume(reader, 1_000, 0.2)
        with self._lock:
            if self._changed:  # read again by whoever has the copy now
                return
            for message in messages:
                if error := message.error():
                    kafka.check(error)
                    continue
                copy = self._copies[message.partition()]
                copy.apply(message.key(), message.value())
                copy.position, copy.read_at = message.offset() + 1, time.monotonic()
        for partition, copy in list(self._copies.items()):
            if time.monotonic() - copy.read_at > _ASK_S and self._answers(reader, partition):
                copy.read_at = time.monotonic()

    def _answers(self, reader: Consumer, partition: int) -> bool:
        """Whether nothing came because nothing was written, and not because Kafka cannot be reached."""
        try:
            reader.get_watermark_offsets(TopicPartition(self._topic, partition), 5)
        except KafkaException as error:
            kafka.say_outage(error.args[0])
            return False
        return True
