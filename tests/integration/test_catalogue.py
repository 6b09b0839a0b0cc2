"""The catalogue on the real broker with the real text model: what the shop writes to `items` reaches every worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import OFFSET_BEGINNING, Message, Producer, TopicPartition
from prometheus_client import CollectorRegistry

from headrace.streams import kafka
from headrace.streams.catalogue import Catalogue
from headrace.streams.errors import TopicsError
from headrace.streams.metrics import Metrics
from headrace.streams.records import Item, decode_item
from headrace.streams.settings import Settings
from headrace.streams.vectors import projected

pytestmark = pytest.mark.kafka


@dataclass
class Running:
    catalogue: Catalogue
    metrics: Metrics

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"headrace_{name}_total", labels) or 0.0


@contextmanager
def running(settings: Settings, cache: Path) -> Iterator[Running]:
    """The role in a thread, ready; an error of its own fails the test."""
    metrics = Metrics(CollectorRegistry(), "catalogue")
    catalogue, errors = Catalogue(settings, metrics, cache=cache), []

    def run() -> None:
        try:
            catalogue.run()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="catalogue")
    thread.start()
    try:
        until = time.monotonic() + 20
        while not (catalogue.ready or errors):
            assert time.monotonic() < until, "the catalogue is not ready"
            time.sleep(0.01)
        if not errors:
            yield Running(catalogue, metrics)
    finally:
        catalogue.stop()
        thread.join(15)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


@dataclass
class Reader:
    """What a worker sees of `item-vectors`, from the start; `log` has every record in its order."""

    settings: Settings
    log: list[Item] = field(default_factory=list)
    seen_at: dict[tuple[str, int], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._consumer = kafka.consumer(self.settings, "test-reader", fetch_wait_max_ms=10)
        self._consumer.assign([TopicPartition(self.settings.topic("item-vectors"), 0, OFFSET_BEGINNING)])

    def items(self) -> dict[str, Item]:
        for message in kafka.consume(self._consumer, 5_000, 0.02):
            assert message.error() is None
            value, key = message.value(), message.key()
            if value is not None and key is not None and not key.startswith(b"\0"):
                item = decode_item(value)
                assert key == item.item_id.encode()
                self.log.append(item)
                self.seen_at.setdefault((item.item_id, item.offset), time.time())
        return {item.item_id: item for item in self.log}

    def wait(self, *names: str, deadline: float = 20, **fields: Any) -> Item:
        """The last item of these names, once all are there, complete, and have `fields`."""
        until = time.monotonic() + deadline
        while True:
            items = self.items()
            if all(n in items and not items[n].pending and _has(items[n], fields) for n in names):
                return items[names[-1]]
            assert time.monotonic() < until, f"{names}: {[items.get(n) for n in names][:3]}, not {fields}"

    def close(self) -> None:
        self._consumer.close()


def _has(item: Item, fields: dict[str, Any]) -> bool:
    return all(getattr(item, name) == value for name, value in fields.items())


@pytest.fixture
def reader_of() -> Iterator[Any]:
    opened: list[Reader] = []

    def open_reader(settings: Settings) -> Reader:
        opened.append(Reader(settings))
        return opened[-1]

    yield open_reader
    for reader in opened:
        reader.close()


def send(settings: Settings, *items: dict[str, Any] | bytes | None, key: str | bytes | None = None) -> None:
    """Items keyed by their id; bytes as they are, None as null, with `key`."""
    producer = Producer(kafka.client_config(settings))
    for item in items:
        value = json.dumps(item).encode() if isinstance(item, dict) else item
        name = key if key is not None else item["item_id"]  # type: ignore[index,call-overload]
        kafka.produce(
            producer, settings.topic("items"), key=name.encode() if isinstance(name, str) else name, value=value
        )
    assert producer.flush(20) == 0


def dead_letters(settings: Settings) -> list[Message]:
    found: list[Any] = []
    kafka.read_to_end(settings, settings.topic("dead-letters"), found.append)
    return found


def vector(item: Item) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.frombuffer(item.vector, np.float16).astype(np.float32)


def cosine(a: Item, b: Item) -> float:
    return float(vector(a) @ vector(b))


def test_items_come_change_and_go(settings: Any, reader_of: Any, tmp_path: Path) -> None:
    made = settings()
    reader: Reader = reader_of(made)
    shoe = {"item_id": "i1", "title": "Trail running shoe", "category": "sport/shoes", "price": 89.0}
    with running(made, tmp_path / "texts.sqlite") as role:
        send(made, shoe, {"item_id": "i2", "title": "Jogging sneaker"}, {"item_id": "i3", "title": "Coffee beans"})
        reader.wait("i1", "i2", "i3")
        one, two, three = (reader.items()[name] for name in ("i1", "i2", "i3"))
        assert (one.price, one.category, one.available, one.title) == (89.0, "sport/shoes", True, "Trail running shoe")
        assert vector(one).shape == (384,) and abs(np.linalg.norm(vector(one)) - 1) < 1e-3
        assert cosine(one, two) > 0.3 > cosine(one, three)
        assert len({one.vector_hash, two.vector_hash, three.vector_hash}) == 3

        send(made, {**shoe, "price": 79.0, "available": False})
        changed = reader.wait("i1", price=79.0)
        assert not changed.available and changed.vector == one.vector and changed.offset > one.offset
        send(made, {**shoe, "title": "Dark roast coffee"})
        assert cosine(reader.wait("i1", title="Dark roast coffee"), three) > 0.4

        send(made, None, key="i2")
        gone = reader.wait("i2", removed=True)
        assert not gone.available and gone.vector == b""
        send(made, {"item_id": "i4"}, None, key="i4")  # a cold id, gone at once
        send(made, {"item_id": "i5"})
        cold = reader.wait("i5")
        assert cold.vector == b"" and cold.vector_hash == "" and cold.available

        before = len(reader.log)
        send(made, {"item_id": "i5", "available": True}, {"item_id": "i6"})  # the first says nothing new
        reader.wait("i6")
        assert [item.item_id for item in reader.log[before:]] == ["i6"]
        assert role.count("item_changes", kind="new") >= 5 and role.count("item_changes", kind="removed") >= 1


def test_the_shops_own_vector_stands_alone_or_is_fused(settings: Any, reader_of: Any, tmp_path: Path) -> None:
    made = settings()
    reader: Reader = reader_of(made)
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 700))
    near = a + 0.3 * b
    with running(made, tmp_path / "texts.sqlite"):
        for name, own in (("a", a), ("near", near), ("b", b), ("huge", a * 1e12), ("wide", rng.normal(size=4096))):
            send(made, {"item_id": name, "vector": own.tolist()})
        send(made, {"item_id": "words", "title": "Red tea pot"})
        send(made, {"item_id": "both", "title": "Red tea pot", "vector": a.tolist()})
        reader.wait("a", "near", "b", "huge", "wide", "words", "both")
        items = reader.items()
        truth = float(a @ near / np.linalg.norm(a) / np.linalg.norm(near))
        assert cosine(items["a"], items["near"]) == pytest.approx(truth, abs=0.1)
        assert abs(cosine(items["a"], items["b"])) < 0.2
        assert items["huge"].vector == items["a"].vector
        assert len(vector(items["wide"])) == 384
        assert np.allclose(vector(items["a"]), projected(a.tolist(), 384), atol=1e-3)
        expected = vector(items["words"]) + vector(items["a"])
        assert np.allclose(vector(items["both"]), expected / np.linalg.norm(expected), atol=2e-3)


def test_what_is_no_item_is_a_dead_letter_once(settings: Any, reader_of: Any, tmp_path: Path, wait_for: Any) -> None:
    made = settings()
    reader: Reader = reader_of(made)
    rubbish = [
        b"no json",
        b'{"title": "x"}',
        b"\xff\xfe",
        b'{"item_id": "", "price": 1}',
        b'{"item_id": "k", "price": -1}',
    ]
    deep = b'{"item_id": "k", "attributes": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}"
    with running(made, tmp_path / "texts.sqlite"):
        send(made, *rubbish, deep, key="k")
        send(made, {"item_id": "other"}, key="k")
        send(made, {"item_id": "k", "title": "x" * 900_000, "text": "word " * 10_000})
        reader.wait("k")
    with running(made, tmp_path / "texts.sqlite"):
        send(made, {"item_id": "after"})
        reader.wait("after")
        letters = wait_for(lambda: dead_letters(made))
    assert [letter.value() for letter in letters[:5]] == rubbish and len(letters) == 7
    headers = [dict(letter.headers()) for letter in letters]
    words = [h["reason"].decode().split(":")[0] for h in headers]
    assert words[:5] == ["json", "missing", "encoding", "id", "number"] and words[6] == "id"
    assert b"must be the item_id" in headers[6]["reason"]
    assert headers[0]["source"].decode().startswith(f"{made.topic('items')}[")
    assert len(reader.items()["k"].title or "") == 512


def test_the_cache_survives_a_restart(settings: Any, reader_of: Any, tmp_path: Path) -> None:
    first, second = settings(), settings()
    items = [{"item_id": f"i{n}", "title": f"A thing called {n}"} for n in range(20)]
    read: list[Reader] = [reader_of(first), reader_of(second)]
    for made, reader, outcome in ((first, read[0], "miss"), (second, read[1], "hit")):
        with running(made, tmp_path / "texts.sqlite") as role:
            send(made, *items)
            reader.wait(*(item["item_id"] for item in items))
            assert role.count("text_cache", outcome=outcome) == 20
    assert all(read[0].items()[i["item_id"]].vector == read[1].items()[i["item_id"]].vector for i in items)


def test_a_restart_reads_nothing_twice_and_misses_no_removal(settings: Any, reader_of: Any, tmp_path: Path) -> None:
    made = settings(topics={"requests_partitions": 1})
    reader: Reader = reader_of(made)
    with running(made, tmp_path / "texts.sqlite"):
        send(made, {"item_id": "a", "title": "kept"}, {"item_id": "b", "title": "goes"})
        reader.wait("a", "b")
    before = len(reader.log)
    send(made, None, key="b")
    with running(made, tmp_path / "texts.sqlite"):
        reader.wait("b", removed=True)
    assert len(reader.log) == before + 1


def test_a_topic_created_anew_is_named(settings: Any, reader_of: Any, tmp_path: Path, wait_for: Any) -> None:
    from headrace.streams import topics

    made = settings()
    reader: Reader = reader_of(made)
    with running(made, tmp_path / "texts.sqlite"):
        send(made, *({"item_id": f"i{n}"} for n in range(8)))
        reader.wait(*(f"i{n}" for n in range(8)))
    client = kafka.admin(made)
    client.delete_topics([made.topic("items")])[made.topic("items")].result(20)
    wait_for(lambda: made.topic("items") not in client.list_topics(timeout=10).topics)
    topics.create(made)
    with pytest.raises(TopicsError, match=r"created anew; delete .*item-vectors"), running(made, tmp_path / "t.sqlite"):
        pass


def test_an_item_is_there_within_a_second_also_while_a_catalogue_is_loaded(
    settings: Any, reader_of: Any, tmp_path: Path
) -> None:
    made = settings()
    reader: Reader = reader_of(made)
    run = uuid.uuid4().hex

    def seconds_until_seen(number: int, **fields: Any) -> float:
        """From the shop's send to the item, with its vector, in `item-vectors`."""
        sent = time.time()
        send(made, {"item_id": f"new{number}", "title": f"{run} brass lamp {number}", **fields})
        item = reader.wait(f"new{number}", **fields)
        return reader.seen_at[item.item_id, item.offset] - sent

    with running(made, tmp_path / "texts.sqlite"):
        # The best of three: what else runs on this machine has no say in what the catalogue promises.
        assert min(seconds_until_seen(n) for n in range(3)) < 1.0

        send(made, *({"item_id": f"bulk{n}", "title": f"{run} number {n} of a long list"} for n in range(1_500)))
        assert min(seconds_until_seen(n) for n in (3, 4, 5)) < 1.0
        assert min(seconds_until_seen(n, price=float(n)) for n in (0, 1, 2)) < 1.0
        bulk = [item for name, item in reader.items().items() if name.startswith("bulk")]
        assert len(bulk) == 1_500 and all(item.available for item in bulk)  # all of them are eligible …
        assert sum(item.pending for item in bulk) > 100  # … before the most of them have been encoded


