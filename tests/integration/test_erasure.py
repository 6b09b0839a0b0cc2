"""Erasure to the last byte: whose id and texts lay in every folder of the broker is found in none of them, in time.

The broker's segments and headrace's retention are as short as they can be; nothing is compressed, so what is on disk
can be searched as it lies.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from headrace.simulation.tally import counted, progress
from headrace.streams import kafka, topics
from headrace.streams.broker import Broker
from headrace.streams.erased import Erased
from headrace.streams.people import subject
from headrace.streams.records import Item, encode
from headrace.streams.settings import Settings
from headrace.streams.supervise import Supervisor
from tests.integration.test_supervise import headrace

if TYPE_CHECKING:
    from tests.conftest import WaitFor

pytestmark = [pytest.mark.kafka]

_PROMPT = {
    "log.retention.check.interval.ms": "300",
    "log.cleaner.backoff.ms": "200",
    "log.initial.task.delay.ms": "300",
    "log.segment.delete.delay.ms": "100",
    "compression.type": "uncompressed",
}
EVE, ANONYMOUS, BOB = 'Zoë "O\'Brien"\\🦆/42', "cookie-éve-7", "bob-the-witness"
TEXT = 'Geschenk für Großmutter — "rosa" \\ 🎁 zebrafink'
HIS_TEXT = "bobs lawnmower"


@dataclass
class System:
    settings: Settings
    folder: Path
    said: list[str]
    number: int = 0

    def __post_init__(self) -> None:
        self.producer = Producer({"bootstrap.servers": self.settings.bootstrap, "linger.ms": 0})

    def send(self, topic: str, user: str, message: dict[str, Any] | None, *, ascii: bool = True) -> None:
        value = None if message is None else json.dumps(message, ensure_ascii=ascii).encode()
        self.producer.produce(self.settings.topic(topic), value, user)
        self.producer.flush(5)

    def event(self, user: str, kind: str, **fields: Any) -> dict[str, Any]:
        self.number += 1
        now = int(time.time() * 1000)
        return {"event_id": f"e{self.number}", "user_id": user, "type": kind, "ts": now, **fields}

    def found(self, *needles: str) -> dict[str, int]:
        """{folder or file: how often the needles lie in it}, in every byte under the broker's and headrace's."""
        wanted = {form for needle in needles for form in forms(needle)}
        places: defaultdict[str, int] = defaultdict(int)
        for path in self.folder.rglob("*"):
            try:
                raw = path.read_bytes() if path.is_file() else b""
            except FileNotFoundError:  # deleted meanwhile
                continue
            if times := sum(raw.count(form) for form in wanted):
                at = path.relative_to(self.folder).parts
                places["/".join(at[:3])] += times
        return dict(places)


def forms(text: str) -> set[bytes]:
    """As UTF-8 and as JSON writes it, with and without escapes."""
    return {text.encode(), json.dumps(text)[1:-1].encode(), json.dumps(text, ensure_ascii=False)[1:-1].encode()}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("erasure")
    with Broker(folder / "broker", properties=_PROMPT) as broker:
        settings = Settings(
            data_dir=folder / "data",
            kafka={"bootstrap.servers": broker.bootstrap},
            topics={
                "prefix": "x.",
                "events_partitions": 1,
                "requests_partitions": 1,
                "interactions_partitions": 2,
                "compaction_lag": "1s",
                "tombstones": "100ms",
            },
            metrics={"port": 0},
            policy={"name": "linucb"},
        )
        topics.create(settings)
        said: list[str] = []
        with Supervisor(settings, ["ingest", "worker", "learner"], output=lambda _, line: said.append(line)):
            yield System(settings, folder, said)


def fill_the_catalogue(settings: Settings) -> None:
    vectors = np.random.default_rng(1).normal(size=(20, 384))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    producer = kafka.transactional_producer(settings, "x.items")
    producer.begin_transaction()
    for number, vector in enumerate(vectors.astype("<f2")):
        item = Item(f"i{number}", 0, number, vector.tobytes(), f"hash-{number}", 5.0, "c", title=f"Item {number}")
        kafka.produce(producer, settings.topic("item-vectors"), key=item.item_id.encode(), value=encode(item))
    kafka.commit(producer)


def let_time_pass(settings: Settings) -> None:
    """What a week is to a shop: topics that are not compacted are kept for a second from now on."""
    changes = []
    for topic in topics.table(settings):
        if topic.config["cleanup.policy"] == "delete":
            entries = [
                ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
                for name, value in (("retention.ms", "1000"), ("segment.ms", "500"))
            ]
            changes.append(ConfigResource(ResourceType.TOPIC, topic.name, incremental_configs=entries))
    client = kafka.admin(settings)  # held until it has answered
    for future in client.incremental_alter_configs(changes).values():
        future.result(10)


def visit(system: System, user: str, text: str) -> None:
    """Events, a search, a request, what cannot be read: something of the user in every topic that could hold it."""
    system.send("events", user, system.event(user, "view", item_id="i3"))
    system.send("events", user, system.event(user, "search", text=text), ascii=False)
    system.send("events", user, system.event(user, "comment", text=text, item_id="i4"))
    system.send("events", user, {**system.event(user, "comment", text=text), "ts": 5})
    request = {**system.event(user, ""), "candidates": ["i1", "i2"]}
    request["request_id"] = request.pop("event_id")
    system.send("requests", user, request)


def test_everything_that_is_held_about_a_user_is_told(system: System, wait_for: WaitFor) -> None:
    """And a `headrace erase` ends it. Whoever was never heard of is held nowhere."""
    fill_the_catalogue(system.settings)
    ann = "ann/ä"
    visit(system, ann, "a green kettle")

    def all_of_it() -> dict[str, Any] | None:
        """Once his request is answered and his events are in his history."""
        found = subject.describe(system.settings, ann)
        slates = found["records"]["recommendations"]["content"]
        answered = any(slate["value"]["trigger"]["kind"] == "request" for slate in slates)
        state = found["states"].get(ann)  # read before the records
        return found if answered and state is not None and len(state["history"]) == 4 else None

    told = wait_for(all_of_it, 60)
    state = told["states"][ann]
    assert [(e["type"], e.get("item_id"), e.get("title")) for e in state["history"][:1]] == [("view", "i3", "Item 3")]
    assert {"text": "as a vector"}.items() <= state["history"][1].items()
    assert len(state["open_decisions"]) == len(told["learner"]["decisions"]) > 0
    assert all(told["records"][topic]["count"] for topic in ("interactions", "transitions", "dead-letters"))
    dead = told["records"]["dead-letters"]["content"][0]
    assert "a green kettle" in dead["value"] and dead["reason"].startswith("time:")
    lines = "\n".join(subject.as_lines(told))
    assert "view             i3 (Item 3)" in lines and "leaves by" in lines
    assert json.loads(json.dumps(told))["held"]

    out, err = headrace("subject", "never heard of", settings=system.settings).communicate(timeout=30)
    assert (out, err) == ("nothing is held about never heard of\n", "")

    out, err = headrace("erase", ann, settings=system.settings).communicate(timeout=90)
    assert "\ndone: his state" in out and "dead-letters: 1 records remain until" in out and not err
    after = subject.describe(system.settings, ann)
    assert after["states"] == {} and after["learner"]["decisions"] == [] and after["erased_until"]


def test_not_a_byte_of_an_erased_user_is_left(system: System, wait_for: WaitFor) -> None:
    for user, text in ((EVE, TEXT), (ANONYMOUS, TEXT), (BOB, HIS_TEXT)):
        visit(system, user, text)
    held = {"events-0", "requests-0", "interactions-", "recommendations-", "transitions-0", "dead-letters-0"}
    held = {f"broker/data/x.{name}" for name in held | {"users-changelog-"}}
    for user in (EVE, BOB):  # the search finds what is there
        wait_for(lambda u=user: all(any(f.startswith(t) for f in system.found(u)) for t in held), 60)
    texts = system.found(TEXT)
    assert {"broker/data/x.events-0", "broker/data/x.dead-letters-0"} <= texts.keys()

    now = int(time.time() * 1000)
    system.send("identities", EVE, {"user_id": EVE, "anonymous_id": ANONYMOUS, "ts": now})
    wait_for(lambda: counted(progress(system.settings), "merged", of="identities") == 1)
    wait_for(lambda: ANONYMOUS in subject.describe(system.settings, EVE)["states"][EVE]["merged"])
    done = counted(progress(system.settings), "applied", of="erasures")

    sent, erased_at = time.monotonic(), int(time.time() * 1000)
    system.send("erasures", EVE, {"user_id": EVE, "ts": erased_at})
    wait_for(lambda: counted(progress(system.settings), "applied", of="erasures") > done)
    assert time.monotonic() - sent < 60, "his state is to be gone within a minute"
    system.send("erasures", EVE, None)  # the shop's own: its topic holds the key until it writes this
    let_time_pass(system.settings)

    def gone() -> bool:
        # Kafka closes a segment when something is written after its time: ticks see to that in the changelog, other
        # erasures in the shop's topic.
        system.send("erasures", "nobody", {"user_id": "nobody", "ts": erased_at})
        system.send("events", BOB, system.event(BOB, "search", text=HIS_TEXT))
        time.sleep(0.2)
        return not system.found(EVE, ANONYMOUS, TEXT)

    deadline = time.monotonic() + 20
    while not gone():
        assert time.monotonic() < deadline, f"still there: {system.found(EVE, ANONYMOUS, TEXT)}"
    witness = system.found(BOB, HIS_TEXT)
    assert any(f.startswith("broker/data/x.users-changelog-") for f in witness), witness
    assert not [line for line in system.said if any(form in line.encode() for form in forms(EVE) | forms(TEXT))]


def test_who_comes_back_is_a_new_user(system: System, wait_for: WaitFor) -> None:
    before = counted(progress(system.settings), "applied")
    system.send("events", EVE, {**system.event(EVE, "view", item_id="i5"), "ts": int(time.time() * 1000) - 60_000})
    wait_for(lambda: counted(progress(system.settings), "erased") >= 1)
    system.send("events", EVE, system.event(EVE, "view", item_id="i5"))
    wait_for(lambda: counted(progress(system.settings), "applied") > before)
    wait_for(lambda: any("users-changelog" in place for place in system.found(EVE)))


def test_who_wants_no_profiling_is_left_out_of_training_too(system: System, wait_for: WaitFor) -> None:
    system.send("events", BOB, system.event(BOB, "dismiss", text="profiling"))

    def left_out() -> bool:
        users = Erased()
        users.read_topics(system.settings)
        return users.covers(BOB, int(time.time() * 1000))

    wait_for(left_out)
    told = subject.describe(system.settings, BOB)["states"][BOB]
    assert told["no_profiling"] and not told["history"]

    system.send("events", BOB, system.event(BOB, "like", text="profiling"))
    wait_for(lambda: not left_out())
