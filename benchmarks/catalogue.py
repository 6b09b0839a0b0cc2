"""How fast a catalogue comes in, and how soon one item is there while nothing or everything else is being loaded.

    python benchmarks/catalogue.py [--items N]      JSON on stdout

The broker is the embedded one, the role a process of its own, exactly-once on. `cold`: no text was ever encoded;
`warm`: all of them were (a second set of topics, the same cache). Titles are those of Online Retail II where
../shared/data holds it, else made up; each gets a number, so that none is met twice.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Producer, TopicPartition

from headrace.streams import kafka, topics
from headrace.streams.broker import Broker
from headrace.streams.records import Item, decode_item
from headrace.streams.settings import Settings

_DATA = Path(__file__).parents[2] / "shared/data/online_retail/online_retail_II_2009_2010.parquet"
_SINGLE = 100  # items sent one by one
_ROLE = "import sys; from headrace.streams import catalogue, settings; \
catalogue.run(settings.Settings.model_validate_json(sys.argv[1]))"


class Reader:
    """`item-vectors` as a worker reads it."""

    def __init__(self, settings: Settings) -> None:
        self._consumer = kafka.consumer(settings, "benchmark", fetch_wait_max_ms=10)
        self._consumer.assign([TopicPartition(settings.topic("item-vectors"), 0, OFFSET_BEGINNING)])
        self.eligible: set[str] = set()
        self.complete: set[str] = set()

    def read(self) -> Iterator[Item]:
        for message in kafka.consume(self._consumer, 10_000, 0.005):
            if message.error() is None and not (message.key() or b"\0").startswith(b"\0"):
                item = decode_item(message.value() or b"")
                self.eligible.add(item.item_id)
                if not item.pending:
                    self.complete.add(item.item_id)
                yield item

    def until(self, seen: Any, *, limit_s: float = 600) -> float:
        """Reads until `seen()`; the time it then is."""
        end = time.time() + limit_s
        while not seen():
            for _ in self.read():
                pass
            if time.time() > end:
                raise SystemExit("the catalogue does not come to an end")
        return time.time()


class Shop:
    def __init__(self, settings: Settings) -> None:
        self._topic = settings.topic("items")
        self._producer = Producer(kafka.client_config(settings, linger_ms=0))

    def send(self, *items: dict[str, Any]) -> None:
        for item in items:
            kafka.produce(self._producer, self._topic, key=item["item_id"].encode(), value=json.dumps(item).encode())
        self._producer.flush()


def titles(n_items: int) -> list[str]:
    words = ["red shoe", "tea pot", "brass desk lamp", "wool scarf"]
    if _DATA.exists():
        import pyarrow.parquet

        column = pyarrow.parquet.read_table(_DATA, columns=["Description"])["Description"]
        words = sorted({text.strip() for text in column.to_pylist() if text})
    return [f"{words[n % len(words)]} no. {n}" for n in range(n_items)]


@contextmanager
def role(settings: Settings, cache: Path) -> Iterator[None]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    process = subprocess.Popen([sys.executable, "-c", _ROLE, settings.model_dump_json()], env=environment)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def one_by_one(shop: Shop, reader: Reader, name: str) -> dict[str, float]:
    """ms from the shop's send of one new item to its record, eligible and with its vector."""
    eligible, complete = [], []
    for n in range(_SINGLE):
        item_id, sent = f"{name}-{n}", time.time()
        shop.send({"item_id": item_id, "title": f"{name} enamel watering can {n}"})
        eligible.append(reader.until(lambda item_id=item_id: item_id in reader.eligible) - sent)
        complete.append(reader.until(lambda item_id=item_id: item_id in reader.complete) - sent)
    return {
        f"{what}_{label}": round(1e3 * float(np.percentile(times, q)), 1)
        for what, times in (("eligible", eligible), ("vector", complete))
        for label, q in (("p50", 50), ("p99", 99))
    }


def measure(settings: Settings, cache: Path, n_items: int, name: str) -> dict[str, Any]:
    topics.create(settings)
    shop, reader = Shop(settings), Reader(settings)
    items = [{"item_id": f"i{n}", "title": title, "price": 1.0} for n, title in enumerate(titles(n_items))]
    with role(settings, cache):
        shop.send({"item_id": "first"})
        reader.until(lambda: "first" in reader.complete)
        idle = one_by_one(shop, reader, f"{name} idle")
        started = time.time()
        shop.send(*items)
        busy = one_by_one(shop, reader, f"{name} busy") if name == "cold" else None
        wanted = {item["item_id"] for item in items}
        eligible_s = reader.until(lambda: wanted <= reader.eligible) - started
        complete_s = reader.until(lambda: wanted <= reader.complete) - started
    return {
        "eligible_per_s": None if busy else round(n_items / eligible_s),
        "with_vector_per_s": round(n_items / complete_s),
        "one_item_ms": idle,
        "one_item_while_loading_ms": busy,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=10_000)
    n_items = parser.parse_args().items
    with tempfile.TemporaryDirectory() as folder, Broker(Path(folder) / "broker") as broker:
        cache = Path(folder) / "cache"
        (cache / "headrace").mkdir(parents=True)
        models = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace" / "models"
        if models.exists():
            (cache / "headrace" / "models").symlink_to(models)

        def settings(name: str) -> Settings:
            return Settings(
                data_dir=Path(folder) / name,
                kafka={"bootstrap.servers": broker.bootstrap},
                topics={"prefix": f"{name}."},
                metrics={"port": 0},
            )

        found = {name: measure(settings(name), cache, n_items, name) for name in ("cold", "warm")}
    print(json.dumps({"items": n_items, **found}))


if __name__ == "__main__":
    main()
