"""The open-decision book: what a decision was taken from, kept until its outcomes have come. Pure.

Turns the messages of `transitions` into examples to learn from:

    opened              held, with its features
    impression          the positions shown become examples with the reward known so far, 0 as a rule
    any other outcome   its position becomes an example, or the reward of the example it is gets corrected
    closed as shown     what was shown and not learned becomes an example; differences in reward are corrected
    closed otherwise    forgotten: a slate nobody saw, or another than ours, teaches nothing more
    erased              the user's decisions are forgotten

What is held is a function of the log's suffix: a decision lives while it is among the last N opened. So a restart that
reads from `replay_from` holds what a learner that never stopped would hold. Every record is idempotent: opened by its
recommendation id (among the last N), outcomes by their outcome id, closed by being the first.

Every arm's decisions are held: a reward model learns from any item that was shown, whoever chose it, and the logged
propensities tell learners that need it who did.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from headrace.policy.base import Examples
from headrace.streams.records import Behaviour, Closed, Erased, Opened, Outcome, Transitions

_NO_DIFFERENCE = 1e-9  # rewards are sums of a few floats: smaller differences are rounding
_LARGEST = 100.0  # of a scalar or context feature: beyond it one example would drown all others
_LARGEST_REWARD = 1e6  # of one position: beyond it the sums of a linear model lose the digits of all others


@dataclass(frozen=True)
class Widths:
    """What a policy's rows measure; a decision made to another measure teaches it nothing."""

    state: int
    context: int
    scalars: int


class Decision:
    """One decision held. Arrays stay the bytes they came as: about 2 kB, joined into batches at memory speed."""

    __slots__ = (
        "arm",
        "closed",
        "context",
        "heard",
        "id",
        "items",
        "learned",
        "propensities",
        "rewards",
        "scalars",
        "size",
        "state",
        "user_id",
        "version",
    )

    def __init__(self, opened: Opened) -> None:
        self.user_id = opened.user_id
        self.arm = opened.arm
        self.version = opened.policy_version
        self.id = int.from_bytes(hashlib.blake2b(opened.recommendation_id.encode(), digest_size=8).digest(), "little")
        self.size = len(opened.slate)
        self.state = opened.state
        self.context = opened.context
        self.items = opened.items
        self.scalars = opened.scalars
        self.propensities = opened.propensities
        self.learned = 0  # bit p: position p is an example
        self.rewards: dict[int, float] = {}  # by position, as told so far
        self.heard: set[str] = set()  # outcome ids
        self.closed = False


@dataclass
class Lessons:
    """What one message teaches, in the order of its records."""

    decisions: list[Decision] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    fresh: list[bool] = field(default_factory=list)
    first_shown: list[Decision] = field(default_factory=list)  # decisions of which nothing was shown before
    behaviour: list[Behaviour] = field(default_factory=list)
    sent_ms: list[int] = field(default_factory=list)  # of the outcomes that taught
    unmatched: int = 0  # outcomes whose decision is not held
    misfits: int = 0  # decisions of other widths

    def examples(self, widths: Widths) -> Examples | None:
        """The rows as arrays, None where there are none."""
        n = len(self.positions)
        if not n:
            return None
        d, m = widths.state, widths.scalars
        rows = list(zip(self.decisions, self.positions, strict=True))

        def joined(parts: list[bytes], dtype: str, width: int) -> np.ndarray:
            return np.frombuffer(b"".join(parts), dtype).reshape(n, width)

        contexts = joined([x.context for x in self.decisions], "<f4", widths.context)
        scalars = joined([x.scalars[4 * m * p : 4 * m * (p + 1)] for x, p in rows], "<f4", m)
        examples = Examples(
            states=joined([x.state for x in self.decisions], "<f4", d),
            contexts=contexts.clip(-_LARGEST, _LARGEST),
            items=joined([x.items[2 * d * p : 2 * d * (p + 1)] for x, p in rows], "<f2", d).astype(np.float32),
            scalars=scalars.clip(-_LARGEST, _LARGEST),
            propensities=joined([x.propensities[8 * p : 8 * (p + 1)] for x, p in rows], "<f8", 1)[:, 0],
            positions=np.array(self.positions, np.int64),
            rewards=np.array(self.rewards, np.float64),
            fresh=np.array(self.fresh, np.bool_),
            ids=np.array([(x.id + p) & 0xFFFF_FFFF_FFFF_FFFF for x, p in rows], np.uint64),
        )
        return _finite(examples)

    def _add(self, decision: Decision, position: int, reward: float, *, fresh: bool) -> None:
        self.decisions.append(decision)
        self.positions.append(position)
        self.rewards.append(reward)
        self.fresh.append(fresh)

    def show(self, decision: Decision, position: int) -> None:
        """The position was shown: an example with the reward known so far, once."""
        if not decision.learned >> position & 1:
            if not decision.learned:
                self.first_shown.append(decision)
            decision.learned |= 1 << position
            self._add(decision, position, decision.rewards.get(position, 0.0), fresh=True)

    def tell(self, decision: Decision, position: int, reward: float) -> None:
        """The position earned `reward` more."""
        before = decision.rewards.get(position, 0.0)
        after = before + reward
        if not abs(after) <= _LARGEST_REWARD:
            after = before if math.isnan(after) else math.copysign(_LARGEST_REWARD, after)
        decision.rewards[position] = after
        if not decision.learned >> position & 1:
            self.show(decision, position)
        elif abs(after - before) > _NO_DIFFERENCE:
            self._add(decision, position, after - before, fresh=False)


