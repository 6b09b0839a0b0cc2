"""Exactly-once state over Faust: its assignment, tables and standbys, with transactions of our own.

Faust consumes (aiokafka) and assigns; what a partition's transaction holds is written by a confluent-kafka producer.
Each
class here overrides one thing of Faust that cannot stand transactional topics. docs/decisions/ says how it was tried.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiokafka
from faust.stores import memory
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.tables.table import Table
from faust.transport.drivers import aiokafka as driver

from headrace.streams.engine import PROGRESS
from headrace.streams.kafka import FENCE_KEY


@dataclass
class PartitionState:
    """A partition of the users table as its changelog tells it."""

    states: dict[bytes, bytes] = field(default_factory=dict)
    progress: bytes | None = None

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        if key is None or key == FENCE_KEY:
            return
        if key == PROGRESS:
            self.progress = value
        elif value is None:
            self.states.pop(key, None)
        else:
            self.states[key] = value


class Owner(Protocol):
    """What the worker gives to Faust's parts."""

    interactions: str  # the topic

    def applied(self, partition: int) -> int | None: ...
    def recover(self, partition: int) -> int:
        """Fences, reads and takes over a partition; returns the number of records read. Runs in a thread."""
        ...

    def failed(self, error: BaseException) -> None:
        """Ends the process."""
        ...


def owner_of(app: Any) -> Owner:
    """The worker that an app belongs to: it sets `app.headrace`."""
    owner: Owner = app.headrace
    return owner


class PartitionedStore(memory.Store[Any, Any]):
    """One dictionary a partition, so that a revoked partition's state goes as a whole. Standbys fill it through
    Faust."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.partitions: dict[int, PartitionState] = {}

    def apply_changelog_batch(
        self, batch: Iterable[Any], to_key: Callable[[Any], Any], to_value: Callable[[Any], Any]
    ) -> None:
        for event in batch:
            message = event.message
            self.partitions.setdefault(message.partition, PartitionState()).apply(message.key, message.value)

    async def on_recovery_completed(self, active_tps: set[Any], standby_tps: set[Any]) -> None:
        kept = {tp.partition for tp in active_tps | standby_tps}
        for partition in set(self.partitions) - kept:
            del self.partitions[partition]


class UsersTable(Table[Any, Any]):
    """A Faust table whose changelog is written by the partition's transaction, never by Faust."""

    def _new_store(self) -> PartitionedStore:
        return PartitionedStore("memory://", self.app, self)

    def on_key_set(self, key: Any, value: Any) -> None:
        raise AssertionError("states are written through a partition's transaction")

    on_key_del = on_key_set  # type: ignore[assignment]


class BulkRecovery(Recovery):
    """Faust's own waits for a record at high watermark - 1, which is a transaction's marker: it would never end.

    The owner reads the committed changelog at confluent-kafka's speed; then Faust is told that it is done.
    """

    async def _build_offsets(self, consumer: Any, tps: set[Any], destination: Any, title: str) -> None:
        await super()._build_offsets(consumer, tps, destination, title)
        if title != "active" or not tps:
            return
        owner = owner_of(self.app)
        loop = asyncio.get_running_loop()
        try:
            started = time.monotonic()
            counts = await asyncio.gather(
                *(loop.run_in_executor(None, owner.recover, tp.partition) for tp in sorted(tps))
            )
            self.log.info("recovered %s records in %.2f s", sum(counts), time.monotonic() - started)
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError):
                owner.failed(error)
            raise
        for tp in tps:
            destination[tp] = max(destination[tp], self.active_highwaters[tp])


class Tables(TableManager):
    @property
    def recovery(self) -> Recovery:
        if self._recovery is None:
            self._recovery = BulkRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery


class _ReadCommittedThread(driver.AIOKafkaConsumerThread):
    """Faust reads uncommitted records outside its own exactly_once: standbys would apply what was aborted."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        original = aiokafka.AIOKafkaConsumer

        def create(**options: Any) -> Any:
            return original(**{**options, "isolation_level": "read_committed", "fetch_max_wait_ms": 100})

        aiokafka.AIOKafkaConsumer = create  # the driver looks the class up by this name
        try:
            return super()._create_worker_consumer(transport)
        finally:
            aiokafka.AIOKafkaConsumer = original


class _AppliedOffsetConsumer(driver.Consumer):
    """Every transaction leaves a marker, so every second offset is a gap to Faust, and its book of gaps is quadratic.

    What is applied is in our changelog; what Faust commits is for lag alone.
    """

    def _new_consumer_thread(self) -> _ReadCommittedThread:
        return _ReadCommittedThread(self, loop=self.loop, beacon=self.beacon)

    async def _add_gap(self, tp: Any, offset_from: int, offset_to: int) -> None:
        return None

    def _new_offset(self, tp: Any) -> int | None:
        owner = owner_of(self.app)
        if tp.topic != owner.interactions:
            return None
        self._acked[tp].clear()
        applied = owner.applied(tp.partition)
        return None if applied is None else applied + 1


class Transport(driver.Transport):
    Consumer = _AppliedOffsetConsumer
