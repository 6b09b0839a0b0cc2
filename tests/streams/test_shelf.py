"""A shelf over a log in memory: what a change of the text encoder reaches. With Kafka: tests/integration/."""

from __future__ import annotations

import json
from typing import Any, cast

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from headrace.streams import kafka, topics
from headrace.streams.contents import Encoded, decode_record
from headrace.streams.metrics import Metrics
from headrace.streams.records import Item
from headrace.streams.settings import Settings
from headrace.streams.shelf import Shelf
from headrace.streams.text_vectors import TextVectors


class Said:
    """A message of `items`."""

    def __init__(self, offset: int, item: dict[str, Any]) -> None:
        self._offset, self._item = offset, item

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes:
        return str(self._item["item_id"]).encode()

    def value(self) -> bytes:
        return json.dumps(self._item).encode()

    def timestamp(self) -> tuple[int, int]:
        return 1, 1_790_000_000_000


class Texts:
    """A text encoder that has met every text already."""

    dim = 4

    def __init__(self, version: str, vector: list[float]) -> None:
        self.version, self._vector = version, np.array(vector, np.float32)

    def key(self, text: str) -> bytes:
        return f"{self.version} {text}".encode()

    def find(self, texts: dict[str, bytes]) -> dict[bytes, Any]:
        return dict.fromkeys(texts.values(), self._vector)


FIRST, SECOND = Texts("sha256:1", [1, 0, 0, 0]), Texts("sha256:2", [0, 1, 0, 0])


class Log:
    """`items` and `item-vectors`, as compaction leaves them: the last record of each key."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.items: dict[bytes, Said] = {}
        self.vectors: dict[bytes, bytes | None] = {}
        self._end = 0
        monkeypatch.setattr(kafka, "transactional_producer", lambda *_: self)
        monkeypatch.setattr(kafka, "fence_and_read", self._fence_and_read)
        monkeypatch.setattr(kafka, "read_to_end", self._read_to_end)
        monkeypatch.setattr(kafka, "commit", lambda _: False)
        monkeypatch.setattr(kafka, "produce", lambda _, topic, *, key, value, **__: self.vectors.update({key: value}))
        monkeypatch.setattr(topics, "compacted", lambda *_: True)

    def begin_transaction(self) -> None:
        pass

    def _fence_and_read(self, *args: Any, **_: Any) -> None:
        for key, value in self.vectors.items():
            args[4](key, value)

    def _read_to_end(self, _settings: Any, _topic: str, on_message: Any, *, partition: int) -> dict[int, int]:
        for message in self.items.values():
            on_message(message)
        return {partition: self._end}

    def send(self, shelf: Shelf, **item: Any) -> None:
        message = Said(self._end, item)
        self._end += 1
        self.items.pop(message.key(), None)
        self.items[message.key()] = message
        shelf.read([cast(kafka.Message, message)])
        shelf.publish({})

    def item(self, item_id: str) -> Item:
        found = decode_record(item_id.encode(), self.vectors[item_id.encode()])
        assert isinstance(found, Item)
        return found

    @property
    def marks(self) -> set[str]:
        found = (decode_record(key, value) for key, value in self.vectors.items())
        return {mark.text_version for mark in found if isinstance(mark, Encoded)}


def shelf_with(texts: Texts) -> Shelf:
    metrics = Metrics(CollectorRegistry(), "catalogue")
    shelf = Shelf(0, settings=Settings(), metrics=metrics, texts=cast(TextVectors, texts))
    shelf.recover()
    return shelf


@pytest.mark.parametrize("restarted", [False, True])
def test_what_was_sent_again_unchanged_is_encoded_anew_too(monkeypatch: pytest.MonkeyPatch, restarted: bool) -> None:
    """A shop that sends its whole catalogue every night: no message that made an item is in `items` any more."""
    log = Log(monkeypatch)
    shelf = shelf_with(FIRST)
    for _ in range(2):
        log.send(shelf, item_id="i1", title="a shoe", price=3.0)
        log.send(shelf, item_id="i2", title="a hat")
    assert log.item("i1").offset == 0 and log.marks == {FIRST.version}
    if restarted:
        shelf = shelf_with(SECOND)
    else:
        shelf.encode_anew(cast(TextVectors, SECOND))
    for name, offset in (("i1", 0), ("i2", 1)):
        item = log.item(name)
        assert (item.text_version, item.offset, item.generation) == (SECOND.version, offset, 0)
        assert np.frombuffer(item.vector, np.float16).tolist() == [0, 1, 0, 0]
    assert log.marks == {SECOND.version}
