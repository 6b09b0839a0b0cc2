"""Following committed topics while the demo runs, in one thread."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping

import numpy as np
from confluent_kafka import OFFSET_BEGINNING, TopicPartition
from numpy.typing import NDArray

from headrace.streams import kafka
from headrace.streams.changelog import PROGRESS, Progress, decode_progress
from headrace.streams.kafka import Message
from headrace.streams.records import decode_item, decode_policy_version
from headrace.streams.settings import Settings


class Follower:
    """Calls `handlers[topic](message)` for every committed record of the topics (without prefix), from their start."""

    def __init__(self, settings: Settings, handlers: Mapping[str, Callable[[Message], None]]) -> None:
        self.error: BaseException | None = None
        self._settings, self._handlers = settings, handlers
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def open(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def _run(self) -> None:
        try:
            self._follow()
        except BaseException as error:  # shown by whoever waits for what we follow
            self.error = error

    def _follow(self) -> None:
        settings = self._settings
        consumer = kafka.consumer(settings, "demo", fetch_wait_max_ms=100)
        handler = {settings.topic(name): handle for name, handle in self._handlers.items()}
        try:
            known = consumer.list_topics(timeout=30).topics
            consumer.assign([TopicPartition(t, p, OFFSET_BEGINNING) for t in handler for p in known[t].partitions])
            while not self._closing.is_set():
                found = kafka.consume(consumer, 1, 0.1)
                for message in (*found, *kafka.consume(consumer, 200, 0)) if found else ():
                    if error := message.error():
                        kafka.check(error)
                    else:
                        handler[message.topic()](message)
        finally:
            consumer.close()


class Observer:
    """What the demo sees of headrace's inside while it runs: vectors, versions, how far each partition is."""

    def __init__(self, settings: Settings) -> None:
        self.encoded: set[str] = set()  # items whose vector is there
        self.dead_letters = 0
        self.versions: list[tuple[int, str, int, int]] = []  # (arrival in Unix ms, policy, version, learned up to)
        self._progress: dict[int, bytes] = {}
        self.follower = Follower(
            settings,
            {
                "item-vectors": self._on_item,
                "policy-versions": self._on_version,
                "users-changelog": self._on_state,
                "dead-letters": self._on_dead_letter,
            },
        )

    def progress(self) -> dict[int, Progress]:
        """The last committed progress of each `interactions` partition."""
        if self.follower.error is not None:
            raise self.follower.error
        return {partition: decode_progress(raw) for partition, raw in self._progress.items()}

    def latest(self, policy: str) -> int:
        return max((version for _, name, version, _ in self.versions if name == policy), default=0)

    def delays(self, policy: str, outcomes: list[tuple[int, int]]) -> NDArray[np.float64]:
        """(N,) ms from the send of each outcome to the first committed version of the policy that knows it.

        `outcomes` are (offset in transitions, sent in Unix ms); those that no version knows yet are left out.
        """
        first: list[tuple[int, int]] = []  # (offset, arrival), both growing
        for arrival, name, _, offset in self.versions:
            if name == policy and (not first or offset > first[-1][0]):
                first.append((offset, arrival))
        found = []
        for offset, sent in outcomes:
            place = bisect_left(first, (offset, 0))
            if place < len(first):
                found.append(first[place][1] - sent)
        return np.array(found, np.float64)

    def _on_item(self, message: Message) -> None:
        value, key = message.value(), message.key()
        if value is not None and key is not None and not key.startswith(b"\0") and decode_item(value).vector:
            self.encoded.add(key.decode())

    def _on_version(self, message: Message) -> None:
        value = message.value()
        if value is not None and message.key() != kafka.FENCE_KEY:
            record = decode_policy_version(value)
            self.versions.append((int(time.time() * 1000), record.policy, record.version, record.offset))

    def _on_state(self, message: Message) -> None:
        value = message.value()
        if message.key() == PROGRESS and value is not None:
            self._progress[message.partition()] = value

    def _on_dead_letter(self, message: Message) -> None:
        self.dead_letters += 1
