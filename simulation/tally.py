"""What was committed: every figure of the demo's summary, read from the topics after the run.

Nothing here trusts a counter of a process: what a kill would have lost was never committed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from headrace.simulation.shop import Planted
from headrace.streams import kafka
from headrace.streams.changelog import PROGRESS, Progress, decode_progress
from headrace.streams.kafka import Message
from headrace.streams.records import (
    Closed,
    Event,
    Opened,
    Outcome,
    decode_batch,
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
    late_outcomes: int = 0
    lost_rubbish: tuple[str, ...] = ()  # kinds
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
    lost: list[str] = []
    for piece in planted.rubbish:
        value, reason = letters.get((piece.partition, piece.offset), (None, "no dead letter"))
        if value != piece.value or not reason.startswith(piece.reason):
            lost.append(piece.kind)
            missing.append(f"rubbish ({piece.kind}) at {piece.partition}@{piece.offset}: {reason}")
    late = [event_id for event_id in planted.late if copies[event_id] and not triggered[event_id]]
    for event_id in set(planted.late) - set(late):
        missing.append(f"late {event_id}: read {copies[event_id]} times, answered {triggered[event_id]} times")
    unpaid = [event_id for event_id in planted.late_outcomes if copies[event_id] and not rewarded[event_id]]
    for event_id in set(planted.late_outcomes) - set(unpaid):
        missing.append(f"late click {event_id}: read {copies[event_id]} times, rewarded {rewarded[event_id]} times")
    return Found(
        duplicates, len(planted.rubbish) - len(lost), len(late), len(unpaid), tuple(lost), tuple(sorted(missing))
    )


def last_third(decided: list[Decided]) -> list[Decided]:
    """The last third of the decisions in the order they were taken."""
    ordered = sorted(decided, key=lambda d: (d.opened_ts, d.recommendation_id))
    return ordered[len(ordered) * 2 // 3 :]
