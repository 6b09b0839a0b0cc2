"""The encoder is swapped under the standard load: how long an event waits for its slate, before, meanwhile and after.

    python benchmarks/hot_swap.py [--rate 1000] [--before 20] [--after 40]

A producer sends `rate` events/s. After `before` seconds another user encoder is announced: the default one with its
item tower turned, a whole artifact of another version. Then one that is not there. One slate in 16 is timed from the
send of the event that it names to its arrival outside, as in standard_load.py.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from load import settings_of
from standard_load import Freshness, load_catalogue, warm_up
from system import System, machine, write

from headrace.export import artifact
from headrace.export.defaults import ensure_user
from headrace.export.item_tower import FILE, ItemTower
from headrace.streams import encoders
from headrace.streams.records import encode_announcement

_SERIAL = "headrace_encoder_serial"
_REFUSED = "headrace_encoder_swaps_total outcome=refused"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=1_000, help="events/s")
    parser.add_argument("--before", type=int, default=20, help="seconds before the announcement")
    parser.add_argument("--after", type=int, default=40, help="seconds from the announcement on")
    given = parser.parse_args()
    figures: dict[str, Any] = {"benchmark": "hot_swap", "machine": machine(), "rate": given.rate}
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder, System(Path(folder), settings_of) as system:
        other = turned(Path(folder) / "other")
        load_catalogue(system, workers=1)
        fresh = Freshness(system)
        fresh.start()
        start = warm_up(system)
        figures |= swapped(system, fresh, other, start=start, given=given)
        fresh.close()
        figures["restarts"] = system.restarts()
    write("hot_swap", figures)


def turned(folder: Path) -> Path:
    """The default user encoder over a turned item space."""
    before = artifact.load(ensure_user(), "user")
    with artifact.writing(folder) as scratch:
        for name in before.manifest.files:
            shutil.copy(before.path / name, scratch / name)
        ItemTower(np.roll(ItemTower.load(before.path / FILE).projection, 1, axis=0)).save(scratch / FILE)
        files = artifact.file_digests(scratch)
        artifact.write_manifest(scratch, msgspec.structs.replace(before.manifest, files=files))
    return folder


def swapped(system: System, fresh: Freshness, other: Path, *, start: int, given: argparse.Namespace) -> dict[str, Any]:
    count = given.rate * (given.before + given.after)
    script = str(Path(__file__).with_name("standard_load.py"))
    producer = subprocess.Popen(
        [sys.executable, script, "--produce", system.settings.bootstrap, str(start), str(count), str(given.rate)]
    )
    time.sleep(given.before)
    announced_at = system.sent()
    began = time.monotonic()
    serial, said = encoders.announce(system.settings, user=str(other), text=None, who="benchmark", why="another space")
    system.wait(lambda: system.metrics("worker")[_SERIAL] == serial, "the swap", limit_s=60, every_s=0.2)
    took, swapped_at = time.monotonic() - began, system.sent()
    mislead(system, msgspec.structs.replace(said, user_version="sha256:other"))
    system.wait(lambda: system.metrics("worker")[_REFUSED] >= 1, "the refusal", limit_s=60, every_s=0.2)
    assert system.metrics("worker")[_SERIAL] == serial
    if producer.wait(given.before + given.after + 60):
        raise RuntimeError("the producer failed")
    system.wait(lambda: fresh.taken and max(n for n, _ in fresh.taken) >= start + count - 100, "slates", limit_s=60)
    settled = swapped_at + 5 * given.rate
    return {
        "made_ready_and_taken_s": round(took, 2),
        "freshness_ms": {
            "before": longest(fresh, start, announced_at),
            "while it is made ready": longest(fresh, announced_at, swapped_at),
            "first 5 s after": longest(fresh, swapped_at, settled),
            "then": longest(fresh, settled, start + count),
        },
    }


def mislead(system: System, said: Any) -> None:
    """Announces what is not there: `headrace encoder announce` would not."""
    from confluent_kafka import Producer

    from headrace.streams import kafka

    producer = Producer(kafka.client_config(system.settings))
    kafka.produce(producer, system.settings.topic(encoders.TOPIC), key=b"misleading", value=encode_announcement(said))
    producer.flush(10)


def longest(fresh: Freshness, first: int, after: int) -> dict[str, float]:
    found = fresh.of(first, after)
    return {**found, "max": round(max((ms for n, ms in fresh.taken if first <= n < after), default=float("nan")), 1)}


def section(figures: dict[str, Any]) -> str:
    """Its part of docs/benchmarks.md."""
    rows = "\n".join(
        f"| {when} | {ms['p50']:.0f} | {ms['p99']:.0f} | {ms['max']:.0f} | {ms['sampled']} |"
        for when, ms in figures["freshness_ms"].items()
    )
    took = figures["made_ready_and_taken_s"]
    return f"""## Changing the encoder

`make bench NAME=hot_swap`: another user encoder is announced under {figures["rate"]:,} events/s, then one that
is not there, which is refused. Made ready and taken in {took:.1f} s beside the serving one.
Milliseconds from an event's send to its slate, one slate in 16:

| | p50 | p99 | longest | slates |
|---|---|---|---|---|
{rows}
"""


if __name__ == "__main__":
    main()
