"""Two states of one person become one: what either says, in time order, within the same caps. Pure."""

from __future__ import annotations

import numpy as np

from headrace.streams.decisions import CREDITS
from headrace.streams.people import optout
from headrace.streams.rules.personal import TIMES, forget_shown
from headrace.streams.settings import Settings
from headrace.streams.state import SEEN_OF_OTHERS, Notes, OpenDecision, UserState, seen_as

MERGED = 64  # ids a user, the latest: of more the one merged longest ago is let go


def absorb(state: UserState, other: UserState, *, user: str, sent_as: str, settings: Settings) -> list[str]:
    """Takes what is known of the id `sent_as` into the state of `user`; returns merged ids that found no room any more.

    More than `worker.pending` decisions may be open afterwards: the caller closes the oldest.
    """
    if _seen_by(state, user) & _seen_by(other, sent_as):
        _drop_repeats(other, beside=state)
    _history(state, other, window=settings.worker.history)
    _pending(state, other)
    theirs = other.notes or Notes()
    notes, cap = state.note(), settings.consumed.cap
    _seen(state, other, theirs, user=user, sent_as=sent_as, horizon=settings.worker.seen)
    notes.consumed = _latest(notes.consumed, theirs.consumed, cap)
    notes.cart = _latest(notes.cart, theirs.cart, cap)
    _taken(notes, theirs, cap)
    texts = {**theirs.texts, **notes.texts}
    kept = set(state.history_keys().tolist())
    notes.texts = {key: packed for key, packed in texts.items() if key in kept}
    notes.decisions = {**notes.decisions, **theirs.decisions}
    notes.credits = sorted([*notes.credits, *theirs.credits], key=lambda credit: credit.ts)[-CREDITS:]
    for key, seconds in theirs.shows.items():
        notes.shows[key] = sorted([*notes.shows.get(key, []), *seconds])[-TIMES:]
    forget_shown(notes.shows)
    notes.known = max(notes.known, theirs.known)
    notes.last = max(notes.last, theirs.last)
    choice = optout.latest(notes, theirs)
    notes.profiling, notes.profiling_ms = choice.profiling, choice.profiling_ms
    if optout.refused(state):
        optout.forget(state)
    ids = [name for name in dict.fromkeys([*notes.merged, *theirs.merged, sent_as]) if name != user]
    notes.merged = ids[-MERGED:]
    return ids[:-MERGED]


def _seen_by(state: UserState, user: str) -> set[int]:
    """Hashes of the event ids that were seen, with the ids that they were sent under."""
    others = np.frombuffer(state.notes.others, np.uint64).tolist() if state.notes is not None else []
    return {*others, *(seen_as(user, event) for event in np.frombuffer(state.seen, np.uint64).tolist())}


def _entries(state: UserState) -> list[tuple[int, int]]:
    return list(zip(state.history_keys().tolist(), np.frombuffer(state.seconds, np.uint32).tolist(), strict=True))


def _drop_repeats(state: UserState, *, beside: UserState) -> None:
    """Without entries that both have: where a ring of aliases is opened a repeat may overtake what came before it."""
    mine = set(zip(_entries(beside), beside.types, strict=True))
    both = list(zip(_entries(state), state.types, strict=True))
    kept = [place for place, entry in enumerate(both) if entry not in mine]
    state.count -= len(both) - len(kept)
    state.reorder(np.array(kept, np.int64))


def _history(state: UserState, other: UserState, *, window: int) -> None:
    state.count += other.count
    state.keys += other.keys
    state.types += other.types
    state.seconds += other.seconds
    state.generations += other.generations
    state.reorder(np.argsort(np.frombuffer(state.seconds, np.uint32), kind="stable")[-window:])


def _pending(state: UserState, other: UserState) -> None:
    both: list[OpenDecision] = sorted([*state.decisions(), *other.decisions()], key=lambda decision: decision.ts)
    state.pending, state.pending_count = b"", 0
    for decision in both:
        keys = np.array(decision.keys, np.uint64).tobytes()
        state.open(decision.recommendation, ts=decision.ts, arm=decision.arm, keys=keys)


def _seen(state: UserState, other: UserState, theirs: Notes, *, user: str, sent_as: str, horizon: int) -> None:
    """Event ids are unique by the id that they were sent under, so that is remembered with them."""
    ids = np.frombuffer(other.seen, np.uint64).tolist()
    if sent_as == user:  # it has come round
        state.seen = (other.seen + state.seen)[-8 * horizon :]
        ids = []
    notes = state.note()
    named = b"".join(seen_as(sent_as, event).to_bytes(8, "little") for event in ids)
    notes.others = (theirs.others + named + notes.others)[-8 * SEEN_OF_OTHERS * horizon :]


def _latest(mine: dict[int, int], theirs: dict[int, int], cap: int) -> dict[int, int]:
    """Seconds by item, the latest last and no more than `cap`."""
    both = {key: max(mine.get(key, 0), theirs.get(key, 0)) for key in (*theirs, *mine)}
    ordered = sorted(both.items(), key=lambda entry: entry[1])
    return dict(ordered[-cap:] if cap else [])


def _taken(notes: Notes, theirs: Notes, cap: int) -> None:
    """Counts add up; those of items that are remembered no more may go first."""
    both = {key: notes.taken.get(key, 0) + theirs.taken.get(key, 0) for key in (*theirs.taken, *notes.taken)}
    while len(both) > cap:
        del both[min(both, key=both.__getitem__)]
    at = notes.consumed
    notes.taken = dict(sorted(both.items(), key=lambda entry: at.get(entry[0], 0)))
