"""The contents that an item has had, through the broker: a catalogue that was restarted goes on with their numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from headrace.export.item_tower import ItemTower
from headrace.streams import contents, kafka
from headrace.streams.contents import Old
from headrace.streams.items import ItemStore
from headrace.streams.records import Item, item_key
from tests.integration.test_catalogue import reader_of, running, send  # noqa: F401  # the fixture


def test_contents_keep_their_numbers_through_restarts(settings: Any, reader_of: Any, tmp_path: Path) -> None:  # noqa: F811
    made = settings(topics={"requests_partitions": 1})
    reader = reader_of(made)
    cache = tmp_path / "texts.sqlite"

    def told(title: str, *, price: float, number: int) -> None:
        send(made, {"item_id": "a", "title": title, "price": price})
        assert reader.wait("a", title=title, price=price).generation == number

    with running(made, cache):
        told("Trail running shoe", price=90.0, number=0)
        told("Trail running shoe", price=92.0, number=0)  # the same bucket
        told("Espresso coffee beans", price=92.0, number=1)
        told("Espresso coffee beans", price=15.0, number=2)
    with running(made, cache):
        told("Espresso coffee beans", price=92.0, number=1)  # back again
        told("Garden spade", price=92.0, number=3)
        send(made, None, key="a")
        assert reader.wait("a", removed=True).generation == 3
    with running(made, cache):
        told("Plush teddy bear", price=92.0, number=4)
        told("Wooden toy train", price=92.0, number=5)  # the sixth: what was replaced longest ago goes

    found: list[Item | Old] = []
    kept: dict[int, Item | None] = {}
    kafka.read_to_end(made, made.topic("item-vectors"), lambda message: found.append(contents.decode(message)))  # type: ignore[arg-type]
    for record in found:
        if isinstance(record, Old):
            kept[record.number] = record.content
    assert {number for number, content in kept.items() if content is not None} == {1, 2, 3, 4} and kept[0] is None
    worker = ItemStore(ItemTower(np.eye(384, dtype=np.float32)))
    for record in found:
        if isinstance(record, Item | Old):
            worker.apply(record)
    worker.settle()
    then = {item.generation: item for item in reader.log if not item.pending and not item.removed}
    for number in (1, 2, 3, 4, 5):
        vector = worker.history_vectors(np.array([item_key("a")], np.uint64), np.array([number], np.uint8))[0]
        assert vector @ np.frombuffer(then[number].vector, np.float16) > 0.999
    assert worker.generation(item_key("a")) == 5
