"""A watch on the ends of the partitions a role reads: an end that moves while the last stable offset stands still is a
transaction that nobody ends, and whoever reads committed records waits for it (alert HeadraceHangingTransaction).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from confluent_kafka import KafkaException

from headrace.streams import kafka
from headrace.streams.metrics import Metrics
from headrace.streams.settings import Settings


class EndsWatch:
    """Sets `headrace_high_watermark_offset` and `headrace_last_stable_offset` every `interval_s`, in its own thread.

    `topics` are names without the prefix. A broker that is away or a topic that is missing changes nothing.
    """

    def __init__(self, settings: Settings, metrics: Metrics, topics: Iterable[str], *, interval_s: float = 5) -> None:
        self._admin = kafka.admin(settings)
        self._topics = {settings.topic(name): name for name in topics}  # metrics name them without the prefix
        self._metrics = metrics
        self._interval_s = interval_s
        self._stable: dict[tuple[str, int], int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ends watch", daemon=True)
        self._thread.start()

    def after(self, topic: str, partition: int, offset: int) -> int:
        """Records committed after `offset` at the last look, about: each is followed by its transaction's marker."""
        return max(0, self._stable.get((topic, partition), 0) - 1 - offset) // 2

    def close(self) -> None:
        self._ended.set()
        self._thread.join(1)  # a request under way ends with the process

    def _watch(self) -> None:
        while True:
            partitions = self._partitions()
            ends = kafka.ends(self._admin, partitions) if partitions else {}
            for (topic, partition), (high, stable) in ends.items():
                self._metrics.high_watermark.labels(self._topics[topic], str(partition)).set(high)
                self._metrics.last_stable.labels(self._topics[topic], str(partition)).set(stable)
                self._stable[self._topics[topic], partition] = stable
            if self._ended.wait(self._interval_s):
                return

    def _partitions(self) -> list[tuple[str, int]]:
        try:
            known = self._admin.list_topics(timeout=5).topics
        except KafkaException:
            return []
        return [(name, number) for name in self._topics if name in known for number in known[name].partitions]
