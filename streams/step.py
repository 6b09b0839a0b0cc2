"""One record's work, in the order of the story: entries, expiry, decisions, what is to be published."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from headrace.streams.busy import marked
from headrace.streams.changelog import erased_key, user_key
from headrace.streams.clock import EventClock
from headrace.streams.decisions import arm_code, recommendation_bytes
from headrace.streams.describe import Ask
from headrace.streams.effects import Effects
from headrace.streams.insight.worth import Worth
from headrace.streams.people import optout
from headrace.streams.people.expiry import forget, register, sweep
from headrace.streams.people.identity import Identities, merged_ids, sent_as
from headrace.streams.records import (
    Behaviour,
    Entry,
    Erased,
    Erasure,
    Event,
    Request,
    Transition,
    item_key,
    pack_transitions,
)
from headrace.streams.rules.applied import watched_ms
from headrace.streams.rules.personal import note_shown, touch_cart
from headrace.streams.settings import NONE
from headrace.streams.shadow import unanswered
from headrace.streams.state import DecisionNotes, UserState, short_hash

if TYPE_CHECKING:
    from headrace.streams.engine import Engine

BUCKET_MS = 60_000


class Step:
    """One record's work: everything it touches is here, and the engine is only read."""

    def __init__(self, engine: Engine, offset: int, clock: EventClock, *, not_before: int = 0) -> None:
        """`not_before`: what was sent, or happened, earlier (ms) is answered no more."""
        self.engine = engine
        self.settings = engine.settings
        self.decisions = engine.decisions
        self.offset = offset
        self.clock = clock
        self.not_before = not_before
        self.live = engine.recommender.policies.live
        self.effects = Effects(offset, clock=clock, exposure=engine.exposure.copy())
        self.counts = self.effects.counts
        self.worth = Worth(self.settings, engine.recommender.items, self.live.shares, self.counts)
        self.touched: dict[str, UserState] = {}
        self.gone: set[str] = set()
        self.erasures: dict[bytes, bytes] = {}
        self.due: dict[str, Event] = {}
        self.requests: list[Request] = []
        self.records: list[Transition] = []
        self.marks: dict[bytes, bytes | None] = {}  # what is known of ids that are no users of their own
        self.people = Identities(self)

    # 1-3. entries, in the order read

    def take(self, entry: Entry) -> None:
        if self.people.take(entry):
            return
        if isinstance(entry, Event):
            self._event(entry)
        elif isinstance(entry, Request):
            self._request(entry)
        elif isinstance(entry, Erasure):
            self._erasure(entry)

    def _event(self, event: Event) -> None:
        if self.erased_before(event.user_id) >= event.ts:
            self.counts["events", event.type, "erased"] += 1
            return
        state = self.state(event.user_id)
        if not self._first(state, short_hash("e", event.event_id), event):
            self.counts["events", event.type, "duplicate"] += 1
            return
        self.counts["events", event.type, "applied"] += 1
        self.worth.visit(event, state)
        refuses = optout.choice(event.type, event.item_id, event.text)
        if refuses is not None:
            state.touch(event.ts)
            optout.choose(self, state, event, refuses)
            return
        private = optout.refused(state)
        rule = self.settings.event_types[event.type]
        busy = self.engine.busy.at(state, event.ts)
        self.counts["busy", "event"] += busy
        outcome, word = self.decisions.join(state, event)
        if word is not None:
            self.counts["outcomes", event.type, word] += 1
        self.worth.money(event, outcome, word)
        if outcome is not None:
            self.records.append(marked(outcome, busy or private))
            self.effects.rewards[outcome.arm] += outcome.reward
            if event.type == "impression":
                named = recommendation_bytes(outcome.recommendation_id)
                keys = next((d.keys for d in state.decisions() if d.recommendation == named), ())
                self._shown(state, [keys[p] for p in outcome.positions if p < len(keys)], event.ts)
        if rule.history:
            self._remember(state, event, teaches=not busy and not private)
        else:
            state.touch(event.ts)
        if rule.due:
            self.due[event.user_id] = event

    def _remember(self, state: UserState, event: Event, *, teaches: bool) -> None:
        """Appends to the history: the item where there is one, else the words."""
        rule, recommender = self.settings.event_types[event.type], self.engine.recommender
        private = optout.refused(state)
        if private:
            state.touch(event.ts)
        if event.item_id is not None:
            key = item_key(event.item_id)
            previous = state.history_keys()[:-5:-1]
            if teaches:
                self.records.append(Behaviour(key, event.type, event.ts, previous.tobytes()))
            if rule.cart:
                touch_cart(state, key, what=rule.cart, second=event.ts // 1000, cap=self.settings.consumed.cap)
            if rule.consumes:
                state.consume(key, second=event.ts // 1000, rules=self.settings.consumed)
            if not private:
                generation = recommender.items.generation(key)
                self._append(state, event, key, generation=generation)
        if event.text and not private:
            key = short_hash("text", event.text)
            texts, packed = state.note().texts, recommender.asked.pack(event.text)
            if texts.setdefault(key, packed) != packed:  # of another text encoder: what was encoded with it said less
                recommender.evict(event.user_id)
            texts[key] = packed
            self._append(state, event, key)

    def _append(self, state: UserState, event: Event, key: int, *, generation: int = 0) -> None:
        """To the history. Where several ids have come together what comes late goes where it belongs in time."""
        code, window = self.engine.codes[event.type], self.settings.worker.history
        put = state.insert if event.via or merged_ids(state) else state.append
        if put(key, type_code=code, ts=event.ts, window=window, generation=generation):
            self.engine.recommender.evict(event.user_id)

    def _first(self, state: UserState, name: int, entry: Event | Request) -> bool:
        """Whether an event or request is new, by its hash and the id that it was sent under."""
        horizon = self.settings.worker.seen
        if other := sent_as(entry):
            return state.see_as(other, name, horizon=horizon)
        return not state.saw_as(entry.user_id, name) and state.see(name, horizon=horizon)

    def _request(self, request: Request) -> None:
        if self.erased_before(request.user_id) >= request.ts:
            self.counts["requests", "erased"] += 1
            return
        state = self.state(request.user_id)
        if not self._first(state, short_hash("q", request.request_id), request):
            self.counts["requests", "duplicate"] += 1
            return
        self.counts["requests", "applied"] += 1
        self.worth.visit(request, state)
        state.touch(request.ts)
        self.requests.append(request)

    def _erasure(self, erasure: Erasure) -> None:
        """The user's state, open decisions and changelog entry go; a hash and a time stay, against late events."""
        self.counts["erasures", "applied"] += 1
        user = erasure.user_id
        state = self.state(user)
        while state.pending_count:
            closed = self.decisions.close_oldest(state, now=self.clock.now, user_id=user, erased=True)
            self.counts["closed", closed.arm, "erased"] += 1
            self.records.append(closed)
            self.effects.open_change -= 1
        self.records.append(Erased(user, erasure.ts))
        self.people.erase_merged(user, merged_ids(state), erasure.ts)
        self.touched[user] = UserState()
        self.gone.add(user)
        self.due.pop(user, None)
        self.requests = [r for r in self.requests if r.user_id != user]
        self.engine.recommender.evict(user)
        at = max(erasure.ts, self.erased_before(user))
        self.erasures[erased_key(user)] = at.to_bytes(8, "little")

    def erased_before(self, user: str) -> int:
        key = erased_key(user)
        raw = self.erasures.get(key) or self.engine.states.get(key)
        return int.from_bytes(raw, "little") if raw else -1

    def state(self, user: str) -> UserState:
        state = self.touched.get(user)
        if state is None:
            raw = self.engine.states.get(user_key(user))
            state = self.touched[user] = UserState() if raw is None else UserState.unpack(raw)
            if raw is not None and self.engine.lapses.over(user, state, self.clock.now):
                state = forget(self, user, state)
        self.gone.discard(user)
        return state

    # 4. what the tick has passed

    def expire(self) -> None:
        now = self.clock.now
        last = now // BUCKET_MS
        for bucket in self.engine.expiry.passed(last):
            self.effects.expired.append(bucket)
            for user in self.engine.expiry[bucket]:
                known = user in self.touched or user_key(user) in self.engine.states
                if not known or user in self.gone:
                    continue
                state = self.state(user)
                for closed in self.decisions.close_passed(state, now=now, user_id=user):
                    self.closed(closed.arm, closed.closed_as)
                    self.records.append(closed)
                oldest = state.oldest_ts()
                if oldest is not None:
                    self.effects.expiry.setdefault(self.engine.bucket(oldest), []).append(user)
        sweep(self)

    def closed(self, arm: str, closed_as: str) -> None:
        self.counts["closed", arm, closed_as] += 1
        self.effects.open_change -= 1

    # 5-6. encode and decide

    def decide(self) -> None:
        """One decision a due user, triggered by its last event, and one a request."""
        oldest = self.clock.now - self.settings.worker.max_trigger_age
        asks = []
        for user, event in self.due.items():
            if event.ts < oldest or self._late(event):
                self.counts["stale_triggers",] += 1
                continue
            asks.append(self._ask(user, "event", event.event_id, event))
        for request in self.requests:
            if request.ts < oldest or self._late(request):
                self.counts["stale_triggers",] += 1
                continue
            asks.append(self._ask(request.user_id, "request", request.request_id, request))
        asks = self._hold_out(asks)
        if not asks:
            return
        exposure, recommender = self.effects.exposure, self.engine.recommender
        decided = recommender.decide(asks, now=self.clock.now, exposure=exposure)
        for ask, decision in zip(asks, decided, strict=True):
            if decision is None:
                continue
            self._publish(ask, decision.policy, decision.message)
            for policy, message in decision.beside:
                self._beside(ask, policy, message)
            self.effects.freshness.append(ask.sent_ms)
            if decision.opened is None:
                continue
            busy = self.engine.busy.at(ask.state, ask.ts)
            self.counts["busy", "decision"] += busy
            busy = busy or optout.refused(ask.state)
            opened = marked(decision.opened, busy)
            self.records.append(msgspec.structs.replace(opened, shadow=True) if self.live.in_shadow else opened)
            self.effects.propensities.extend((ask.arm, p) for p in decision.propensities)
            if not decision.opened.restricted:
                self.effects.calibration[ask.arm, "expected"] += decision.choices
                self.effects.calibration[ask.arm, "observed"] += 1 / decision.propensities[0]
            self.counts["decisions", ask.arm, decision.policy] += 1
            self._open(ask, decision.keys)

    def _late(self, trigger: Event | Request) -> bool:
        return min(trigger.ts, trigger.sent_ms) < self.not_before

    def _hold_out(self, asks: list[Ask]) -> list[Ask]:
        """Without those of a holdout's users: their events count, and they get no slate."""
        if not self.live.holdout:
            return asks
        rest = []
        for ask in asks:
            if ask.arm not in self.live.holdout:
                rest.append(ask)
                continue
            self.counts["held_out", ask.arm] += 1
            if ask.request is not None:
                self._publish(ask, NONE, unanswered(ask, encoder_version=self.engine.recommender.encoder.version))
        return rest

    def _publish(self, ask: Ask, policy: str, message: bytes) -> None:
        """To the shop; in shadow to the side topic."""
        if self.live.in_shadow:
            self._beside(ask, policy, message)
        else:
            self.effects.recommendations.append((ask.user_id, message))

    def _beside(self, ask: Ask, policy: str, message: bytes) -> None:
        self.counts["shadow", policy] += 1
        self.effects.shadow.append((ask.user_id, message))

    def _ask(self, user: str, kind: str, trigger: str, source: Event | Request) -> Ask:
        names = (str(self.engine.partition), str(self.offset), user, kind, trigger, *(source.via or ()))
        digest = hashlib.blake2b("\0".join(names).encode(), digest_size=20).digest()
        placement = source.placement if source.placement in self.settings.placements else "default"
        arm = self.live.shares.arm(user)
        return Ask(
            user_id=user,
            state=self.state(user),
            arm=arm if arm in self.live.holdout else self.engine.recommender.policies.placed.arm(arm, placement),
            trigger_kind=kind,
            trigger_id=trigger,
            ts=source.ts,
            sent_ms=source.sent_ms,
            placement=placement,
            context=source.context or {},
            recommendation=digest[:12],
            stream=int.from_bytes(digest[12:], "little"),
            request=source if isinstance(source, Request) else None,
        )

    def _open(self, ask: Ask, keys: bytes) -> None:
        state = ask.state
        if not state.pending_count:
            self.effects.expiry.setdefault(self.engine.bucket(ask.ts), []).append(ask.user_id)
        state.open(ask.recommendation, ts=ask.ts, arm=arm_code(ask.arm), keys=keys)
        if self.live.in_shadow and self.settings.decisions.assume_shown:
            state.note().decisions[ask.recommendation] = DecisionNotes(shadow=True, rewards={}, earned={})
        if self.settings.decisions.assume_shown and not self.live.in_shadow:
            self._shown(state, np.frombuffer(keys, np.uint64).tolist(), ask.ts)
        self.effects.open_change += 1
        self.close_beyond(state, ask.user_id)

    def _shown(self, state: UserState, keys: list[int], ts: int) -> None:
        """Where a rule says how often a user may be shown an item, it is remembered what he was shown."""
        rules = self.engine.recommender.describer.rules
        if within := watched_ms(rules, self.settings.placements, self.clock.now):
            note_shown(state, keys, second=ts // 1000, since=(self.clock.now - within) // 1000)

    def close_beyond(self, state: UserState, user: str) -> None:
        """Closes the oldest decisions of a user who has too many open."""
        while state.pending_count > self.settings.worker.pending:
            closed = self.decisions.close_oldest(state, now=self.clock.now, user_id=user)
            self.closed(closed.arm, closed.closed_as)
            self.counts["pending_capped",] += 1
            self.records.append(closed)

    # 7. what is to be published

    def finish(self, *, tick: bool) -> Effects:
        effects = self.effects
        for user, state in self.touched.items():
            effects.changes[user_key(user)] = None if user in self.gone or state.empty else state.pack()
        effects.changes.update(self.erasures)
        effects.changes.update(self.marks)
        register(self)
        self.people.finish()
        if self.records or tick:
            effects.transitions = list(
                pack_transitions(self.engine.partition, self.offset, self.clock.now, tick=tick, records=self.records)
            )
        return effects
