"""A decision's life: opened, outcomes, closed; shown, unshown, altered. Pure steps over one user's state.

A slate nobody saw teaches nothing: a decision counts as shown when an impression says so, or an outcome names its
`recommendation_id` (or where the settings assume it).
"""

from __future__ import annotations

from collections.abc import Iterable

from headrace.streams.records import Closed, Event, Outcome, item_key
from headrace.streams.rewards import Rewards
from headrace.streams.settings import Settings
from headrace.streams.state import Credit, DecisionNotes, OpenDecision, UserState, short_hash

CREDITS = 32  # purchases a user whose return is still awaited


def recommendation_name(recommendation: bytes) -> str:
    return "r-" + recommendation.hex()


def recommendation_bytes(name: str) -> bytes | None:
    """The 12 bytes of one of our ids, None for a foreign one."""
    try:
        raw = bytes.fromhex(name[2:]) if name.startswith("r-") else b""
    except ValueError:
        return None
    return raw if len(raw) == 12 else None


def arm_code(arm: str) -> int:
    """Two bytes that name an arm in a packed state, whatever the order of the settings."""
    return short_hash("arm", arm) & 0xFFFF


class Decisions:
    """The rules of the settings, applied to states. Holds no state of its own."""

    def __init__(self, settings: Settings, arms: Iterable[str]) -> None:
        self._types = settings.event_types
        self._arms = {arm_code(arm): arm for arm in arms}
        self._assume_shown = settings.decisions.assume_shown
        self._rewards = Rewards(settings)
        self._version = self._rewards.version
        self._close_after = settings.close_after_ms
        self._widest = max(t.window for t in settings.event_types.values())

    # -- outcomes -----------------------------------------------------------------------------------------------------

    def join(self, state: UserState, event: Event) -> tuple[Outcome | None, str | None]:
        """Joins one event to the decision it belongs to.

        Returns the outcome to publish, if there is one, and the word under which the event is counted as an outcome:
        id, item, late, unmatched, duplicate, or None where the event could never be one.
        """
        rule = self._types[event.type]
        if event.type == "impression":
            return self._impression(state, event)
        if event.type == "return":
            return self._return(state, event)
        if event.item_id is None or (not rule.reward and event.recommendation_id is None):
            return None, None
        key = item_key(event.item_id)
        if event.recommendation_id is not None:
            decision = self._named(state, event.recommendation_id)
            matched = "id"
            if decision is None:
                return None, "late" if recommendation_bytes(event.recommendation_id) else "unmatched"
            if key not in decision.keys:
                return None, "unmatched"
        else:
            decision = self._latest_showing(state, key, event.ts)
            matched = "item"
            if decision is None:
                return None, "unmatched"
        if not -rule.window <= event.ts - decision.ts <= rule.window:
            return None, "late"
        notes = self._notes(state, decision.recommendation)
        notes.named = notes.named or matched == "id"
        position = decision.keys.index(key)
        if notes.altered:
            return None, matched
        worth, order = self._rewards.worth(event.type, event.value, event.quantity), 0
        if event.order_id is not None and rule.reward:
            order = short_hash(event.type, event.order_id, event.item_id)
            credits = state.note().credits
            if any(c.order == order for c in credits):
                return None, "duplicate"
            credits.append(Credit(order, decision.recommendation, position, worth, event.ts))
            del credits[:-CREDITS]
        reward = self._earn(notes, position, event, worth, order) if rule.reward else 0.0
        return self._outcome(state, event, decision, [position], reward, matched, order), matched

    def _earn(self, notes: DecisionNotes, position: int, event: Event, worth: float, order: int) -> float:
        """Adds an outcome; returns by how much the position's reward changes."""
        before = notes.rewards.get(position, 0.0)
        if self._rewards.function == "sum":
            notes.rewards[position] = before + worth
            return worth
        earned = notes.earned.setdefault(position, [])
        earned.append((event.ts, short_hash(_outcome_id(event)), worth, order))
        notes.rewards[position] = self._rewards.total(earned)
        return notes.rewards[position] - before

    def _take_back(self, notes: DecisionNotes | None, credit: Credit) -> float:
        """Takes a purchase out; returns by how much its position's reward changes."""
        if self._rewards.function == "sum" or notes is None:
            change = -credit.reward
        else:
            earned = notes.earned.get(credit.position, [])
            earned[:] = [e for e in earned if e[3] != credit.order]
            change = self._rewards.total(earned) - notes.rewards.get(credit.position, 0.0)
        if notes is not None:
            notes.rewards[credit.position] = notes.rewards.get(credit.position, 0.0) + change
        return change

    def _impression(self, state: UserState, event: Event) -> tuple[Outcome | None, str]:
        decision = self._named(state, event.recommendation_id or "")
        if decision is None:
            return None, "late" if recommendation_bytes(event.recommendation_id or "") else "unmatched"
        if abs(event.ts - decision.ts) > self._types["impression"].window:
            return None, "late"
        notes = self._notes(state, decision.recommendation)
        if event.shown is None:
            positions = list(range(len(decision.keys)))
        else:
            at = {key: i for i, key in enumerate(decision.keys)}
            found = [at.get(item_key(item)) for item in event.shown]
            positions = [p for p in found if p is not None]
            if len(positions) < len(found) or positions != sorted(set(positions)):
                notes.altered = True  # other items, or another order: the logged propensities do not describe it
                return None, "id"
        fresh = [p for p in positions if p not in (notes.shown or ())]
        notes.shown = sorted({*(notes.shown or ()), *positions})
        if notes.altered or not fresh:
            return None, "id"
        return self._outcome(state, event, decision, fresh, 0.0, "id"), "id"

    def _return(self, state: UserState, event: Event) -> tuple[Outcome | None, str]:
        """Takes the purchase back, also after its decision has closed."""
        if event.order_id is None or event.item_id is None or state.notes is None:
            return None, "unmatched"
        orders = {short_hash(name, event.order_id, event.item_id) for name, t in self._types.items() if t.consumes}
        for credit in state.notes.credits:
            if credit.order in orders:
                break
        else:
            return None, "unmatched"
        if event.ts - credit.ts > self._types["return"].window:
            return None, "late"
        if credit.reward == 0.0:
            return None, "duplicate"
        change = self._take_back(state.notes.decisions.get(credit.recommendation), credit)
        credit.reward = 0.0  # kept: the same return again is a repeat
        arm, opened_ts = "", 0
        for decision in state.decisions():
            if decision.recommendation == credit.recommendation:
                arm, opened_ts = self._arm(decision), decision.ts
        outcome = Outcome(
            recommendation_name(credit.recommendation), _outcome_id(event), event.type, event.ts, event.sent_ms,
            [credit.position], change, event.value, event.quantity, "id", self._version, event.user_id, arm, opened_ts,
            credit.order,
        )  # fmt: skip
        return outcome, "id"

    def _outcome(
        self, state: UserState, event: Event, decision: OpenDecision, positions: list[int], reward: float, matched: str,
        order: int = 0,
    ) -> Outcome:  # fmt: skip
        return Outcome(
            recommendation_name(decision.recommendation), _outcome_id(event), event.type, event.ts, event.sent_ms,
            positions, reward, event.value, event.quantity, matched, self._version, event.user_id,
            self._arm(decision), decision.ts, order,
        )  # fmt: skip

    def _arm(self, decision: OpenDecision) -> str:
        return self._arms.get(decision.arm, "retired")

    def _notes(self, state: UserState, recommendation: bytes) -> DecisionNotes:
        decisions = state.note().decisions
        if recommendation not in decisions:
            decisions[recommendation] = DecisionNotes(shown=None, altered=False, named=False, rewards={})
        return decisions[recommendation]

    def _named(self, state: UserState, name: str) -> OpenDecision | None:
        raw = recommendation_bytes(name)
        if raw is None or raw not in state.pending:
            return None
        return next((d for d in state.decisions() if d.recommendation == raw), None)

    def _latest_showing(self, state: UserState, key: int, ts: int) -> OpenDecision | None:
        """The latest decision not after `ts` that is known to have shown the item."""
        if not state.shows(key):
            return None
        for decision in reversed(list(state.decisions())):
            if decision.ts <= ts and key in decision.keys and self._shown(state, decision, decision.keys.index(key)):
                return decision
        return None

    def _shown(self, state: UserState, decision: OpenDecision, position: int) -> bool:
        notes = state.notes.decisions.get(decision.recommendation) if state.notes else None
        if notes is None:
            return self._assume_shown
        if notes.shown is not None:
            return position in notes.shown
        return notes.named or (self._assume_shown and not notes.shadow)

    # -- the end ------------------------------------------------------------------------------------------------------

    def expires_at(self, opened_ts: int) -> int:
        """Event time (ms) from which a decision opened at `opened_ts` can earn no more."""
        return opened_ts + self._close_after

    def close_passed(self, state: UserState, *, now: int, user_id: str) -> list[Closed]:
        """Closes what the event time has passed."""
        closed = []
        while (ts := state.oldest_ts()) is not None and self.expires_at(ts) <= now:
            closed.append(self.close_oldest(state, now=now, user_id=user_id))
        if state.notes is not None and closed:
            horizon = now - self._widest
            state.notes.credits = [c for c in state.notes.credits if c.ts >= horizon]
            if self._rewards.function != "sum":
                awaited = {c.recommendation for c in state.notes.credits}
                open_or_awaited = (n for n in state.notes.decisions if n in awaited or n in state.pending)
                state.notes.decisions = {name: state.notes.decisions[name] for name in open_or_awaited}
        return closed

    def close_oldest(self, state: UserState, *, now: int, user_id: str, erased: bool = False) -> Closed:
        """Closes the oldest open decision with what is known of it."""
        both = state.decisions()
        decision, following = next(both), next(both, None)
        notes = state.notes.decisions.get(decision.recommendation) if state.notes else None
        shown, rewards, closed_as = self._settle(decision, notes)
        state.close_oldest()
        awaited = state.notes.credits if state.notes is not None and notes is not None and notes.earned else []
        if any(c.recommendation == decision.recommendation for c in awaited):
            assert notes is not None  # kept: a return must know what it leaves
            state.note().decisions[decision.recommendation] = notes
        return Closed(
            recommendation_name(decision.recommendation), user_id, self._arm(decision), decision.ts, now,
            "erased" if erased else closed_as, shown, rewards, self._version,
            recommendation_name(following.recommendation) if following else None,
            following.ts - decision.ts if following else None,
        )  # fmt: skip

    def _settle(self, decision: OpenDecision, notes: DecisionNotes | None) -> tuple[list[int], list[float], str]:
        if notes is None:
            notes = DecisionNotes(shown=None, altered=False, named=False, rewards={})
        if notes.altered:
            return [], [], "altered"
        if notes.shown is not None:
            shown = sorted({*notes.shown, *notes.rewards})
        elif notes.named or (self._assume_shown and not notes.shadow):
            shown = list(range(len(decision.keys)))
        else:
            return [], [], "unshown"
        return shown, [notes.rewards.get(p, 0.0) for p in shown], "shown"


def _outcome_id(event: Event) -> str:
    return f"{event.type}/{event.event_id}"
