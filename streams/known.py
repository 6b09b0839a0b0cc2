"""What stands in `item-vectors` for an item, as a shelf remembers it."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from headrace.streams.contents import Contents, Place
from headrace.streams.records import Item
from headrace.streams.vectors import content_hash


class Known(NamedTuple):
    offset: int
    digest: bytes  # of everything but the offset and the times
    available: bool
    removed: bool
    pending: bool
    contents: Contents
    vector: Place  # with `category` and `price`: what the current content is made of
    category: str | None
    price: float | None
    text_version: str
    since_ms: int  # when the item was first known; 0: by a release that did not say


def digest(item: Item) -> bytes:
    """Of what a worker makes use of."""
    said = (
        item.vector_hash, item.price, item.category, item.available, item.title, item.removed, item.pending,
        item.text_version, item.attributes,
    )  # fmt: skip
    return content_hash(msgspec.msgpack.encode(said)).encode()
