"""The learner's role: `transitions` in, `policy-versions` out, one active learner under a topic prefix.

The committed versions are the only checkpoint. A start fences whoever learned before, reads the latest versions, then
reads `transitions` again from where they say, and goes on bit for bit. Crash-only: what leaves memory ahead of the log
ends the process or, after an outage, the session.
"""

from __future__ import annotations

import importlib
import logging
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from prometheus_client import CollectorRegistry

from headrace.streams import encoders, http, kafka, topics
from headrace.streams.ends import EndsWatch
from headrace.streams.erased import Erased
from headrace.streams.errors import Fatal, HeadraceError
from headrace.streams.gate_report import report
from headrace.streams.learning import Learning
from headrace.streams.metrics import Metrics
from headrace.streams.records import PolicyVersion, decode_command, decode_policy_version, decode_transitions, encode
from headrace.streams.settings import Settings
from headrace.streams.versions import SERVED

_log = logging.getLogger("headrace.learner")
_POLL_S = 0.1
_AT_ONCE = 512  # messages taken from the consumer
_CATCHING_UP_S = 0.2  # while more messages wait, versions are published no more often than this
_SAY_EVERY_S = 5.0
_MEASURE_EVERY_S = 0.5
_FENCED = (KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH)


class Session:
    """A fenced producer and what is learned under it. Made anew after a commit that an outage cut off: `over`."""

    def __init__(self, settings: Settings, metrics: Metrics, *, dim: int) -> None:
        """Fences, reads the versions committed before, and stands where the log must be read again."""
        started_s = time.monotonic()
        self._settings = settings
        self._metrics = metrics
        self._id = settings.topics.prefix + "learner"
        self._log = TopicPartition(settings.topic("transitions"), 0)
        self._versions = settings.topic("policy-versions")
        self._producer = kafka.transactional_producer(settings, self._id)
        latest: dict[bytes | None, bytes | None] = {}
        kafka.fence_and_read(settings, self._producer, self._versions, 0, latest.__setitem__)
        versions = [decode_policy_version(value) for value in latest.values() if value is not None]
        self._learning = Learning(settings, dim=dim)
        start = self._learning.resume(versions)
        erased = Erased()
        erased.read_messages(settings)
        self._learning.leave_out(erased.covers)
        self._consumer = kafka.consumer(settings, self._id, fetch_wait_max_ms=20, fetch_queue_backoff_ms=5)
        start = self._start(start)
        self._consumer.assign([TopicPartition(self._log.topic, 0, start)])
        self._commands = kafka.consumer(settings, self._id, fetch_wait_max_ms=100)
        self._commands.assign([TopicPartition(settings.topic("policy-commands"), 0, self._learning.gate.commands + 1)])
        self._reached = start - 1
        self._published_s = self._said_s = self._measured_s = float("-inf")
        self.over = False
        metrics.recoveries.inc()
        metrics.recovery.observe(time.monotonic() - started_s)
        _log.info("%s parts resumed as of offset %s; reading from %s", len(versions), self._learning.offset, start)

    @property
    def ready(self) -> bool:
        """All that the last versions were made of has been read."""
        return self._reached >= self._learning.offset

    def _start(self, wanted: int) -> int:
        """Where reading begins: not before what is kept. Refuses a log that is not the one that was learned."""
        low, high = self._ends()
        learned = self._learning.offset
        if learned >= high:
            raise HeadraceError(
                f"{self._versions} knows {self._log.topic} up to offset {learned}, but it ends at {high}, so it was"
                f" made anew: delete {self._versions} too and run `headrace topics create`"
            )
        if wanted < low and learned >= 0:
            _log.warning("transitions before offset %s are deleted: decisions before it learn nothing more", low)
        return max(wanted, low)

    def _ends(self) -> tuple[int, int]:
        while True:
            try:
                low, high = self._consumer.get_watermark_offsets(self._log, timeout=5)
                return low, high
            except KafkaException as error:
                kafka.check(error.args[0])

    # -- the flow -----------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Takes the messages that wait, learns them in order, publishes the versions that fall due."""
        messages = kafka.consume(self._consumer, 1, _POLL_S)
        self._listen()
        if messages:
            messages += kafka.consume(self._consumer, _AT_ONCE - 1, 0)
            started_s = time.monotonic()
            published_s = 0.0
            for n, message in enumerate(messages, 1):
                if error := message.error():
                    kafka.check(error)
                    continue
                versions = self._learning.apply(
                    decode_transitions(message.value() or b""),
                    message.offset(),
                    now_ms=int(time.time() * 1000),
                    publish=self._due(waiting=len(messages) - n),
                )
                self._reached = message.offset()
                if versions:
                    published_s += self._publish(versions)
                    if self.over:
                        break
            self._metrics.stage.labels("learn").observe(time.monotonic() - started_s - published_s)
            self._count()
        self._measure()

    def _listen(self) -> None:
        """Commands that have come: the next boundary takes them."""
        for message in kafka.consume(self._commands, 100, 0):
            if error := message.error():
                kafka.check(error)
                continue
            try:
                self._learning.gate.wants(decode_command(message.value() or b""), message.offset())
            except (msgspec.DecodeError, UnicodeDecodeError) as problem:
                _log.warning("policy-commands@%s is no command and is passed over: %s", message.offset(), problem)

    def _due(self, *, waiting: int) -> bool:
        """Publishes at each boundary, but while catching up only now and then: the next version will know it all."""
        late = waiting >= self._settings.learner.publish_messages
        return not late or time.monotonic() - self._published_s > _CATCHING_UP_S

    def _publish(self, versions: Sequence[PolicyVersion]) -> float:
        """Commits versions in one transaction: they serve, and a restart begins at them. Returns the seconds taken."""
        started_s = time.monotonic()
        try:
            self._producer.begin_transaction()
            for version in versions:
                kafka.produce(
                    self._producer, self._versions, key=version.part.encode(), value=encode(version), partition=0
                )
            self.over = kafka.commit(self._producer)
        except (KafkaException, Fatal) as error:
            raise self._explained(error, versions) from error
        self._published_s = time.monotonic()
        self._metrics.commits.labels("retried" if self.over else "committed").inc()
        self._metrics.stage.labels("publish").observe(self._published_s - started_s)
        for version in versions:
            if version.policy in SERVED:
                self._metrics.versions.labels(version.policy).inc()
                self._metrics.policy_version.labels(version.policy).set(version.version)
        now_ms = time.time() * 1000
        for sent_ms in self._learning.tally.sent_ms:
            self._metrics.outcome_to_policy.observe(max(0.0, (now_ms - sent_ms) / 1000))
        self._learning.tally.sent_ms.clear()
        if self._published_s - self._said_s >= _SAY_EVERY_S:
            self._said_s = self._published_s
            said = ", ".join(f"{v.part} {v.version} ({len(v.arrays):,} bytes)" for v in versions[:2])
            _log.info("published %s as of offset %s", said, versions[0].offset)
        return self._published_s - started_s

    def _explained(self, error: KafkaException | Fatal, versions: Sequence[PolicyVersion]) -> Fatal:
        cause = error if isinstance(error, KafkaException) else error.__cause__
        code = cause.args[0].code() if isinstance(cause, KafkaException) else None
        if code in _FENCED:
            return Fatal(
                f"another learner has taken over ({self._id}): run one learner under a topics.prefix; this one stops"
            )
        if code == KafkaError.MSG_SIZE_TOO_LARGE:
            largest = max(len(version.arrays) for version in versions)
            return Fatal(f"a policy version of {largest:,} bytes is too large: raise topics.large_message_bytes")
        return (
            error if isinstance(error, Fatal) else Fatal(f"policy versions were not published: {error.args[0].str()}")
        )

    # -- what is counted ----------------------------------------------------------------------------------------------

    def _count(self) -> None:
        tally = self._learning.tally
        self._metrics.learner_steps.labels("fresh").inc(tally.fresh)
        self._metrics.learner_steps.labels("correction").inc(tally.corrections)
        self._metrics.learner_steps.labels("step").inc(tally.steps)
        self._metrics.learner_dropped.inc(tally.unmatched)
        if tally.misfits:
            _log.warning(
                "%s decisions were made to other widths than the settings say, or with another encoder than the newest:"
                " nothing is learned from them; run workers and learner with the same settings, and see `headrace "
                "encoder show`",
                tally.misfits,
            )
        tally.fresh = tally.corrections = tally.steps = tally.unmatched = tally.misfits = 0

    def _measure(self) -> None:
        if time.monotonic() - self._measured_s >= _MEASURE_EVERY_S:
            self._measured_s = time.monotonic()
            for (_, partition), behind in kafka.lag(self._consumer).items():
                self._metrics.lag.labels("transitions", str(partition)).set(behind)
            report(self._learning.gate, self._metrics)

    def close(self) -> None:
        """What is not published yet is learned again from the log."""
        self._consumer.close()
        self._commands.close()


