"""Anonymous ids become users while the workers are killed: is every history complete, in order, and nothing twice?

    python benchmarks/merges.py [--merges 10000] [--every 4] [--rate 1500]

Every user has events of his own and events under an anonymous id, interleaved in time, some sent before the identity
and some after; of one user in ten the anonymous id has another one merged into it as well (a chain, in any order). One
message in ten, event or identity, is sent twice. Ingest and two workers run as processes; while messages are sent at
`rate` the workers are killed with SIGKILL in turn, `every` seconds after all were ready. In the end the changelog is
read and each history is compared with what was sent.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from system import System, machine, total, write

from headrace.streams import kafka
from headrace.streams.changelog import ALIAS, decode_alias
from headrace.streams.records import Item, encode, item_key
from headrace.streams.sender import Sender
from headrace.streams.settings import Settings
from headrace.streams.state import UserState

SEED, EVENTS, ITEMS, CHAINS, TWICE, SLATES = 5, 4, 200, 0.1, 0.1, 0.1
_encode = msgspec.json.Encoder().encode


def settings_of(data_dir: str, address: str) -> Settings:
    """Views make nobody due, clicks do: so that some of what is killed has slates under way."""
    return Settings(
        data_dir=data_dir,
        kafka={"bootstrap.servers": address},
        topics={"events_partitions": 2, "requests_partitions": 2, "interactions_partitions": 4},
        event_types={"view": {"due": False}},
        identities={"anonymous": "a*"},
        worker={"session_timeout": "6s"},
        policy={"name": "lints"},
        metrics={"port": 0},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--merges", type=int, default=10_000)
    parser.add_argument("--every", type=float, default=4, help="seconds of work between two kills")
    parser.add_argument("--rate", type=float, default=1_500, help="messages/s")
    given = parser.parse_args()
    figures: dict[str, Any] = {"benchmark": "merges", "machine": machine(), "merges": given.merges}
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder, System(Path(folder), settings_of) as system:
        load_items(system)
        messages, expected, merges = plan(given.merges)
        system.start_roles(["ingest", "worker"], workers=2)
        began = time.monotonic()
        sending = threading.Thread(target=send, args=(system.settings, messages, given.rate))
        sending.start()
        wanted = sum(topic == "events" for topic, _, _ in messages)
        kills = kill_until(system, wanted, merges, every=given.every)
        sending.join()
        figures["seconds"] = round(time.monotonic() - began, 1)
        counts = system.counts()
        system.stop_roles()
        figures |= {
            "events_sent": wanted,
            "identities_sent": len(messages) - wanted,
            "rate": given.rate,
            "kills": kills,
            "counts": {
                "events_applied": total(counts, "events/", "/applied"),
                "events_duplicate": total(counts, "events/", "/duplicate"),
                **{name: counts[f"identities/{name}"] for name in ("merged", "repeat", "refused", "ring")},
                "forwarded": {kind: counts[f"forwarded/{kind}"] for kind in ("event", "identity", "state") if counts},
            },
            "found": compared(system, expected),
        }
    write("merges", figures)


def send(settings: Settings, messages: list[tuple[str, str, bytes]], rate: float) -> None:
    began = time.monotonic()
    with Sender(settings, "events") as events, Sender(settings, "identities") as identities:
        for number, (topic, key, message) in enumerate(messages):
            if number % 50 == 0:
                time.sleep(max(0.0, began + number / rate - time.monotonic()))
            (events if topic == "events" else identities).send(key, message)


def load_items(system: System) -> None:
    vectors = np.random.default_rng(SEED).normal(size=(ITEMS, 384))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    producer = kafka.transactional_producer(system.settings, "benchmark")
    producer.begin_transaction()
    for number, vector in enumerate(vectors.astype("<f2")):
        item = Item(f"i{number}", 0, number, vector.tobytes(), f"hash-{number}", 5.0, "c", title=f"Item {number}")
        topic = system.settings.topic("item-vectors")
        kafka.produce(producer, topic, key=item.item_id.encode(), value=encode(item))
    kafka.commit(producer)


def plan(merges: int) -> tuple[list[tuple[str, str, bytes]], dict[str, list[int]], int]:
    """Messages (topic, key, JSON) in the order sent; each user's item keys in the order they must end in; merges.

    Ids keep their own order; users come mixed.
    """
    rng = random.Random(SEED)
    start = int(time.time() * 1000) - 60_000
    placed: list[tuple[float, tuple[str, str, bytes]]] = []
    expected: dict[str, list[int]] = {}
    numbers = itertools.count()
    done = 0
    while done < merges:
        user, anonymous = f"u{done}", [f"a{done}"]
        if rng.random() < CHAINS and done + 1 < merges:
            anonymous.append(f"ab{done}")
        at = rng.random()  # where in the log this user's messages lie, each a little after the one before
        links = list(itertools.pairwise([user, *anonymous]))
        rng.shuffle(links)
        moments = sorted(at + rng.random() * 0.02 for _ in range(EVENTS * (1 + len(anonymous)) + len(links)))
        what: list[str] = [name for name in (user, *anonymous) for _ in range(EVENTS)]
        rng.shuffle(what)
        for link in links:
            what.insert(rng.randrange(len(what) // 4, len(what)), "\0".join(link))
        history = []
        for moment, name in zip(moments, what, strict=True):
            ts = start + 1000 * len(history)
            if "\0" in name:
                one, other = name.split("\0")
                message = ("identities", one, _encode({"user_id": one, "anonymous_id": other, "ts": ts}))
            else:
                item, kind = f"i{rng.randrange(ITEMS)}", "click" if rng.random() < SLATES else "view"
                event = {"event_id": f"e{next(numbers)}", "user_id": name, "item_id": item, "type": kind, "ts": ts}
                message = ("events", name, _encode(event))
                history.append(item_key(item))
            placed.append((moment, message))
            if rng.random() < TWICE:
                placed.append((moment + 1e-6, message))
        expected[user] = history
        done += len(links)
    placed.sort(key=lambda entry: entry[0])
    return [message for _, message in placed], expected, done


def kill_until(system: System, events: int, merges: int, *, every: float) -> int:
    """Kills the workers in turn until all is applied; returns how often."""
    kills = 0

    def applied() -> bool:
        counts = system.counts()
        here = total(counts, "events/", "/applied") + total(counts, "events/", "/duplicate")
        return here >= events and counts["identities/merged"] >= merges

    end = time.monotonic() + 600
    while True:
        until = time.monotonic() + every
        while time.monotonic() < until:
            if applied():
                return kills
            time.sleep(0.25)
        if time.monotonic() > end:
            raise TimeoutError(f"not all was applied: {system.counts()}")
        name = ("worker", "worker-2")[kills % 2]
        os.kill(system.pids()[name], signal.SIGKILL)
        kills += 1
        system.wait(lambda n=kills: system.restarts() >= n, "the restart", limit_s=60)
        assert system._roles is not None
        system.wait(system._roles.ready, "the workers", limit_s=60)


def compared(system: System, expected: dict[str, list[int]]) -> dict[str, Any]:
    """What the changelog and the slates say, against what was sent."""
    states: dict[bytes, bytes] = {}

    def on_change(message: kafka.Message) -> None:
        key, value = message.key() or b"", message.value()
        if value is None:
            states.pop(key, None)
        else:
            states[key] = value

    kafka.read_to_end(system.settings, system.settings.topic("users-changelog"), on_change)
    found = {key[1:].decode(): UserState.unpack(raw) for key, raw in states.items() if key.startswith(b"u")}
    words: Counter[str] = Counter()
    for user, keys in expected.items():
        state = found.pop(user, None)
        held = [] if state is None else state.history_keys().tolist()
        if held == keys:
            words["complete_and_in_order"] += 1
        elif Counter(held) == Counter(keys):
            words["out_of_order"] += 1
        else:
            words["missing"] += sum((Counter(keys) - Counter(held)).values())
            words["twice"] += sum((Counter(held) - Counter(keys)).values())
    aliases = [decode_alias(raw).user_id for key, raw in states.items() if key.startswith(ALIAS)]
    slates: Counter[str] = Counter()
    triggers: Counter[str] = Counter()

    def on_slate(message: kafka.Message) -> None:
        slate = json.loads(message.value() or b"")
        slates[slate["recommendation_id"]] += 1
        triggers[slate["trigger"]["id"]] += 1

    kafka.read_to_end(system.settings, system.settings.topic("recommendations"), on_slate)
    letters = 0

    def on_letter(message: kafka.Message) -> None:
        nonlocal letters
        letters += 1

    kafka.read_to_end(system.settings, system.settings.topic("dead-letters"), on_letter)
    return {
        "users": len(expected),
        **{word: words[word] for word in ("complete_and_in_order", "out_of_order", "missing", "twice")},
        "states_left_under_other_ids": len(found),
        "aliases": len(aliases),
        "slates": sum(slates.values()),
        "slates_twice": sum(n - 1 for n in slates.values()) + sum(n - 1 for n in triggers.values()),
        "dead_letters": letters,
    }


def section(f: dict[str, Any]) -> str:
    """For docs/benchmarks.md."""
    found, counts, m = f["found"], f["counts"], f["machine"]
    rows = [
        ("users whose history is complete and in order", f"{found['complete_and_in_order']:,}", f"{found['users']:,}"),
        (
            "histories out of order; events missing; events twice",
            f"{found['out_of_order']}; {found['missing']}; {found['twice']}",
            "0; 0; 0",
        ),
        ("states left under anonymous ids", f"{found['states_left_under_other_ids']}", "0"),
        ("slates published, of which twice", f"{found['slates']:,}, {found['slates_twice']}", "0 twice"),
        (
            "identities sent; merged; repeats",
            f"{f['identities_sent']:,}; {counts['merged']:,}; {counts['repeat']:,}",
            "",
        ),
        ("events sent; passed on to another partition", f"{f['events_sent']:,}; {counts['forwarded']['event']:,}", ""),
        ("workers killed with SIGKILL", f"{f['kills']}", ""),
    ]
    table = [f"| {f['merges']:,} merges in {f['seconds']} s | | to reach |", "|---|---|---|"]
    table += [f"| {a} | {b} | {c} |" for a, b, c in rows]
    where = f"{m['cores']} cores ({m['cpu']}), Python {m['python']}, commit {m['commit']}, load average before the run"
    return "\n".join(
        [
            "## Merges of identities\n",
            "Each anonymous id is merged into its user while his events come, with chains, repeats, two workers on",
            "four partitions, and the workers killed in turn ([identity](identity.md), `benchmarks/merges.py`).\n",
            *table,
            "",
            f"{where} {m['load_before']}.\n",
        ]
    )


if __name__ == "__main__":
    main()
