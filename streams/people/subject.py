"""`headrace subject USER`: everything that is held about a user, where it lies and when it leaves. Reads only.

Kafka is asked what is there at this moment: states from the changelog, records from every topic that headrace owns, the
learner's decisions by reading its log as it reads it. Titles come from the catalogue.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from headrace.export.names import type_code
from headrace.policy.features import SCALARS
from headrace.streams import commands, kafka, topics
from headrace.streams.book import Book, Widths
from headrace.streams.changelog import Alias, alias_key, decode_alias, erased_key, user_key
from headrace.streams.context import ContextEncoder
from headrace.streams.decisions import arm_code, recommendation_name
from headrace.streams.gate import PART
from headrace.streams.kafka import Message
from headrace.streams.live import Live
from headrace.streams.partition import partition_of
from headrace.streams.people import optout
from headrace.streams.records import decode_batch, decode_transitions
from headrace.streams.settings import Settings
from headrace.streams.state import UserState
from headrace.streams.titles import Titles, read_titles

Found = dict[str, Any]
_IDS = ("user_id", "anonymous_id", "sent_as", "into", "of", "user", "named")  # fields of entries that name somebody
_RECORDS = ("interactions", "transitions", "recommendations", "recommendations-shadow", "dead-letters")


class Told(NamedTuple):
    """What the changelog says of an id."""

    state: UserState | None
    erased: int | None  # up to when, in Unix ms
    alias: Alias | None


def describe(settings: Settings, user: str, *, also: Iterable[str] = ()) -> Found:
    """As JSON could hold it; `held` is False where there is nothing. Times are Unix ms. `also`: other ids of his, of
    which nothing but records is left.

    Raises HeadraceError, in one line, where Kafka or a topic is missing.
    """
    topics.require(settings, wait=False)
    states, marks, merged_into = _states(settings, user)
    names = {user, *states, *merged_into, *also}
    kept = topics.configured(settings, ["users-changelog", *_RECORDS])
    records = {topic: _records(settings, topic, names, kept[topic]) for topic in _RECORDS}
    keys = {key for state in states.values() for key in state.history_keys().tolist()}
    keys |= {key for state in states.values() if state.notes for key in (*state.notes.consumed, *state.notes.cart)}
    titles = read_titles(settings, keys) if keys else {}
    learner = _learner(settings, names)
    held = bool(states or merged_into or learner or any(found["count"] for found in records.values()))
    return {
        "user_id": user,
        "held": held,
        "arm": _arm(settings, user),
        "merged_into": merged_into,
        "erased_until": marks.get(user),
        "states": {name: _state(settings, state, titles) for name, state in states.items()},
        "states_leave": f"with an erasure, {_span(_cleaned(kept['users-changelog']))} later from the disk",
        "records": records,
        "learner": {"decisions": learner},
    }


def is_erased(settings: Settings, user: str, ts: int) -> bool:
    """Whether a worker has erased this user up to `ts` (Unix ms)."""
    erased = of_changelog(settings, {user})[user].erased
    return erased is not None and erased >= ts


# -- the changelog ----------------------------------------------------------------------------------------------------


def _states(settings: Settings, user: str) -> tuple[dict[str, UserState], dict[str, int], list[str]]:
    """States by id, the user's own first, erasure marks (Unix ms) by id, and what the id was merged into."""
    states: dict[str, UserState] = {}
    marks: dict[str, int] = {}
    into: list[str] = []
    waiting, seen = [user], set[str]()
    while waiting:
        names = set(waiting) - seen
        seen |= names
        waiting = []
        for name, (state, erased, alias) in of_changelog(settings, names).items():
            if state is not None:
                states[name] = state
                waiting += state.notes.merged if state.notes is not None else []
            if erased is not None:
                marks[name] = erased
            if alias is not None:
                into += [alias.user_id] if name == user or name in into else []
                waiting.append(alias.user_id)
        waiting = [name for name in waiting if name not in seen]
    return states, marks, into


def of_changelog(settings: Settings, names: set[str]) -> dict[str, Told]:
    """What it says at this moment of each of these ids."""
    last: dict[bytes, bytes | None] = {}
    wanted = {key for name in names for key in (user_key(name), erased_key(name), alias_key(name))}

    def take(message: Message) -> None:
        if (key := message.key()) in wanted and key is not None:
            last[key] = message.value()

    for partition in sorted({partition_of(name, settings.topics.interactions_partitions) for name in names}):
        kafka.read_to_end(settings, settings.topic("users-changelog"), take, partition=partition)
    return {name: told_of(last.get, name) for name in names}


