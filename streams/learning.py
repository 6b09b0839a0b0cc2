"""Learning, without Kafka: messages of `transitions` in, policy versions out. Pure.

Every message is learned as one batch: what is learned is a function of the messages in their order. A boundary falls
after a message that carries a tick, and after `learner.publish_messages` messages without one; boundaries are numbered
from the beginning of the log, and a version bears the number of its boundary. So equal numbers mean equal bits,
whoever learned them, and a learner resumed from its last versions ends where one that never stopped ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from headrace.policy.features import SCALARS
from headrace.policy.registry import LEARNED
from headrace.streams import estimates
from headrace.streams.book import Book, Decision, Widths
from headrace.streams.context import ContextEncoder
from headrace.streams.estimates import Estimates
from headrace.streams.frozen import Span, within
from headrace.streams.gate import PART, GatePart
from headrace.streams.lessons import owners
from headrace.streams.parts import BehaviourParts, PolicyPart
from headrace.streams.placed import Placed
from headrace.streams.records import PolicyVersion, Transitions
from headrace.streams.rewards import Rewards
from headrace.streams.settings import NONE, Settings, policy_of_arm
from headrace.streams.space import Space
from headrace.streams.start import begin
from headrace.streams.versions import MISFIT, arrays_of, make_policy, version_of

log = logging.getLogger("headrace.learner")


@dataclass
class Tally:
    """What the settings' policy has learned since somebody took these counts."""

    fresh: int = 0
    corrections: int = 0
    unmatched: int = 0  # outcomes whose decision the book no longer holds
    misfits: int = 0  # decisions of other widths than the settings and the encoder say
    steps: int = 0  # closed decisions with what followed them
    sent_ms: list[int] = field(default_factory=list)  # of the outcomes that taught and are in no version yet


