"""What a worker decides with, kept up to date between two records: items, policies, and the encoders themselves."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace

from headrace.streams import encoders, models
from headrace.streams.encoders import TOPIC
from headrace.streams.errors import ArtifactMismatch
from headrace.streams.metrics import Metrics
from headrace.streams.models import RULES
from headrace.streams.recommend import Recommender
from headrace.streams.records import Announcement, Item, PolicyVersion
from headrace.streams.rules.book import RuleBook
from headrace.streams.rules.standing import Standing
from headrace.streams.settings import Settings
from headrace.streams.swap import Swap
from headrace.streams.versions import SERVED

log = logging.getLogger("headrace.worker")


class Serving:
    """One set of models and what keeps it current; when the next set is ready it takes the place of this one."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Loads the newest announced artifacts that can be read here, and begins to read the broadcast topics."""
        self._settings, self._metrics = settings, metrics
        self._refused: set[int] = set()
        self._models = models.load_models(settings, encoders.in_force(settings, refused=self._refuse))
        self._next: Swap | None = None
        self._heard: dict[int, Announcement] = {}  # newer than what serves
        self._started_ms = time.time() * 1000
        self._cache_counts = (0, 0)
        self.rules = RuleBook(settings)
        self._stand()
        self._tell()
        self._broadcast = models.broadcast(settings)
        self._broadcast.start()

    @property
    def recommender(self) -> Recommender:
        return self._models.recommender

    @property
    def caught_up(self) -> bool:
        """Everything that stood in the broadcast topics at the start has arrived."""
        return self._broadcast.caught_up

    def wait_caught_up(self) -> None:
        if not self._broadcast.caught_up:
            self._broadcast.wait_caught_up()

    def close(self) -> None:
        if self._next is not None:
            self._next.cancel()
        self._broadcast.close()

    def keep_up(self) -> bool:
        """Takes what has arrived; True where another set of models serves from here on. Never within a record."""
        self._broadcast.check()
        announced: list[tuple[int, Announcement]] = []
        arrived = self._broadcast.take()
        for topic, record in arrived:
            if topic == TOPIC:
                announced.append(record)
            elif topic == RULES:
                self.rules.put(*record)
            else:
                self._apply(topic, record)
        if arrived:
            self._models.items.settle()
        self._hear(announced)
        return self._change_over()

    def _apply(self, topic: str, record: Item | PolicyVersion) -> None:
        kind = self._models.apply(topic, record)
        if kind is not None and isinstance(record, Item):
            self._metrics.item_changes.labels(kind).inc()
            if record.sent_ms > self._started_ms and kind != "removed":
                self._metrics.item_latency.observe(max(0.0, time.time() - record.sent_ms / 1000))
        if isinstance(record, PolicyVersion) and record.policy in SERVED:
            self._metrics.policy_version.labels(record.policy).set(record.version)

    # -- encoders ---------------------------------------------------------------------------------------------------

    def _hear(self, announced: list[tuple[int, Announcement]]) -> None:
        """The newest announcement that is not refused is prepared, unless it names what serves already."""
        now = self._models.encoders
        heard = self._heard | dict(announced)
        self._heard = {n: said for n, said in heard.items() if n > now.serial and n not in self._refused}
        serial = max(self._heard, default=0)
        if not serial or (self._next is not None and self._next.serial == serial):
            return
        if self._next is not None:
            self._next.cancel()
            self._next = None
        said = self._heard[serial]
        if (said.user_version, said.text_version) == (now.user_version, now.text_version):
            self._models.recommender.encoder_serial = serial
            self._models.encoders = replace(now, serial=serial)
            self._tell()
            return
        log.info("encoder %s (%s) is announced by %s and made ready", serial, said.user_version, said.who)
        self._next = Swap(self._settings, serial, said, serving=self._models)

    def _change_over(self) -> bool:
        coming = self._next
        if coming is None:
            return False
        if coming.failure is not None:
            self._refuse(coming.serial, coming.failure)
            self._next = None
            coming.cancel()
            self._hear([])  # one before it may be newer than what serves
            return False
        if not coming.ready:
            return False
        before, old = self._models, self._broadcast
        self._models, self._broadcast = coming.take()
        self._next = None
        for rule in coming.rules:  # what the set's reader has taken and the old one not: the rest is known
            self.rules.put(*rule)
        self._stand()
        threading.Thread(target=old.close, daemon=True).start()
        self._metrics.encoder_info.remove(before.encoder.version)
        if before.encoders.text_version != self._models.encoders.text_version:
            self._metrics.text_encoder_info.remove(before.encoders.text_version)
        self._cache_counts = (0, 0)
        self._tell()
        self._metrics.encoder_swaps.labels("swapped").inc()
        log.info("encoder %s (%s) serves", coming.serial, self._models.encoder.version)
        self._hear(coming.later)
        return True

    def _stand(self) -> None:
        """The rules are known already, whatever set serves; what they ask of its items is looked up anew."""
        self._models.recommender.describer.rules = Standing(self._settings, self._models.items, self.rules)

    def _refuse(self, serial: int, error: BaseException) -> None:
        """What served so far serves on."""
        self._refused.add(serial)
        self._metrics.encoder_swaps.labels("refused").inc()
        if isinstance(error, ArtifactMismatch):
            log.warning("encoder %s is refused: %s", serial, error)
        else:
            log.error("encoder %s cannot be made ready and is refused", serial, exc_info=error)

    def _tell(self) -> None:
        self._metrics.encoder_info.labels(self._models.encoder.version).set(1)
        self._metrics.text_encoder_info.labels(self._models.encoders.text_version).set(1)
        self._metrics.encoder_serial.set(self._models.encoders.serial)

    def _tell_rules(self, now_ms: int) -> None:
        rules = self.rules
        for state, said in (
            ("in_force", rules.in_force(now_ms)),
            ("refused", rules.refused(now_ms)),
            ("expired", rules.expired(now_ms)),
        ):
            self._metrics.rules.labels(state).set(len(said))
        self._metrics.rules_offset.set(rules.version)

    def report(self) -> None:
        """Gauges, and what the encoder's cache has saved since the last time."""
        items, encoder = self._models.items, self._models.encoder
        available = len(items.pool())
        self._metrics.items.labels("available").set(available)
        self._metrics.items.labels("unavailable").set(len(items.rows) - available)
        self._tell_rules(int(time.time() * 1000))
        self._metrics.index_recall.set(items.index.recall)
        before, self._cache_counts = self._cache_counts, (encoder.hits, encoder.rebuilt)
        for outcome, was, now in zip(("hit", "rebuilt"), before, self._cache_counts, strict=True):
            self._metrics.encoder_cache.labels(outcome).inc(now - was)
