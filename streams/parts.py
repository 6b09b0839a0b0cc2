"""What the learner keeps learning, part by part: the policies, and the behaviour models in shards. Pure.

Each part is a function of the messages up to an offset. A part resumed from a version is fed only what came after it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from headrace.policy.base import U64, Arrays, Examples, Meta, Policy, Steps
from headrace.policy.behaviour import CoOccurrence, Popularity, behaviour
from headrace.streams.records import Behaviour, PolicyVersion
from headrace.streams.space import Space
from headrace.streams.versions import MISFIT, arrays_of, part_of, version_of

log = logging.getLogger("headrace.learner")
_CHECKPOINT_BITS = 16  # a part that learned nothing for 2^16 offsets is published again: a restart reads on from there
_SHARDS_AT_ONCE = 5  # of 80: each is published every 16 boundaries, a few at a time, so that no worker stands still
_BYTES_AT_ONCE = 524_288


class Trail:
    """From where the log must be read again to see the latest `wanted` fresh examples, decisions and all."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._fresh = 0
        self._points: deque[tuple[int, int]] = deque()  # fresh examples before a message, the book's replay offset then

    def note(self, fresh: int, replay_from: int) -> None:
        """A message brought `fresh` examples; before it, the book would have been rebuilt from `replay_from`."""
        if not fresh or not self._wanted:
            return
        self._points.append((self._fresh, replay_from))
        self._fresh += fresh
        while len(self._points) > 1 and self._points[1][0] <= self._fresh - self._wanted:
            self._points.popleft()

    def replay_from(self, book: int) -> int:
        """The offset; `book` is from where the book must be rebuilt in any case."""
        return min(book, self._points[0][1]) if self._points else book


class PolicyPart:
    """One learned policy. `known`: up to this offset a published version has learned; -1 for nothing.

    `forgot`: where the policy was put back to an earlier version; nothing up to there is remembered any more.
    """

    def __init__(self, policy: Policy, *, started: bool = False, rewards: str = "", space: Space | None = None) -> None:
        """`started`: the policy knows something already, which is to be published. `rewards`: their version; `space`:
        what it learns in."""
        self.policy, self._rewards = policy, rewards
        self.space = space or Space(policy.dim)
        self.known = self.forgot = -1
        self._beginning = policy.snapshot()
        self._published = -1
        self._learned = started  # something since the last version
        self._trail = Trail(policy.memory)

    def resume(self, record: PolicyVersion) -> None:
        """Becomes what was published, or starts anew where the settings have since made another policy of it."""
        try:
            self.policy.restore(*arrays_of(record))
            self.forgot = int(record.meta.get("forgot", -1))
        except MISFIT as error:
            log.warning("%s %s cannot be resumed and is learned anew: %s", record.part, record.version, error)
            self.policy.restore(*self._beginning)
            return
        self.known = self._published = record.offset

    def learn_anew(self) -> None:
        """Begins from nothing, and is published at the next boundary even if the log teaches nothing any more."""
        self._learned = True

    def become(self, arrays: Arrays, meta: Meta, *, offset: int) -> None:
        """Puts an earlier version back, after the message at `offset`."""
        self.policy.restore(arrays, meta)
        self._trail = Trail(self.policy.memory)
        self.forgot, self._learned = offset, True

    def begin_anew(self, *, offset: int) -> None:
        """Puts back what the policy was before it learned anything."""
        self.become(*self._beginning, offset=offset)

    def take(self, examples: Examples | None, steps: Steps | None, offset: int, *, replay_from: int) -> None:
        """What one message teaches. Steps are learned once and not remembered: a policy that replays them keeps them.

        `replay_from` is the book's, before this message.
        """
        if offset <= min(self.known, self.forgot):
            return
        try:
            self._take(examples, steps, offset, replay_from)
        except ValueError as error:  # the policy is unchanged by what it refuses, so a restart refuses the same
            log.warning("%s learns nothing from transitions@%s: %s", self.policy.name, offset, error)

    def _take(self, examples: Examples | None, steps: Steps | None, offset: int, replay_from: int) -> None:
        if examples is not None:
            self._trail.note(int(np.count_nonzero(examples.fresh)), replay_from)
            if offset > self.known:
                self.policy.learn(examples)
                self._learned = True
            elif self.policy.memory:
                self.policy.remember(examples)
        if steps is not None and offset > self.known:
            self.policy.follow(steps)
            self._learned = True

    def forget(self, owners: U64, offset: int) -> None:
        """The message at `offset` says that these users were erased. A memory is rebuilt from the log, so it forgets
        again; a replay came with the version, where the user may be a new one since."""
        if offset > self.forgot and (offset > self.known or self.policy.memory):
            self.policy.forget(owners)
            self._learned |= self.policy.follows

    def due(self, offset: int) -> bool:
        long_ago = 0 <= self._published >> _CHECKPOINT_BITS < offset >> _CHECKPOINT_BITS
        return self._learned or long_ago

    def publish(self, *, version: int, offset: int, book: int, created_ms: int) -> PolicyVersion:
        """`book` is the book's replay offset after the message at `offset`."""
        self._published, self._learned = offset, False
        arrays, meta = self.policy.snapshot()
        return version_of(
            self.policy.name,
            arrays,
            meta | {"forgot": self.forgot, "rewards": self._rewards} | self.space.meta(),
            version=version,
            offset=offset,
            replay_from=self._trail.replay_from(book),
            created_ms=created_ms,
        )


