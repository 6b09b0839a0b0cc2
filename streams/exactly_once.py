"""Exactly-once state over Faust: its assignment and tables, with transactions of our own.

Faust consumes (aiokafka) and assigns partitions and standbys; what a partition's transaction holds is written, and the
changelog read, by confluent-kafka. Each class here overrides one thing of Faust that cannot stand transactional topics.
docs/decisions/ says how it was tried.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Protocol

import aiokafka
from faust.stores import memory
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.tables.table import Table
from faust.transport.drivers import aiokafka as driver

from headrace.streams.standby import PartitionState, Standbys


class Owner(Protocol):
    """What the worker gives to Faust's parts."""

    interactions: str  # the topic
    standbys: Standbys

    def committed(self, partition: int) -> int | None:
        """The last offset of `interactions` whose effects are committed."""
        ...

    def recover(self, partition: int) -> int:
        """Fences, reads and takes over a partition; returns the number of records read. Runs in a thread."""
        ...

    def forget(self) -> None:
        """Lets go of every partition: all that are assigned are recovered now."""
        ...

    def failed(self, error: BaseException) -> None:
        """Ends the process."""
        ...


def owner_of(app: Any) -> Owner:
    """The worker that an app belongs to: it sets `app.headrace`."""
    owner: Owner = app.headrace
    return owner


class PartitionedStore(memory.Store[Any, Any]):
    """One dictionary a partition, owned or followed, so that a partition's state goes as a whole."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.partitions: dict[int, PartitionState] = {}

    async def on_recovery_completed(self, active_tps: set[Any], standby_tps: set[Any]) -> None:
        """What moved away is dropped, what this worker stands by for is followed."""
        active = {tp.partition for tp in active_tps}
        standby = {tp.partition for tp in self.app.assignor.assigned_standbys()} - active
        for partition in set(self.partitions) - active - standby:
            del self.partitions[partition]
        for partition in standby:
            self.partitions.setdefault(partition, PartitionState())
        owner_of(self.app).standbys.follow({partition: self.partitions[partition] for partition in standby})


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

    _reading: asyncio.Future[Any] | None = None

    def add_standby(self, table: Any, tp: Any) -> None:
        """Standbys are followed by `Standbys`, not by Faust."""

    async def _wait(self, coro: Any, timeout: Any = None) -> None:
        """Without Faust's timeout: it would go on as if it were done, while the broker is away or much is read."""
        await super()._wait(coro)

    async def _build_offsets(self, consumer: Any, tps: set[Any], destination: Any, title: str) -> None:
        await super()._build_offsets(consumer, tps, destination, title)
        if title != "active":
            return
        owner = owner_of(self.app)
        loop = asyncio.get_running_loop()
        try:
            if self._reading is not None:  # of a rebalance that was overtaken by this one: its threads went on
                await asyncio.wait([self._reading])
            started = time.monotonic()
            owner.standbys.follow({})
            owner.forget()
            self._reading = asyncio.gather(
                *(loop.run_in_executor(None, owner.recover, tp.partition) for tp in sorted(tps))
            )
            counts = await asyncio.shield(self._reading)
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

    How far we are is in our changelog; what Faust commits to the group is for lag alone.
    """

    def _new_consumer_thread(self) -> _ReadCommittedThread:
        return _ReadCommittedThread(self, loop=self.loop, beacon=self.beacon)

    async def _add_gap(self, tp: Any, offset_from: int, offset_to: int) -> None:
        return None

    def _new_offset(self, tp: Any) -> int | None:
        if tp.topic != owner_of(self.app).interactions:
            return None
        self._acked[tp].clear()
        return self._next_offset(tp)

    async def seek_to_committed(self) -> Any:
        """To what the changelog says. The group's offsets may be gone, or of a changelog that is."""
        found = dict(await super().seek_to_committed())
        ours = {tp: self._next_offset(tp) or 0 for tp in found if tp.topic == owner_of(self.app).interactions}
        await self.seek_wait(ours)
        return found | ours

    def _next_offset(self, tp: Any) -> int | None:
        committed = owner_of(self.app).committed(tp.partition)
        return None if committed is None else committed + 1


class Transport(driver.Transport):
    Consumer = _AppliedOffsetConsumer