class Learner:
    """Sessions, one after the other."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._stop = threading.Event()
        self._session: Session | None = None

    @property
    def ready(self) -> bool:
        return self._session is not None and self._session.ready

    def run(self) -> None:
        dim = encoders.state_dim(self._settings)
        if self._settings.policy.name == "neural_linear":
            importlib.import_module("headrace.policy.trunk_training")  # torch takes seconds: before, not in the middle
        while not self._stop.is_set():
            self._on_signals(signal.SIG_DFL)  # nothing to drain before a session stands: a signal ends us at once
            encoders.of_the_settings(self._settings)
            self._session = Session(self._settings, self._metrics, dim=dim)
            self._on_signals(lambda *_: self._stop.set())
            try:
                while not (self._stop.is_set() or self._session.over):
                    self._session.step()
            finally:
                self._session.close()

    @staticmethod
    def _on_signals(handler: Any) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handler)


def run(settings: Settings) -> None:
    """The role: blocks until SIGTERM or SIGINT. Raises HeadraceError in one line, Fatal where it must start again."""
    topics.require(settings)
    metrics = Metrics(CollectorRegistry(), "learner")
    learner = Learner(settings, metrics)
    server = http.serve(metrics, ready=lambda: learner.ready, alive=lambda: True, settings=settings)
    ends = EndsWatch(settings, metrics, ["transitions"])
    try:
        learner.run()
    finally:
        ends.close()
        server.close()
