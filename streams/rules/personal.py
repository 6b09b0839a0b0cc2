"""What a rule must know of a user: what lies in his cart, and how often he was shown an item."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import nsmallest
from typing import Literal

from headrace.streams.state import UserState

ITEMS_SHOWN = 2_048  # a user: of more the one shown least often is forgotten, and of those the one shown longest ago
TIMES = 32  # of one item


def touch_cart(state: UserState, key: int, *, what: Literal["", "add", "remove"], second: int, cap: int) -> None:
    """What an event does to the cart. Of more than `cap` items the one put there longest ago is forgotten."""
    if what == "add" and cap:
        cart = state.note().cart
        cart.pop(key, None)
        cart[key] = second
        while len(cart) > cap:
            del cart[next(iter(cart))]
    elif what == "remove" and state.notes is not None:
        state.notes.cart.pop(key, None)


def note_shown(state: UserState, keys: Iterable[int], *, second: int, since: int) -> None:
    """The items were shown to the user at `second`, in whatever order that is told; what was shown before the second
    `since` no rule asks for."""
    notes = state.note()
    shows = {  # their seconds are in order
        key: seconds if seconds[0] >= since else [s for s in seconds if s >= since]
        for key, seconds in notes.shows.items()
        if seconds[-1] >= since
    }
    notes.shows = shows
    for key in keys:
        shows[key] = sorted([*shows.pop(key, ()), second])[-TIMES:]
    forget_shown(shows)


def forget_shown(shows: dict[int, list[int]]) -> None:
    """Of more than `ITEMS_SHOWN` items the ones shown least often go, and of those the ones shown longest ago."""
    for key in nsmallest(len(shows) - ITEMS_SHOWN, shows, key=lambda key: (len(shows[key]), shows[key][-1])):
        del shows[key]


def shown_often(state: UserState, *, most: int, since: int) -> Iterator[int]:
    """Keys of the items shown `most` times or more since the second `since`, which counts as
    a whole: shows are known by the second."""
    if state.notes is not None:
        for key, seconds in state.notes.shows.items():
            if len(seconds) >= most and seconds[-most] >= since:
                yield key
