"""Workers as they run, in processes of their own: killed, paused, moved about. Every event once, every slate once."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import threading
import time
import urllib.request
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from confluent_kafka import TopicPartition

from headrace.export.artifact import MANIFEST
from headrace.simulation.follow import Follower
from headrace.simulation.tally import counted
from headrace.streams import http, kafka
from headrace.streams.changelog import PROGRESS, Progress, decode_progress
from headrace.streams.partition import partition_of
from headrace.streams.records import Batch, Event, Item, Opened, decode_transitions, encode
from headrace.streams.settings import Settings
from headrace.streams.supervise import Supervisor
from tests.integration.test_supervise import headrace

if TYPE_CHECKING:
    from tests.conftest import MakeSettings, WaitFor

pytestmark = [pytest.mark.kafka, pytest.mark.crash]

PARTITIONS = 2
USERS = [f"u{n}" for n in range(24)]


class Load:
    """Writes micro-batches as ingest does, about 80 a second, until stopped; knows what has to come of them."""

    def __init__(self, settings: Settings) -> None:
        self.applied = 0
        self.duplicates = 0
        self.triggers: Counter[str] = Counter()  # a due user of a record gets one slate, for his last event
        self.error: BaseException | None = None
        self._settings = settings
        self._random = random.Random(3)
        self._past: defaultdict[str, deque[Event]] = defaultdict(lambda: deque(maxlen=8))
        self._recent: deque[tuple[int, Batch]] = deque(maxlen=40)
        self._users = [[u for u in USERS if partition_of(u, PARTITIONS) == p] for p in range(PARTITIONS)]
        self._producer = kafka.transactional_producer(settings, f"{settings.topics.prefix}load")
        self._stop = threading.Event()
        self._burst = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load")

    def start(self) -> None:
        vectors = np.random.default_rng(1).normal(size=(30, 384))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        self._producer.begin_transaction()
        for number, vector in enumerate(vectors.astype("<f2")):
            item = Item(f"i{number}", 0, number, vector.tobytes(), f"hash-{number}", 5.0, "c", title=f"Item {number}")
            topic = self._settings.topic("item-vectors")
            kafka.produce(self._producer, topic, key=item.item_id.encode(), value=encode(item))
        kafka.commit(self._producer)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        if self.error:
            raise self.error

    def burst(self) -> None:
        """A thousand batches at once: a worker has work for a while."""
        self._burst.set()

    def replay(self) -> None:
        """The last batches of all partitions once more, whole."""
        for partition, batch in list(self._recent)[-6:]:
            self.duplicates += len(batch.entries)
            self._write([(partition, batch)])

    def _run(self) -> None:
        try:
            while not self._stop.wait(0.01):
                count = 1_000 if self._burst.is_set() else 1
                self._burst.clear()
                places = [self._random.randrange(PARTITIONS) for _ in range(count)]
                batches = [(partition, self._batch(partition)) for partition in places]
                self._recent.extend(batches)
                self._write(batches)
        except BaseException as error:
            self.error = error

    def _batch(self, partition: int) -> Batch:
        entries, due = [], {}
        for _ in range(self._random.randrange(1, 5)):
            user, now = self._random.choice(self._users[partition]), time.time_ns() // 1_000_000
            past = self._past[user]
            if past and self._random.random() < 0.1:
                entries.append(self._random.choice(past))
                self.duplicates += 1
                continue
            name = f"e{self.applied}"
            event = Event(name, user, self._random.choice(("view", "click")), now, now, f"i{self.applied % 30}")
            self.applied += 1
            past.append(event)
            entries.append(event)
            due[user] = name
        self.triggers.update(due.values())
        return Batch(f"events/{partition}", entries[-1].ts, entries=list(entries))

    def _write(self, batches: list[tuple[int, Batch]]) -> None:
        topic = self._settings.topic("interactions")
        self._producer.begin_transaction()
        for partition, batch in batches:
            kafka.produce(self._producer, topic, value=encode(batch), partition=partition)
        kafka.commit(self._producer)


class Books:
    """What was committed, as it comes."""

    def __init__(self, settings: Settings) -> None:
        self.progress: dict[int, Progress] = {}
        self.triggers: Counter[str] = Counter()
        self.slates: Counter[str] = Counter()  # recommendation ids
        self.opened: Counter[str] = Counter()  # the same in `transitions`
        self.dead: list[bytes] = []
        self._follower = Follower(
            settings,
            {
                "users-changelog": self._on_state,
                "recommendations": self._on_slate,
                "transitions": self._on_transitions,
                "dead-letters": lambda message: self.dead.append(message.value() or b""),
            },
        )

    def open(self) -> None:
        self._follower.open()

    def close(self) -> None:
        self._follower.close()

    def count(self, word: str) -> int:
        if self._follower.error is not None:
            raise self._follower.error
        return counted(self.progress, word)

    def _on_state(self, message: kafka.Message) -> None:
        if message.key() == PROGRESS:
            self.progress[message.partition()] = decode_progress(message.value() or b"")

    def _on_slate(self, message: kafka.Message) -> None:
        slate = json.loads(message.value() or b"")
        self.triggers[slate["trigger"]["id"]] += 1
        self.slates[slate["recommendation_id"]] += 1

    def _on_transitions(self, message: kafka.Message) -> None:
        for record in decode_transitions(message.value() or b"").records:
            if isinstance(record, Opened):
                self.opened[record.recommendation_id] += 1


@contextmanager
def under_load(settings: Settings) -> Iterator[tuple[Load, Books]]:
    load, books = Load(settings), Books(settings)
    books.open()
    load.start()
    try:
        yield load, books
    finally:
        load.stop()
        books.close()


def assert_exact(load: Load, books: Books, wait_for: WaitFor) -> None:
    """Call it when the load has stopped: everything has come, each once."""
    wait_for(lambda: books.count("applied") + books.count("duplicate") >= load.applied + load.duplicates, 60)
    wait_for(lambda: sum(books.opened.values()) >= sum(load.triggers.values()), 20)
    wait_for(lambda: sum(books.triggers.values()) >= sum(load.triggers.values()), 20)
    assert (books.count("applied"), books.count("duplicate")) == (load.applied, load.duplicates)
    assert books.triggers == load.triggers
    assert set(books.slates.values()) == {1}
    assert books.opened == books.slates
    assert books.dead == []


def moves_on(books: Books, wait_for: WaitFor, *, records: int = 60) -> None:
    """Every partition is applied to, so much further than now."""
    before = {p: books.progress[p].offset if p in books.progress else 0 for p in range(PARTITIONS)}
    wait_for(lambda: all(p in books.progress and books.progress[p].offset > before[p] + records for p in before), 60)


def in_a_drain(load: Load, books: Books, wait_for: WaitFor) -> None:
    """Workers have begun on much that waits: memory is ahead of what is committed."""
    before = sum(progress.offset for progress in books.progress.values())
    load.burst()
    wait_for(lambda: sum(progress.offset for progress in books.progress.values()) > before + 150)


def the_group_is_ahead(settings: Settings) -> None:
    """The group's offsets lie beyond what was applied, as when a worker died between the two: they must not count."""
    group = kafka.consumer(settings, settings.topics.prefix + "worker")
    ahead = [TopicPartition(settings.topic("interactions"), partition, 40) for partition in range(PARTITIONS)]
    group.commit(offsets=ahead, asynchronous=False)
    group.close()


