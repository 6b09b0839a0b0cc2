"""Rules on the real broker: from the shop's message to the next slate, and back."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from headrace.simulation.follow import Follower
from headrace.streams import kafka
from headrace.streams.records import Batch, Event, Item, encode
from headrace.streams.rules.listed import listed
from headrace.streams.settings import Settings
from headrace.streams.supervise import Supervisor
from tests.background import beside
from tests.integration.test_ingest import read, running, send

if TYPE_CHECKING:
    from tests.conftest import MakeSettings, WaitFor

pytestmark = pytest.mark.kafka
SECONDS = 1.0  # from a rule's message to slates that keep to it
ITEMS = [f"i{n}" for n in range(12)]


def trading(settings: Settings) -> AbstractContextManager[None]:
    """A catalogue of twelve items, and up to 50 times a second a user who views one."""
    producer = kafka.transactional_producer(settings, f"{settings.topics.prefix}feed")
    vectors = np.random.default_rng(1).normal(size=(len(ITEMS), 384))
    producer.begin_transaction()
    for n, vector in enumerate((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("<f2")):
        item = Item(ITEMS[n], 0, n, vector.tobytes(), f"hash-{n}", 5.0, "c", title=f"Item {n}")
        kafka.produce(producer, settings.topic("item-vectors"), key=item.item_id.encode(), value=encode(item))
    kafka.commit(producer)

    def work(stop: threading.Event) -> None:
        events = 0
        while not stop.wait(0.02):
            now, events = int(time.time() * 1000), events + 1
            event = Event(f"e{events}", f"u{events % 7}", "view", now, now, ITEMS[events % len(ITEMS)])
            producer.begin_transaction()
            record = encode(Batch("events/0", now, entries=[event]))
            kafka.produce(producer, settings.topic("interactions"), value=record, partition=0)
            kafka.commit(producer)

    return beside(work)


def test_a_rule_binds_the_next_slates_and_is_lifted_by_null(settings: MakeSettings, wait_for: WaitFor) -> None:
    mine = settings(topics={"interactions_partitions": 1}, placements={"default": {"k": 8}}, policy={"name": "random"})
    slates: deque[tuple[float, Any]] = deque(maxlen=10_000)
    follower = Follower(
        mine,
        {"recommendations": lambda m: slates.append((m.timestamp()[1] / 1000, json.loads(m.value() or b"")))},
    )

    def since(second: float) -> list[set[str]]:
        return [{item["item_id"] for item in slate["items"]} for at, slate in list(slates) if at >= second]

    with Supervisor(mine, ["worker"]) as roles, trading(mine):
        follower.open()
        wait_for(roles.ready, 60)
        wait_for(lambda: any("i3" in shown for shown in since(0)))
        gone = {"rule_id": "gone", "action": "exclude", "where": {"item_id": ["i3", "i4"]}}
        send(mine, "rules", gone, key="gone")
        sent = time.time()
        wait_for(lambda: len(since(sent + SECONDS)) >= 20)
        assert not any(shown & {"i3", "i4"} for shown in since(sent + SECONDS))
        assert all(len(shown) == 8 for shown in since(sent + SECONDS)), "ten are left"
        send(mine, "rules", None, key="gone")
        lifted = time.time()
        wait_for(lambda: any("i3" in shown for shown in since(lifted)))
        first = min(at for at, slate in list(slates) if at >= lifted and "i3" in str(slate["items"]))
        assert first <= lifted + 3 * SECONDS, "not every slate holds it"
    follower.close()


def test_a_conflict_is_a_dead_letter_once_and_names_both(settings: MakeSettings, wait_for: WaitFor) -> None:
    mine = settings()
    pin: dict[str, Any] = {"action": "pin", "placement": "*", "value": 0}

    def dead() -> list[tuple[bytes | None, str]]:
        letters = read(mine, "dead-letters")
        return [(letter.key(), bytes(dict(letter.headers() or [])["reason"] or b"").decode()) for letter in letters]

    def sent(*rules: tuple[str, dict[str, Any] | None], accepted: int, refused: int) -> None:
        with running(mine) as role:
            for rule_id, rule in rules:
                send(mine, "rules", rule and {"rule_id": rule_id, **rule}, key=rule_id)
            counts: list[Callable[[], bool]] = [
                lambda: role.count("ingest_messages", topic="rules", outcome="accepted") == accepted,
                lambda: role.count("ingest_messages", topic="rules", outcome="dead") == refused,
            ]
            for count in counts:
                wait_for(count)

    sent(("spring", {**pin, "where": {"category": "spring"}}), accepted=1, refused=0)
    # Another process, which knows the first from the topic.
    sent(
        ("summer", {**pin, "where": {"category": "summer"}}), ("bad", {**pin, "where": {"brand": "x"}, "value": -1}),
        accepted=0, refused=2,
    )  # fmt: skip
    (key, reason), (bad, why) = dead()
    assert key == b"summer" and reason.startswith("conflict: ") and "'spring'" in reason and "'summer'" in reason
    assert bad == b"bad" and why.startswith("rule: pin takes a position")
    told = listed(mine, placement=None)
    assert [rule["rule_id"] for rule in told["in_force"]] == ["spring"]
    assert {rule["rule_id"]: rule["why"] for rule in told["refused"]}["summer"] == reason.removeprefix("conflict: ")
    sent(("spring", None), accepted=1, refused=0)
    assert len(dead()) == 2
    assert [rule["rule_id"] for rule in listed(mine, placement="default")["in_force"]] == ["summer"]
