"""The learner on the real broker: an outcome is in a version at once; killed or fenced, its bits are the same."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Producer, TopicPartition
from prometheus_client import CollectorRegistry

from headrace.streams import kafka, topics
from headrace.streams.broker import Broker
from headrace.streams.errors import Fatal, HeadraceError
from headrace.streams.learner import Session
from headrace.streams.metrics import Metrics
from headrace.streams.records import PolicyVersion, Transitions, decode_policy_version, encode
from headrace.streams.settings import Settings
from headrace.streams.supervise import Supervisor
from headrace.streams.versions import arrays_of
from tests.factories import make_behaviour, make_impression, make_log, make_opened, make_outcome, make_transitions

if TYPE_CHECKING:
    from tests.conftest import MakeSettings, WaitFor

pytestmark = pytest.mark.kafka
DIM = 16


def produce(settings: Settings, messages: Iterable[Transitions]) -> None:
    producer = Producer(kafka.client_config(settings))
    for message in messages:
        kafka.produce(producer, settings.topic("transitions"), value=encode(message), partition=0)
    assert producer.flush(20) == 0


def published(settings: Settings, policy: str | None = None) -> list[PolicyVersion]:
    """All versions, or those of one policy: the gate's record and the estimates stand beside them."""
    found: list[PolicyVersion] = []

    def take(message: kafka.Message) -> None:
        if message.key() != kafka.FENCE_KEY:
            found.append(decode_policy_version(message.value() or b""))

    kafka.read_to_end(settings, settings.topic("policy-versions"), take)
    return [version for version in found if policy in (None, version.policy)]


def latest(settings: Settings) -> dict[str, PolicyVersion]:
    return {version.part: version for version in published(settings)}


@contextmanager
def session(settings: Settings, metrics: Metrics | None = None) -> Iterator[Session]:
    running = Session(settings, metrics or Metrics(CollectorRegistry(), "learner"), dim=DIM)
    try:
        yield running
    finally:
        running.close()


def shown(name: str = "r-1", *, d: int = DIM) -> Transitions:
    return make_transitions(make_opened(name, d=d, c=1), make_impression(name, positions=[0, 1, 2]), tick=True)


def click(name: str = "r-1", **changes: Any) -> Transitions:
    return make_transitions(make_outcome(name, position=1, reward=5.0, **changes), tick=True)


def step_until(running: Session, condition: Any, wait_for: WaitFor, deadline: float = 20) -> None:
    wait_for(lambda: (running.step(), condition())[1], deadline)


def test_an_outcome_is_in_a_committed_version_within_a_second(settings: MakeSettings, wait_for: WaitFor) -> None:
    mine, metrics = settings(policy={"name": "linucb"}), Metrics(CollectorRegistry(), "learner")

    def count(name: str, **labels: str) -> float:
        return metrics.registry.get_sample_value(f"headrace_{name}", labels) or 0.0

    def learned() -> float:
        return count("outcome_to_policy_seconds_count")

    with session(mine, metrics) as running:
        produce(mine, [shown()])
        step_until(running, lambda: learned() == 1, wait_for)  # the impression
        for number in range(20):
            produce(mine, [click(sent_ms=int(time.time() * 1000), outcome_id=f"click/{number}")])
            step_until(running, lambda n=number: learned() == n + 2, wait_for)
        assert running.ready
    assert count("outcome_to_policy_seconds_bucket", le="1.0") >= 18, "a noisy machine may take its time twice"
    assert (count("learner_examples_total", kind="fresh"), count("learner_examples_total", kind="correction")) == (
        3,
        20,
    )
    assert arrays_of(latest(mine)["linucb"])[0]["moment"].any()


@pytest.mark.crash
def test_killed_it_ends_bit_for_bit_where_a_fresh_learner_ends(tmp_path: Path, wait_for: WaitFor) -> None:
    """Real processes, a network trained on the way; kill -9 of the learner, then of the broker."""
    log = make_log(1, messages=900, d=64, c=1, k=30)
    last = [*log[600:], shown("the-last", d=64), *[make_transitions(tick=True)] * 40]
    with Broker(tmp_path / "broker") as broker:

        def make(name: str) -> Settings:
            made = Settings(
                data_dir=tmp_path / name,
                kafka={"bootstrap.servers": broker.bootstrap},
                topics={"prefix": f"{name}."},
                metrics={"port": 0},
                learner={"open_decisions": 300},
                gate={"guard": False},  # propensities of a made-up log are no draws: a guardrail would see that
            )
            topics.create(made)
            return made

        def learned(mine: Settings, offset: int) -> bool:
            versions = latest(mine)
            return "neural_linear" in versions and versions["neural_linear"].offset >= offset

        killed, fresh = make("killed"), make("fresh")
        with Supervisor(killed, ["learner"]) as running, Supervisor(fresh, ["learner"]) as reference:
            wait_for(lambda: running.ready() and reference.ready(), 60)
            produce(killed, log[:300])
            wait_for(lambda: learned(killed, 200), 30)
            produce(killed, log[300:500])
            os.kill(running.pids()["learner"], signal.SIGKILL)
            wait_for(lambda: learned(killed, 450), 60)
            produce(killed, log[500:600])
            assert broker.pid is not None
            os.kill(broker.pid, signal.SIGKILL)
            wait_for(lambda: not broker.running)
            broker.start()
            produce(killed, last)
            produce(fresh, log[:600] + last)
            wait_for(lambda: learned(killed, 900) and learned(fresh, 900), 60)
            wait_for(lambda: digests(killed) == digests(fresh), 20)
            assert running.restarts()["learner"] >= 1
        version = latest(killed)["neural_linear"]
        assert version.meta["trainings"]
        assert version.meta == latest(fresh)["neural_linear"].meta
        assert len(digests(fresh)) > 50
        issued: dict[tuple[str, int], set[str]] = {}
        for mine in (killed, fresh):
            for version in published(mine):
                issued.setdefault((version.part, version.version), set()).add(version.sha256)
    assert all(len(bits) == 1 for bits in issued.values()), "no version twice with other bits, whoever issued it"


