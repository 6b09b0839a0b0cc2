"""Which announcement a worker makes ready, and what it does when one is refused. With Kafka: tests/integration/."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from headrace.streams import encoders, models, serving
from headrace.streams.encoders import TOPIC, Encoders
from headrace.streams.errors import ArtifactMismatch
from headrace.streams.metrics import Metrics
from headrace.streams.models import RULES
from headrace.streams.records import Announcement
from headrace.streams.rules.book import Heard
from headrace.streams.serving import Serving
from headrace.streams.settings import Settings


def announcement(version: str) -> Announcement:
    return Announcement("folder", version, "texts", "text-1", "a test", "to see", 1_790_000_000_000)


def set_of(serial: int, version: str) -> Any:
    """A set of models that knows nothing."""
    return SimpleNamespace(
        encoders=Encoders(serial, Path("folder"), Path("texts"), version, "text-1"),
        encoder=SimpleNamespace(version=version),
        recommender=SimpleNamespace(encoder_serial=serial, describer=SimpleNamespace()),
        items=SimpleNamespace(settle=lambda: None),
    )


class Topics:
    """What has come since the last look."""

    def __init__(self) -> None:
        self.arrived: list[tuple[str, Any]] = []

    def take(self) -> list[tuple[str, Any]]:
        taken, self.arrived = self.arrived, []
        return taken

    def start(self) -> None: ...
    def check(self) -> None: ...
    def close(self) -> None: ...


class Prepared:
    """A swap that is ready, or has failed, when the test says so."""

    failure: BaseException | None = None
    ready = cancelled = False

    def __init__(self, _: Settings, serial: int, said: Announcement, **__: Any) -> None:
        self.serial, self.said = serial, said
        self.later: list[tuple[int, Announcement]] = []
        self.rules: list[Heard] = []
        swaps.append(self)

    def take(self) -> tuple[Any, Topics]:
        return set_of(self.serial, self.said.user_version), topics

    def cancel(self) -> None:
        self.cancelled = True


swaps: list[Prepared] = []
topics = Topics()


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Serving:
    swaps.clear()
    topics.take()
    monkeypatch.setattr(encoders, "in_force", lambda *_, **__: None)
    monkeypatch.setattr(models, "load_models", lambda *_: set_of(1, "user-1"))
    monkeypatch.setattr(models, "broadcast", lambda _: topics)
    monkeypatch.setattr(serving, "Swap", Prepared)
    return Serving(Settings(), Metrics(CollectorRegistry(), "worker"))


def told(worker: Serving, *announced: tuple[int, str]) -> None:
    topics.arrived += [(TOPIC, (serial, announcement(version))) for serial, version in announced]
    worker.keep_up()


@pytest.mark.parametrize("at_once", [True, False])
def test_where_the_newest_is_refused_the_one_before_it_serves(worker: Serving, at_once: bool) -> None:
    if at_once:
        told(worker, (2, "user-2"), (3, "user-3"))
    else:
        told(worker, (2, "user-2"))
        told(worker, (3, "user-3"))
        assert swaps[0].cancelled
    assert swaps[-1].serial == 3
    swaps[-1].failure = ArtifactMismatch("damaged")
    assert not worker.keep_up() and swaps[-1].serial == 2 and not swaps[-1].cancelled
    swaps[-1].ready = True
    assert worker.keep_up() and worker.recommender.encoder_serial == 2
    made = len(swaps)
    told(worker, (3, "user-3"))  # read again: still refused
    assert len(swaps) == made


def test_a_worker_starts_where_the_newest_cannot_be_served(worker: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "in_force", lambda _, *, refused: refused(5, ArtifactMismatch("it is not there")))
    metrics = Metrics(CollectorRegistry(), "worker")
    again = Serving(Settings(), metrics)
    told(again, (5, "user-5"))  # the topic is read from its beginning
    assert not swaps
    count = metrics.registry.get_sample_value("headrace_encoder_swaps_total", {"outcome": "refused"})
    assert count == 1


def test_what_serves_already_only_gets_another_number(worker: Serving) -> None:
    told(worker, (2, "user-2"))
    told(worker, (3, "user-1"))
    assert swaps[0].cancelled and len(swaps) == 1
    assert worker.recommender.encoder_serial == 3 and not worker.keep_up()


def test_what_was_announced_while_one_was_made_ready_comes_next(worker: Serving) -> None:
    told(worker, (2, "user-2"))
    swaps[0].ready, swaps[0].later = True, [(4, announcement("user-4"))]
    assert worker.keep_up()
    assert [swap.serial for swap in swaps] == [2, 4]


def test_rules_outlive_the_encoder_and_none_is_lost_between_two_readers(worker: Serving) -> None:
    def rule(offset: int, rule_id: str) -> Heard:
        return rule_id, b'{"rule_id": "%s", "action": "exclude", "where": {"brand": "x"}}' % rule_id.encode(), offset, 0

    topics.arrived.append((RULES, rule(0, "a")))
    told(worker, (2, "user-2"))
    swaps[0].ready, swaps[0].rules = True, [rule(0, "a"), rule(1, "b")]  # the old reader has not come to the second
    assert worker.keep_up()
    assert [rule.rule_id for rule in worker.rules.in_force(0)] == ["a", "b"]
    topics.arrived += [(RULES, ("a", None, 2, 0))]
    worker.keep_up()
    assert [rule.rule_id for rule in worker.rules.in_force(0)] == ["b"]
