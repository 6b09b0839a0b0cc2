"""Merges across partitions by two workers, one of them killed: every history whole, in order, nothing twice."""

from __future__ import annotations

import os
import random
import signal
from typing import TYPE_CHECKING

import pytest

from headrace.streams import kafka
from headrace.streams.changelog import ALIAS
from headrace.streams.partition import partition_of
from headrace.streams.records import Batch, Entry, Event, Identity, encode, item_key
from headrace.streams.settings import Settings
from headrace.streams.state import UserState
from headrace.streams.supervise import Supervisor

if TYPE_CHECKING:
    from tests.conftest import MakeSettings, WaitFor

pytestmark = [pytest.mark.kafka, pytest.mark.crash]

PARTITIONS, USERS, T0 = 2, 60, 1_790_000_000_000


def test_merges_while_a_worker_is_killed(settings: MakeSettings, wait_for: WaitFor) -> None:
    mine = settings(
        topics={"interactions_partitions": PARTITIONS},
        worker={"session_timeout": "6s"},
        event_types={"view": {"due": False}},
        live={"clock": "event"},
    )
    rng, first, second = random.Random(4), list[Entry](), list[Entry]()
    for n in range(USERS):
        for k in range(6):
            at = T0 + 1000 * k
            event = Event(f"e{k}", f"{'ua'[k % 2]}{n}", "view", at, at, f"i{n}-{k}")
            (first if k < 3 else second).extend([event] * rng.choice((1, 1, 2)))
        (first if n % 2 else second).insert(0, Identity(f"u{n}", f"a{n}", T0, T0))
    refused = [Identity("u1", "u3", T0, T0)]  # both are users by now
    producer = kafka.transactional_producer(mine, f"{mine.topics.prefix}load")
    with Supervisor(mine, ["worker"], workers=2) as workers:
        wait_for(workers.ready, 60)
        write(mine, producer, first)
        os.kill(workers.pids()["worker"], signal.SIGKILL)
        write(mine, producer, second)
        wait_for(lambda: whole(states(mine)), 60)
        write(mine, producer, refused)
        wait_for(lambda: letters(mine), 30)
    (reason,) = letters(mine)
    assert reason == "identity: u3 and u1 are both known users: two users are not merged"
    found = states(mine)
    assert whole(found)
    assert sum(key.startswith(ALIAS) for key in found) == USERS
    assert not any(key.startswith(b"ua") for key in found), "nothing is left under an anonymous id"


def write(settings: Settings, producer: kafka.Producer, entries: list[Entry]) -> None:
    """A record an entry, as from one source of ingest."""
    producer.begin_transaction()
    for entry in entries:
        record = encode(Batch("events/0", T0 + 10_000, entries=[entry]))
        partition = partition_of(entry.user_id, PARTITIONS)
        kafka.produce(producer, settings.topic("interactions"), value=record, partition=partition)
    kafka.commit(producer)


def states(settings: Settings) -> dict[bytes, bytes]:
    found: dict[bytes, bytes | None] = {}

    def on_change(message: kafka.Message) -> None:
        found[message.key() or b""] = message.value()

    kafka.read_to_end(settings, settings.topic("users-changelog"), on_change)
    return {key: value for key, value in found.items() if value is not None}


def whole(found: dict[bytes, bytes]) -> bool:
    """Whether every user has the six events of his two ids, in order of time."""
    for n in range(USERS):
        raw = found.get(f"uu{n}".encode())
        held = [] if raw is None else UserState.unpack(raw).history_keys().tolist()
        if held != [item_key(f"i{n}-{k}") for k in range(6)]:
            return False
    return True


def letters(settings: Settings) -> list[str]:
    found: list[str] = []

    def on_letter(message: kafka.Message) -> None:
        found.append(str(dict(message.headers() or [])["reason"] or b"", "utf-8"))  # type: ignore[arg-type]

    kafka.read_to_end(settings, settings.topic("dead-letters"), on_letter)
    return found
