"""What running costs: bytes from and to Kafka, counted here, and the settings' prices. CPU and memory are process_*.

Money is worked out in Prometheus (deploy/prometheus/recording.yml), where all processes of a role are added up.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, Metric

from headrace.streams.sections import Cost


class Traffic:
    """Bytes of keys and values as this process hands them to Kafka's client or gets them: before compression, without
    what the protocol adds. Read on a scrape, so that counting is an addition."""

    _name = "headrace_kafka_bytes"
    _labelnames = ("direction",)

    def __init__(self) -> None:
        self.read = 0
        self.written = 0

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, "Bytes of keys and values", labels=self._labelnames)
        family.add_metric(["read"], self.read)
        family.add_metric(["written"], self.written)
        yield family


traffic = Traffic()  # a process has one, as it has one CPU account


def prices(cost: Cost) -> dict[str, float]:
    """{resource: price} for the metric headrace_price; `alert_per_million` is the limit of an alert, 0: none."""
    return {name: float(price) for name, price in cost.model_dump(exclude={"currency"}).items()}
