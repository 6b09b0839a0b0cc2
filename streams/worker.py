"""The worker: a Faust app that keeps every user's state and answers with slates, exactly once.

Per partition one task drains what waits into one transaction: states, recommendations, transitions, dead letters and
how far it is, all or nothing. Crash-only: whatever leaves memory ahead of the log ends the process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, cast

import faust
import msgspec
from confluent_kafka import KafkaError, Producer

from headrace.streams import http, kafka, topics
from headrace.streams.changelog import PROGRESS, Progress, decode_progress
from headrace.streams.effects import Effects, report
from headrace.streams.ends import EndsWatch
from headrace.streams.engine import Engine
from headrace.streams.errors import Fatal, HeadraceError
from headrace.streams.exactly_once import PartitionedStore, Tables, Transport, UsersTable
from headrace.streams.insight import worth
from headrace.streams.insight.cost import traffic
from headrace.streams.metrics import Metrics
from headrace.streams.records import decode_batch
from headrace.streams.serving import Serving
from headrace.streams.settings import Settings
from headrace.streams.slots import claim
from headrace.streams.standby import PartitionState, Standbys

log = logging.getLogger("headrace.worker")
_WAITING_BYTES = 16_777_216  # of one partition's records read ahead
_DRAIN_BYTES = 2_097_152  # one transaction takes at most so much of what waits


@dataclass
class Assignment:
    """Everything of one assigned partition, in one object: it goes as a whole when the partition does."""

    partition: int
    producer: Producer
    engine: Engine
    state: PartitionState
    committed: int  # the last offset whose effects are committed; memory may be ahead of it
    waiting: deque[Any] = field(default_factory=deque)
    waiting_bytes: int = 0
    task: asyncio.Task[None] | None = None

    def written(self, error: KafkaError | None, message: kafka.Message) -> None:
        """The delivery report of a transaction's last record: memory then stands where the changelog stands."""
        if error is None:
            self.state.position = message.offset() + 1


