"""`headrace policy …` on a learner that learns: obeyed within seconds, recorded with who and why, or refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from confluent_kafka import Producer
from prometheus_client import CollectorRegistry

from headrace.streams import commands, evaluate_log, kafka, overview, topics
from headrace.streams.errors import BrokerError, HeadraceError
from headrace.streams.learner import Session
from headrace.streams.metrics import Metrics
from headrace.streams.policies import serves
from headrace.streams.records import encode
from headrace.streams.settings import Settings
from headrace.streams.versions import arrays_of
from tests.background import beside
from tests.conftest import MakeSettings
from tests.factories import make_impression, make_opened, make_transitions
from tests.integration.test_supervise import headrace

pytestmark = pytest.mark.kafka
DIM = 16
ARMS = {"policy": 0.5, "lints": 0.25, "popular": 0.25}


def learning(settings: Settings, metrics: Metrics) -> AbstractContextManager[None]:
    """A learner that goes on, fed with a decision and a tick a step, as a running shop's is."""

    def work(stop: threading.Event) -> None:
        producer, at = Producer(kafka.client_config(settings)), 0
        session = Session(settings, metrics, dim=DIM)
        while not stop.wait(0.03):  # a shop's pace: what is written faster than it is read never ends
            at += 1
            message = make_transitions(
                make_opened(f"r-{at}", d=DIM, c=1), make_impression(f"r-{at}", positions=[0]), tick=True
            )
            kafka.produce(producer, settings.topic("transitions"), value=encode(message), partition=0)
            producer.flush(10)
            session.step()
        session.close()

    return beside(work)


def told(settings: Settings, *arguments: str, code: int = 0) -> str:
    process = headrace("policy", *arguments, settings=settings)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, out + err
    return (err if code else out).strip()


def test_people_freeze_pin_promote_and_roll_back_a_running_learner(
    settings: MakeSettings, wait_for: Callable[..., object]
) -> None:
    mine = settings(
        policy={"name": "linucb"},
        arms={"shares": ARMS},
        gate={"stage_every": 4, "guard": False, "challengers": ["lints"]},
    )
    metrics = Metrics(CollectorRegistry(), "learner")
    with learning(mine, metrics):
        wait_for(lambda: any(part.startswith("staged/linucb") for part in commands.latest(mine)))
        before = json.loads(told(mine, "show", "linucb", "--json"))
        assert before["arms"] == ["policy"] and not before["frozen"] and before["staged"]

        producer = Producer(kafka.client_config(mine))  # what is no command is passed over
        kafka.produce(producer, mine.topic("policy-commands"), key=b"linucb", value=b'{"who": "\xff"}')
        assert producer.flush(10) == 0
        assert "freeze linucb by ann: a bad day" in told(mine, "freeze", "linucb", "--why", "a bad day", "--who", "ann")
        frozen = commands.latest(mine)["linucb"]
        assert "refused: freeze: linucb is frozen already" in told(
            mine, "freeze", "linucb", "--why", "again", "--who", "ann", code=1
        )
        version = overview.policy(mine, "linucb")["staged"][0]
        commands.command(mine, "pin", "linucb", version=version, who="bob", why="it was good")
        pinned = commands.latest(mine)["linucb"]
        assert pinned.version > frozen.version
        staged = next(
            r for p, r in commands.latest(mine).items() if p.startswith("staged/linucb") and r.version == version
        )
        assert {k: v.tobytes() for k, v in arrays_of(pinned)[0].items()} == {
            k: v.tobytes() for k, v in arrays_of(staged)[0].items()
        }
        commands.command(mine, "unfreeze", "linucb", who="bob", why="go on")
        commands.command(mine, "promote", "lints", who="bob", why="I want it")
        wait_for(lambda: commands.latest(mine)["linucb"].version > pinned.version)
        shown = told(mine, "list").splitlines()
        assert [line.split()[:2] for line in shown[1:]] == [
            ["lints", "policy"],
            ["linucb", "lints"],
            ["popular", "popular"],
        ]
        record = commands.latest(mine)["gate"]
        before_promotion = {"policy": "linucb", "lints": "lints", "popular": "popular"}
        assert serves(arrays_of(record)[1], before_promotion) == {
            "policy": "lints",
            "lints": "linucb",
            "popular": "popular",
        }
        done = commands.history(commands.latest(mine))
        assert [(d.action, d.who, d.why.partition(" (")[0]) for d in done] == [
            ("freeze", "ann", "a bad day"), ("refused", "ann", "freeze: linucb is frozen already"),
            ("pin", "bob", "it was good"), ("unfreeze", "bob", "go on"), ("promote", "bob", "I want it"),
        ]  # fmt: skip
    assert metrics.registry.get_sample_value("headrace_serving_policy", {"arm": "policy", "policy": "lints"}) == 1
    with learning(mine, Metrics(CollectorRegistry(), "learner")):  # commands are taken once, also by the next learner
        commands.command(mine, "rollback", "lints", who="ann", why="enough")
    assert [d.action for d in commands.history(commands.latest(mine))].count("freeze") == 1


def test_a_command_that_nobody_takes_says_so(settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_WAIT_S", 0.5)
    with pytest.raises(
        HeadraceError, match=r"no learner took the command within 0\.5 s: see that `headrace run` is up"
    ):
        commands.command(settings(), "freeze", "neural_linear", who="ann", why="a test")
    with pytest.raises(HeadraceError, match="--why is empty"):
        commands.command(settings(create=False), "freeze", "neural_linear", who="ann", why=" ")


def test_a_command_without_kafka_ends_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "_TIMEOUT_S", 0.5)
    nowhere = Settings(kafka={"bootstrap.servers": "127.0.0.1:1"})
    with pytest.raises(BrokerError, match=r"Kafka at 127\.0\.0\.1:1 does not answer"):
        commands.latest(nowhere)
    with pytest.raises(BrokerError, match=r"Kafka at 127\.0\.0\.1:1 does not answer"):
        commands.command(nowhere, "freeze", "linucb", who="ann", why="a test")
    with pytest.raises(BrokerError, match=r"Kafka at 127\.0\.0\.1:1 does not answer"):
        evaluate_log.from_topic(nowhere, evaluate_log.Range(0, None), print)
