"""Another set of models, made ready in the background beside the one that serves.

The set reads the catalogue and the policy versions whole, as a starting worker does, and keeps up with them until it is
taken. So the worker changes over between two records, in the time of an assignment; states are encoded anew from their
histories as their users come.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from headrace.streams import encoders, models, topics
from headrace.streams.broadcast import Broadcast
from headrace.streams.encoders import TOPIC, Encoders
from headrace.streams.models import RULES, Models
from headrace.streams.records import Announcement
from headrace.streams.rules.book import Heard
from headrace.streams.settings import Settings

_AT_ONCE = 64  # records between two rests: the thread that serves shares the interpreter with this one
_REST = 1.0  # seconds of rest a second of work
_PAUSE_S = 0.02


class Swap:
    """Begins at once. Every method is called by one other thread."""

    def __init__(self, settings: Settings, serial: int, said: Announcement, *, serving: Models) -> None:
        """Beside the set that is `serving`. Another text encoder than its own is ready when all items are encoded."""
        self.serial = serial
        self.failure: BaseException | None = None
        self.later: list[tuple[int, Announcement]] = []  # announced since
        self.rules: list[Heard] = []
        self._settings, self._said = settings, said
        self._same_texts = said.text_version == serving.encoders.text_version
        self._serving = serving
        self._found: Encoders | None = None
        self._models: Models | None = None
        self._broadcast: Broadcast | None = None
        self._ready = threading.Event()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="swap", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """The set knows what a worker that starts now would know."""
        return self._ready.is_set()

    def take(self) -> tuple[Models, Broadcast]:
        """The set and its reader, which are the caller's from here on. Only where `ready`."""
        self._end.set()
        self._thread.join()
        assert self._models is not None and self._broadcast is not None
        return self._models, self._broadcast

    def cancel(self) -> None:
        """What was made ready is let go, in its own time."""
        self._end.set()
        threading.Thread(target=self._abandon, daemon=True).start()

    def _abandon(self) -> None:
        self._thread.join()
        if self._broadcast is not None:
            self._broadcast.close()

    def _run(self) -> None:
        try:
            self._prepare()
        except BaseException as error:
            self.failure = error

    def _prepare(self) -> None:
        self._found = encoders.resolve(self.serial, self._said)
        self._models = models.load_models(self._settings, self._found)
        self._broadcast = models.broadcast(self._settings)
        self._broadcast.start()
        partitions = topics.partitions(self._settings, "items")  # the shop's topic: as many as it likes
        while not self._end.is_set():
            caught_up = self._broadcast.caught_up  # asked first: what stood there then is among what is taken now
            self._broadcast.check()
            self._apply(self._broadcast.take())
            if caught_up and (self._same_texts or self._models.complete(partitions=partitions)):
                self._warm()
                self._ready.set()
            self._end.wait(_PAUSE_S)

    def _warm(self) -> None:
        """Looks up the neighbours that were asked of the serving set: the first decisions would do it all at once."""
        assert self._models is not None
        items, keys = self._models.items, [] if self._ready.is_set() else self._serving.items.asked_for().tolist()
        for start in range(0, len(keys), _AT_ONCE):
            began_s = time.monotonic()
            items.neighbours(items.rows_of(keys[start : start + _AT_ONCE]))
            if self._end.wait(_REST * (time.monotonic() - began_s)):
                return

    def _apply(self, arrived: list[tuple[str, Any]]) -> None:
        assert self._models is not None
        began_s = time.monotonic()
        for n, (topic, record) in enumerate(arrived, 1):
            if topic == TOPIC:
                if record[0] > self.serial:
                    self.later.append(record)
            elif topic == RULES:
                self.rules.append(record)
            else:
                self._models.apply(topic, record)
            if n % _AT_ONCE == 0 and not self._end.is_set():
                self._models.items.settle()
                self._end.wait(_REST * (time.monotonic() - began_s))
                began_s = time.monotonic()
        self._models.items.settle()
