"""What every worker reads whole: items, policy versions, announcements, rules; to their end before it is ready, then as
they grow.

A thread reads and decodes; the worker takes what has come between two records of `interactions`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from headrace.streams import kafka
from headrace.streams.contents import ENCODED, OLD
from headrace.streams.settings import Settings


class Broadcast:
    """Reads topics from their beginning. `decode` maps a topic's short name to what makes a record of a message; of
    those in `nulls`, which the shop writes, also of one that takes something back."""

    def __init__(
        self, settings: Settings, decode: dict[str, Callable[[kafka.Message], Any]], *, nulls: Collection[str] = ()
    ) -> None:
        self._settings = settings
        self._nulls = {settings.topic(name) for name in nulls}
        self._decode = {settings.topic(name): (name, decoder) for name, decoder in decode.items()}
        self._arrived: deque[tuple[str, Any]] = deque()
        self._caught_up = threading.Event()
        self._stop = threading.Event()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="broadcast", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)

    def wait_caught_up(self) -> None:
        """Returns when everything that stood in the topics at the start has arrived. Raises what ended the reading."""
        while not self._caught_up.wait(0.1):
            self.check()
        self.check()

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure

    @property
    def caught_up(self) -> bool:
        return self._caught_up.is_set()

    def take(self) -> list[tuple[str, Any]]:
        """(topic's short name, record) of what has arrived since the last call, in order."""
        taken = []
        while self._arrived:
            taken.append(self._arrived.popleft())
        return taken

    def _run(self) -> None:
        try:
            self._read()
        except BaseException as error:
            self.failure = error

    def _read(self) -> None:
        positions = {topic: kafka.read_to_end(self._settings, topic, self._on_message) for topic in self._decode}
        self._caught_up.set()
        reader: Consumer = kafka.consumer(self._settings, "headrace-broadcast", fetch_wait_max_ms=100)
        reader.assign([TopicPartition(t, p, o) for t, found in positions.items() for p, o in found.items()])
        try:
            while not self._stop.is_set():
                for message in kafka.consume(reader, 500, 0.1):
                    if error := message.error():
                        kafka.check(error)
                    else:
                        self._on_message(message)
        finally:
            reader.close()

    def _on_message(self, message: kafka.Message) -> None:
        key = message.key() or b""
        own = message.value() is None or key.startswith(b"\0")  # a writer's own: fence, position
        if not own or key.startswith((OLD, ENCODED)) or message.topic() in self._nulls:
            name, decode = self._decode[message.topic()]
            if (record := decode(message)) is not None:
                self._arrived.append((name, record))