def test_two_processes_share_the_partitions(settings: Any, reader_of: Any, tmp_path: Path) -> None:
    made = settings(topics={"requests_partitions": 2})
    reader: Reader = reader_of(made)
    batches = [[{"item_id": f"i{n}", "title": f"thing {n}"} for n in range(b * 40, b * 40 + 40)] for b in range(3)]
    with running(made, tmp_path / "texts.sqlite"):
        send(made, *batches[0])
        with running(made, tmp_path / "texts.sqlite") as second:
            send(made, *batches[1])
            send(made, b"rubbish", key="x")
            reader.wait(*(item["item_id"] for batch in batches[:2] for item in batch))
            send(made, *batches[2])
            send(made, b"rubbish too", key="y")
            reader.wait(*(item["item_id"] for batch in batches for item in batch))
            assert second.count("transactions", outcome="committed") > 0
    complete = [(item.item_id, item.offset) for item in reader.log if not item.pending]
    assert len(complete) == len(set(complete)) == 120
    assert len(dead_letters(made)) == 2


@pytest.mark.crash
def test_killed_in_the_middle_of_a_load_it_ends_exact(settings: Any, reader_of: Any, tmp_path: Path) -> None:
    made = settings()
    reader: Reader = reader_of(made)
    run = uuid.uuid4().hex
    items = [{"item_id": f"i{n}", "title": f"{run} thing {n}", "price": float(n)} for n in range(160)]
    send(made, *items[:100])
    send(made, b"rubbish", b"rubbish too", key="r")
    for kill in (True, False):
        process = subprocess.Popen([sys.executable, "-c", _ROLE, made.model_dump_json()])
        try:
            if kill:
                until = time.monotonic() + 30
                while sum(not item.pending for item in reader.items().values()) < 20:
                    assert time.monotonic() < until and process.poll() is None
                os.kill(process.pid, signal.SIGKILL)
                send(made, *items[100:], {**items[0], "price": 1_000.0})
                send(made, None, key="i1")
                continue
            reader.wait(*(i["item_id"] for i in items if i["item_id"] != "i1"), deadline=60)
            reader.wait("i1", removed=True)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == (-signal.SIGKILL if kill else 0)
    found = reader.items()
    assert {n: i.price for n, i in found.items() if n != "i1"} == {
        i["item_id"]: 1_000.0 if i["item_id"] == "i0" else i["price"] for i in items if i["item_id"] != "i1"
    }
    assert all(item.vector for name, item in found.items() if name != "i1")
    complete = [(item.item_id, item.offset) for item in reader.log if not item.pending]
    assert len(complete) == len(set(complete))
    assert len(dead_letters(made)) == 2


_ROLE = """
import sys
from headrace.streams.catalogue import run
from headrace.streams.settings import Settings
run(Settings.model_validate_json(sys.argv[1]))
"""
