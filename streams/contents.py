"""The contents that an item's vector has had, by number: its generations.

A history keeps of each entry the number of the content that the item had when it entered, so that no later change of
the item changes what was encoded. The content of now stands under the item's own key in `item-vectors`; those it
replaced are kept under keys of their own, the latest four. Whoever comes back to a content that is still kept, as a
price that goes down and up again, comes back to its number.
"""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from typing import NamedTuple

import msgspec
import numpy as np

from headrace.export.names import price_bucket
from headrace.streams.kafka import Message
from headrace.streams.records import Item, decode_item
from headrace.streams.vectors import content_hash

KEPT = 4  # contents of an item that are no longer its own
OLD = b"\0old "  # no item id begins with a control character
ENCODED = b"\0encoded "
Place = tuple[int, int]  # in a VectorFile: where, and how many bytes


def content_of(item: Item) -> bytes:
    """Names what an item's vector is made of: the fused vector, the category, the price's bucket. Empty where the
    record holds no content: the vector is yet to come, or the item was removed."""
    if item.pending or item.removed:
        return b""
    bucket = int(price_bucket(np.array([item.price or 0.0], np.float32))[0])
    return content_hash(msgspec.msgpack.encode((item.vector_hash, item.category, bucket))).encode()


class Contents(NamedTuple):
    """Of one item. Contents are named as by `content_of`."""

    number: int = 0  # the latest content's
    current: bytes = b""  # the content that stands under the item's own key; empty: none does
    old: tuple[tuple[int, bytes], ...] = ()  # kept under keys of their own: the one replaced longest ago first

    def number_of(self, content: bytes) -> int:
        """The number under which `content` comes next. Without one (pending, removed) it stays the latest's."""
        if not content or content == self.current:
            return self.number
        for number, known in self.old:
            if known == content:
                return number
        had_one = self.current or self.old
        return max(self.number, *(number for number, _ in self.old), -1) + 1 if had_one else self.number

    def then(self, content: bytes) -> tuple[Contents, int | None, int | None]:
        """With `content` as the current one; the number to keep under a key of its own, and the one to drop."""
        number = self.number_of(content)
        if not self.current or content == self.current:
            return Contents(number, content, self.old), None, None
        old = (*(kept for kept in self.old if kept[0] != self.number), (self.number, self.current))
        drop = next((known for known, _ in old if known != number), None) if len(old) > KEPT else None
        return Contents(number, content, tuple(kept for kept in old if kept[0] != drop)), self.number, drop


class Old(NamedTuple):
    """A content that an item had: what a record of `item-vectors` under a key of `old_key` says."""

    item_id: str
    number: int
    content: Item | None  # None: dropped


class Encoded(NamedTuple):
    """Every item of a partition of `items` has its vector by this text encoder."""

    partition: int
    text_version: str


def encoded_key(partition: int) -> bytes:
    return b"%s%d" % (ENCODED, partition)


def old_key(item_id: str, number: int) -> bytes:
    return b"%s%d %s" % (OLD, number, item_id.encode())


def decode(message: Message) -> Item | Old | Encoded | None:
    """What a message of `item-vectors` says of items; None for the catalogue's own bookkeeping."""
    return decode_record(message.key() or b"", message.value())


def decode_record(key: bytes, value: bytes | None) -> Item | Old | Encoded | None:
    if key.startswith(OLD):
        number, _, name = key.removeprefix(OLD).partition(b" ")
        return Old(name.decode(), int(number), None if value is None else decode_item(value))
    if value is not None and key.startswith(ENCODED):
        return Encoded(int(key.removeprefix(ENCODED)), value.decode())
    if value is None or key.startswith(b"\0"):
        return None
    return decode_item(value)


class VectorFile:
    """Vectors in a temporary file: those of a million items would be most of the catalogue's memory."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # lives as long as we do
        self._end = 0
        self._free: defaultdict[int, list[int]] = defaultdict(list)  # places by size

    def put(self, vector: bytes) -> Place:
        size = len(vector)
        free = self._free[size]
        at = free.pop() if free else self._end
        self._end = max(self._end, at + size)
        os.pwrite(self._file.fileno(), vector, at)
        return at, size

    def get(self, place: Place) -> bytes:
        return os.pread(self._file.fileno(), place[1], place[0])

    def free(self, place: Place) -> None:
        if place[1]:
            self._free[place[1]].append(place[0])