class Learning:
    """The learned policies of all arms, the settings' own first, and the behaviour models."""

    def __init__(self, settings: Settings, *, dim: int) -> None:
        """`dim` d of states and items: the user encoder's."""
        arms = [policy_of_arm(settings, arm) for arm in settings.arms.shares]
        arms += Placed(settings).policies
        names = dict.fromkeys([settings.policy.name, *(name for name in arms if name != NONE), *settings.live.shadow])
        self._settings, self._names = settings, list(names)
        made = {name: make_policy(settings, name, dim=dim) for name in names}
        start = begin(settings, made[settings.policy.name])
        self._rewards, told = Rewards(settings), settings.learner
        # What was told one way is never corrected by what is told another.
        self._told = f"{self._rewards.version} {told.outstanding:d}{told.position_weights:d}"
        self.space = Space(dim, version="" if start is None else str(start.made.get("encoder", "")))
        self.policies = [
            PolicyPart(
                policy,
                started=start is not None and name == start.policy,
                rewards=self._told,
                space=self.space,
            )
            for name, policy in made.items()
            if name in LEARNED
        ]
        self._own: dict[
            str, Callable[[Decision], bool]
        ] = {}  # by policy: which decisions it learns from, where not all
        if settings.learner.learn_from == "own":
            own = partial(_own, settings, Placed(settings))
            self._own = {name: partial(own, name) for name in made if name in arms}  # in shadow: from all
        self.behaviour = BehaviourParts(popular_half_life_ms=settings.learner.popular_half_life)
        if start is not None:
            self.behaviour.begin(start.behaviour)
        self.gate = GatePart(settings)
        self.tally = Tally()
        self.offset = -1  # up to here published versions reach
        self._widths = Widths(state=dim, context=ContextEncoder(settings).size, scalars=len(SCALARS))
        self.estimates = Estimates(
            self._rewards.kinds,
            settings.placements,
            size=settings.learner.open_decisions,
            outstanding=settings.learner.outstanding,
            position_weights=settings.learner.position_weights,
        )
        self._book = Book(
            settings.learner.open_decisions,
            replace(self._widths, state=0),  # what counts for an arm is counted whatever encoded it
            assume_shown=settings.decisions.assume_shown,
            rewards=self._rewards,
            estimates=self.estimates,
        )
        self._every = settings.learner.publish_messages
        self._messages = 0  # since the last boundary
        self._boundaries = 0

    def resume(self, versions: Iterable[PolicyVersion]) -> int:
        """Takes in the latest version of each part; returns the offset from which the log must be fed again."""
        latest = {record.part: record for record in versions}
        if not latest:
            return 0
        self.offset = max(record.offset for record in latest.values())
        self._boundaries = max(record.version for record in latest.values())
        mine = [latest[part.policy.name] for part in self.policies if part.policy.name in latest]
        anew = self._resume_space(self.space.resumed(mine), latest)
        others = {str(record.meta.get("rewards", "by the release before")) for record in mine} - {self._told}
        if others:  # never mixed: what was learned from other rewards is learned again from these
            log.warning(
                "rewards are told as %s, what was learned was told as %s: policies begin anew from the log",
                self._told,
                ", ".join(sorted(others)),
            )
            latest = {part: r for part, r in latest.items() if r.policy in self.behaviour.models or part == PART}
            for part in self.policies:
                part.learn_anew()
            self.estimates.changed = True
        self.behaviour.resume([r for r in latest.values() if r.policy in self.behaviour.models])
        starts = [self.behaviour.known + 1]
        for part in self.policies:
            record = latest.get(part.policy.name)
            if record is not None:
                part.resume(record)
            starts.append(
                record.replay_from if record is not None and part.known >= 0 else anew.get(part.policy.name, 0)
            )
        self.gate.resume(latest.values(), offset=self.offset, comparable=not others)
        starts.append(latest[PART].replay_from if PART in latest else 0)
        self._resume_estimates(latest.get(estimates.PART))
        return min(starts)

    def _resume_space(self, space: Space, latest: dict[str, PolicyVersion]) -> dict[str, int]:
        """Goes on in the space of the heads that were learned last. Those of an older one begin anew, where this one
        began: {policy: offset}."""
        anew: dict[str, int] = {}
        if space.since or not space.same(self.space):  # heads began anew since `policy.start`, which is forgotten
            self._enter(space)
        self.space = space
        for part in self.policies:
            part.space = space
            record = latest.get(part.policy.name)
            if record is not None and not space.resumed([record]).same(space):
                del latest[part.policy.name]
                anew[part.policy.name] = space.since
        return anew

    def _enter(self, space: Space) -> None:
        """Heads that know nothing, for the vectors of another encoder."""
        self._widths = replace(self._widths, state=space.dim)
        self.policies = [
            PolicyPart(make_policy(self._settings, name, dim=space.dim), rewards=self._told, space=space)
            for name in self._names
            if name in LEARNED
        ]

    def _follow_encoder(self, message: Transitions, offset: int) -> None:
        """What the workers encode with decides what is learned in. What was published before has been judged by it."""
        space = self.space.after(message, offset)
        if space is self.space:
            return
        before, self.space = self.space, space
        if before.same(space):
            for part in self.policies:
                part.space = space
            return
        log.warning(
            "encoder %s (%s) took the place of %s: policies begin anew from transitions@%s",
            space.serial,
            space.version,
            before.version,
            offset,
        )
        self._enter(space)
        self.gate.encoder_changed(space.version, self._names, offset=offset)

    def _resume_estimates(self, record: PolicyVersion | None) -> None:
        if record is not None:
            try:
                self.estimates.restore(*arrays_of(record))
            except MISFIT as error:
                log.warning("estimates cannot be resumed and are made anew: %s", error)
                self.estimates.changed = True

    def apply(self, message: Transitions, offset: int, *, now_ms: int = 0, publish: bool = True) -> list[PolicyVersion]:
        """Learns one message; returns the versions that fall due after it.

        `publish` False leaves this boundary's versions out: the next one's will hold what was learned.
        """
        replay_from = self._book.replay_from(otherwise=offset)
        self._follow_encoder(message, offset)
        lessons = self._book.read(message, offset)
        here = partial(_in_space, self.space)
        examples = lessons.examples(self._widths, of=here)
        steps = lessons.steps(self._widths, of=here) if any(part.policy.follows for part in self.policies) else None
        if lessons.erased:  # first: what the message teaches of them is of those who came back
            for part in self.policies:
                part.forget(owners(lessons.erased), offset)
        for part in self.policies:
            name = part.policy.name
            own, missed = self._own.get(name), self.gate.frozen.missed(name)
            if not within(missed, offset):
                mine, then = examples, steps
                if own is not None or missed:
                    mine = lessons.examples(self._widths, of=_both(here, partial(_known, own, missed)))
                if own is not None:
                    then = lessons.steps(self._widths, of=_both(here, own))
                part.take(mine, then if part.policy.follows else None, offset, replay_from=replay_from)
        if lessons.behaviour:
            self.behaviour.take(lessons.behaviour, offset)
        self.gate.observe(message, lessons, offset)
        if offset <= self.offset:
            return []
        tally = self.tally
        tally.unmatched += lessons.unmatched
        tally.misfits += lessons.misfits + lessons.strangers(here)
        tally.steps += len(lessons.followed) if steps is not None else 0
        if examples is not None and self.policies:
            fresh = int(np.count_nonzero(examples.fresh))
            tally.fresh += fresh
            tally.corrections += len(examples.fresh) - fresh
            tally.sent_ms += lessons.sent_ms
        return self._boundary(offset, tick=message.tick, now_ms=now_ms, publish=publish)

    def leave_out(self, erased: Callable[[str, int], bool]) -> None:
        """Whom, up to when, the log tells of in vain: those of whom it says only further on that they were erased.

        So a start that learns the log anew learns nothing from them.
        """
        self._book.erased = erased

    def _boundary(self, offset: int, *, tick: bool, now_ms: int, publish: bool) -> list[PolicyVersion]:
        self._messages += 1
        if not tick and self._messages < self._every:
            return []
        self._messages = 0
        self._boundaries += 1
        number, book = self._boundaries, self._book.replay_from(otherwise=offset + 1)
        self.gate.judge(self.policies, boundary=number, offset=offset, now_ms=now_ms)
        if not publish:
            return []
        versions = [
            part.publish(version=number, offset=offset, book=book, created_ms=now_ms)
            for part in self.policies
            if part.due(offset)
        ]
        versions += self.behaviour.publish(version=number, offset=offset, created_ms=now_ms)
        versions += self.gate.publish(boundary=number, offset=offset, book=book, created_ms=now_ms)
        return versions + self._estimates(number, offset, now_ms, wanted=bool(versions))

    def _estimates(self, number: int, offset: int, now_ms: int, *, wanted: bool) -> list[PolicyVersion]:
        """The tables by which a restart would learn what it must read again."""
        if not (wanted and self.policies and self.estimates.changed):
            return []
        return [
            version_of(
                estimates.PART,
                *self.estimates.snapshot(),
                version=number,
                offset=offset,
                replay_from=offset + 1,
                created_ms=now_ms,
            )
        ]


def _known(own: Callable[[Decision], bool] | None, missed: Sequence[Span], decision: Decision) -> bool:
    """Whether a policy learns from the decision and learned when it was shown: without its example there is nothing
    that a correction could correct."""
    return (own is None or own(decision)) and not within(missed, decision.shown_at)


def _in_space(space: Space, decision: Decision) -> bool:
    """Shown before the space began is not of it, whichever encoder made it: the same one may have come back."""
    same = decision.encoder == space.version and len(decision.state) == 4 * space.dim
    return same and not 0 <= decision.shown_at < space.since


def _both(one: Callable[[Decision], bool], other: Callable[[Decision], bool]) -> Callable[[Decision], bool]:
    return lambda decision: one(decision) and other(decision)


def _own(settings: Settings, placed: Placed, name: str, decision: Decision) -> bool:
    """Whether a policy took the decision itself, or its stand-in did before it had learned anything."""
    if decision.policy == name or decision.policy in LEARNED:
        return decision.policy == name
    return (placed.policy_at(decision.arm, decision.placement) or policy_of_arm(settings, decision.arm)) == name