class BehaviourParts:
    """Popularity and co-occurrence, published a few shards in turn. `_slots`: up to which offset each is published."""

    def __init__(self, *, popular_half_life_ms: int) -> None:
        self.models: dict[str, Popularity | CoOccurrence] = {
            "popularity": Popularity(half_life_ms=popular_half_life_ms, shards=16),
            "co_occurrence": CoOccurrence(shards=64),
        }
        counts = {"popularity": 16, "co_occurrence": 64}
        places = sorted((shard / count, name, shard) for name, count in counts.items() for shard in range(count))
        self._turn = [(name, shard) for _, name, shard in places]  # evenly mixed
        self._slots = dict.fromkeys(self._turn, -1)
        self._next = 0
        self._known = {name: np.full(count, -1, np.int64) for name, count in counts.items()}

    @property
    def known(self) -> int:
        """Up to this offset every shard is published, or did not change."""
        return min(self._slots.values())

    def begin(self, shards: Mapping[str, tuple[Arrays, Meta]]) -> None:
        """Begins from shards, by part, which are published like what is learned."""
        for part, (arrays, meta) in shards.items():
            name, _, shard = part.partition("/")
            self.models[name].restore(int(shard), arrays, meta, changed=True)

    def resume(self, records: Sequence[PolicyVersion]) -> None:
        if not records:
            return
        newest = max(records, key=lambda record: record.offset)
        slots = [int(offset) for offset in str(newest.meta["slots"]).split(",")]
        try:
            for record in records:
                name, shard = part_of(record)
                self.models[name].restore(shard, *arrays_of(record))
            self._slots = dict(zip(self._turn, slots, strict=True))
        except MISFIT as error:
            log.warning("the behaviour models cannot be resumed and are learned anew: %s", error)
            self.__init__()  # type: ignore[misc]
            return
        self._next = int(newest.meta["next"])
        for (name, shard), offset in self._slots.items():
            self._known[name][shard] = offset

    def take(self, records: Sequence[Behaviour], offset: int) -> None:
        batch = behaviour(
            [r.item for r in records], [r.type for r in records], [r.ts for r in records], [r.previous for r in records]
        )
        for name, model in self.models.items():
            lacking = self._known[name] < offset
            if lacking.all():
                model.learn(batch)
            elif lacking.any():
                model.learn(batch, shards=lacking)

    def publish(self, *, version: int, offset: int, created_ms: int) -> list[PolicyVersion]:
        """The shards whose turn it is, of those that changed."""
        versions: list[PolicyVersion] = []
        size = 0
        for _ in self._turn:
            if len(versions) >= _SHARDS_AT_ONCE or size >= _BYTES_AT_ONCE:
                break
            name, shard = self._turn[self._next]
            self._next = (self._next + 1) % len(self._turn)
            self._slots[name, shard] = offset
            for arrays, meta in self.models[name].shards(among=[shard]).values():
                versions.append(
                    version_of(
                        f"{name}/{shard}",
                        arrays,
                        meta,
                        version=version,
                        offset=offset,
                        replay_from=offset + 1,
                        created_ms=created_ms,
                    )
                )
                size += len(versions[-1].arrays)
        slots = ",".join(map(str, self._slots.values()))
        return [msgspec.structs.replace(v, meta={**v.meta, "slots": slots, "next": self._next}) for v in versions]
