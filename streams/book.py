"""The open-decision book: what a decision was taken from, kept until its outcomes have come. Pure.

Turns the messages of `transitions` into examples to learn from:

    opened              held, with its features
    impression          the positions shown become examples with the reward known so far, 0 as a rule
    any other outcome   its position becomes an example, or the reward of the example it is gets corrected
    time                what has come is worth less and less more than itself: see policy/delays.py
    closed as shown     what was shown and not learned becomes an example; differences in reward are corrected; the
                        slate, its rewards and the decision that followed it become a step
    closed otherwise    forgotten: a slate nobody saw, or another than ours, teaches nothing more
    erased              the user's decisions are forgotten

What is held is a function of the log's suffix: a decision lives while it is among the last N opened. So a restart that
reads from `replay_from` holds what a learner that never stopped would hold. Every record is idempotent: opened by its
recommendation id (among the last N), outcomes by their outcome id, closed by being the first.

Rewards are of one version, the settings': what a worker told under another is computed again from the raw outcome.

Every arm's decisions are held: a reward model learns from any item that was shown, whoever chose it, and the logged
propensities tell learners that need it who did.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable

import numpy as np

from headrace.policy import delays
from headrace.streams.estimates import Estimates
from headrace.streams.lessons import Decision, Followed, Lessons, Widths
from headrace.streams.records import Behaviour, Closed, Erased, Opened, Outcome, Transitions
from headrace.streams.rewards import Earned, Rewards
from headrace.streams.settings import Settings
from headrace.streams.state import short_hash

__all__ = ["Book", "Decision", "Lessons", "Widths"]
_LARGEST_REWARD = 1e6  # of one position: beyond it the sums of a linear model lose the digits of all others
_WORTH_TELLING = 0.05  # by so much of itself a multiplier must have moved to be told again
_RANDOM = "random"  # the policy whose slates tell what a position is worth


class Book:
    """The last `size` opened decisions. Decisions of other widths than `widths` are not held."""

    def __init__(
        self,
        size: int,
        widths: Widths,
        *,
        assume_shown: bool = False,
        rewards: Rewards | None = None,
        estimates: Estimates | None = None,
    ) -> None:
        """Without `estimates` rewards are told as they come, and positions as they are."""
        self._size = size
        self._widths = widths
        self._assume_shown = assume_shown
        self._rewards = rewards or Rewards(Settings())
        self._kinds = {name: i for i, name in enumerate(self._rewards.kinds)}
        self._estimates = estimates
        self._maturing: dict[int, list[tuple[int, int, str]]] = {}  # by partition: when a multiplier falls, of what
        self._held: dict[str, Decision] = {}
        self._of_user: dict[str, list[str]] = {}
        self._window: deque[tuple[str, int]] = deque()  # recommendation id and offset of the last opened records
        self._offset = -1  # of the message being read
        self._opened = 0  # opened records read so far; the newest in the window is number _opened - 1
        self._latest: dict[
            str, tuple[int, int]
        ] = {}  # recommendation id → number and offset of its latest opened record
        self._repeats: deque[tuple[int, int]] = deque()  # number of a repeated record, offset of the one it repeats
        # Of whom, up to when, nothing is taken in, although the log says only further on that he was erased.
        self.erased: Callable[[str, int], bool] | None = None

    def __len__(self) -> int:
        return len(self._held)

    def of(self, user_id: str) -> list[str]:
        """Recommendation ids of the user's decisions that are held."""
        return list(self._of_user.get(user_id, ()))

    def replay_from(self, otherwise: int) -> int:
        """The offset from which a new book must read to become this one; `otherwise` where nothing was opened."""
        first = self._window[0][1] if self._window else otherwise
        return min([first, *(offset for _, offset in self._repeats)])

    def read(self, message: Transitions, offset: int) -> Lessons:
        """Takes in one message, its records in order."""
        lessons = Lessons(offset)
        self._offset = offset
        self._mature(message.partition, message.event_time, lessons)
        for record in message.records:
            match record:
                case Opened():
                    self._open(record, offset, lessons)
                case Outcome():
                    self._outcome(record, message, lessons)
                case Closed():
                    self._close(record, lessons)
                case Behaviour():
                    lessons.behaviour.append(record)
                case Erased():
                    lessons.erase(record.user_id)
                    for recommendation_id in list(self._of_user.get(record.user_id, ())):
                        self._forget(recommendation_id)
        if self._estimates is not None and self._estimates.due(offset):
            self._estimate(self._estimates, message.event_time)
        return lessons

    def _open(self, record: Opened, offset: int, lessons: Lessons) -> None:
        name, number = record.recommendation_id, self._opened
        self._opened += 1
        if self._estimates is not None:
            self._estimates.opened(offset)
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
        if record.busy:
            lessons.busy += 1
            return
        if self.erased is not None and self.erased(record.user_id, record.ts):
            return
        self._held[name] = decision = self._decision(record, offset)
        self._of_user.setdefault(record.user_id, []).append(name)
        if self._assume_shown and not record.shadow:
            for position in range(decision.size):
                self._show(decision, position, lessons)

    def _decision(self, record: Opened, offset: int) -> Decision:
        if self._estimates is None:
            return Decision(record)
        placement = self._estimates.placement(record.placement)
        table = self._estimates.in_force(offset)
        theta = table.theta(placement) if table is not None and self._estimates.position_weights else None
        return Decision(record, table=table if self._estimates.outstanding else None, theta=theta, placement=placement)

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
        d = w.state or len(record.state) // 4
        return (
            len(record.state) == 4 * d
            and len(record.context) == 4 * w.context
            and len(record.items) == 2 * k * d
            and len(record.scalars) == 4 * k * w.scalars
            and len(record.propensities) == 8 * k
        )

    # -- what decisions earn ------------------------------------------------------------------------------------------

    def _outcome(self, record: Outcome, message: Transitions, lessons: Lessons) -> None:
        if record.busy:
            lessons.busy += 1
            self._forget(record.recommendation_id)
            return
        decision = self._held.get(record.recommendation_id)
        if decision is None:
            lessons.unmatched += 1
            return
        if record.outcome_id in decision.heard:
            return
        decision.heard = (*decision.heard, record.outcome_id)
        before = len(lessons.positions)
        impression = record.type == "impression"
        now = max(message.event_time, record.ts)
        if not impression and decision.table is not None:
            decision.stage = max(decision.stage, delays.stage(now - decision.ts))
        for position in record.positions:
            if not 0 <= position < decision.size:
                continue
            if decision.closed and not decision.learned >> position & 1:
                continue  # a return after the end corrects what was learned, and teaches nothing new
            if impression:
                self._show(decision, position, lessons)
            else:
                self._earn(decision, position, record, lessons)
        if not impression:
            self._age(decision, record.recommendation_id, message.partition, now, lessons)
        if len(lessons.positions) > before:
            lessons.sent_ms.append(record.sent_ms)

    def _earn(self, decision: Decision, position: int, record: Outcome, lessons: Lessons) -> None:
        """Adds an outcome to what the position's reward is made of, or takes one back, and tells the reward."""
        rewards, mine = self._rewards, record.reward_version == self._rewards.version
        decision.mixed = decision.mixed or not mine
        decision.earned = decision.earned or {}
        earned = decision.earned.setdefault(position, [])
        event, kind = short_hash(record.outcome_id), self._kinds.get(record.type, -1)
        before = rewards.total(earned)
        if record.type == "return" and record.order:
            taken = [e for e in earned if e.order == record.order]
            if rewards.function == "sum":
                earned += [Earned(record.ts, event, -e.worth, kind=kind) for e in taken]
            else:
                earned[:] = [e for e in earned if e.order != record.order]
        elif mine and rewards.function == "sum":
            self._add(decision, position, Earned(record.ts, event, record.reward, record.order, kind))
        elif rewards.earns(record.type):
            worth = rewards.worth(record.type, record.value, record.quantity)
            self._add(decision, position, Earned(record.ts, event, worth, record.order, kind))
        lessons.came.append((decision, rewards.total(earned) - before))
        self._tell(decision, position, lessons)

    def _add(self, decision: Decision, position: int, new: Earned) -> None:
        if math.isnan(new.worth) or not new.worth:
            return
        if math.isinf(new.worth):
            new = new._replace(worth=math.copysign(_LARGEST_REWARD, new.worth))
        decision.earned = decision.earned or {}
        earned = decision.earned.setdefault(position, [])
        if decision.policy == _RANDOM and new.worth > 0 and self._estimates and not any(e.worth > 0 for e in earned):
            self._estimates.count_rewarded(decision.placement, position, self._offset)
        earned.append(new)

    def _show(self, decision: Decision, position: int, lessons: Lessons) -> None:
        if lessons.show(decision, position):
            self._count_shown(decision, position)

    def _count_shown(self, decision: Decision, position: int) -> None:
        if decision.policy == _RANDOM and self._estimates is not None:
            self._estimates.count_shown(decision.placement, position, self._offset)

    def _tell(self, decision: Decision, position: int, lessons: Lessons) -> None:
        """Tells what the position's reward is now taken to be."""
        earned = decision.earned.get(position, []) if decision.earned is not None else []
        total = math.fsum(e.worth * self._multiplier(decision, e) for e in self._rewards.chosen(earned))
        total = max(-_LARGEST_REWARD, min(_LARGEST_REWARD, total))
        if lessons.tell(decision, position, total):
            self._count_shown(decision, position)

    def _close(self, record: Closed, lessons: Lessons) -> None:
        decision = self._held.get(record.recommendation_id)
        if decision is None or decision.closed:
            return
        if record.closed_as != "shown":
            self._forget(record.recommendation_id)
            return
        decision.closed = True  # and held on while it is among the last N: a purchase may be returned after the end
        same = record.reward_version == self._rewards.version and not decision.mixed
        for position, reward in zip(record.shown, record.rewards, strict=True):
            if not 0 <= position < decision.size:
                continue
            earned = decision.earned.get(position, []) if decision.earned is not None else []
            missing = reward - self._rewards.total(earned) if same else 0.0
            lessons.came.append((decision, missing))
            if missing and self._rewards.function == "sum":
                self._add(decision, position, Earned(record.ts, 0, missing, kind=-1))
            elif missing:
                decision.earned = {**(decision.earned or {}), position: [Earned(record.ts, 0, reward, kind=-1)]}
            self._tell(decision, position, lessons)
        following = record.next_recommendation_id
        after = self._held.get(following) if following is not None else None
        if following is None or after is not None:
            lessons.followed.append(Followed(decision, tuple(record.shown), after, record.elapsed_ms or 0))

    # -- rewards still to come ----------------------------------------------------------------------------------------

    def _multiplier(self, decision: Decision, earned: Earned) -> float:
        """What an outcome that has come stands for: itself and those like it that are still to come."""
        if decision.closed or decision.table is None or earned.kind < 0:
            return 1.0
        return decision.table.factors[earned.kind][decision.stage]

    def _age(self, decision: Decision, name: str, partition: int, now: int, lessons: Lessons) -> None:
        """Brings a decision's rewards up to its age, and says when to look again."""
        if decision.earned is None or decision.table is None or decision.closed:
            return
        decision.stage = max(decision.stage, delays.stage(now - decision.ts))
        largest = 1.0
        for position, earned in decision.earned.items():
            chosen = self._rewards.chosen(earned)
            factors = [self._multiplier(decision, e) for e in chosen]
            largest = max([largest, *factors])
            total = math.fsum(e.worth * factor for e, factor in zip(chosen, factors, strict=True))
            told = decision.told(position)
            if abs(total - told) > _WORTH_TELLING * abs(told) or largest == 1.0:
                self._tell(decision, position, lessons)
        if largest > 1.0 and not decision.maturing:
            decision.maturing = True
            due = decision.ts + int(delays.EDGES_MS[decision.stage])
            heapq.heappush(self._maturing.setdefault(partition, []), (due, decision.id, name))

    def _mature(self, partition: int, now: int, lessons: Lessons) -> None:
        """A partition's own time alone counts: it is in its messages, wherever reading begins."""
        waiting = self._maturing.get(partition)
        while waiting and waiting[0][0] <= now:
            _, _, name = heapq.heappop(waiting)
            decision = self._held.get(name)
            if decision is not None:
                decision.maturing = False
                self._age(decision, name, partition, now, lessons)

    def _estimate(self, estimates: Estimates, now: int) -> None:
        """A new table from all that is held."""
        shown = [x for x in self._held.values() if x.learned]
        outcomes = [
            (e.kind, e.ts - x.ts, now - x.ts)
            for x in shown
            if x.earned is not None
            for earned in x.earned.values()
            for e in earned
            if e.kind >= 0
        ]
        estimates.make(self._offset, np.array([now - x.ts for x in shown], np.int64), outcomes)