def metric(settings: Settings, pid: int, name: str) -> float:
    """Of one process, summed over its labels."""
    address = http.address_of(settings, pid)
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0].partition(" ")[0] == name)


def test_killed_and_moved_under_load(settings: MakeSettings, wait_for: WaitFor) -> None:
    """A second worker joins, each is killed in turn, a batch is replayed whole: nothing lost, nothing twice."""
    mine = settings(topics={"interactions_partitions": PARTITIONS}, worker={"session_timeout": "6s"})
    the_group_is_ahead(mine)
    with under_load(mine) as (load, books), Supervisor(mine, ["worker"]) as first:
        wait_for(first.ready, 60)
        moves_on(books, wait_for)
        with Supervisor(mine, ["worker"]) as second:
            wait_for(second.ready, 60)
            wait_for(lambda: metric(mine, second.pids()["worker"], "headrace_recoveries_total") >= 1, 60)
            for target in (first, second):
                moves_on(books, wait_for)
                in_a_drain(load, books, wait_for)
                restarts = target.restarts()["worker"]
                os.kill(target.pids()["worker"], signal.SIGKILL)
                wait_for(lambda t=target, n=restarts: t.restarts()["worker"] == n + 1 and t.ready(), 60)
            moves_on(books, wait_for)
        moves_on(books, wait_for)  # the first has both again, once the second's session has passed
        load.stop()
        load.replay()
        assert_exact(load, books, wait_for)


def test_paused_past_its_session_it_is_fenced(settings: MakeSettings, wait_for: WaitFor) -> None:
    """Its standby takes over with little to read; resumed, it can commit nothing any more and is started again."""
    mine = settings(
        topics={"interactions_partitions": PARTITIONS}, worker={"session_timeout": "6s", "standby_replicas": 1}
    )
    lines: list[tuple[str, str]] = []
    with (
        Supervisor(mine, ["worker"], workers=2, output=lambda name, line: lines.append((name, line))) as workers,
        under_load(mine) as (load, books),
    ):

        def read() -> list[int]:
            """Changelog records read by the second worker, each time it took a partition over."""
            found = (re.search(r"partition \d: (\d+) records", line) for name, line in lines if name == "worker-2")
            return [int(match[1]) for match in found if match]

        wait_for(workers.ready, 60)
        for name in ("worker", "worker-2"):
            wait_for(lambda n=name: metric(mine, workers.pids()[n], "headrace_state_users") >= 1, 60)
        moves_on(books, wait_for, records=200)
        taken = len(read())
        in_a_drain(load, books, wait_for)
        paused = workers.pids()["worker"]
        os.kill(paused, signal.SIGSTOP)
        try:
            moves_on(books, wait_for, records=800)
        finally:
            os.kill(paused, signal.SIGCONT)
        wait_for(lambda: workers.restarts()["worker"] == 1 and workers.ready(), 60)
        moves_on(books, wait_for)
        load.stop()
        assert_exact(load, books, wait_for)
        assert workers.restarts()["worker-2"] == 0
        assert any("fenced" in line for name, line in lines if name == "worker")
        assert len(read()) > taken and max(read()[taken:]) < 300, read()


def test_a_corrupt_model_is_one_line_with_the_cure(settings: MakeSettings, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / MANIFEST).write_text("{")
    worker = headrace("run", "--role", "worker", settings=settings(encoder={"artifact": str(artifact)}))
    out, said = worker.communicate(timeout=60)
    assert (worker.returncode, out) == (1, "")
    assert said.count("\n") == 1 and str(artifact) in said and "export" in said, said
