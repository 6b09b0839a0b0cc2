"""Day one of a new shop: a catalogue and a log without propensities. Are the first slates as good as bestsellers?

    python benchmarks/day_one.py [--policy neural_linear] [--days 60] [--opens 2010-06-01]

Input: Online Retail II from ../shared/data. The log is what was bought in the days before the shop opens; the steps are
those of docs/going-live.md: the catalogue is loaded, the log replayed (it fills histories, and brings no slate, being
old), `headrace train --log` fits the policy, `policy.start` names its folder. Then every customer who buys within the
next 30 days gets his first slate, before the invoice that it is judged by; nothing has been learned from slates. The
candidates are the same whoever ranks them. Two shelves, as what was bought before may be shown again or not:

    known   customers of the log
    new     customers of whom the log knows nothing: no history

`bestsellers` is what a shop would do without headrace: the ten items with most lines in the log, for a known customer
without what he bought where that is not shown again. They explore nothing; headrace explores as `policy.floor` says.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: small products on two busy cores only get slower
os.environ.setdefault("OMP_NUM_THREADS", "1")

import msgspec
import numpy as np
import pyarrow.compute
import pyarrow.parquet
from online_retail_invoices import Invoice, invoices_of
from system import machine, write

from headrace.simulation.commands import run_train
from headrace.simulation.loop import Models
from headrace.simulation.warm_start import item_records
from headrace.streams.engine import Engine
from headrace.streams.items import ItemStore
from headrace.streams.load import read_events, read_items
from headrace.streams.policies import Policies
from headrace.streams.recommend import Recommender
from headrace.streams.recommendation import Recommendation
from headrace.streams.records import Batch, Request
from headrace.streams.settings import Settings

DATA = Path(__file__).parents[2] / "shared/data/online_retail/online_retail_II_2009_2010.parquet"
MAPPING = Path(__file__).parents[1] / "examples/mappings/online-retail-ii.toml"
AFTER = timedelta(days=30)
SHOWN = 10
_BATCH = 256
_NEVER = 10**15  # ms: every trigger of the log is older
FLOOR = 0.02
ARMS = ("policy", "popular", "random")
_decode = msgspec.json.Decoder(Recommendation).decode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="neural_linear")
    parser.add_argument("--days", type=int, default=60, help="of the log")
    parser.add_argument("--opens", type=datetime.fromisoformat, default=datetime(2010, 6, 1))
    given = parser.parse_args()
    if not DATA.exists():
        sys.exit(f"skipped: {DATA} is not there; Online Retail II 2009-2010 belongs in it")
    began, opens = time.monotonic(), given.opens
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch:
        folder = Path(scratch)
        log = cut(folder / "log.parquet", opens - timedelta(days=given.days), opens)
        later = cut(folder / "later.parquet", opens, opens + AFTER)
        judged = first_invoices(invoices_of(later))
        shelves = {shelf: day_one(given.policy, shelf, log, judged, folder) for shelf in ("again", "new")}
    write(
        "day_one",
        {
            "benchmark": "day_one",
            "machine": machine(),
            "policy": given.policy,
            "log_days": given.days,
            "floor": FLOOR,
            "opens": opens.date().isoformat(),
            "seconds": round(time.monotonic() - began),
            "shelves": shelves,
        },
    )


def cut(path: Path, first: datetime, end: datetime) -> Path:
    """The file's rows of [first, end)."""
    table = pyarrow.parquet.read_table(DATA)
    when, compute = table["InvoiceDate"], pyarrow.compute
    low, high = (f"{moment:%Y-%m-%d %H:%M:%S}" for moment in (first, end))
    inside = compute.and_(compute.greater_equal(when, low), compute.less(when, high))
    pyarrow.parquet.write_table(table.filter(inside), path)
    return path


def first_invoices(invoices: list[Invoice]) -> list[Invoice]:
    """Each customer's first."""
    found: dict[str, Invoice] = {}
    for invoice in invoices:
        found.setdefault(invoice.user, invoice)
    return list(found.values())


def settings_of(policy: str, shelf: str, arm: str, folder: Path | None = None) -> Settings:
    """A wholesaler's: a long invoice is no crawler, sales change slowly. Little is explored at first."""
    return Settings(
        policy={"name": policy, "start": str(folder or ""), "floor": FLOOR},
        arms={"shares": {arm: 1.0}},
        worker={"busy_within": "0s"},
        learner={"popular_half_life": "365d"},
        event_types={"purchase": {"reward": 1.0, "consumes": True, "window": "90d"}},
        consumed={"default": "keep" if shelf == "again" else "exclude", "cap": 1_000},
    )


@dataclass
class Slated:
    """Of each judged customer: whether his slate held something that he then bought, and which share of the lines."""

    hit: list[bool]
    lines: list[float]

    def add(self, shown: list[str], invoice: Invoice) -> None:
        found = [line in shown for line in invoice.lines]
        self.hit.append(any(found))
        self.lines.append(sum(found) / len(found))


