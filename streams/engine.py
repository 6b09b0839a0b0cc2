"""One partition of the worker, without Kafka: a record of `interactions` in, its effects out.

`apply` reads top to bottom as the story of a record. It is pure until `accept`: a record that fails leaves no trace, so
that it can be tried again in parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

from headrace.export.names import type_code
from headrace.streams.busy import Busy
from headrace.streams.changelog import PROGRESS, Progress, encode_progress
from headrace.streams.clock import EventClock
from headrace.streams.culprits import culprits
from headrace.streams.decisions import Decisions
from headrace.streams.effects import Effects
from headrace.streams.errors import Fatal
from headrace.streams.people.expiry import Buckets, Lapses
from headrace.streams.recommend import Recommender
from headrace.streams.records import (
    Batch,
    Entry,
)
from headrace.streams.rules.exposure import Exposure
from headrace.streams.settings import Settings
from headrace.streams.state import UserState
from headrace.streams.step import BUCKET_MS, Step


class Engine:
    """One assigned partition: its states, clock and open decisions. `states` maps changelog keys to packed states."""

    def __init__(
        self,
        settings: Settings,
        partition: int,
        recommender: Recommender,
        *,
        states: dict[bytes, bytes] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.partition = partition
        self.states: dict[bytes, bytes] = {} if states is None else states
        progress = progress or Progress(clock={}, counts={})
        self.applied = progress.offset
        self.counts: Counter[str] = Counter(progress.counts)
        self.clock = EventClock(dict(progress.clock), progress.event_time)
        self.exposure = Exposure(dict(progress.exposure))
        self.settings = settings
        self.recommender = recommender
        self.decisions = Decisions(settings, settings.arms.shares)
        self.busy = Busy(settings.worker)
        self.codes = {name: type_code(name) for name in settings.event_types}
        self.expiry: Buckets[str] = Buckets()  # users with open decisions
        self.lapses = Lapses(settings)
        self.lapsing: Buckets[bytes] = Buckets()  # changelog keys, by when they are forgotten
        self.users = 0
        self._failing: set[str] = set()  # users whose entries failed since an entry was applied
        self.open_decisions = 0
        self.state_bytes = 0
        for key, raw in self.states.items():
            self.state_bytes += len(raw)
            if key.startswith(b"u"):
                state = UserState.unpack(raw)
                self.open_decisions += state.pending_count
                oldest = state.oldest_ts()
                if oldest is not None:
                    self.expiry.add(self.bucket(oldest), key[1:].decode())
                self.users += 1
                then = self.lapses.of_state(key[1:].decode(), state, otherwise_ms=self.clock.now)
            else:
                then = self.lapses.of(key, raw)
            if then is not None:
                self.lapsing.add(then, key)

    def serve(self, recommender: Recommender) -> None:
        """What decides from the next record on."""
        self.recommender = recommender

    def release(self) -> None:
        """The partition goes to another worker, and what is cached of its users with it: where it comes back, they may
        have been erased or merged meanwhile."""
        for key in self.states:
            if key.startswith(b"u"):
                self.recommender.evict(key[1:].decode())

    # -- one record ---------------------------------------------------------------------------------------------------

    def apply(self, batch: Batch, offset: int, *, not_before: int = 0) -> Effects:
        """Drop what was seen, join outcomes, append to histories, expire, encode and decide, publish.

        `not_before`: triggers that were sent, or happened, earlier (Unix ms) get no slate; states learn from them.

        An entry that fails alone is in `failed`, and the others are applied without it. Raises Fatal where several
        users' entries failed and none was applied between: a fault of ours, not theirs, would dead-letter everything.
        """
        try:
            return self._apply(batch, offset, batch.entries, not_before)
        except Exception:
            self.recommender.forget()
            bad = dict(culprits(partial(self._attempt, batch, offset, not_before), len(batch.entries)))
            keep = [entry for i, entry in enumerate(batch.entries) if i not in bad]
            effects = self._apply(batch, offset, keep, not_before)
            effects.failed = [(batch.entries[i], error) for i, error in bad.items()]
            if not keep and len(users := self._failing | {entry.user_id for entry, _ in effects.failed}) > 1:
                raise Fatal(
                    f"interactions[{self.partition}]@{offset}: nothing can be applied any more ({len(users)} users in a"
                    f" row: {effects.failed[-1][1]!r}): put back the models or the version that worked; nothing is lost"
                ) from effects.failed[-1][1]
            return effects

    def _attempt(self, batch: Batch, offset: int, not_before: int, indexes: Sequence[int]) -> None:
        try:
            self._apply(batch, offset, [batch.entries[i] for i in indexes], not_before)
        except Exception:
            self.recommender.forget()
            raise

    def _apply(self, batch: Batch, offset: int, entries: Sequence[Entry], not_before: int) -> Effects:
        step = Step(self, offset, self.clock.advanced(batch), not_before=not_before)
        for entry in entries:
            step.take(entry)
        step.expire()
        step.decide()
        effects = step.finish(tick=batch.tick and self.partition == 0)
        effects.applied = len(entries)
        return effects

    def accept(self, effects: Effects) -> None:
        """Makes the effects true in memory; they must then be committed, or the process ends."""
        assert effects.clock is not None
        self.clock = effects.clock
        self.exposure = effects.exposure or self.exposure
        self.applied = effects.offset
        if effects.applied:
            self._failing.clear()
        else:
            self._failing.update(entry.user_id for entry, _ in effects.failed)
        for key, value in effects.changes.items():
            if key == PROGRESS:
                continue
            old = self.states.get(key)
            self.users += key.startswith(b"u") * ((value is not None) - (old is not None))
            self.state_bytes += (len(value) if value else 0) - (len(old) if old else 0)
            if value is None:
                self.states.pop(key, None)
            else:
                self.states[key] = value
        for bucket in effects.expired:
            self.expiry.take(bucket)
        for bucket, users in effects.expiry.items():
            for user in users:
                self.expiry.add(bucket, user)
        for bucket, keys in effects.swept:
            self.lapsing.take(bucket, keys)
        for bucket, keys in effects.lapses.items():
            for key in keys:
                self.lapsing.add(bucket, key)
        self.open_decisions += effects.open_change
        for name, amount in effects.counts.items():
            self.counts["/".join(name)] += amount

    def progress(self) -> bytes:
        """The record that commits how far this partition is."""
        counts = {name: amount for name, amount in self.counts.items() if amount}
        clock, exposure = self.clock, self.exposure.accounts
        return encode_progress(Progress(self.applied, clock.sources, clock.now, counts, exposure))

    def bucket(self, opened_ts: int) -> int:
        return self.decisions.expires_at(opened_ts) // BUCKET_MS + 1
