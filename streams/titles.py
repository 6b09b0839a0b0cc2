"""What items are called, for commands that tell people about them."""

from __future__ import annotations

from headrace.streams import kafka
from headrace.streams.kafka import Message
from headrace.streams.records import decode_item, item_key
from headrace.streams.settings import Settings

Titles = dict[int, tuple[str, str | None]]  # item key → item id, title


def read_titles(settings: Settings, wanted: set[int]) -> Titles:
    """Of the items with these keys, as far as `item-vectors` still has them; reads the topic whole."""
    found: Titles = {}

    def take(message: Message) -> None:
        key, raw = message.key() or b"", message.value()
        if raw and not key.startswith(b"\0") and item_key(key.decode()) in wanted:
            item = decode_item(raw)
            found[item_key(item.item_id)] = (item.item_id, item.title)

    kafka.read_to_end(settings, settings.topic("item-vectors"), take)
    return found