def told_of(get: Callable[[bytes], bytes | None], name: str) -> Told:
    """Of one id, from what `get` gives for the changelog's keys."""
    state, erased, alias = (get(key(name)) for key in (user_key, erased_key, alias_key))
    return Told(
        UserState.unpack(state) if state else None,
        int.from_bytes(erased, "little") if erased else None,
        decode_alias(alias) if alias else None,
    )


def _state(settings: Settings, state: UserState, titles: Titles) -> Found:
    """What a state says, in words. Words that the user wrote are held as vectors alone."""
    kinds = {type_code(name): name for name in settings.event_types}
    notes = state.notes

    def item(key: int) -> Found:
        if notes is not None and key in notes.texts:
            return {"text": "as a vector"}
        name, title = titles.get(key, (None, None))
        return {"item_id": name, "title": title} if name else {"item_key": key}

    history = [
        {"type": kinds.get(code, str(code)), "ts": 1000 * second, **item(key)}
        for key, code, second in zip(state.history_keys().tolist(), state.types, _seconds(state), strict=True)
    ]
    arms = {arm_code(arm): arm for arm in settings.arms.shares}
    decisions = [
        {
            "recommendation_id": recommendation_name(decision.recommendation),
            "ts": decision.ts,
            "arm": arms.get(decision.arm, "another placement's, or retired"),
            "items": len(decision.keys),
        }
        for decision in state.decisions()
    ]
    return {
        "history": history,
        "events_ever": state.count,
        "event_ids_remembered": len(state.seen) // 8,
        "consumed": [{**item(key), "ts": 1000 * second} for key, second in (notes.consumed if notes else {}).items()],
        "cart": [{**item(key), "ts": 1000 * second} for key, second in (notes.cart if notes else {}).items()],
        "counted_purchases": len(notes.taken) if notes else 0,
        "shown_counts": len(notes.shows) if notes else 0,
        "purchases_that_may_return": len(notes.credits) if notes else 0,
        "texts": len(notes.texts) if notes else 0,
        "open_decisions": decisions,
        "merged": list(notes.merged) if notes else [],
        "no_profiling": optout.refused(state),
    }


def _seconds(state: UserState) -> list[int]:
    return [int.from_bytes(state.seconds[at : at + 4], "little") for at in range(0, len(state.seconds), 4)]


# -- records ----------------------------------------------------------------------------------------------------------


@dataclass
class _Topic:
    count: int = 0
    first: int | None = None  # Kafka timestamp, ms
    last: int | None = None
    content: list[Found] = field(default_factory=list)


def _records(settings: Settings, topic: str, names: set[str], config: dict[str, str]) -> Found:
    """Of one topic: how many records speak of these ids, from when to when, when the last one leaves, what they say."""
    found, of = _Topic(), _READERS[topic]

    def take(message: Message) -> None:
        for said in of(message, names):
            at = message.timestamp()[1]
            found.count += 1
            found.first, found.last = min(found.first or at, at), max(found.last or 0, at)
            found.content.append({"partition": message.partition(), "offset": message.offset(), "at": at, **said})

    kafka.read_to_end(settings, settings.topic(topic), take)
    gone = int(config["retention.ms"]) + int(config["segment.ms"])
    leaves = found.last + gone if found.last is not None else None
    return {"count": found.count, "first": found.first, "last": found.last, "gone_by": leaves, "content": found.content}


def _of_interactions(message: Message, names: set[str]) -> Iterator[Found]:
    for entry in decode_batch(message.value() or b"").entries:
        said = msgspec.to_builtins(msgspec.structs.asdict(entry))
        if names.intersection(said.get(name) for name in _IDS):
            yield {"kind": type(entry).__name__, **said}


def _of_transitions(message: Message, names: set[str]) -> Iterator[Found]:
    for record in decode_transitions(message.value() or b"").records:
        if getattr(record, "user_id", None) in names:
            yield {"kind": type(record).__name__, **msgspec.to_builtins(msgspec.structs.asdict(record))}


def _of_slates(message: Message, names: set[str]) -> Iterator[Found]:
    if (message.key() or b"").decode("utf-8", "replace") in names:
        yield {"value": json.loads(message.value() or b"null")}


def _of_dead_letters(message: Message, names: set[str]) -> Iterator[Found]:
    """By the key, and wherever an id stands in the untouched bytes, escaped or not."""
    raw, key = message.value() or b"", (message.key() or b"").decode("utf-8", "replace")
    forms = {form for name in names for form in (name.encode(), json.dumps(name)[1:-1].encode())}
    if key in names or any(form in raw for form in forms):
        headers = {name: (value or b"").decode("utf-8", "replace") for name, value in message.headers() or ()}
        yield {**headers, "key": key, "value": raw.decode("utf-8", "replace")}