def day_one(policy: str, shelf: str, log: Path, judged: list[Invoice], scratch: Path) -> dict[str, Any]:
    """The steps of a new shop, then the first slates of every arm beside bestsellers."""
    settings = settings_of(policy, shelf, "policy")
    folder = run_train(
        settings, episodes=0, policy=policy, log=log, items=log, mapping=MAPPING, out=scratch / f"start-{shelf}"
    )
    models, items = Models(settings), read_items(settings, log, MAPPING)
    store = ItemStore(models.users.tower)
    for record in item_records(settings, items, models):
        store.apply(record)
    store.settle()
    events = list(read_events(settings, log, MAPPING))
    bought: dict[str, Counter[str]] = defaultdict(Counter)
    for event in events:
        if event.type == "purchase" and event.item_id is not None:
            bought[event.user_id][event.item_id] += 1
    sold = Counter[str]()
    for lines in bought.values():
        sold.update(lines)
    best = [item for item, _ in sold.most_common() if item in {i.item_id for i in items}]
    states: dict[bytes, bytes] = {}
    tallies: dict[str, dict[str, Slated]] = defaultdict(lambda: {"known": Slated([], []), "new": Slated([], [])})
    for arm in ARMS:
        serving = settings_of(policy, shelf, arm, folder)
        policies = Policies(serving, store, dim=models.users.dim)
        recommender = Recommender(serving, items=store, policies=policies, encoder=models.users, texts=models.texts)
        engine = Engine(serving, 0, recommender, states=dict(states))
        if not states:
            replay(engine, events)
            states = dict(engine.states)
        for invoice, slate in zip(judged, slates(engine, judged), strict=True):
            tallies[arm]["known" if invoice.user in bought else "new"].add(slate, invoice)
    for invoice in judged:
        mine = bought.get(invoice.user, Counter())
        shown = [item for item in best if shelf == "again" or item not in mine][:SHOWN]
        tallies["bestsellers"]["known" if invoice.user in bought else "new"].add(shown, invoice)
    return {"log_events": len(events), "items": len(items), "customers": compared(tallies)}


def replay(engine: Engine, log: list[Any]) -> None:
    """The log, as `headrace events replay` brings it: learned, and answered by nothing."""
    for offset, first in enumerate(range(0, len(log), _BATCH)):
        part = log[first : first + _BATCH]
        effects = engine.apply(Batch("events/0", part[-1].ts, entries=part), offset, not_before=_NEVER)
        assert not effects.recommendations
        engine.accept(effects)


def slates(engine: Engine, judged: list[Invoice]) -> list[list[str]]:
    """Each customer's first slate, asked for a moment before his invoice."""
    found = []
    for n, invoice in enumerate(sorted(judged, key=lambda invoice: invoice.ts), 1):
        at = invoice.ts - 1
        asked = Request(f"q{n}", invoice.user, at, at, k=SHOWN)
        effects = engine.apply(Batch("requests/0", at, entries=[asked]), engine.applied + 1)
        engine.accept(effects)
        [(_, message)] = effects.recommendations
        found.append((invoice.user, [item.item_id for item in _decode(message).items]))
    by_user = dict(found)
    return [by_user[invoice.user] for invoice in judged]


def compared(tallies: dict[str, dict[str, Slated]]) -> dict[str, Any]:
    """Shares by kind of customer, and the policy's over bestsellers': difference, 95 % interval by paired bootstrap."""
    found: dict[str, Any] = {}
    for kind, parts in {"all": ("known", "new"), "known": ("known",), "new": ("new",)}.items():
        rows = {
            arm: {
                "hit": np.array([x for part in parts for x in t[part].hit], float),
                "lines": np.array([x for part in parts for x in t[part].lines]),
            }
            for arm, t in tallies.items()
        }
        n = len(rows["policy"]["hit"])
        draws = np.random.default_rng(0).integers(n, size=(2_000, n))
        found[kind] = {"customers": n}
        for arm, row in rows.items():
            found[kind][arm] = {name: round(float(values.mean()), 4) for name, values in row.items()}
        for other in ("bestsellers", "popular"):
            gains = {name: rows["policy"][name] - rows[other][name] for name in ("hit", "lines")}
            found[kind][f"over_{other}"] = {
                name: [
                    round(float(x), 4) for x in (gain.mean(), *np.quantile(gain[draws].mean(axis=1), [0.025, 0.975]))
                ]
                for name, gain in gains.items()
            }
    return found


def section(f: dict[str, Any]) -> str:
    """The part of docs/benchmarks.md."""
    again = f["shelves"]["again"]
    lines = [
        "## Day one\n",
        f"{f['policy']} from `headrace train --log` on {f['log_days']} days of Online Retail II"
        f" ({again['log_events']:,} events without slates or propensities), before it has learned from any slate: first"
        f" slates of ten for customers who buy within the next 30 days, floor {f['floor']}, popularity all but without"
        " forgetting (`benchmarks/day_one.py`)."
        " Shares of customers whose slate held something of their next invoice, and of that invoice's lines;"
        " *bestsellers* are the ten items sold most, which explore nothing. The last column: lines over bestsellers',"
        " 95 % interval over customers.\n",
        "| what may be shown | customers | | policy | popular | random | bestsellers | lines over bestsellers' |",
        "|---|---|---|---|---|---|---|---|",
    ]
    words = {"again": "all", "new": "not what he bought"}
    for shelf, kinds in f["shelves"].items():
        for kind, c in kinds["customers"].items():
            shares = " | ".join(f"{c[a]['hit']:.3f}, {c[a]['lines']:.4f}" for a in (*ARMS, "bestsellers"))
            mean, low, high = c["over_bestsellers"]["lines"]
            gain = f"{mean:+.4f} ({low:+.4f} to {high:+.4f})"
            lines.append(f"| {words[shelf]} | {kind} | {c['customers']:,} | {shares} | {gain} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
