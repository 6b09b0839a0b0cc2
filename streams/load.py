"""`headrace items load` and `headrace events replay`: a catalogue or a log comes in from a file.

Every row is sent, or counted under the reason why it was not; what is sent has passed the same checks as ingest's.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from headrace.streams.errors import SettingsError
from headrace.streams.mapped import Unmappable, mapper
from headrace.streams.mapping import EventFields, F, ItemFields, Mapping, by_name, check_columns, read_mapping
from headrace.streams.messages import Decoder, Rejection, ShopItem
from headrace.streams.progress import Advance, progress
from headrace.streams.records import Event
from headrace.streams.rows import Bad, Jsonl, Parquet, RowFile, flattened, open_rows
from headrace.streams.sender import Sender
from headrace.streams.settings import Settings

_REPORT_EVERY = 1_000  # rows
_TOO_LARGE = "larger than the topic takes"


@dataclass
class Skipped:
    """Rows left out for one reason; `first` is the first one's number in the file, from 1."""

    count: int
    first: int
    example: str


@dataclass
class Summary:
    """What became of a file: `rows` = `sent` + all of `skipped`. A nested list's every record is a row."""

    path: Path
    rows: int = 0
    sent: int = 0
    seconds: float = 0.0
    skipped: dict[str, Skipped] = field(default_factory=dict)

    def skip(self, number: int, reason: str, *, example: str = "") -> None:
        self.skipped.setdefault(reason, Skipped(0, number, example)).count += 1

    def ended(self, sender: Sender, began: float) -> Summary:
        """Takes over what was acknowledged and the time since `began` (monotonic)."""
        self.sent, self.seconds = sender.acknowledged, time.monotonic() - began
        return self

    def __str__(self) -> str:
        rate = self.sent / self.seconds if self.seconds else 0.0
        lines = [f"{self.path}: {self.rows:,} rows, {self.sent:,} sent in {self.seconds:.1f} s ({rate:,.0f}/s)"]
        return "\n".join([*lines, *self.left_out("not sent")])

    def left_out(self, verb: str) -> list[str]:
        """A line a reason, the most frequent first."""
        lines = []
        for reason, rows in sorted(self.skipped.items(), key=lambda pair: -pair[1].count):
            example = f" ({rows.example})" if rows.example else ""
            lines.append(f"  {rows.count:,} {verb}: {reason}; first in row {rows.first:,}{example}")
        return lines


def load_items(settings: Settings, path: Path, mapping: Path | None = None) -> Summary:
    """Sends the items of `path` to the topic `items`, keyed by item_id.

    Raises HeadraceError (file, broker), SettingsError (mapping), each in one line.
    """
    table, fields = _open(path, mapping, ItemFields)
    decoder, summary, began = Decoder(settings), Summary(path), time.monotonic()

    def checked(raw: bytes) -> Checked | Rejection:
        item = decoder.item(raw)
        return item if isinstance(item, Rejection) else Checked(item.item_id, item.item_id, 0, raw)

    with Sender(settings, "items") as sender, progress(f"loading {path.name}", total=table.total) as advance:
        items = _messages(table, fields, summary, checked, advance)
        for number, item in _one_row_each(items, fields.keep if fields else "every", summary):
            if not sender.send(item.key, item.raw):
                summary.skip(number, _TOO_LARGE)
    return summary.ended(sender, began)


