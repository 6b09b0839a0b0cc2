"""Events a second through all roles, exactly once, on the standard load (load.py); the most; a plain Faust app's.

    python benchmarks/standard_load.py [--rate 5000] [--seconds 60] [--backlog 100000] [--peer 20]

Three parts in one run, on one broker, the roles as separate processes:

    sustained   a producer process sends `rate` events/s; what was applied is read from the committed progress records
    at_most     a backlog is sent at once and drained
    peer        peer_faust.py drains what the topic `events` then holds, with the policy versions of this run

A part of 0 (seconds, events) is left out. Freshness is measured by a consumer outside: from the producer's send of an
event to the arrival of the slate that names it as its trigger; one slate in 16 is looked at.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Producer
from load import ITEMS, event_messages, item_messages, settings_of
from system import System, cpu_s, machine, total, write

from headrace.streams import kafka
from headrace.streams.sender import Sender
from headrace.streams.settings import Settings

_WARM_UP = 20_000  # events, before anything is measured: the broker compiles itself for its first 15 s of work
_SLICE_S = 0.005  # a producer at a rate sends what is due this often
_SAMPLED = 16
_TRIGGER = re.compile(rb'"ts":(\d+).*?"trigger":\{"kind":"event","id":"e(\d+)"')
_DRAIN_S = 120
_PEER_STARTS_S = 60


class Freshness(threading.Thread):
    """Reads `recommendations` as a shop does; keeps how long ago the trigger of one slate in 16 was sent."""

    def __init__(self, system: System) -> None:
        super().__init__(name="freshness", daemon=True)
        self.slates = 0
        self.taken: list[tuple[int, float]] = []  # (number of the event, ms)
        self._consumer = system.consumer("recommendations")
        self._closing = threading.Event()

    def run(self) -> None:
        while not self._closing.is_set():
            messages = kafka.consume(self._consumer, 1, 0.1)
            messages += kafka.consume(self._consumer, 5_000, 0) if messages else []
            now_ms = time.time() * 1000
            for message in messages:
                if error := message.error():
                    kafka.check(error)
                    continue
                self.slates += 1
                if self.slates % _SAMPLED == 0 and (found := _TRIGGER.search(message.value() or b"")):
                    self.taken.append((int(found[2]), now_ms - int(found[1])))
        self._consumer.close()

    def close(self) -> None:
        self._closing.set()
        self.join()

    def of(self, first: int, after: int) -> dict[str, float]:
        """Of the slates triggered by events with numbers in [first, after)."""
        ms = [delay for number, delay in self.taken if first <= number < after]
        p50, p99 = np.percentile(ms, [50, 99]).round(1).tolist() if ms else (float("nan"), float("nan"))
        return {"p50": p50, "p99": p99, "sampled": len(ms)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=5_000, help="events/s of the sustained part")
    parser.add_argument("--seconds", type=float, default=60, help="of the sustained part")
    parser.add_argument("--backlog", type=int, default=100_000, help="events drained at full speed")
    parser.add_argument("--workers", type=int, default=2, help="worker processes; there are two partitions")
    parser.add_argument("--peer", type=float, default=20, help="seconds that the plain Faust app gets")
    parser.add_argument("--produce", nargs=4, metavar=("ADDRESS", "START", "COUNT", "RATE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.produce:
        address, start, count, rate = given.produce
        produce(address, start=int(start), count=int(count), rate=float(rate))
        return
    figures: dict[str, Any] = {"benchmark": "standard_load", "machine": machine(), "workers": given.workers}
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder, System(Path(folder), settings_of) as system:
        load_catalogue(system, workers=given.workers)
        fresh = Freshness(system)
        fresh.start()
        sent = warm_up(system)
        if given.seconds:
            figures["sustained"] = sustained(system, fresh, start=sent, rate=given.rate, seconds=given.seconds)
            sent = system.sent()
        if given.backlog:
            figures["at_most"] = at_most(system, start=sent, count=given.backlog)
        fresh.close()
        figures["restarts"] = system.restarts()
        system.stop_roles()
        if given.peer:
            figures["peer"] = peer(system, seconds=given.peer)
            ours = max(figures[part]["events_per_s"] for part in ("sustained", "at_most") if part in figures)
            figures["ratio_to_peer"] = round(ours / figures["peer"]["events_per_s"], 1)
    write("standard_load", figures)


# -- parts ------------------------------------------------------------------------------------------------------------


def load_catalogue(system: System, *, workers: int) -> None:
    with Sender(system.settings, "items") as sender:
        for item_id, message in item_messages():
            sender.send(item_id, message)
    system.start_roles(["catalogue"])
    system.wait(lambda: system.items_encoded() >= ITEMS, "the catalogue", limit_s=180, every_s=1)
    system.stop_roles()
    system.start_roles(workers=workers)


def warm_up(system: System) -> int:
    """Sends a few events and waits until they are applied and learned from; returns their number."""
    produce(system.settings.bootstrap, start=0, count=_WARM_UP, rate=0)
    _drained(system, _WARM_UP)
    return _WARM_UP


def sustained(system: System, fresh: Freshness, *, start: int, rate: int, seconds: float) -> dict[str, Any]:
    """The producer's events at a rate. Lag in events: sent (as committed) less applied (as committed), each second."""
    count = int(rate * seconds)
    before, cpu, began = system.counts(), system.cpu_s(), time.time()
    producer = subprocess.Popen(
        [sys.executable, __file__, "--produce", system.settings.bootstrap, str(start), str(count), str(rate)]
    )
    lag: list[int] = []
    roles_lag: Counter[str] = Counter()
    while producer.poll() is None:
        next_look = time.monotonic() + 1
        applied = _applied(system.counts())
        lag.append(system.sent() - applied)
        for role in ("ingest", "worker", "learner"):
            behind = sum(v for name, v in system.metrics(role).items() if name.startswith("headrace_consumer_lag"))
            roles_lag[role] = max(roles_lag[role], int(behind))
        time.sleep(max(0.0, next_look - time.monotonic()))
    if producer.returncode:
        raise RuntimeError("the producer failed")
    sent_until = time.time()
    drained = _drained(system, start + count)
    took = drained - began
    after = system.counts()
    applied = _applied(after) - _applied(before)
    decisions = total(after, "decisions/") - total(before, "decisions/")
    third = max(len(lag) // 3, 1)
    return {
        "rate": rate,
        "seconds": round(sent_until - began, 1),
        "events_sent": count,
        "events_applied": applied,
        "events_per_s": round(applied / took),
        "decisions_per_s": round(decisions / took),
        "outcomes_joined": _joined(after) - _joined(before),
        "drain_s": round(drained - sent_until, 2),
        "lag_events": {
            "p50": round(statistics.median(lag)),
            "max": max(lag),
            "mean_of_last_third": round(statistics.mean(lag[-third:])),
        },
        "lag_max_messages": dict(roles_lag),
        "freshness_ms": fresh.of(start, start + count),
        "cpu": _cpu_share(cpu, system.cpu_s(), took),
    }


def at_most(system: System, *, start: int, count: int) -> dict[str, Any]:
    """A backlog, as fast as all roles together drain it."""
    before, cpu, began = system.counts(), system.cpu_s(), time.time()
    produce(system.settings.bootstrap, start=start, count=count, rate=0)
    produced = time.time()
    drained = _drained(system, start + count, learner=False)
    applied_cpu = system.cpu_s()
    learned = _drained(system, start + count)
    after = system.counts()
    took = drained - began
    return {
        "events": count,
        "events_applied": _applied(after) - _applied(before),
        "sent_in_s": round(produced - began, 2),
        "events_per_s": round(count / took),
        "decisions_per_s": round((total(after, "decisions/") - total(before, "decisions/")) / took),
        "learner_done_s_later": round(learned - drained, 2),
        "cpu": _cpu_share(cpu, applied_cpu, took),
    }


def peer(system: System, *, seconds: float) -> dict[str, Any]:
    """The plain Faust app on the events that the other parts sent, from the first; timed from its first event on."""
    settings = system.settings
    environment = {
        **os.environ,
        "DATA_DIR": str(settings.data_dir),
        "BOOTSTRAP": settings.bootstrap,
        "EVENTS": settings.topic("events"),
        "APP": "peer",
    }
    waiting = system.sent()
    command = [sys.executable, str(Path(__file__).with_name("peer_faust.py"))]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        seen: list[tuple[float, int, float]] = []  # time, events done, CPU seconds
        limit = threading.Timer(seconds + _PEER_STARTS_S, process.kill)
        limit.start()
        try:
            for line in process.stdout:
                if not line.startswith("done "):
                    continue
                _, at, done = line.split()
                seen.append((float(at), int(done), cpu_s(process.pid)))
                first = next((s for s in seen if s[1]), None)
                if first and (seen[-1][0] - first[0] >= seconds or seen[-1][1] >= waiting):
                    break
        finally:
            limit.cancel()
            process.kill()
            process.wait()
        moving = [s for s in seen if 0 < s[1] < waiting]
        if len(moving) < 2:
            log.seek(0)
            raise RuntimeError(f"the Faust app applied nothing to be timed: {log.read()[-2_000:]}")
    began, ended = moving[0], moving[-1]
    took, done = ended[0] - began[0], ended[1] - began[1]
    return {
        "seconds": round(took, 1),
        "events": done,
        "events_per_s": round(done / took),
        "cpu_cores": round((ended[2] - began[2]) / took, 2),
    }


# -- what it takes ----------------------------------------------------------------------------------------------------


def produce(address: str, *, start: int, count: int, rate: float) -> None:
    """Sends events start to start + count; `rate` 0: as fast as it goes. Returns when all are acknowledged."""
    settings = Settings(kafka={"bootstrap.servers": address})
    producer = Producer(kafka.client_config(settings, linger_ms=5, partitioner="murmur2_random"))
    topic, began = settings.topic("events"), time.monotonic()
    for i, (user, message) in enumerate(event_messages(count, start=start)):
        if rate:
            while i >= (time.monotonic() - began) * rate:
                producer.poll(_SLICE_S)
        kafka.produce(producer, topic, key=user.encode(), value=message)
    if producer.flush(60):
        raise RuntimeError("Kafka did not acknowledge every event")


def _drained(system: System, events: int, *, learner: bool = True) -> float:
    """When all events sent so far were applied and, with `learner`, learned from (Unix s)."""
    at = system.wait(lambda: _applied(system.counts()) >= events, "the backlog", limit_s=_DRAIN_S)
    if learner:
        name = "headrace_consumer_lag_messages partition=0 topic=transitions"
        at = system.wait(lambda: system.metrics("learner").get(name) == 0, "the learner", limit_s=_DRAIN_S)
    return at


def _applied(counts: Counter[str]) -> int:
    return total(counts, "events/", "/applied")


def _joined(counts: Counter[str]) -> int:
    return total(counts, "outcomes/", "/item") + total(counts, "outcomes/", "/id")


def _cpu_share(before: dict[str, float], after: dict[str, float], took: float) -> dict[str, float]:
    """Cores busy, by process."""
    return {f"{name}_cores": round((after[name] - before[name]) / took, 2) for name in after}


if __name__ == "__main__":
    main()
