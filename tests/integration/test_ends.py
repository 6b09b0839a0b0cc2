"""An open transaction shows as an end that moves past a last stable offset that does not."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from headrace.streams import kafka
from headrace.streams.ends import EndsWatch
from headrace.streams.metrics import Metrics

pytestmark = pytest.mark.kafka


def test_an_open_transaction_shows(settings: Any, wait_for: Any) -> None:
    made = settings()
    metrics = Metrics(CollectorRegistry(), "worker")
    producer = kafka.transactional_producer(made, made.topics.prefix + "hanging")

    def ends() -> tuple[float | None, float | None]:
        labels = {"topic": "transitions", "partition": "0"}
        high, stable = ("headrace_high_watermark_offset", "headrace_last_stable_offset")
        return metrics.registry.get_sample_value(high, labels), metrics.registry.get_sample_value(stable, labels)

    watch = EndsWatch(made, metrics, ["transitions", "no-such-topic"], interval_s=0.05)
    try:
        wait_for(lambda: ends() == (0, 0))
        producer.begin_transaction()
        kafka.produce(producer, made.topic("transitions"), value=b"x", partition=0)
        producer.flush()
        wait_for(lambda: ends() == (1, 0))
        producer.commit_transaction()
        wait_for(lambda: ends() == (2, 2))  # the record and its marker
    finally:
        watch.close()
    samples = [s for m in metrics.registry.collect() for s in m.samples]
    assert {s.labels["topic"] for s in samples if s.name.endswith("_offset") and "topic" in s.labels} == {"transitions"}
