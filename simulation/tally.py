"""What was committed: every figure of the demo's summary, read from the topics after the run.

Nothing here trusts a counter of a process: what a kill would have lost was never committed.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from confluent_kafka import OFFSET_BEGINNING, TopicPartition
from numpy.typing import NDArray

from headrace.simulation.shop import Planted
from headrace.streams import kafka
from headrace.streams.engine import PROGRESS, Progress, decode_progress
from headrace.streams.kafka import Message
from headrace.streams.records import (
    Closed,
    Event,
    Opened,
    Outcome,
    decode_batch,
    decode_policy_version,
    decode_transitions,
)
from headrace.streams.settings import Settings


@dataclass(frozen=True)
class Decided:
    """A decision that was shown and has closed with the full horizon."""

    recommendation_id: str
    user_id: str
    arm: str
    opened_ts: int
    reward: float


@dataclass(frozen=True)
class Found:
    """What became of the planted messages, each looked for by name."""

    duplicates: int = 0
    rubbish: int = 0
    late: int = 0
    missing: tuple[str, ...] = ()  # those whose fate is not what it should be, with a word why


@dataclass
class Tally:
    events_applied: int = 0
    duplicates: int = 0
    late_outcomes: int = 0
    dead_letters: int = 0  # of `events`
    recommendations: int = 0
    decided: list[Decided] = field(default_factory=list)
    capped: int = 0  # closed before their time, because a user had too many open
    outcomes: list[tuple[int, int]] = field(default_factory=list)  # (offset in transitions, sent_ms)
    found: Found = field(default_factory=Found)


def progress(settings: Settings) -> dict[int, Progress]:
    """The last committed progress of every `interactions` partition."""
    latest: dict[int, Progress] = {}

    def take(message: Message) -> None:
        value = message.value()
        if message.key() == PROGRESS and value is not None:
            latest[message.partition()] = decode_progress(value)

    kafka.read_to_end(settings, settings.topic("users-changelog"), take)
    return latest


def counted(found: dict[int, Progress], word: str, *, of: str = "events") -> int:
    """The committed count of `word` over all partitions and event types."""
    total = 0
    for partition in found.values():
        for name, amount in partition.counts.items():
            kind, *labels = name.split("/")
            total += amount if kind == of and labels[-1] == word else 0
    return total


def take(settings: Settings, planted: Planted) -> Tally:
    """Reads the topics to their end and looks for each planted message by name."""
    tally = Tally()
    found = progress(settings)
    tally.events_applied = counted(found, "applied")
    tally.duplicates = counted(found, "duplicate")
    tally.late_outcomes = counted(found, "late", of="outcomes")

    letters: dict[tuple[int, int], tuple[bytes | None, str]] = {}  # coordinates in `events` → bytes, reason
    events_topic = settings.topic("events")

    def dead(message: Message) -> None:
        headers = {name: (value or b"").decode() for name, value in message.headers() or ()}
        topic, _, place = headers["source"].partition("[")
        if topic == events_topic:
            partition, _, offset = place.partition("]@")
            letters[int(partition), int(offset)] = message.value(), headers["reason"]
            tally.dead_letters += 1

    kafka.read_to_end(settings, settings.topic("dead-letters"), dead)

    triggered: Counter[str] = Counter()

    def recommended(message: Message) -> None:
        tally.recommendations += 1

    kafka.read_to_end(settings, settings.topic("recommendations"), recommended)

    rewarded: Counter[str] = Counter()
    horizon = settings.close_after_ms

    def transition(message: Message) -> None:
        for record in decode_transitions(message.value() or b"").records:
            if isinstance(record, Opened):
                triggered[record.trigger_id] += 1
            elif isinstance(record, Outcome):
                tally.outcomes.append((message.offset(), record.sent_ms))
                rewarded[record.outcome_id.partition("/")[2]] += 1
            elif isinstance(record, Closed) and record.closed_as == "shown":
                if record.ts < record.opened_ts + horizon:
                    tally.capped += 1
                else:
                    reward = float(sum(record.rewards))
                    tally.decided.append(
                        Decided(record.recommendation_id, record.user_id, record.arm, record.opened_ts, reward)
                    )

    kafka.read_to_end(settings, settings.topic("transitions"), transition)

    wanted = {*planted.duplicates, *planted.late, *planted.late_outcomes}
    copies: Counter[str] = Counter()

    def interaction(message: Message) -> None:
        for entry in decode_batch(message.value() or b"").entries:
            if isinstance(entry, Event) and entry.event_id in wanted:
                copies[entry.event_id] += 1

    kafka.read_to_end(settings, settings.topic("interactions"), interaction)
    tally.found = _look_for(planted, tally, letters, copies, rewarded, triggered)
    return tally


def _look_for(
    planted: Planted,
    tally: Tally,
    letters: dict[tuple[int, int], tuple[bytes | None, str]],
    copies: Counter[str],
    rewarded: Counter[str],
    triggered: Counter[str],
) -> Found:
    missing: list[str] = []
    duplicates = 0
    for event_id, times in Counter(planted.duplicates).items():
        # Read as often as it was sent, and without effect from the second time on.
        if copies[event_id] == times + 1 and rewarded[event_id] <= 1 and triggered[event_id] <= 1:
            duplicates += times
        else:
            missing.append(f"duplicate {event_id}: read {copies[event_id]} times, rewarded {rewarded[event_id]}")
    if tally.duplicates != len(planted.duplicates):
        missing.append(f"{len(planted.duplicates)} duplicates sent, {tally.duplicates} counted")
    rubbish = 0
    for piece in planted.rubbish:
        value, reason = letters.get((piece.partition, piece.offset), (None, "no dead letter"))
        if value == piece.value and reason.startswith(piece.reason):
            rubbish += 1
        else:
            missing.append(f"rubbish ({piece.kind}) at {piece.partition}@{piece.offset}: {reason}")
    late = 0
    for event_id in planted.late:
        if copies[event_id] >= 1 and not triggered[event_id]:
            late += 1
        else:
            missing.append(f"late {event_id}: read {copies[event_id]} times, answered {triggered[event_id]} times")
    for event_id in planted.late_outcomes:
        if copies[event_id] >= 1 and not rewarded[event_id]:
            late += 1
        else:
            missing.append(f"late outcome {event_id}: read {copies[event_id]} times, rewarded {rewarded[event_id]}")
    return Found(duplicates, rubbish, late, tuple(missing))


def last_third(decided: list[Decided]) -> list[Decided]:
    """The last third of the decisions in the order they were taken."""
    ordered = sorted(decided, key=lambda d: (d.opened_ts, d.recommendation_id))
    return ordered[len(ordered) * 2 // 3 :]


class Versions:
    """Follows `policy-versions` while the demo runs: when each committed version could be read by a worker."""

    def __init__(self, settings: Settings) -> None:
        self.seen: list[tuple[int, str, int, int]] = []  # (arrival in Unix ms, policy, version, learned up to offset)
        self._settings = settings
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="policy-versions", daemon=True)

    def open(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def latest(self, policy: str) -> int:
        return max((version for _, name, version, _ in self.seen if name == policy), default=0)

    def reached(self, policy: str) -> int:
        """The last offset of `transitions` that a version of this policy knows."""
        return max((offset for _, name, _, offset in self.seen if name == policy), default=-1)

    def delays(self, policy: str, outcomes: list[tuple[int, int]]) -> NDArray[np.float64]:
        """Milliseconds from the shop's send of each outcome to the first committed version that knows it."""
        first: list[tuple[int, int]] = []  # (offset, arrival), both growing
        for arrival, name, _, offset in self.seen:
            if name == policy and (not first or offset > first[-1][0]):
                first.append((offset, arrival))
        places = [bisect_left(first, (offset, 0)) for offset, _ in outcomes]
        known = zip(outcomes, places, strict=True)
        return np.array([first[i][1] - sent for (_, sent), i in known if i < len(first)], np.float64)

    def _follow(self) -> None:
        topic = self._settings.topic("policy-versions")
        consumer = kafka.consumer(self._settings, "demo-versions", fetch_wait_max_ms=100)
        partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
        try:
            while not self._closing.is_set():
                message = consumer.poll(0.1)
                if message is None:
                    continue
                if error := message.error():
                    kafka.check(error)
                elif value := message.value():
                    record = decode_policy_version(value)
                    self.seen.append((int(time.time() * 1000), record.policy, record.version, record.offset))
        finally:
            consumer.close()
