"""How far one source has come in event time, and when it says so. Pure: the caller brings the wall clock."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

IDLE_TICK_MS = 1_000


class Position(msgspec.Struct, frozen=True):
    """One record of `ingest-offsets`: what a source has applied, and its watermark as of a time on the wall clock."""

    offset: int = -1  # of the last message applied; -1: none
    watermark: int = 0  # ms of event time; 0: unknown
    as_of: int = 0  # Unix ms


@dataclass(frozen=True)
class Tick:
    watermark: int
    idle: bool


class SourceClock:
    """The watermark of one source: the largest event time it has read, moved on while the source is silent.

    An event time ahead of the wall clock moves the watermark to the wall clock only: one phone whose clock is wrong
    closes nobody's windows. While the source is silent the watermark moves on with the wall clock (the idle clock), so
    that what waits for time to pass does not wait for ever; after an old log it moves on from the log's end.
    Messages that are refused are silence.
    """

    def __init__(self, position: Position, *, now_ms: int, tick_ms: int, idle_after_ms: int) -> None:
        self.watermark = position.watermark
        self._as_of = position.as_of or now_ms
        self._heard_ms = now_ms  # of the last event; a source is not idle before it had a chance to be read
        self._ticked_ms = now_ms
        self._active = False  # an event was read since the last tick
        self._tick_ms = tick_ms
        self._idle_after_ms = idle_after_ms

    def read(self, ts: int, *, now_ms: int) -> None:
        """An event of this time (ms) was read."""
        self.watermark = max(self.watermark, min(ts, now_ms))
        self._as_of = self._heard_ms = now_ms
        self._active = True

    def due_ms(self, *, caught_up: bool) -> float:
        """When the next tick is due (Unix ms); infinite where only a message can bring it on.

        A source that is not `caught_up` with its partition may be silent because nobody reads it: no idle ticks.
        """
        if self._active:
            return self._ticked_ms + self._tick_ms
        if self.watermark and caught_up:
            return max(self._heard_ms + self._idle_after_ms, self._ticked_ms + IDLE_TICK_MS)
        return float("inf")

    def tick(self, *, now_ms: int) -> Tick:
        """What the tick that is due says."""
        idle = not self._active
        if idle:
            self.watermark += max(0, now_ms - self._as_of)
            self._as_of = now_ms
        self._active = False
        self._ticked_ms = now_ms
        return Tick(self.watermark, idle)

    def position(self, offset: int) -> Position:
        return Position(offset, self.watermark, self._as_of)


class TickPace:
    """Which ticks of a process tell the learner to cut a version: about one each `tick_ms`, whoever sends it."""

    def __init__(self, tick_ms: int) -> None:
        self._tick_ms = tick_ms
        self._last_ms = float("-inf")

    def take(self, *, now_ms: int) -> bool:
        if now_ms - self._last_ms < self._tick_ms / 2:
            return False
        self._last_ms = now_ms
        return True
