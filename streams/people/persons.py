"""Whose an id is, for commands that read the shop's topics: the worker's rules, over the messages of `identities`.

The messages are taken in the order of their times. What only workers know is not: which alias has lapsed, and which of
more than 64 merged ids was let go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from headrace.streams.people.anonymous import anonymity
from headrace.streams.records import Identity
from headrace.streams.settings import Settings


class Persons:
    """Ids that became users'."""

    def __init__(
        self, settings: Settings, told: Iterable[Identity] = (), *, erased: Callable[[str, int], bool] | None = None
    ) -> None:
        """`erased`: whether what an id was at a time (Unix ms) must not be known."""
        self._by_looks = anonymity(settings)
        self._into: dict[str, str] = {}
        self._named: set[str] = set()  # by an identity as its user
        for identity in sorted(told, key=lambda identity: identity.ts):
            who = (identity.user_id, identity.anonymous_id)
            if who[0] != who[1] and not (erased is not None and any(erased(name, identity.ts) for name in who)):
                self._merge(*who)

    def user(self, name: str) -> str:
        """Whose it is by now; itself where it is nobody else's."""
        while name in self._into:
            name = self._into[name]
        return name

    def _merge(self, named: str, anonymous: str) -> None:
        known = named in self._named if self._by_looks is None else not self._by_looks(named)
        self._named.add(named)
        user, other = self.user(named), self.user(anonymous)
        if user == other:
            return
        if self._by_looks is None:
            refused = other in self._named and (known or other != anonymous)
        else:
            refused = not self._by_looks(other) and not self._by_looks(user)
            if self._by_looks(user) and not self._by_looks(other):
                user, other = other, user
        if not refused:
            self._into[other] = user
