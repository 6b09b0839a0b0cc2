"""A real shop's year through all roles at full speed: is every event accounted for, how fast, and what the slates hit.

    python benchmarks/online_retail.py [--rows N]

Input: Online Retail II 2009–2010 from ../shared/data, by `headrace items load` and `headrace events replay` with the
mapping of examples/mappings. Nobody saw these slates, so nothing is learned from them (`assume_shown` stays false);
popularity and co-occurrence are learned from what users did.

Hits: in the second half of the year, of each invoice's lines the share that stood in its user's latest ten items before
its first line; users without any purchase before are left out. Two baselines are computed here from the same lines;
`published_baselines` are those in the README of the data.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pyarrow.parquet
from system import System, machine, total, write

from headrace.streams import kafka
from headrace.streams.load import load_items, replay_events
from headrace.streams.recommendation import Recommendation
from headrace.streams.settings import Settings

DATA = Path(__file__).parents[2] / "shared/data/online_retail/online_retail_II_2009_2010.parquet"
MAPPING = Path(__file__).parents[1] / "examples/mappings/online-retail-ii.toml"
PUBLISHED = {"own_most_frequent": 0.0957, "co_occurrence_with_last_invoice": 0.0609, "popular": 0.0386}
DAY_MS = 86_400_000
_SHOWN = 10
_STUCK_S = 60.0
_decode = msgspec.json.Decoder(Recommendation).decode


@dataclass(frozen=True)
class Invoice:
    """The lines of one purchase: item ids, one a line."""

    user: str
    ts: int
    lines: list[str]


@dataclass(frozen=True)
class Slate:
    arm: str
    items: list[str]


def settings_of(data_dir: str, address: str) -> Settings:
    """Repeat purchases are 44 % here: what was bought may come again. Small micro-batches: a slate after each visit."""
    return Settings(
        data_dir=data_dir,
        kafka={"bootstrap.servers": address},
        topics={"events_partitions": 2, "requests_partitions": 1, "interactions_partitions": 2},
        ingest={"batch_bytes": 16_384},  # about 150 lines: a day of the users of one partition
        worker={"max_trigger_age": "400d"},  # of event time, which a replay passes in a minute
        consumed={"default": "keep"},
        metrics={"port": 0},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help="of the file's beginning; default: all")
    given = parser.parse_args()
    if not DATA.exists():
        sys.exit(f"skipped: {DATA} is not there; Online Retail II 2009-2010 belongs in it")
    figures: dict[str, Any] = {"benchmark": "online_retail", "machine": machine()}
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        path = DATA if given.rows is None else _beginning(DATA, Path(folder), given.rows)
        with System(Path(folder), settings_of) as system:
            figures |= replay(system, path)
            figures |= compare(slates_of(system), invoices_of(path))
    write("online_retail", figures)


def replay(system: System, path: Path) -> dict[str, Any]:
    """The catalogue, then the log at full speed; returns when everything is accounted for, or nothing moves."""
    items = load_items(system.settings, path, MAPPING)
    system.start_roles()
    system.wait(lambda: system.items_encoded() >= items.sent, "the catalogue", limit_s=600, every_s=1)
    cpu, began = system.cpu_s(), time.time()
    log = replay_events(system.settings, path, MAPPING)
    first_sent = time.time() - log.seconds
    accounts = _settle(system, log.sent)
    took = time.time() - began
    after = system.cpu_s()
    return {
        "rows": log.rows,
        "not_sent": {reason: rows.count for reason, rows in log.skipped.items()},
        "items": items.sent,
        **accounts,
        "unaccounted_for": log.sent - accounts["applied"] - accounts["duplicates"] - accounts["dead_letters"],
        "seconds": round(took, 1),
        "reading_and_sending_s": round(log.seconds, 1),
        "events_per_s": round(accounts["applied"] / (time.time() - first_sent)),
        "cpu_s": {name: round(after[name] - cpu[name], 1) for name in after},
        "restarts": system.restarts(),
    }


def _settle(system: System, sent: int) -> dict[str, int]:
    """Waits until applied, duplicates and dead letters come to what was sent; gives up where nothing moves."""
    accounts, moved = {"sent": sent}, time.monotonic()
    while True:
        counts = system.counts()
        now = {
            "sent": sent,
            "applied": total(counts, "events/", "/applied"),
            "duplicates": total(counts, "events/", "/duplicate"),
            "dead_letters": sum(1 for _ in _committed(system, "dead-letters")),
            "decisions": total(counts, "decisions/"),
            "stale_triggers": counts["stale_triggers"],
        }
        if now != accounts:
            accounts, moved = now, time.monotonic()
        done = now["applied"] + now["duplicates"] + now["dead_letters"]
        if done >= sent or time.monotonic() - moved > _STUCK_S:
            return accounts
        system.check()
        time.sleep(0.25)


def _committed(system: System, topic: str) -> Iterable[kafka.Message]:
    messages: list[kafka.Message] = []
    kafka.read_to_end(system.settings, system.settings.topic(topic), messages.append)
    return messages


# -- what the slates hit ----------------------------------------------------------------------------------------------


def slates_of(system: System) -> dict[str, tuple[list[int], list[Slate]]]:
    """{user: (event times, slates)} of all recommendations, in the order they were made."""
    found: dict[str, tuple[list[int], list[Slate]]] = defaultdict(lambda: ([], []))

    def on_message(message: kafka.Message) -> None:
        slate = _decode(message.value() or b"")
        times, slates = found[slate.user_id]
        times.append(slate.ts)
        slates.append(Slate(slate.policy.arm, [item.item_id for item in slate.items[:_SHOWN]]))

    kafka.read_to_end(system.settings, system.settings.topic("recommendations"), on_message)
    return found


def invoices_of(path: Path) -> list[Invoice]:
    """Purchases of known customers, by time; lines of one minute and more under one number are one invoice."""
    columns = pyarrow.parquet.read_table(
        path, columns=["Invoice", "StockCode", "Quantity", "InvoiceDate", "Customer ID"]
    ).to_pydict()
    zone = ZoneInfo("Europe/London")
    found: dict[tuple[str, str], Invoice] = {}
    times: dict[str, int] = {}
    for number, item, quantity, date, customer in zip(*columns.values(), strict=True):
        if customer is None or customer != customer or quantity <= 0:
            continue
        if date not in times:
            times[date] = int(datetime.fromisoformat(date).replace(tzinfo=zone).timestamp() * 1000)
        user = str(int(customer))
        found.setdefault((user, number), Invoice(user, times[date], [])).lines.append(item)
    return sorted(found.values(), key=lambda invoice: invoice.ts)


def compare(slates: dict[str, tuple[list[int], list[Slate]]], invoices: Sequence[Invoice]) -> dict[str, Any]:
    """Hits of the slates and of the baselines on the invoices of the second half, by arm and over all."""
    middle = (invoices[0].ts + invoices[-1].ts) / 2
    ours: dict[str, Tally] = defaultdict(Tally)
    baselines = Baselines()
    lacking = 0
    for invoice in invoices:
        if invoice.ts >= middle and baselines.knows(invoice.user):
            times, made = slates.get(invoice.user, ([], []))
            before = bisect_left(times, invoice.ts)
            slate = made[before - 1] if before else Slate("none", [])
            lacking += not before
            for name in ("all", slate.arm):
                ours[name].add(invoice.lines, slate.items)
            baselines.judge(invoice)
        baselines.learn(invoice)
    return {
        "invoices": ours["all"].invoices,
        "without_a_slate_before": lacking,
        "hit_share": {name: tally.figures() for name, tally in sorted(ours.items())},
        "baselines": {name: tally.figures() for name, tally in baselines.tallies.items()},
        "published_baselines": PUBLISHED,
    }


class Tally:
    """Lines that stood in the slates, of all lines."""

    def __init__(self) -> None:
        self.hits = self.lines = self.invoices = 0

    def add(self, lines: Sequence[str], shown: Sequence[str]) -> None:
        self.hits += sum(line in shown for line in lines)
        self.lines += len(lines)
        self.invoices += 1

    def figures(self) -> dict[str, float]:
        return {"share": round(self.hits / max(self.lines, 1), 4), "lines": self.lines, "invoices": self.invoices}


class Baselines:
    """Two that cost nothing: the user's own most frequent items, and the most popular of all."""

    def __init__(self) -> None:
        self._own: dict[str, Counter[str]] = defaultdict(Counter)
        self._popular: Counter[str] = Counter()
        self._most_popular: list[str] = []
        self._day = 0
        self.tallies = {"own_most_frequent": Tally(), "popular": Tally()}

    def knows(self, user: str) -> bool:
        return user in self._own

    def learn(self, invoice: Invoice) -> None:
        self._own[invoice.user].update(invoice.lines)
        self._popular.update(invoice.lines)

    def judge(self, invoice: Invoice) -> None:
        if invoice.ts // DAY_MS != self._day:
            self._day = invoice.ts // DAY_MS
            self._most_popular = _best(self._popular)
        self.tallies["own_most_frequent"].add(invoice.lines, _best(self._own[invoice.user]))
        self.tallies["popular"].add(invoice.lines, self._most_popular)


def _best(counts: Counter[str]) -> list[str]:
    return [item for item, _ in counts.most_common(_SHOWN)]


def _beginning(path: Path, folder: Path, rows: int) -> Path:
    """The first rows of the file, as a file."""
    part = folder / path.name
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).slice(0, rows), part)
    return part


if __name__ == "__main__":
    main()