_READERS: dict[str, Callable[[Message, set[str]], Iterator[Found]]] = {
    "interactions": _of_interactions,
    "transitions": _of_transitions,
    "recommendations": _of_slates,
    "recommendations-shadow": _of_slates,
    "dead-letters": _of_dead_letters,
}


# -- the learner ------------------------------------------------------------------------------------------------------


def _learner(settings: Settings, names: set[str]) -> list[str]:
    """Recommendation ids of the user's decisions that the learner holds, read as the learner reads them."""
    widths = Widths(state=0, context=ContextEncoder(settings).size, scalars=len(SCALARS))
    book = Book(settings.learner.open_decisions, widths, assume_shown=settings.decisions.assume_shown)

    def take(message: Message) -> None:
        book.read(decode_transitions(message.value() or b""), message.offset())

    kafka.read_to_end(settings, settings.topic("transitions"), take)
    return [held for name in sorted(names) for held in book.of(name)]


def _arm(settings: Settings, user: str) -> str:
    live, record = Live(settings), commands.latest(settings).get(PART)
    if record is not None and "live" in record.meta:
        live.resume(str(record.meta["live"]))
    return live.shares.arm(user)


# -- as lines ---------------------------------------------------------------------------------------------------------


def as_lines(found: Found) -> list[str]:
    """For a person; the records' content is in the JSON alone."""
    user = found["user_id"]
    if not found["held"]:
        mark = f", but that he was erased: a hash and {time_of(found['erased_until'])}" if found["erased_until"] else ""
        return [f"nothing is held about {user}{mark}"]
    lines = [f"{user}: arm {found['arm']}"]
    if found["merged_into"]:
        lines.append(f"  is {found['merged_into'][-1]} by now: what follows is held under that id")
    if found["erased_until"]:
        lines.append(f"  erased: events up to {time_of(found['erased_until'])} are dropped when they come")
    for name, state in found["states"].items():
        lines += _state_lines(name, state)
    if found["states"]:
        lines.append(f"  leaves {found['states_leave']}")
    for topic, records in found["records"].items():
        if records["count"]:
            lines.append(
                f"{topic}: {records['count']:,} records, {time_of(records['first'])} to {time_of(records['last'])};"
                f" the last leaves by {time_of(records['gone_by'])}"
            )
    if decisions := found["learner"]["decisions"]:
        lines.append(f"learner: {len(decisions):,} decisions to learn from; they leave with an erasure")
    return lines


def _state_lines(name: str, state: Found) -> list[str]:
    lines = [f"state of {name}:"]
    if state["no_profiling"]:
        lines.append("  wants no profiling")
    if state["merged"]:
        lines.append(f"  ids merged into it: {', '.join(state['merged'])}")
    lines += [f"  {time_of(entry['ts'])}  {entry['type']:<16} {_item(entry)}" for entry in state["history"]]
    for what in ("consumed", "cart"):
        lines += [f"  {time_of(entry['ts'])}  {what:<16} {_item(entry)}" for entry in state[what]]
    for decision in state["open_decisions"]:
        what = f"{decision['recommendation_id']}, {decision['items']} items, arm {decision['arm']}"
        lines.append(f"  {time_of(decision['ts'])}  open decision    {what}")
    counts = ("event_ids_remembered", "counted_purchases", "shown_counts", "purchases_that_may_return", "texts")
    told = ", ".join(f"{state[what]} {what.replace('_', ' ')}" for what in counts if state[what])
    return [*lines, f"  {told}"] if told else lines


def _item(entry: Found) -> str:
    if "text" in entry:
        return "words, kept as a vector"
    if "item_id" not in entry:
        return f"an item that is no longer known ({entry['item_key']})"
    return str(entry["item_id"]) + (f" ({entry['title']})" if entry["title"] else "")


def time_of(ms: int | None) -> str:
    """Unix ms in words."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime((ms or 0) / 1000))


def _cleaned(config: dict[str, str]) -> int:
    """Milliseconds after which a deleted key has left a compacted topic: see docs/erasure.md."""
    return 2 * int(config["max.compaction.lag.ms"]) + int(config["delete.retention.ms"])


def _span(ms: int) -> str:
    minutes = ms / 60_000
    return f"{minutes / 60:.1f} hours" if minutes >= 120 else f"{minutes:.0f} minutes"