class Worker:
    """Owns the assignments; Faust's parts call it through `app.headrace`."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.interactions = settings.topic("interactions")
        self._changelog = settings.topic("users-changelog")
        self._assignments: dict[int, Assignment] = {}
        self.serving = Serving(settings, metrics)
        self.standbys = Standbys(settings, self._changelog)
        self.app = self._faust_app()
        self._store = cast(PartitionedStore, self._users.data)
        self._recovered = False
        self.ends = EndsWatch(settings, metrics, ["interactions", "item-vectors", "policy-versions"], interval_s=2)
        self.error: BaseException | None = None

    def _faust_app(self) -> Any:
        settings = self.settings
        slot = self._slot = claim(settings, "worker")  # held as long as we live
        folder = settings.data_dir / "faust" / slot.name
        folder.mkdir(parents=True, exist_ok=True)
        app: Any = faust.App(
            settings.topics.prefix + "worker",
            broker=f"kafka://{settings.bootstrap}",
            store="memory://",
            TableManager=Tables,
            web_enabled=False,
            topic_partitions=settings.topics.interactions_partitions,
            topic_allow_declare=False,
            topic_disable_leader=True,
            table_standby_replicas=settings.worker.standby_replicas,
            consumer_auto_offset_reset="earliest",
            broker_commit_interval=1.0,
            broker_session_timeout=settings.worker.session_timeout / 1000,
            broker_heartbeat_interval=settings.worker.session_timeout / 5000,
            consumer_group_instance_id=slot.name,
            stream_recovery_delay=0.0,
            stream_wait_empty=False,
            datadir=str(folder),
            **faust_credentials(settings),
        )
        app.headrace = self
        app.transport = Transport(app.conf.broker_consumer, app)
        raw: Any = faust.Schema(key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")
        partitions = settings.topics.interactions_partitions
        changelog = app.topic(self._changelog, schema=raw, partitions=partitions, internal=True)
        self._users = UsersTable(
            app,
            name="users",
            partitions=partitions,
            key_type=bytes,
            value_type=bytes,
            schema=raw,
            changelog_topic=changelog,
        )
        app.tables.add(self._users)
        app.agent(app.topic(self.interactions, schema=raw))(self._on_interactions)
        app.on_partitions_revoked.connect(self._release)
        app.task(self._housekeep)
        return app

    # -- what Faust's parts ask (exactly_once.Owner) ------------------------------------------------------------------

    def committed(self, partition: int) -> int | None:
        assignment = self._assignments.get(partition)
        return assignment.committed if assignment and assignment.committed >= 0 else None

    def recover(self, partition: int) -> int:
        """Fence first, so that nobody commits after we have read; then read the changelog up to a record of our own.

        What was read before, as its owner or its standby, is not read again.
        """
        self.serving.wait_caught_up()
        started = time.monotonic()
        producer = kafka.transactional_producer(self.settings, f"{self.settings.topics.prefix}worker-{partition}")
        found = self._store.partitions.get(partition)
        if found is None or found.stale:
            found = PartitionState()
        count = kafka.fence_and_read(
            self.settings, producer, self._changelog, partition, found.apply, start=found.position
        )
        progress = Progress(clock={}, counts={}) if found.progress is None else decode_progress(found.progress)
        self._store.partitions[partition] = found
        engine = Engine(self.settings, partition, self.serving.recommender, states=found.states, progress=progress)
        self._assignments[partition] = Assignment(partition, producer, engine, found, progress.offset)
        self.metrics.recoveries.inc()
        self.metrics.recovery.observe(time.monotonic() - started)
        log.info("partition %s: %s records, %s users, applied %s", partition, count, len(found.states), progress.offset)
        return count

    def forget(self) -> None:
        """What is still here was recovered for an assignment that never came to work."""
        self._assignments.clear()

    def failed(self, error: BaseException) -> None:
        """Memory may be ahead of the log: the next start rebuilds exactly what was committed."""
        self.error = error
        log.error("stopping: %s", error, exc_info=None if isinstance(error, HeadraceError) else error)
        os._exit(HeadraceError.exit_code)

    # -- the flow -----------------------------------------------------------------------------------------------------

    async def _on_interactions(self, stream: Any) -> None:
        async for event in stream.events():
            message = event.message
            assignment = self._assignments.get(message.partition)
            if assignment is None:  # revoked meanwhile: the next owner reads it
                continue
            assignment.waiting.append(message)
            assignment.waiting_bytes += len(message.value or b"")
            traffic.read += len(message.value or b"")
            if assignment.task is None or assignment.task.done():
                assignment.task = asyncio.get_running_loop().create_task(self._drain(assignment))
            while assignment.waiting_bytes > _WAITING_BYTES and self._assignments.get(message.partition) is assignment:
                await asyncio.sleep(0.002)

    async def _drain(self, assignment: Assignment) -> None:
        """One transaction takes all that waits: small when it is quiet, large under load.

        While one is committed the next is applied, so that neither the processor nor Kafka waits for the other.
        """
        try:
            committing: asyncio.Task[None] | None = None
            while assignment.waiting or committing is not None:
                effects = await self._apply_waiting(assignment, committing)
                if committing is not None:
                    await committing
                    committing = None
                if effects:
                    progress = assignment.engine.progress()
                    committing = asyncio.create_task(self._transact(assignment, effects, progress))
        except Exception as error:
            self.failed(error)

    async def _apply_waiting(self, assignment: Assignment, committing: asyncio.Task[None] | None) -> list[Effects]:
        """Applies a record, and more as long as the transaction before is not committed."""
        effects = []
        size = 0
        while assignment.waiting and size < _DRAIN_BYTES:
            message = assignment.waiting.popleft()
            size += len(message.value or b"")
            assignment.waiting_bytes -= len(message.value or b"")
            if message.offset <= assignment.engine.applied:
                continue
            self._keep_up()
            with self.metrics.stage.labels("apply").time():
                batch, oldest = decode_batch(message.value), self._oldest()
                found = assignment.engine.apply(batch, message.offset, not_before=oldest)
                assignment.engine.accept(found)
            effects.append(found)
            await asyncio.sleep(0)
            if committing is None or committing.done():
                break
        return effects

    def _oldest(self) -> int:
        """What came earlier (Unix ms) is answered no more: an outage or a replay brings no slate of yesterday."""
        if self.settings.live.clock == "event":
            return 0
        return int(time.time() * 1000) - self.settings.worker.max_trigger_age

    async def _transact(self, assignment: Assignment, effects: list[Effects], progress: bytes) -> None:
        with self.metrics.stage.labels("commit").time():
            await asyncio.get_running_loop().run_in_executor(None, self._commit, assignment, effects, progress)
        now_ms = int(time.time() * 1000)
        for found in effects:
            report(found, self.metrics, now_ms=now_ms)

    def _commit(self, assignment: Assignment, effects: list[Effects], progress: bytes) -> None:
        """The whole of one transaction; in a thread, so that other partitions go on."""
        settings, producer, partition = self.settings, assignment.producer, assignment.partition
        changes: dict[bytes, bytes | None] = {}
        for found in effects:
            changes.update(found.changes)
        changes[PROGRESS] = progress
        producer.begin_transaction()
        recommendations = settings.topic("recommendations")
        for found in effects:
            for user, message in found.recommendations:
                kafka.produce(producer, recommendations, key=user.encode(), value=message)
            for user, message in found.shadow:
                kafka.produce(producer, settings.topic("recommendations-shadow"), key=user.encode(), value=message)
            for record in found.transitions:
                kafka.produce(producer, settings.topic("transitions"), value=record, partition=0)
            for other, record in found.forwarded:
                kafka.produce(producer, self.interactions, value=record, partition=other)
            for entry, said in found.refused:
                source = f"{self.interactions}[{partition}]@{found.offset}"
                log.warning("%s: identity: %s", source, said)
                headers: kafka.Headers = [("reason", f"identity: {said}".encode()), ("source", source.encode())]
                letter, key = msgspec.json.encode(entry), entry.user_id.encode()
                kafka.produce(producer, settings.topic("dead-letters"), key=key, value=letter, headers=headers)
            for entry, error in found.failed:
                source = f"{self.interactions}[{partition}]@{found.offset}"
                log.error("%s: an entry cannot be applied: %r", source, error)
                reason = f"cannot_apply: the worker failed on this entry ({type(error).__name__})"
                kafka.produce(
                    producer,
                    settings.topic("dead-letters"),
                    key=entry.user_id.encode(),
                    value=msgspec.json.encode(entry),
                    headers=[("reason", reason.encode()), ("source", source.encode())],
                )
        for key, value in changes.items():
            last = assignment.written if key == PROGRESS else None
            kafka.produce(producer, self._changelog, key=key, value=value, partition=partition, on_delivery=last)
        retried = kafka.commit(producer)
        producer.poll(0)  # the delivery report
        assignment.committed = effects[-1].offset
        if retried:
            self.metrics.commits.labels("retried").inc()
            self._renew(assignment)
        self.metrics.commits.labels("committed").inc()

    def _renew(self, assignment: Assignment) -> None:
        """A new producer, as a late end of the last transaction must not reach the next one.

        It fences whoever took the partition over while Kafka was away: if he has committed since, our memory is old.
        """
        partition, later = assignment.partition, PartitionState()
        producer = kafka.transactional_producer(self.settings, f"{self.settings.topics.prefix}worker-{partition}")
        start = assignment.state.position
        kafka.fence_and_read(self.settings, producer, self._changelog, partition, later.apply, start=start)
        if later.progress is not None:
            raise Fatal(f"another worker has taken partition {partition} over while Kafka was away: starting again")
        assignment.producer = producer

    def _keep_up(self) -> None:
        """New items, policy versions and encoders, taken between two records; by every partition, also by one that was
        recovered, in a thread, while the encoder changed."""
        self.serving.keep_up()
        for assignment in list(self._assignments.values()):
            assignment.engine.serve(self.serving.recommender)

    async def _release(self, app: Any, revoked: Any, **kwargs: Any) -> None:
        """Faust waits for this: let the commit in flight end. The state stays until it is known who has it next."""
        mine = [
            a for tp in revoked if tp.topic == self.interactions and (a := self._assignments.pop(tp.partition, None))
        ]
        for assignment in mine:
            assignment.waiting.clear()
        await asyncio.gather(*(a.task for a in mine if a.task is not None))
        for assignment in mine:
            assignment.engine.release()
            assignment.state.progress = assignment.engine.progress()
            assignment.state.read_at = time.monotonic()
            for gauge in (self.metrics.state_users, self.metrics.state_bytes, self.metrics.open_decisions):
                gauge.remove(assignment.partition)  # the next owner's to tell
            self.metrics.lag.remove("interactions", assignment.partition)

    async def _housekeep(self) -> None:
        """What must not wait for the next record: broadcasts, and gauges twice a second."""
        while True:
            await asyncio.sleep(0.1)
            try:
                self.standbys.check()
                if self.serving.caught_up:
                    self._keep_up()
            except Exception as error:
                self.failed(error)
            self._gauges()

    def _gauges(self) -> None:
        metrics = self.metrics
        self.serving.report()
        for partition, assignment in list(self._assignments.items()):
            engine = assignment.engine
            metrics.state_users.labels(partition).set(engine.users)
            metrics.state_bytes.labels(partition).set(engine.state_bytes)
            metrics.open_decisions.labels(partition).set(engine.open_decisions)
            waiting = assignment.waiting
            read = waiting[-1].offset if waiting else engine.applied
            unread = self.ends.after("interactions", partition, read)
            metrics.lag.labels("interactions", partition).set(len(waiting) + unread)

    def ready(self) -> bool:
        """The broadcasts are read and Faust has been given its partitions, recovered."""
        return self.serving.caught_up and bool(self.app.tables.actives_ready)


def faust_credentials(settings: Settings) -> dict[str, Any]:
    """`[kafka]` security properties in Faust's terms."""
    found = settings.kafka
    protocol = found.get("security.protocol", "plaintext").upper()
    if protocol == "PLAINTEXT":
        return {}
    import ssl

    context = None
    if protocol in ("SSL", "SASL_SSL"):
        context = ssl.create_default_context(cafile=found.get("ssl.ca.location"))
        if certificate := found.get("ssl.certificate.location"):
            context.load_cert_chain(certificate, found.get("ssl.key.location"), found.get("ssl.key.password"))
    if protocol == "SSL":
        return {"broker_credentials": context}
    return {
        "broker_credentials": faust.SASLCredentials(
            username=found.get("sasl.username", ""),
            password=found.get("sasl.password", ""),
            mechanism=found.get("sasl.mechanism", found.get("sasl.mechanisms", "PLAIN")),
            ssl_context=context,
        )
    }


def run(settings: Settings) -> None:
    """Runs until SIGTERM; what is in flight is committed or aborted as a whole."""
    from prometheus_client import CollectorRegistry

    topics.require(settings)
    metrics = Metrics(CollectorRegistry(), "worker")
    worth.declare(settings, metrics)
    worker = Worker(settings, metrics)
    server = http.serve(metrics, ready=worker.ready, alive=lambda: worker.error is None, settings=settings)
    try:
        faust.Worker(worker.app, loglevel="WARN", quiet=True, override_logging=False).execute_from_commandline()
    except SystemExit as stop:
        if stop.code:
            raise Fatal(f"the worker's engine stopped with code {stop.code}") from stop
    finally:
        worker.serving.close()
        worker.standbys.close()
        worker.ends.close()
        server.close()