def replay_events(
    settings: Settings, path: Path, mapping: Path | None = None, *, speed: float | None = None
) -> Summary:
    """Sends the events of `path` to the topic `events` in the order of their times, keyed by user_id.

    `speed`: how many times faster than they happened; None is as fast as it goes. Rows that make the same event
    (user, event id and time) are sent once. Event ids come from the rows alone, so a second replay brings duplicates
    only. Raises HeadraceError (file, broker), SettingsError (mapping), each in one line.
    """
    if speed is not None and not speed > 0:
        raise SettingsError(f"speed {speed:g} is not above 0; say how many times faster than it happened, or max")
    table, fields = _open(path, mapping, EventFields)
    decoder, summary, began = Decoder(settings), Summary(path), time.monotonic()

    def checked(raw: bytes) -> Checked | Rejection:
        event = decoder.event(raw, now_ms=time.time_ns() // 1_000_000, sent_ms=0)
        return event if isinstance(event, Rejection) else Checked(event.user_id, event.event_id, event.ts, raw)

    with Sender(settings, "events") as sender:
        with progress(f"reading {path.name}", total=table.total) as advance:
            log = _Log(_messages(table, fields, summary, checked, advance))
        with progress(f"replaying {path.name}", total=log.size) as advance:
            first_ts, started = None, time.monotonic()
            for done, (number, event) in enumerate(_once(log.in_order(), summary)):
                if speed is not None:
                    first_ts = event.ts if first_ts is None else first_ts
                    due = started + (event.ts - first_ts) / 1e3 / speed
                    while (wait := due - time.monotonic()) > 0:
                        sender.poll(min(wait, 0.5))
                        advance(done, f"{done:,} events")
                if not sender.send(event.key, event.raw):
                    summary.skip(number, _TOO_LARGE)
                if done % _REPORT_EVERY == 0:
                    advance(done, f"{done:,} events")
    return summary.ended(sender, began)


def read_items(
    settings: Settings, path: Path, mapping: Path | None = None, *, summary: Summary | None = None
) -> list[ShopItem]:
    """The items of `path`, without Kafka: what `load_items` would send. Raises what it raises.

    `summary` counts the rows, and those left out with their reasons.
    """
    table, fields = _open(path, mapping, ItemFields)
    decoder, summary = Decoder(settings), summary or Summary(path)
    found: dict[str, ShopItem] = {}

    def checked(raw: bytes) -> Checked | Rejection:
        item = decoder.item(raw)
        return item if isinstance(item, Rejection) else Checked(item.item_id, item.item_id, 0, raw)

    with progress(f"reading {path.name}", total=table.total) as advance:
        rows = _messages(table, fields, summary, checked, advance)
        for _, row in _one_row_each(rows, fields.keep if fields else "every", summary):
            item = decoder.item(row.raw)
            assert isinstance(item, ShopItem)  # it was checked
            found[item.item_id] = item
    return list(found.values())


def read_events(
    settings: Settings, path: Path, mapping: Path | None = None, *, summary: Summary | None = None
) -> Iterator[Event]:
    """The events of `path` in the order of their times, without Kafka: what `replay_events` would send.

    `summary` counts the rows, and those left out with their reasons.
    """
    table, fields = _open(path, mapping, EventFields)
    decoder, summary, now_ms = Decoder(settings), summary or Summary(path), time.time_ns() // 1_000_000

    def checked(raw: bytes) -> Checked | Rejection:
        event = decoder.event(raw, now_ms=now_ms, sent_ms=0)
        return event if isinstance(event, Rejection) else Checked(event.user_id, event.event_id, event.ts, raw)

    with progress(f"reading {path.name}", total=table.total) as advance:
        log = _Log(_messages(table, fields, summary, checked, advance))
    for _, row in _once(log.in_order(), summary):
        event = decoder.event(row.raw, now_ms=now_ms, sent_ms=0)
        assert isinstance(event, Event)
        yield event


class Checked(msgspec.Struct, frozen=True, gc=False):
    """A message that ingest would accept: its key, its own id, its time (0 for items), its bytes."""

    key: str
    id: str
    ts: int
    raw: bytes


Numbered = tuple[int, Checked]


def _open(path: Path, mapping: Path | None, kind: type[F]) -> tuple[RowFile, F | None]:
    """The file and how its rows are read; None where the lines are our own messages already."""
    plan = read_mapping(mapping) if mapping else Mapping()
    table = open_rows(path, delimiter=plan.csv.delimiter, encoding=plan.csv.encoding)
    if mapping is None:
        return table, None if isinstance(table, Jsonl) else by_name(kind, table.columns)
    section = "items" if kind is ItemFields else "events"
    fields: F | None = getattr(plan, section)
    if fields is None:
        raise SettingsError(f"{mapping}: has no [{section}]; say there which column is which")
    check_columns(fields, table.columns)
    wanted = [*fields.columns(), fields.flatten]
    if isinstance(table, Parquet):
        table.wanted = [column for column in table.columns if column in wanted]
    return table, fields


def _messages(
    table: RowFile,
    fields: ItemFields | EventFields | None,
    summary: Summary,
    checked: Callable[[bytes], Checked | Rejection],
    advance: Advance,
) -> Iterator[Numbered]:
    """The rows that make a message, with their numbers; the others are counted with their reasons."""
    for number, made in _encoded(table, fields):
        summary.rows += 1
        if summary.rows % _REPORT_EVERY == 0:
            advance(table.done, f"{summary.rows:,} rows")
        message = checked(made) if isinstance(made, bytes) else made
        if isinstance(message, Checked):
            yield number, message
        elif isinstance(message, Rejection):
            summary.skip(number, message.reason, example=message.sentence)
        else:
            summary.skip(number, message.reason)


def _encoded(table: RowFile, fields: ItemFields | EventFields | None) -> Iterator[tuple[int, bytes | Bad]]:
    """Every row as a message's bytes: our own as they are, others as their mapping says."""
    if fields is None:
        assert isinstance(table, Jsonl)
        yield from enumerate(table.lines(), start=1)
        return
    to_message = mapper(fields)
    rows = enumerate(table, start=1)
    for number, row in flattened(rows, fields.flatten) if fields.flatten else rows:
        try:
            yield number, row if isinstance(row, Bad) else msgspec.json.encode(to_message(row, number))
        except Unmappable as reason:
            yield number, Bad(str(reason))


def _one_row_each(items: Iterable[Numbered], keep: str, summary: Summary) -> Iterator[Numbered]:
    """Of several rows with one item id the first, the last or the most frequent; every one where all are kept."""
    kept: dict[str, tuple[int, Counter[bytes]]] = {}
    for number, item in items:
        if keep == "every":
            yield number, item
        elif item.id not in kept:
            kept[item.id] = (number, Counter([item.raw]))
            if keep == "first":
                yield number, item
        else:
            summary.skip(number, f"another row of the same item, the {keep.replace('_', ' ')} one is sent")
            if keep == "last":
                kept[item.id] = (number, Counter([item.raw]))
            elif keep == "most_frequent":
                kept[item.id][1][item.raw] += 1
    if keep in ("last", "most_frequent"):
        for item_id, (number, rows) in kept.items():
            yield number, Checked(item_id, item_id, 0, rows.most_common(1)[0][0])


class _Log:
    """Events put into the order of their times, on disk, as a log may be larger than memory.

    Equal times keep the file's order.
    """

    def __init__(self, events: Iterable[Numbered]) -> None:
        self._rows = sqlite3.connect("")  # a temporary file that SQLite removes; small logs never leave its page cache
        self._rows.execute("PRAGMA journal_mode=OFF")
        self._rows.execute("CREATE TABLE log (ts INTEGER, row INTEGER, user TEXT, id TEXT, raw BLOB)")
        self._rows.executemany(
            "INSERT INTO log VALUES (?, ?, ?, ?, ?)", ((e.ts, number, e.key, e.id, e.raw) for number, e in events)
        )
        self.size: int = self._rows.execute("SELECT count(*) FROM log").fetchone()[0]

    def in_order(self) -> Iterator[Numbered]:
        for ts, number, user, event_id, raw in self._rows.execute("SELECT * FROM log ORDER BY ts, rowid"):
            yield number, Checked(user, event_id, ts, raw)
        self._rows.close()


def _once(events: Iterable[Numbered], summary: Summary) -> Iterator[Numbered]:
    """Leaves out what is the same event as one before; those stand side by side, as they have the same time."""
    now, seen = -1, set[tuple[str, str]]()
    for number, event in events:
        if event.ts != now:
            now, seen = event.ts, set()
        if (event.key, event.id) in seen:
            summary.skip(number, "the same event as an earlier row")
        else:
            seen.add((event.key, event.id))
            yield number, event
