"""`headrace report bias`: reads the logs, tells what stands out, writes the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from headrace.streams import contents, evaluate_log, kafka
from headrace.streams.errors import HeadraceError, SettingsError
from headrace.streams.insight import bias
from headrace.streams.insight.bias_log import Reader
from headrace.streams.records import Item
from headrace.streams.settings import Settings


@dataclass(frozen=True)
class Asked:
    """Times as text: ISO 8601, UTC where no zone is said, or Unix milliseconds."""

    first: str | None = None
    end: str | None = None
    last: int | None = None
    new_days: float = 7.0
    out: Path | None = None
    json: bool = False


def run(settings: Settings, asked: Asked, *, say: Callable[[str], None] = print) -> None:
    """Raises HeadraceError, one line, also where there is nothing to report on."""
    first, end = time_ms(asked.first, "--from", 0), time_ms(asked.end, "--to", 2**63 - 1)
    if first >= end:
        raise SettingsError(f"--from {asked.first} is not before --to {asked.end}")
    reader = Reader(settings, first_ms=first, end_ms=end)
    try:
        evaluate_log.from_topic(settings, evaluate_log.Range(0, None), reader.read)
    except HeadraceError as error:
        if "holds no record" in str(error):
            raise HeadraceError(NOTHING.format(topic=settings.topic("transitions"))) from None
        raise
    items: dict[str, Item] = {}

    def on_item(message: kafka.Message) -> None:
        record = contents.decode(message)
        if isinstance(record, Item):
            items[record.item_id] = record

    kafka.read_to_end(settings, settings.topic("item-vectors"), on_item)
    found = report(reader, list(items.values()), topic=settings.topic("transitions"), asked=asked)
    if asked.json:
        say(json.dumps(found))
    if asked.out is not None or not asked.json:
        from headrace.streams.insight import bias_page

        path = bias_page.write(found, asked.out or settings.data_dir / "reports")
        if not asked.json:
            say(bias_page.lead(found))
            for line in found["findings"] or ["nothing stands out"]:
                say(f"  {line}")
            say(f"the page: {path}")


NOTHING = (
    "{topic} holds no shown decision in that time: slates count once the shop sends impressions, or outcomes that name"
    " them; choose another --from and --to, or come back later"
)


def report(reader: Reader, items: list[Item], *, topic: str, asked: Asked) -> bias.Figures:
    """What was read, in figures. Raises HeadraceError where nothing was shown, or the catalogue is empty."""
    shelf = reader.shelf(items)
    slots = reader.slots(shelf.ids, last=asked.last)
    if not len(slots.item):
        raise HeadraceError(NOTHING.format(topic=topic))
    if not shelf.ids:
        raise HeadraceError("the catalogue holds no item: load it with `headrace items load`")
    return bias.figures(slots, shelf, new_days=asked.new_days)


def time_ms(text: str | None, option: str, otherwise: int) -> int:
    """Unix milliseconds. Raises SettingsError for what is no time."""
    if text is None:
        return otherwise
    if text.isdigit() and len(text) > 8:
        return int(text)
    try:
        told = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"{option} {text}: write a time such as 2026-11-28 or 2026-11-28T14:30") from None
    return int((told if told.tzinfo else told.replace(tzinfo=UTC)).timestamp() * 1000)
