"""A worker and a learner as they run: what came while the worker was away gets no slate; commands act within 5 s."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from headrace.simulation.follow import Observer
from headrace.streams import commands, encoders, kafka, overview
from headrace.streams.learner import Session
from headrace.streams.metrics import Metrics
from headrace.streams.records import Batch, Event, Item, encode
from headrace.streams.settings import Settings
from headrace.streams.shares import Shares
from headrace.streams.supervise import Supervisor
from tests.background import beside
from tests.engine import HOUR

if TYPE_CHECKING:
    from tests.conftest import MakeSettings, WaitFor

pytestmark = pytest.mark.kafka
ARMS = {"policy": 0.4, "random": 0.4, "holdout": 0.2}
USERS = [f"u{n}" for n in range(30)]
SECONDS = 5.0  # from a command's send to a slate that obeys it


class Feed:
    """Writes records of `interactions` as ingest does; each has an event of every user."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer = kafka.transactional_producer(settings, f"{settings.topics.prefix}feed")
        self._events = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def items(self) -> None:
        vectors = np.random.default_rng(1).normal(size=(30, 384))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        self._producer.begin_transaction()
        for n, vector in enumerate(vectors.astype("<f2")):
            item = Item(f"i{n}", 0, n, vector.tobytes(), f"hash-{n}", 5.0, "c", title=f"Item {n}")
            kafka.produce(
                self._producer, self._settings.topic("item-vectors"), key=item.item_id.encode(), value=encode(item)
            )
        kafka.commit(self._producer)

    def write(self, at: int, *, sent: int | None = None) -> None:
        """At `at` (Unix ms) every user views an item."""
        entries: list[Any] = []
        for user in USERS:
            self._events += 1
            entries.append(Event(f"e{self._events}", user, "view", at, sent or at, f"i{self._events % 30}"))
        self._producer.begin_transaction()
        for batch in (Batch("events/0", at, entries=entries), Batch("events/0", at, tick=True)):
            kafka.produce(self._producer, self._settings.topic("interactions"), value=encode(batch), partition=0)
        kafka.commit(self._producer)

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            self.write(int(time.time() * 1000))

    @contextmanager
    def going_on(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join(30)


class Slates:
    """What is committed to both topics, as it comes: (Unix ms of the slate's making, message)."""

    def __init__(self, settings: Settings, observer: Observer) -> None:
        self.shop: deque[tuple[int, Any]] = deque(maxlen=10_000)
        self.side: deque[tuple[int, Any]] = deque(maxlen=10_000)
        handlers = observer.follower._handlers
        for topic, into in (("recommendations", self.shop), ("recommendations-shadow", self.side)):
            handlers[topic] = lambda message, into=into: into.append(  # type: ignore[index]
                (message.timestamp()[1], json.loads(message.value() or b""))
            )


def learning(settings: Settings, metrics: Metrics) -> AbstractContextManager[None]:
    def work(stop: threading.Event) -> None:
        session = Session(settings, metrics, dim=encoders.state_dim(settings))
        while not stop.is_set():
            session.step()
        session.close()

    return beside(work)


def test_no_slate_of_yesterday_and_every_command_acts_in_five_seconds(
    settings: MakeSettings, wait_for: WaitFor
) -> None:
    mine = settings(
        topics={"interactions_partitions": 1},
        policy={"name": "linucb"},
        arms={"shares": ARMS},
        gate={"guard": False},
        live={"clock": "wall", "shadow": ["lints"], "shadow_share": 1.0},
    )
    feed, observer, metrics = Feed(mine), Observer(mine), Metrics(CollectorRegistry(), "learner")
    slates = Slates(mine, observer)
    arms = {user: Shares(ARMS, mine.arms.salt).arm(user) for user in USERS}
    answered = sorted(user for user, arm in arms.items() if arm != "holdout")
    feed.items()
    now = int(time.time() * 1000)
    for n in range(5):  # the worker is away: sent hours ago; replayed now, what happened hours ago
        feed.write(now - 3 * HOUR + n)
    for n in range(5):
        feed.write(now - 2 * HOUR + n, sent=now)
    feed.write(now)
    with learning(mine, metrics), Supervisor(mine, ["worker"]) as roles:
        observer.follower.open()
        wait_for(roles.ready, 60)
        wait_for(lambda: any(p.offset >= 21 for p in observer.progress().values()))
        [progress] = observer.progress().values()
        assert progress.counts["events/view/applied"] == 11 * len(USERS)
        assert progress.counts["stale_triggers"] == 10 * len(USERS)
        wait_for(lambda: len(slates.shop) >= len(answered))
        assert sorted(slate["user_id"] for _, slate in slates.shop) == answered
        assert {slate["ts"] for _, slate in slates.shop} == {now}
        with feed.going_on():
            slowest = _obeyed(mine, slates, wait_for, arms)
        print(f"slowest command: {slowest:.2f} s")
        observer.follower.close()
    done = commands.history(commands.latest(mine))
    assert [(d.action, d.policy, d.who) for d in done] == [
        ("shadow", "all", "ann"), ("live", "all", "ann"), ("ramp", "random", "ann"), ("promote", "random", "ann")
    ]  # fmt: skip
    told = {e["policy"]: e for e in overview.policies(mine)}
    assert told["random"]["shares"] == {"policy": pytest.approx(0.1)}
    assert told["none"]["arms"] == ["holdout"] and told["lints"]["arms"] == ["shadow"]
    assert metrics.registry.get_sample_value("headrace_arm_share", {"arm": "random"}) == pytest.approx(0.7)
    assert metrics.registry.get_sample_value("headrace_live_mode", {"mode": "live"}) == 1


def _obeyed(settings: Settings, slates: Slates, wait_for: WaitFor, arms: dict[str, str]) -> float:
    """Sends the commands one after the other; returns the longest time from a send to a slate that obeys (s)."""
    longest = 0.0

    def act(action: str, policy: str, seen: Callable[[Any, bool], bool], **more: Any) -> None:
        """`seen(slate, in the shop's topic)`: whether a slate obeys."""
        nonlocal longest
        began = time.time()
        commands.command(settings, action, policy, who="ann", why="a test", **more)

        def first() -> float | None:
            made = [
                at / 1000
                for shop, topic in ((True, slates.shop), (False, slates.side))
                for at, slate in list(topic)
                if at / 1000 >= began and slate["policy"]["arm"] != "shadow" and seen(slate, shop)
            ]
            return min(made, default=None)

        took = (wait_for(first, 20) or 0) - began
        longest = max(longest, took)
        assert took <= SECONDS, (action, took)

    act("shadow", "all", lambda slate, shop: not shop)
    wait_for(lambda: len(slates.side) > 2 * len(USERS))
    switched = min(at for at, slate in slates.side if slate["policy"]["arm"] != "shadow")
    assert max(at for at, _ in slates.shop) <= switched, "since then the shop gets none"
    act("live", "all", lambda slate, shop: shop)
    act("ramp", "random", lambda slate, shop: shop and slate["policy"]["arm"] == "random" != arms[slate["user_id"]],
        share=0.7)  # fmt: skip
    act("promote", "random", lambda slate, shop: shop and slate["policy"]["arm"] == "policy"
        and slate["policy"]["name"] == "random")  # fmt: skip
    return longest