def digests(settings: Settings) -> dict[str, str]:
    return {part: version.sha256 for part, version in latest(settings).items()}


def test_a_second_learner_fences_the_first_and_goes_on(settings: MakeSettings, wait_for: WaitFor) -> None:
    mine = settings(policy={"name": "linucb"})
    with session(mine) as first:
        produce(mine, [shown()])
        step_until(first, lambda: published(mine), wait_for)
        with session(mine) as second:
            produce(mine, [click()])
            with pytest.raises(Fatal, match=r"another learner has taken over \(t\d+\.learner\)"):
                step_until(first, lambda: False, wait_for)
            step_until(second, lambda: latest(mine)["linucb"].version == 2, wait_for)
    assert [version.version for version in published(mine, "linucb")] == [1, 2]


def test_a_backlog_is_learned_with_few_versions_and_the_last_knows_it_all(
    settings: MakeSettings, wait_for: WaitFor
) -> None:
    mine = settings(policy={"name": "linucb"})
    produce(mine, [shown(f"r-{n}") for n in range(2_000)])
    with session(mine) as running:
        step_until(running, lambda: latest(mine).get("linucb") and latest(mine)["linucb"].offset == 1_999, wait_for)
    versions = published(mine, "linucb")
    assert versions[-1].version == 2_000
    assert len(versions) < 500


def test_a_version_larger_than_a_usual_message_is_published_and_resumed(
    settings: MakeSettings, wait_for: WaitFor
) -> None:
    """Sixty context values make a LinUCB of more than 1 MB."""
    context = {"shop": {"values": [f"s{n}" for n in range(60)]}}
    mine = settings(policy={"name": "linucb"}, context=context)
    opened = make_opened(d=DIM, c=61)
    produce(mine, [make_transitions(opened, make_impression(positions=[0]), tick=True)])
    with session(mine) as running:
        step_until(running, lambda: published(mine), wait_for)
    (version,) = published(mine, "linucb")
    assert len(version.arrays) > 1_048_588
    with session(mine) as running:
        assert running._learning.policies[0].known == version.offset


def test_a_log_made_anew_is_refused(settings: MakeSettings, wait_for: WaitFor) -> None:
    mine = settings(policy={"name": "linucb"})
    produce(mine, [shown(), click(), click(), click()])
    with session(mine) as running:
        step_until(running, lambda: latest(mine).get("linucb") and latest(mine)["linucb"].offset == 3, wait_for)
    client, topic = kafka.admin(mine), mine.topic("transitions")
    client.delete_topics([topic])[topic].result()
    wait_for(lambda: topic not in client.list_topics(timeout=5).topics)
    topics.create(mine)
    produce(mine, [shown()])
    with pytest.raises(HeadraceError, match="made anew"), session(mine):
        pass


def test_a_log_whose_beginning_was_deleted_is_learned_from_what_is_left(
    settings: MakeSettings, wait_for: WaitFor, caplog: pytest.LogCaptureFixture
) -> None:
    mine = settings(policy={"name": "linucb"})
    produce(mine, [shown("old"), make_transitions(make_behaviour(1), tick=True), shown("kept")])
    with session(mine) as running:
        step_until(running, lambda: latest(mine).get("linucb") and latest(mine)["linucb"].offset == 2, wait_for)
    at, client = TopicPartition(mine.topic("transitions"), 0, 2), kafka.admin(mine)
    client.delete_records([at])[at].result(20)
    produce(mine, [click("old"), click("kept")])
    metrics = Metrics(CollectorRegistry(), "learner")
    with caplog.at_level(logging.WARNING, "headrace.learner"), session(mine, metrics) as running:
        step_until(running, lambda: latest(mine)["linucb"].offset == 4, wait_for)
    assert "transitions before offset 2 are deleted" in caplog.text
    assert metrics.registry.get_sample_value("headrace_learner_unmatched_total") == 1
    assert metrics.registry.get_sample_value("headrace_learner_examples_total", {"kind": "correction"}) == 1
