"""Who is who: an anonymous id turns out to be a user, and all that is known of it becomes his, exactly once.

The two may live in two partitions, on two workers. What one has to tell the other goes as an entry of `interactions`,
in the transaction that holds what it follows from:

    the user's       Identity(user, anonymous)   the id is a user's from now on; MergeAsk ─►
    the anonymous    MergeAsk                    its state leaves, an alias stays; Carried ─►
    the user's       Carried                     both histories become one, in time order

What comes later under the anonymous id is passed on to the user's partition, still with the id that it was sent under.
An alias leads to another where ids were merged one after the other. Two partitions that merge into one another at the
same time make a ring of aliases: what travels on it notices that it has been here, and at the ring's smallest id the
alias goes, so that everything of the ring ends there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from headrace.streams.changelog import Alias, alias_key, decode_alias, encode_alias
from headrace.streams.partition import partition_of
from headrace.streams.people import optout
from headrace.streams.people.merging import absorb
from headrace.streams.records import Batch, Carried, Entry, Erased, Erasure, Event, Identity, MergeAsk, Request, Unalias
from headrace.streams.records import encode as encode_record
from headrace.streams.state import UserState

if TYPE_CHECKING:
    from headrace.streams.step import Step

_log = logging.getLogger("headrace.identity")
_HOPS = 64  # an entry that was passed on so often stays where it is
_RECORD_BYTES = 400_000  # of what is passed on to one partition; a state larger than that has a record of its own
_TOLD_AGAIN = 32  # an alias is written again when so much of its time to live has passed since, in parts
_KINDS = {Event: "event", Request: "request", Erasure: "erasure", Carried: "state"}


class Identities:
    """The part of a step that concerns who is who."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.forwards: dict[int, list[Entry]] = {}

    # -- entries ------------------------------------------------------------------------------------------------------

    def take(self, entry: Entry) -> bool:
        """True where that was all: it was about who is who, or somebody else's by now."""
        if isinstance(entry, Identity):
            self._identity(entry)
        elif isinstance(entry, MergeAsk):
            self._ask(entry)
        elif isinstance(entry, Carried):
            self._carried(entry)
        elif isinstance(entry, Unalias):
            self._unalias(entry)
        elif isinstance(entry, Erasure):
            self._erasure(entry)
            return False
        else:
            alias = self.alias(entry.user_id)
            return alias is not None and self._pass_on(entry, alias)
        return True

    def _identity(self, entry: Identity) -> None:
        step, user = self.step, entry.user_id
        if user == entry.anonymous_id:
            self._count("self")
            return
        if step.erased_before(user) >= entry.ts:
            self._count("erased")
            return
        alias = self.alias(user)
        if alias is not None:
            known, into = alias.known, alias.user_id
            self._alias(user, Alias(into, max(alias.at, entry.ts), True))
        else:
            state = step.state(user)
            known, into = step.engine.lapses.known(user, state), user
            state.note().known = 1
            state.touch(entry.ts)
        self._route(MergeAsk(entry.anonymous_id, into, entry.anonymous_id, user, known, entry.ts, entry.sent_ms))

    def _ask(self, ask: MergeAsk) -> None:
        """Follows the aliases to what the anonymous id is now; that is merged, if it may be."""
        user = ask.user_id
        if user == ask.into:
            self._count("repeat")
            return
        alias = self.alias(user)
        if alias is not None and self._ends(ask, alias):
            alias = None
        if alias is None:
            if self._refused(ask):
                self._count("refused")
                said = (
                    f"{ask.named} is {user}, and {ask.user} is another known user: two users are not merged;"
                    " send the identity of the right one"
                    if user != ask.named
                    else f"{ask.named} and {ask.user} are both known users: two users are not merged"
                )
                self.step.effects.refused.append((ask, said))
            elif self._turned(ask):
                self._route(MergeAsk(ask.into, user, ask.user, ask.named, True, ask.ts, ask.sent_ms))
            else:
                self._move(ask)
        else:
            self._route(msgspec.structs.replace(ask, user_id=alias.user_id, via=[*ask.via, user]))

    def _refused(self, ask: MergeAsk) -> bool:
        """Whether both are known users; see docs/identity.md."""
        user, lapses = ask.user_id, self.step.engine.lapses
        if not lapses.known(user, self.step.state(user)):
            return False
        if lapses.by_looks is not None:
            return not lapses.by_looks(ask.into)
        return ask.known or user != ask.named

    def _turned(self, ask: MergeAsk) -> bool:
        """Whether what was found is a user's and what it is to be is not: then it goes the other way."""
        looks_anonymous = self.step.engine.lapses.by_looks
        return looks_anonymous is not None and looks_anonymous(ask.into) and not looks_anonymous(ask.user_id)

    def _move(self, ask: MergeAsk) -> None:
        """The state leaves for the user's partition, with what is still to be answered; an alias stays."""
        step, user = self.step, ask.user_id
        state = step.state(user)
        known = step.engine.lapses.known(user, state)
        theirs = [request for request in step.requests if request.user_id == user]
        step.requests = [request for request in step.requests if request.user_id != user]
        due = step.due.pop(user, None)
        carried = Carried(ask.into, user, state.pack(), ask.ts, ask.sent_ms, [user], due, theirs)
        step.effects.open_change -= state.pending_count
        step.touched[user] = UserState()
        step.gone.add(user)
        step.engine.recommender.evict(user)
        self._alias(user, Alias(ask.into, max(ask.ts, 1000 * state.last_second()), known))
        self._count("merged")
        self._route(carried)

    def _carried(self, carried: Carried) -> None:
        alias = self.alias(carried.user_id)
        if alias is None or not self._pass_on(carried, alias):
            self._absorb(carried)

    def _absorb(self, carried: Carried) -> None:
        step, user = self.step, carried.user_id
        other = UserState.unpack(carried.state)
        until = step.erased_before(user)
        if until >= carried.ts:  # what he was when he asked to be forgotten
            self._count("erased")
            self._close_all(other, carried.sent_as)
            step.records.append(Erased(carried.sent_as, until))
            his = dict.fromkeys([*merged_ids(other), carried.sent_as, *carried.via])
            self.erase_merged(user, [name for name in his if name != user], until)
            return
        _drop_history(other, before=until // 1000)
        state = step.state(user)
        if optout.latest(state.note(), other.note()).profiling > 0:  # one of them wants no profiling: it holds for both
            if not optout.refused(state):
                step.effects.open_change -= state.pending_count
                optout.let_go(step, state, user, carried.ts)
            if not optout.refused(other):
                optout.let_go(step, other, carried.sent_as, carried.ts)
        no_room = absorb(state, other, user=user, sent_as=carried.sent_as, settings=step.settings)
        self.let_go(user, no_room, merged_ids(state))
        step.effects.open_change += other.pending_count
        step.close_beyond(state, user)
        if (oldest := state.oldest_ts()) is not None:
            step.effects.expiry.setdefault(step.engine.bucket(oldest), []).append(user)
        step.engine.recommender.evict(user)
        via = [carried.sent_as]
        if carried.due is not None:
            due = msgspec.structs.replace(carried.due, user_id=user, via=carried.due.via or via)
            if user not in step.due or step.due[user].ts <= due.ts:
                step.due[user] = due
        step.requests += [msgspec.structs.replace(r, user_id=user, via=r.via or via) for r in carried.requests]

    def _erasure(self, erasure: Erasure) -> None:
        """Of an id that is somebody's by now: whose it is is erased too, as the two cannot be told apart any more."""
        if erasure.of:
            self._unalias(erasure)
        elif (alias := self.alias(erasure.user_id)) is not None:
            self._drop(erasure.user_id)
            self._route(msgspec.structs.replace(erasure, user_id=alias.user_id))

    def erase_merged(self, user: str, merged: list[str], ts: int) -> None:
        """Sends the erasure of a user to the partitions of all ids that were merged into him, `Notes.merged`."""
        for name in merged:
            self._route(Erasure(name, ts, 0, of=user, among=merged))

    def let_go(self, user: str, names: list[str], others: Iterable[str] = ()) -> None:
        """Of a user who keeps no note of these merged ids any more, of `others` he does: they are nobody's from now on,
        as no erasure of his would reach them."""
        for name in names:
            self._route(Unalias(name, user, self.step.clock.now, 0, [*names, *others]))

    # -- aliases ------------------------------------------------------------------------------------------------------

    def alias(self, user: str) -> Alias | None:
        """What the id was merged into, if it was."""
        step, key = self.step, alias_key(user)
        if key in step.marks:
            raw = step.marks[key]
            return None if raw is None else decode_alias(raw)
        raw = step.engine.states.get(key)
        if raw is None:
            return None
        alias, lapses = decode_alias(raw), step.engine.lapses
        then = lapses.of_alias(alias)
        if then is not None and then <= lapses.now(step.clock.now):
            self._drop(user)
            step.counts["expired", "alias"] += 1
            return None
        return alias

    def _alias(self, user: str, alias: Alias) -> None:
        self.step.marks[alias_key(user)] = encode_alias(alias)

    def _unalias(self, entry: Unalias | Erasure) -> None:
        """The alias goes, unless it has lapsed meanwhile and the id became another user's, whose it stays."""
        alias = self.alias(entry.user_id)
        if alias is not None and alias.user_id in (entry.of, *entry.among):
            self._drop(entry.user_id)

    def _drop(self, user: str) -> None:
        key = alias_key(user)
        if key in self.step.marks or key in self.step.engine.states:
            self.step.marks[key] = None

    # -- passing on ---------------------------------------------------------------------------------------------------

    def _pass_on(self, entry: Event | Request | Carried, alias: Alias) -> bool:
        """To whoever this id is now. False at the end of a ring: it stays here."""
        user = entry.user_id
        if self._ends(entry, alias):
            return False
        if not isinstance(entry, Carried):
            if self.step.erased_before(user) >= entry.ts:
                return False  # counted as any late entry of an erased user
            if entry.ts > alias.at + self.step.engine.lapses.alias_ms // _TOLD_AGAIN:
                self._alias(user, Alias(alias.user_id, entry.ts, alias.known))
        self._route(msgspec.structs.replace(entry, user_id=alias.user_id, via=[*(entry.via or ()), user]))
        return True

    def _ends(self, entry: Event | Request | Carried | MergeAsk, alias: Alias) -> bool:
        """Whether the entry has gone round a ring of aliases and this is where the ring is opened."""
        user, via = entry.user_id, entry.via or []
        if user not in via:
            return False
        ring = via[len(via) - 1 - via[::-1].index(user) :]
        round_again = [*ring, user][1] == alias.user_id  # else it was opened meanwhile, and leads elsewhere
        if (user != min(ring) or not round_again) and len(via) < _HOPS:
            return False
        self._drop(user)
        self._count("ring")
        return True

    def _route(self, entry: Entry) -> None:
        """To the partition of its user: at once where that is this one."""
        step = self.step
        partition = partition_of(entry.user_id, step.settings.topics.interactions_partitions)
        if partition == step.engine.partition:
            step.take(entry)
            return
        step.counts["forwarded", _KINDS.get(type(entry), "identity")] += 1
        self.forwards.setdefault(partition, []).append(entry)

    def finish(self) -> None:
        """Packs what other partitions are told. These records have no source: they move no partition's clock."""
        for partition, entries in self.forwards.items():
            some: list[Entry] = []
            size = 0
            for entry in entries:
                weight = len(encode_record(entry))
                if some and size + weight > _RECORD_BYTES:
                    self.step.effects.forwarded.append((partition, encode_record(Batch("", 0, entries=some))))
                    some, size = [], 0
                some.append(entry)
                size += weight
            self.step.effects.forwarded.append((partition, encode_record(Batch("", 0, entries=some))))

    def _close_all(self, state: UserState, user: str) -> None:
        step = self.step
        while state.pending_count:
            closed = step.decisions.close_oldest(state, now=step.clock.now, user_id=user, erased=True)
            step.counts["closed", closed.arm, "erased"] += 1
            step.records.append(closed)

    def _count(self, outcome: str) -> None:
        self.step.counts["identities", outcome] += 1


def sent_as(entry: Event | Request) -> str:
    """The id that the shop sent it under, where that is another than whose it is now; else empty."""
    return entry.via[0] if entry.via and entry.via[0] != entry.user_id else ""


def _drop_history(state: UserState, *, before: int) -> None:
    """Without what happened up to the second `before`."""
    if before < 0 or not state.seconds:
        return
    kept = np.flatnonzero(np.frombuffer(state.seconds, np.uint32) > before)
    if len(kept) < len(state.types):
        state.reorder(kept)
        state.count = len(kept)


def merged_ids(state: UserState) -> list[str]:
    """Ids that were merged into a user, at most `merging.MERGED`."""
    return [] if state.notes is None else list(state.notes.merged)
