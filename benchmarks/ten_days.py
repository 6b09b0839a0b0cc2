"""Ten simulated days with a million new anonymous ids a day: does a worker's memory stay what it is?

    python benchmarks/ten_days.py [--ids 1000000] [--days 10]

One partition's engine as a worker runs it, in this process, without Kafka: micro-batches of 500 events are decoded,
applied and accepted, and time goes on by the batches' watermarks. Every event is a new id's view; of one in ten a
second follows within the hour. Views make nobody due here (`due = false`): a slate for each of eleven million events
would take hours; of one id in ten thousand the event is a click and gets its slate. One id in a thousand is merged into
one of a thousand known users. Anonymous ids live for a day: the second day ends at the level which must hold.

Resident memory is the process's, read at the end of each day without freeing anything first.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import time
from collections import deque
from typing import Any

import msgspec
import numpy as np
from system import machine, rss_bytes, write

from headrace.streams.changelog import ALIAS
from headrace.streams.engine import Engine
from headrace.streams.models import load_models
from headrace.streams.records import Batch, Entry, Event, Identity, Item, decode_batch, encode
from headrace.streams.settings import Settings

T0, DAY = 1_790_000_000_000, 86_400_000
SEED, ITEMS, A_BATCH, SLATES, MERGES, USERS = 3, 2_000, 500, 0.0001, 0.001, 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", type=int, default=1_000_000, help="new ids a day")
    parser.add_argument("--days", type=int, default=10)
    given = parser.parse_args()
    figures: dict[str, Any] = {"benchmark": "ten_days", "machine": machine(), "ids_a_day": given.ids}
    engine = made()
    figures["rss_mb_empty"] = round(rss_bytes(os.getpid()) / 1e6, 1)
    days: list[dict[str, Any]] = []
    began = time.monotonic()
    offset = 0
    for day in range(given.days):
        started = time.monotonic()
        longest = 0.0
        for batch in batches(day, given.ids):
            raw = encode(batch)
            before = time.monotonic()
            engine.accept(engine.apply(decode_batch(raw), offset))
            longest = max(longest, time.monotonic() - before)
            offset += 1
        days.append(
            {
                "day": day + 1,
                "rss_mb": round(rss_bytes(os.getpid()) / 1e6, 1),
                "changelog_keys": len(engine.states),
                "users": engine.users,
                "aliases": sum(key.startswith(ALIAS) for key in engine.states),
                "state_mb": round(engine.state_bytes / 1e6, 1),
                "open_decisions": engine.open_decisions,
                "waiting_keys": len(engine.lapsing),
                "expired": engine.counts["expired/anonymous"],
                "seconds": round(time.monotonic() - started, 1),
                "longest_record_s": round(longest, 3),
            }
        )
        print(days[-1], flush=True)
    last = [day["rss_mb"] for day in days[-6:]]
    growth = [100 * (b / a - 1) for a, b in itertools.pairwise(last)]
    figures |= {
        "days": days,
        "seconds": round(time.monotonic() - began, 1),
        "growth_percent_a_day": [round(g, 2) for g in growth],
        "growth_percent_a_day_mean": round(100 * ((last[-1] / last[0]) ** (1 / max(1, len(growth))) - 1), 2),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1),
        "counts": {
            name: n for name, n in engine.counts.items() if name.startswith(("identities", "expired", "events"))
        },
    }
    write("ten_days", figures)


def made() -> Engine:
    settings = Settings(
        topics={"interactions_partitions": 1},
        event_types={"view": {"due": False}},
        identities={"anonymous": "a*", "anonymous_ttl": "1d"},
        policy={"name": "lints"},
        live={"clock": "event"},
    )
    models = load_models(settings)
    vectors = np.random.default_rng(SEED).normal(size=(ITEMS, 384))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for number, vector in enumerate(vectors.astype("<f2")):
        models.items.apply(
            Item(f"i{number}", 0, number, vector.tobytes(), f"h{number}", 5.0, "c", title=f"Item {number}")
        )
    models.items.settle()
    return Engine(settings, 0, models.recommender)


def batches(day: int, ids: int) -> Any:
    """A day's micro-batches, evenly spread."""
    rng = np.random.default_rng((SEED, day))
    again: deque[tuple[int, Event]] = deque()
    n_batches = ids // A_BATCH
    for number in range(n_batches):
        now = T0 + day * DAY + (number * DAY) // n_batches
        entries: list[Entry] = []
        items = rng.integers(0, ITEMS, A_BATCH).tolist()
        draws = rng.random((A_BATCH, 3))
        for k, item in enumerate(items):
            user = f"a{day}-{number * A_BATCH + k}"
            event = Event("e1", user, "click" if draws[k, 0] < SLATES else "view", now, now, f"i{item}")
            entries.append(event)
            if draws[k, 1] < 0.1:
                later = now + int(draws[k, 2] * 3_600_000)
                again.append((later, msgspec.structs.replace(event, event_id="e2", ts=later, type="view")))
            if draws[k, 2] < MERGES:
                entries.append(Identity(f"u{int(draws[k, 0] * USERS)}", user, now, now))
        while again and again[0][0] <= now:
            entries.append(again.popleft()[1])
        yield Batch("events/0", now, entries=entries)


def section(f: dict[str, Any]) -> str:
    """For docs/benchmarks.md."""
    m, days = f["machine"], f["days"]
    table = [
        "| day | resident memory | changelog keys | of which aliases | expired so far | longest record |",
        "|---|---|---|---|---|---|",
        *(
            f"| {d['day']} | {d['rss_mb']:,.0f} MB | {d['changelog_keys']:,} | {d['aliases']:,} | {d['expired']:,} |"
            f" {d['longest_record_s']} s |"
            for d in days
        ),
    ]
    growth = ", ".join(f"{g:+.2f} %" for g in f["growth_percent_a_day"])
    where = f"{m['cores']} cores ({m['cpu']}), Python {m['python']}, commit {m['commit']}, load average before the run"
    return "\n".join(
        [
            "## Ten days of new ids\n",
            f"{f['ids_a_day']:,} new anonymous ids a day into one partition's engine, forgotten after a day; slates",
            "for one in ten thousand, merges of one in a thousand ([bounds](bounds.md), `benchmarks/ten_days.py`).\n",
            *table,
            "",
            f"Growth of memory from day to day, the last {len(f['growth_percent_a_day'])}: {growth}; a day in the mean"
            f" {f['growth_percent_a_day_mean']:+.2f} % (to reach: ≤ 1 %). The process weighs"
            f" {f['rss_mb_empty']:,.0f} MB empty; the whole took {f['seconds']:,.0f} s.\n",
            f"{where} {m['load_before']}.\n",
        ]
    )


if __name__ == "__main__":
    main()
