"""No profiling: a user who does not want it gets slates that use nothing he did, and teaches nothing.

    dismiss, text "profiling", no item     from now on
    like, text "profiling", no item        takes it back; what is known begins anew

What is dropped at once: history, words, how often he took what, decisions still open, and what learners remember of
him. What stays, because rules and accounts need it and no policy sees it: the ids of the latest events (duplicates),
what he bought and what lies in his cart (not to be recommended again), how often he was shown an item (frequency caps),
purchases that may be returned. Later decisions are kept open as usual, marked as ones that teach nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.streams.records import Erased, Event
from headrace.streams.state import Notes, UserState

if TYPE_CHECKING:
    from headrace.streams.step import Step

_WORD = "profiling"
_CHOICES = {"dismiss": True, "like": False}


def choice(kind: str, item_id: str | None, text: str | None) -> bool | None:
    """What an event of this type says about profiling: True that it is not wanted, False that it is; None: nothing."""
    return _CHOICES.get(kind) if item_id is None and text == _WORD else None


def refused(state: UserState) -> bool:
    """Whether this user wants no profiling."""
    return state.notes is not None and state.notes.profiling > 0


def chosen_at(notes: Notes) -> int:
    """When the latest choice was made, in Unix ms; 0: none was."""
    return 1000 * abs(notes.profiling) + notes.profiling_ms


def latest(mine: Notes, other: Notes) -> Notes:
    """Of two ids that are one user, which one's choice counts: the later, of equally late ones the refusal. Each
    partition has an order of its own, so that nothing says which of them came first."""
    return max(mine, other, key=lambda notes: (chosen_at(notes), notes.profiling))


def choose(step: Step, state: UserState, event: Event, refuses: bool) -> None:
    """The user chooses. The latest choice by its time counts, in whatever order they come; of equally late ones the one
    that comes last."""
    notes = state.note()
    if event.ts < chosen_at(notes):
        return
    before = refused(state)
    second, notes.profiling_ms = divmod(event.ts, 1000)
    notes.profiling = second if refuses else -second
    if refuses and not before:
        step.effects.open_change -= state.pending_count
        let_go(step, state, event.user_id, event.ts)
        forget(state)
        step.engine.recommender.evict(event.user_id)


def let_go(step: Step, state: UserState, user: str, ts: int) -> None:
    """Closes what is open, and learners forget what was shown to the user, also under ids that were merged into him."""
    while state.pending_count:
        closed = step.decisions.close_oldest(state, now=step.clock.now, user_id=user, erased=True)
        step.counts["closed", closed.arm, closed.closed_as] += 1
        step.records.append(closed)
    step.records += [Erased(name, ts) for name in (user, *(state.notes.merged if state.notes is not None else ()))]


def forget(state: UserState) -> None:
    """Drops what a slate could be made from."""
    state.count = 0
    state.keys = state.types = state.seconds = state.generations = b""
    if state.notes is not None:
        state.notes.texts, state.notes.taken = {}, {}
