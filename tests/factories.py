"""Made-up records of `transitions`: one builder a kind, and a whole log. `changes` replace fields of a sound record."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np

from headrace.policy.features import SCALARS
from headrace.streams.records import Behaviour, Closed, Erased, Opened, Outcome, Transition, Transitions, item_key
from headrace.streams.rewards import Rewards
from headrace.streams.settings import Settings

T0 = 1_790_000_000_000
REWARD_VERSION = Rewards(Settings()).version


def make_opened(
    name: str = "r-1", *, user: str = "u1", k: int = 3, d: int = 64, m: int = len(SCALARS), c: int = 0, **changes: Any
) -> Opened:
    """A decision whose features depend on its name alone."""
    rng = np.random.default_rng(item_key(name))
    items = rng.normal(size=(k, d))
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    slate = [f"i{rng.integers(200)}-{p}" for p in range(k)]
    opened = Opened(
        recommendation_id=name,
        user_id=user,
        ts=T0,
        sent_ms=T0,
        placement="default",
        arm="policy",
        policy="linucb",
        policy_version=0,
        encoder_version="sha256:0",
        trigger_kind="event",
        trigger_id="e-1",
        slate=slate,
        propensities=rng.uniform(0.05, 1, size=k).astype("<f8").tobytes(),
        state=(rng.normal(size=d) / np.sqrt(d)).astype("<f4").tobytes(),
        context=rng.uniform(size=c).astype("<f4").tobytes(),
        items=items.astype("<f2").tobytes(),
        scalars=rng.uniform(size=(k, m)).astype("<f4").tobytes(),
        candidates=np.array([item_key(i) for i in slate], "<u8").tobytes(),
        explored=bytes(k),
    )
    return msgspec.structs.replace(opened, **changes)


def make_outcome(name: str = "r-1", *, position: int = 0, reward: float = 1.0, **changes: Any) -> Outcome:
    """A click on one position; a unique outcome id unless `outcome_id` is given."""
    outcome = Outcome(
        recommendation_id=name,
        outcome_id=f"made/{next(_serial)}",
        type="click",
        ts=T0 + 1_000,
        sent_ms=T0 + 1_000,
        positions=[position],
        reward=reward,
        value=None,
        quantity=None,
        matched="id",
        reward_version=REWARD_VERSION,
        user_id="u1",
        arm="policy",
        opened_ts=T0,
    )
    return msgspec.structs.replace(outcome, **changes)


def make_impression(name: str = "r-1", *, positions: list[int], **changes: Any) -> Outcome:
    return make_outcome(name, reward=0.0, **{"type": "impression", "positions": positions, **changes})


def make_closed(
    name: str = "r-1", *, closed_as: str = "shown", rewards: dict[int, float] | None = None, **changes: Any
) -> Closed:
    """The end of a decision; `rewards` by the positions shown."""
    told = rewards or {}
    closed = Closed(name, "u1", "policy", T0, T0 + 60_000, closed_as, list(told), list(told.values()), REWARD_VERSION)
    return msgspec.structs.replace(closed, **changes)


def make_behaviour(item: int = 1, *, previous: tuple[int, ...] = (), kind: str = "view", ts: int = T0) -> Behaviour:
    return Behaviour(item, kind, ts, np.array(previous, "<u8").tobytes())


def make_transitions(*records: Transition, tick: bool = False, offset: int = 0) -> Transitions:
    return Transitions(0, offset, T0, tick, list(records))


def make_log(
    seed: int, *, messages: int, repeats: float = 0.02, pace_ms: int = 1, partitions: int = 1, **shape: int
) -> list[Transitions]:
    """A plausible log: decisions opened, seen, clicked, bought, returned, closed each way; browsing, erasures, ticks.

    `shape` goes to make_opened. A share `repeats` of the messages repeats a record, as no healthy worker would.
    `pace_ms` of event time pass from one message to the next; of several partitions each has a clock of its own.
    """
    shop = _Shop(seed, shape, pace_ms, partitions)
    return [shop.message(offset, repeats) for offset in range(messages)]


class _Shop:
    _KINDS = ("opened", "opened", "impression", "impression", "click", "buy", "give_back", "close", "browse", "erase")

    def __init__(self, seed: int, shape: dict[str, int], pace_ms: int, partitions: int) -> None:
        self.rng = random.Random(seed)
        self.pace_ms, self.partitions = pace_ms, partitions
        self.latest: dict[str, str] = {}  # user → the decision opened last
        self.following: dict[str, str] = {}  # decision → the same user's next
        self.seed, self.shape = seed, shape
        self.k = shape.get("k", 3)
        self.opened_so_far = 0
        self.told: dict[str, dict[int, float]] = {}  # rewards of the decisions still open
        self.shown: dict[str, list[int]] = {}
        self.past: list[Transition] = []

    def message(self, offset: int, repeats: float) -> Transitions:
        rng, records = self.rng, list[Transition]()
        partition = offset % self.partitions
        ts = T0 + offset * self.pace_ms + partition * 7 * self.pace_ms
        for n in range(rng.randrange(6)):
            record = getattr(self, rng.choice(self._KINDS))(f"{offset}-{n}", ts)
            records += [record] if record else []
        if self.past and rng.random() < repeats:
            records.append(rng.choice(self.past))
        self.past += records
        return Transitions(partition, offset, ts, rng.random() < 0.2, records)

    def opened(self, tag: str, ts: int) -> Opened:
        name = f"r-{self.seed}-{self.opened_so_far}"
        self.opened_so_far += 1
        self.told[name] = {}
        user, policy = f"u{self.rng.randrange(20)}", ("linucb", "linucb", "random")[self.opened_so_far % 3]
        if user in self.latest:
            self.following[self.latest[user]] = name
        self.latest[user] = name
        return make_opened(name, user=user, ts=ts, policy=policy, **self.shape)

    def impression(self, tag: str, ts: int) -> Outcome | None:
        if not self.told:
            return None
        name = self.rng.choice(list(self.told))
        self.shown[name] = self.rng.choice((list(range(self.k)), [0], [0, 1]))
        return make_impression(name, positions=self.shown[name], outcome_id=f"impression/{tag}", ts=ts)

    def click(self, tag: str, ts: int, kind: str = "click", reward: float = 1.0) -> Outcome | None:
        seen = [name for name in self.told if name in self.shown]
        if not seen:
            return None
        name = self.rng.choice(seen)
        position = self.rng.choice(self.shown[name])
        self.told[name][position] = self.told[name].get(position, 0.0) + reward
        return make_outcome(name, position=position, reward=reward, type=kind, outcome_id=f"{kind}/{tag}", ts=ts)

    def buy(self, tag: str, ts: int) -> Outcome | None:
        return self.click(tag, ts, "purchase", 5.0)

    def give_back(self, tag: str, ts: int) -> Outcome | None:
        return self.click(tag, ts, "return", -5.0)

    def close(self, tag: str, ts: int) -> Closed | None:
        if not self.told or self.rng.random() < 0.5:
            return None
        seen = [name for name in self.told if name in self.shown]
        name = self.rng.choice(seen if seen and self.rng.random() < 0.7 else list(self.told))
        told = self.told.pop(name)
        rewards = {p: told.get(p, 0.0) for p in self.shown.get(name, [])}
        closed_as = self.rng.choice(("shown", "altered")) if rewards else "unshown"
        then = self.following.get(name)
        elapsed = 60_000 if then else None
        return make_closed(
            name, closed_as=closed_as, rewards=rewards, ts=ts, next_recommendation_id=then, elapsed_ms=elapsed
        )

    def browse(self, tag: str, ts: int) -> Behaviour:
        previous = tuple(self.rng.randrange(1, 40) for _ in range(self.rng.randrange(4)))
        kind = self.rng.choice(("view", "purchase"))
        return make_behaviour(self.rng.randrange(1, 40), previous=previous, kind=kind, ts=ts)

    def erase(self, tag: str, ts: int) -> Erased | None:
        return Erased(f"u{self.rng.randrange(20)}", ts) if self.rng.random() < 0.1 else None


_serial = iter(range(1, 10**9))
