"""A partition's event time, from the watermarks that ingest writes: the only clock a worker knows."""

from __future__ import annotations

from headrace.streams.records import Batch


class EventClock:
    """`sources` maps each source to its latest (watermark, idle). `now` is event time in ms and never falls."""

    def __init__(self, sources: dict[str, tuple[int, bool]], now: int) -> None:
        self.sources = sources
        self.now = now

    def advanced(self, batch: Batch) -> EventClock:
        """The clock after this record: the smallest watermark of the sources that are not idle, else the largest of
        all."""
        if not batch.watermark:
            return self
        sources = {**self.sources, batch.source: (batch.watermark, batch.idle)}
        busy = [mark for mark, idle in sources.values() if not idle]
        now = min(busy) if busy else max(mark for mark, _ in sources.values())
        return EventClock(sources, max(self.now, now))
