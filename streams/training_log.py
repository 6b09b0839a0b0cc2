"""`headrace export train` reads here what the encoder is trained on: a catalogue and what users did, as arrays.

From files, with the mapping that `items load` and `events replay` take; or from the topics. What a worker would not put
into a history, or would not learn from, is not in the log either, so that training meets what serving will meet: only
types whose `history` is set, an event's item before its words, no event twice, nothing of a crawler, nothing of who
asked to be forgotten.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headrace.export.artifact import ArtifactError
from headrace.export.defaults import ensure_text
from headrace.export.log import Log
from headrace.export.names import type_code
from headrace.streams import kafka, topics
from headrace.streams.erased import Erased
from headrace.streams.errors import ArtifactMismatch, HeadraceError
from headrace.streams.load import Summary, read_events, read_items
from headrace.streams.messages import Decoder, Rejection, ShopItem
from headrace.streams.people.persons import Persons
from headrace.streams.progress import progress
from headrace.streams.records import Event, Identity, item_key
from headrace.streams.settings import Settings, cache_dir
from headrace.streams.state import short_hash
from headrace.streams.text_cache import TextCache
from headrace.streams.texts import TextEncoder
from headrace.streams.vectors import fused, projected, text_of

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

_REPORT_EVERY = 1_000
_AT_ONCE = 256  # texts encoded between two reports


@dataclass(frozen=True)
class TrainingLog:
    """The log, the version of the text encoder whose vectors it holds, and what is worth telling about it."""

    log: Log
    titles: Sequence[str]  # (N,) the words of its items, empty for none
    text_version: str
    notes: Sequence[str]


def from_files(
    settings: Settings,
    events: Sequence[Path],
    items: Path,
    mapping: Path | None = None,
    *,
    erased: Erased | None = None,
    until_ms: int | None = None,
) -> TrainingLog:
    """Of event files and a catalogue, as `events replay` and `items load` read them.

    `until_ms`: only what happened before. Raises HeadraceError or SettingsError, one line with the cure.
    """
    made = _Maker(settings, erased or Erased(), until_ms)
    summary = Summary(items)
    made.take_items(read_items(settings, items, mapping, summary=summary))
    notes = [line for line in summary.left_out(f"rows of {items.name} not read") if "another row" not in line]
    for path in events:
        summary = Summary(path)
        for event in read_events(settings, path, mapping, summary=summary):
            made.take(event)
        notes += summary.left_out(f"rows of {path.name} not read")
    return made.finish(notes, source=" and ".join(path.name for path in events))


def from_topics(settings: Settings, *, until_ms: int | None = None, erased: Erased | None = None) -> TrainingLog:
    """Of what `items` and `events` hold now. Erasures are read first: nothing that they cover enters the log. Then
    `identities`: an anonymous id's events are his whose it is by now.

    `until_ms`: only what happened before. Raises BrokerError where Kafka does not answer, HeadraceError in one line.
    """
    topics.reach(settings)
    erased = erased or Erased()
    erased.read_topics(settings)
    decoder, now_ms, refused = Decoder(settings), time.time_ns() // 1_000_000, Counter[str]()
    identities: list[Identity] = []
    items: dict[bytes, ShopItem] = {}

    def on_identity(message: kafka.Message) -> None:
        if (raw := message.value()) is None:
            return
        identity = decoder.identity(raw, now_ms=now_ms, sent_ms=0)
        if isinstance(identity, Rejection):
            refused["identities"] += 1
        elif until_ms is None or identity.ts < until_ms:
            identities.append(identity)

    def on_item(message: kafka.Message) -> None:
        key, raw = message.key() or b"", message.value()
        items.pop(key, None)
        if raw is None:
            return
        item = decoder.item(raw)
        if isinstance(item, Rejection) or key != item.item_id.encode():
            refused["items"] += 1
        else:
            items[key] = item

    def on_event(message: kafka.Message) -> None:
        raw = message.value()
        if raw is None:
            return
        event = decoder.event(raw, now_ms=now_ms, sent_ms=0)
        if isinstance(event, Rejection):
            refused["events"] += 1
        else:
            made.take(event)

    _read(settings, "identities", on_identity)
    persons = Persons(settings, identities, erased=erased.covers)
    made = _Maker(settings, erased, until_ms, persons)
    _read(settings, "items", on_item)
    made.take_items(items.values())
    _read(settings, "events", on_event)
    notes = [f"  {n:,} messages of {topic} not read: no {topic} by the contract" for topic, n in refused.items()]
    if erased.unreadable:
        notes.append(f"  {erased.unreadable:,} messages of erasures are none: see dead-letters, and send them again")
    return made.finish(notes, source=f"topic {settings.topic('events')}")


def _read(settings: Settings, name: str, take: Callable[[kafka.Message], None]) -> None:
    """All that a topic holds now, with a bar."""
    topic = settings.topic(name)
    known = kafka.admin(settings).list_topics(topic, timeout=10).topics[topic].partitions
    total = sum(high for high, _ in kafka.ends(kafka.admin(settings), [(topic, number) for number in known]).values())
    count = 0
    with progress(f"reading {topic}", total=total) as advance:

        def on_message(message: kafka.Message) -> None:
            nonlocal count
            count += 1
            if count % _REPORT_EVERY == 0:
                advance(count, f"{count:,} messages")
            take(message)

        for partition in sorted(known):  # one after the other: the same log again is read in the same order
            kafka.read_to_end(settings, topic, on_message, partition=partition)


@dataclass
class _Columns:
    """One row a history entry, in the order read."""

    users: dict[str, int] = field(default_factory=dict)
    owner: array[int] = field(default_factory=lambda: array("q"))
    ts: array[int] = field(default_factory=lambda: array("q"))
    event: array[int] = field(default_factory=lambda: array("Q"))  # hash of the user, the event's id, item or words
    item: array[int] = field(default_factory=lambda: array("i"))
    asked: array[int] = field(default_factory=lambda: array("i"))
    type: array[int] = field(default_factory=lambda: array("B"))
    value: array[float] = field(default_factory=lambda: array("f"))

    def add(self, event: Event, code: int, user: str, *, part: str, item: int = -1, asked: int = -1) -> None:
        """`user`: whose event it is; its id is unique under the id that it was sent under."""
        self.owner.append(self.users.setdefault(user, len(self.users)))
        self.ts.append(event.ts)
        self.event.append(short_hash(part, event.user_id, event.event_id))
        self.item.append(item)
        self.asked.append(asked)
        self.type.append(code)
        self.value.append(np.nan if event.value is None else event.value)


class _Maker:
    """Items first, then events, then `finish`."""

    def __init__(
        self, settings: Settings, erased: Erased, until_ms: int | None, persons: Persons | None = None
    ) -> None:
        self._settings, self._erased, self._until_ms = settings, erased, until_ms
        self._persons = persons or Persons(settings)
        self._encoder = _text_encoder(settings)
        self._codes = {name: type_code(name) for name, kind in settings.event_types.items() if kind.history}
        self._rows: dict[str, int] = {}
        self._columns = _Columns()
        self._words: dict[str, int] = {}
        self._left_out: Counter[str] = Counter()
        self._bare = 0

    def take_items(self, items: Iterable[ShopItem]) -> None:
        found = {item.item_id: item for item in items}
        self._rows = {item_id: row for row, item_id in enumerate(found)}
        self._keys = np.array([item_key(item_id) for item_id in found], np.uint64)
        self._titles = [text_of(item, self._settings.catalogue.attributes) for item in found.values()]
        self._vectors = _vectors(self._encoder, list(found.values()), self._titles)
        self._categories = [item.category for item in found.values()]
        self._prices = np.array([np.nan if i.price is None else i.price for i in found.values()], np.float32)
        self._bare = sum(
            not (item.category or row.any()) for item, row in zip(found.values(), self._vectors, strict=True)
        )

    def take(self, event: Event) -> None:
        code, user = self._codes.get(event.type), self._persons.user(event.user_id)
        if self._until_ms is not None and event.ts >= self._until_ms:
            self._left_out["later than --until"] += 1
        elif self._erased.covers(event.user_id, event.ts) or self._erased.covers(user, event.ts):
            self._left_out["of users who asked to be forgotten"] += 1
        elif code is None:
            self._left_out[f"of a type that enters no history: {event.type}"] += 1
        else:
            if event.item_id is not None:
                row = self._rows.get(event.item_id, -1)
                self._left_out["of items that the catalogue does not hold: known by their type alone"] += row < 0
                self._columns.add(event, code, user, part="item", item=row)
            if event.text:
                asked = self._words.setdefault(event.text, len(self._words))
                self._columns.add(event, code, user, part="words", asked=asked)

    def finish(self, notes: Sequence[str], *, source: str) -> TrainingLog:
        """Raises HeadraceError for what nothing can be learned from."""
        columns = self._columns
        if not self._rows:
            raise HeadraceError(
                f"{source}: the catalogue holds no item; load it with `headrace items load`, or --items"
            )
        if not columns.owner:
            raise HeadraceError(self._nothing(source))
        item = np.array(columns.item, np.int32)
        if (item < 0).all():
            raise HeadraceError(
                f"{source}: none of {len(item):,} events is of an item of the catalogue: their item_id must be the same"
            )
        owner, ts = np.array(columns.owner, np.int64), np.array(columns.ts, np.int64)
        _, first = np.unique(np.array(columns.event, np.uint64), return_index=True)
        once = np.sort(first)
        self._left_out["sent twice"] += len(owner) - len(once)
        names = list(columns.users)
        rank = np.empty(len(names), np.int64)  # by name: the order of arrival says nothing
        rank[np.argsort(np.array(names, object), kind="stable")] = np.arange(len(names))
        order = once[np.lexsort((ts[once], rank[owner[once]]))]
        calm = order[~_busy(self._settings, owner[order], ts[order])]
        self._left_out["of users as busy as a crawler (worker.busy_events)"] += len(order) - len(calm)
        counts = np.bincount(rank[owner[calm]], minlength=len(names))
        log = Log(
            keys=self._keys,
            texts=self._vectors,
            categories=self._categories if any(self._categories) else (),
            prices=self._prices if np.isfinite(self._prices).any() else np.zeros(0, np.float32),
            words=self._encode("encoding queries", list(self._words)),
            users=sorted(names),
            offsets=np.concatenate([[0], counts.cumsum()]).astype(np.int64),
            items=item[calm],
            asked=np.array(columns.asked, np.int32)[calm],
            types=np.array(columns.type, np.uint8)[calm],
            seconds=ts[calm] // 1000,
            values=np.array(columns.value, np.float32)[calm],
        )
        told = [*notes, *(f"  {n:,} events {why}" for why, n in self._left_out.most_common() if n)]
        if self._bare:
            told.append(f"  {self._bare:,} items have no words, no category and no vector: known by their ids alone")
        return TrainingLog(log, self._titles, self._encoder.version, told)

    def _nothing(self, source: str) -> str:
        why = ", ".join(f"{n:,} {why}" for why, n in self._left_out.most_common() if n)
        return f"{source}: no event to learn from" + (f" ({why})" if why else "; check the path and the mapping")

    def _encode(self, title: str, texts: list[str]) -> F32:
        vectors = np.zeros((len(texts), self._encoder.dim), np.float32)
        for rows in _batches(title, len(texts)):
            vectors[rows] = self._encoder.encode(texts[rows])
        return vectors


def _vectors(encoder: TextEncoder, items: Sequence[ShopItem], texts: Sequence[str]) -> F32:
    """(N, T) as the catalogue makes them, from its own cache where it has met the words before; zeros for none."""
    cache = TextCache(cache_dir() / "texts.sqlite", encoder_version=encoder.version, dim=encoder.dim)
    keys = {text: cache.key(text) for text in texts if text}
    known = cache.get(keys.values())
    missing = [text for text, key in keys.items() if key not in known]
    for rows in _batches("encoding items", len(missing)):
        made = encoder.encode(missing[rows]).astype(np.float16).astype(np.float32)
        fresh = {keys[text]: vector for text, vector in zip(missing[rows], made, strict=True)}
        cache.put(fresh)
        known |= fresh
    cache.close()
    vectors = np.zeros((len(items), encoder.dim), np.float32)
    for row, (item, text) in enumerate(zip(items, texts, strict=True)):
        own = projected(item.vector, encoder.dim) if item.vector else None
        if packed := fused(known.get(keys.get(text, b"")), own):
            vectors[row] = np.frombuffer(packed, "<f2")
    return vectors


def _batches(title: str, total: int) -> Iterator[slice]:
    if not total:
        return
    with progress(title, total=total) as advance:
        for start in range(0, total, _AT_ONCE):
            yield slice(start, start + _AT_ONCE)
            done = min(start + _AT_ONCE, total)
            advance(done, f"{done:,} texts")


def _busy(settings: Settings, owner: I64, ts: I64) -> NDArray[np.bool_]:
    """(E,) of rows sorted by user and time: those at which `busy.Busy` would say that the user teaches nothing."""
    worker = settings.worker
    events = min(worker.busy_events, worker.history)
    within_ms = worker.busy_within * events // worker.busy_events
    busy = np.zeros(len(owner), np.bool_)
    since, now = slice(None, -events), slice(events, None)
    busy[now] = (owner[now] == owner[since]) & (ts[now] - ts[since] // 1000 * 1000 < within_ms)
    return busy


def _text_encoder(settings: Settings) -> TextEncoder:
    try:
        return TextEncoder(ensure_text(settings.catalogue.text_model), threads=settings.catalogue.threads)
    except ArtifactError as error:
        raise ArtifactMismatch(str(error)) from None
