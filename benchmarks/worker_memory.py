"""What a worker's users weigh, and how soon a worker has them back.

    python benchmarks/worker_memory.py [--users 100000]

Every user has 50 events in his history, 32 event ids seen, and 20 open decisions of 10 items. The states are written to
the changelog by a transactional producer, as the worker does; then a worker starts and recovers them. Memory is its
resident size over that of a worker that has just started on empty topics. `recovery_s` is the mean of its two
partitions, which recover at the same time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from load import ITEMS, SEED
from system import System, machine, rss_bytes, write

from headrace.export.names import type_code
from headrace.streams import kafka
from headrace.streams.changelog import user_key
from headrace.streams.decisions import arm_code
from headrace.streams.partition import partition_of
from headrace.streams.records import item_key
from headrace.streams.settings import Settings
from headrace.streams.state import UserState

HISTORY, SEEN, OPEN, K = 50, 32, 20, 10
_AT_ONCE = 1_000  # states in one transaction
_SETTLED_S = 3  # after it is ready, before its memory is read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000)
    users = parser.parse_args().users
    figures: dict[str, Any] = {"benchmark": "worker_memory", "machine": machine(), "users": users}
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder, System(Path(folder), settings_of) as system:
        empty = worker(system)
        packed = fill(system, users)
        full = worker(system)
    grown = full["rss_bytes"] - empty["rss_bytes"]
    figures |= {
        "events_each": HISTORY,
        "open_decisions_each": OPEN,
        "packed_bytes_a_user": round(packed / users),
        "worker_bytes_a_user": round(grown / users),
        "rss_mb": {"empty": round(empty["rss_bytes"] / 1e6), "full": round(full["rss_bytes"] / 1e6)},
        "recovery_s": full["recovery_s"],
        "users_recovered": full["users"],
        "ready_s": {"empty": empty["ready_s"], "full": full["ready_s"]},
    }
    write("worker_memory", figures)


def settings_of(data_dir: str, address: str) -> Settings:
    return Settings(
        data_dir=data_dir,
        kafka={"bootstrap.servers": address},
        topics={"events_partitions": 2, "requests_partitions": 1, "interactions_partitions": 2},
        metrics={"port": 0},
    )


def worker(system: System) -> dict[str, Any]:
    """Starts a worker on what the changelog holds, and ends it: its memory, and its own word on the recovery."""
    began = time.monotonic()
    system.start_roles(["worker"])
    ready_s = time.monotonic() - began
    time.sleep(_SETTLED_S)
    rss, metrics = rss_bytes(system.pids()["worker"]), system.metrics("worker")
    system.stop_roles()
    return {
        "rss_bytes": rss,
        "ready_s": round(ready_s, 2),
        "users": round(sum(n for name, n in metrics.items() if name.startswith("headrace_state_users"))),
        "recovery_s": round(
            metrics["headrace_recovery_duration_seconds_sum"] / metrics["headrace_recovery_duration_seconds_count"], 2
        ),
    }


def fill(system: System, users: int) -> int:
    """Writes every user's state to the changelog; returns the bytes of all states."""
    settings = system.settings
    topic, partitions = settings.topic("users-changelog"), settings.topics.interactions_partitions
    producer = kafka.transactional_producer(settings, "benchmark")
    rng = np.random.default_rng(SEED)
    items = np.array([item_key(f"i{i}") for i in range(ITEMS)], np.uint64)
    size = 0
    for start in range(0, users, _AT_ONCE):
        producer.begin_transaction()
        for number in range(start, min(start + _AT_ONCE, users)):
            user, raw = f"u{number}", state(rng, items).pack()
            kafka.produce(producer, topic, key=user_key(user), value=raw, partition=partition_of(user, partitions))
            size += len(raw)
        kafka.commit(producer)
    return size


def state(rng: np.random.Generator, items: np.ndarray) -> UserState:
    """A user with a full history and decisions opened a minute apart, all still open."""
    made = UserState()
    now = int(time.time() * 1000)
    keys = items[rng.integers(0, len(items), HISTORY + OPEN * K)]
    slates, names = keys[HISTORY:].reshape(OPEN, K), rng.bytes(12 * OPEN)
    made.count = HISTORY
    made.keys = keys[:HISTORY].tobytes()
    made.types = bytes([type_code("view")]) * HISTORY
    made.seconds = np.arange(now // 1000 - HISTORY, now // 1000, dtype=np.uint32).tobytes()
    made.seen = rng.bytes(8 * SEEN)
    for n, slate in enumerate(slates):
        name = names[12 * n : 12 * n + 12]
        made.open(name, ts=now - 60_000 * (OPEN - n), arm=arm_code("policy"), keys=slate.tobytes())
    return made


if __name__ == "__main__":
    main()