def _finite(examples: Examples) -> Examples | None:
    """Without the rows that hold a NaN or an infinity, None where no row is left."""
    columns = (examples.states, examples.contexts, examples.items, examples.scalars)
    good = np.logical_and.reduce([np.isfinite(column).all(axis=1) for column in columns])
    if good.all():
        return examples
    if not good.any():
        return None
    return Examples(**{name: column[good] for name, column in vars(examples).items() if column is not None})


class Book:
    """The last `size` opened decisions. Decisions of other widths than `widths` are not held."""

    def __init__(self, size: int, widths: Widths, *, assume_shown: bool = False) -> None:
        self._size = size
        self._widths = widths
        self._assume_shown = assume_shown
        self._held: dict[str, Decision] = {}
        self._of_user: dict[str, list[str]] = {}
        self._window: deque[tuple[str, int]] = deque()  # recommendation id and offset of the last opened records
        self._opened = 0  # opened records read so far; the newest in the window is number _opened - 1
        self._latest: dict[
            str, tuple[int, int]
        ] = {}  # recommendation id → number and offset of its latest opened record
        self._repeats: deque[tuple[int, int]] = deque()  # number of a repeated record, offset of the one it repeats

    def __len__(self) -> int:
        return len(self._held)

    def replay_from(self, otherwise: int) -> int:
        """The offset from which a new book must read to become this one; `otherwise` where nothing was opened."""
        first = self._window[0][1] if self._window else otherwise
        return min([first, *(offset for _, offset in self._repeats)])

    def read(self, message: Transitions, offset: int) -> Lessons:
        """Takes in one message, its records in order."""
        lessons = Lessons()
        for record in message.records:
            match record:
                case Opened():
                    self._open(record, offset, lessons)
                case Outcome():
                    self._outcome(record, lessons)
                case Closed():
                    self._close(record, lessons)
                case Behaviour():
                    lessons.behaviour.append(record)
                case Erased():
                    for recommendation_id in list(self._of_user.get(record.user_id, ())):
                        self._forget(recommendation_id)
        return lessons

    def _open(self, record: Opened, offset: int, lessons: Lessons) -> None:
        name, number = record.recommendation_id, self._opened
        self._opened += 1
        self._window.append((name, offset))
        if len(self._window) > self._size:
            self._expire()
        before = self._latest.get(name)
        self._latest[name] = (number, offset)
        if before is not None:
            self._repeats.append((number, before[1]))
            return
        if not self._fits(record):
            lessons.misfits += 1
            return
        self._held[name] = decision = Decision(record)
        self._of_user.setdefault(record.user_id, []).append(name)
        if self._assume_shown:
            for position in range(decision.size):
                lessons.show(decision, position)

    def _expire(self) -> None:
        """The oldest record leaves the window, and its decision the book."""
        name, _ = self._window.popleft()
        number = self._opened - 1 - self._size
        if self._repeats and self._repeats[0][0] == number:
            self._repeats.popleft()
        else:
            self._forget(name)
        if self._latest[name][0] == number:
            del self._latest[name]

    def _forget(self, name: str) -> None:
        decision = self._held.pop(name, None)
        if decision is None:
            return
        names = self._of_user[decision.user_id]
        names.remove(name)
        if not names:
            del self._of_user[decision.user_id]

    def _fits(self, record: Opened) -> bool:
        k, w = len(record.slate), self._widths
        return (
            len(record.state) == 4 * w.state
            and len(record.context) == 4 * w.context
            and len(record.items) == 2 * k * w.state
            and len(record.scalars) == 4 * k * w.scalars
            and len(record.propensities) == 8 * k
        )

    def _outcome(self, record: Outcome, lessons: Lessons) -> None:
        decision = self._held.get(record.recommendation_id)
        if decision is None:
            lessons.unmatched += 1
            return
        if record.outcome_id in decision.heard:
            return
        decision.heard.add(record.outcome_id)
        before = len(lessons.positions)
        for position in record.positions:
            if not 0 <= position < decision.size:
                continue
            if decision.closed and not decision.learned >> position & 1:
                continue  # a return after the end corrects what was learned, and teaches nothing new
            if record.type == "impression":
                lessons.show(decision, position)
            else:
                lessons.tell(decision, position, record.reward)
        if len(lessons.positions) > before:
            lessons.sent_ms.append(record.sent_ms)

    def _close(self, record: Closed, lessons: Lessons) -> None:
        decision = self._held.get(record.recommendation_id)
        if decision is None or decision.closed:
            return
        if record.closed_as != "shown":
            self._forget(record.recommendation_id)
            return
        decision.closed = True  # and held on while it is among the last N: a purchase may be returned after the end
        for position, reward in zip(record.shown, record.rewards, strict=True):
            if 0 <= position < decision.size:
                lessons.tell(decision, position, reward - decision.rewards.get(position, 0.0))
