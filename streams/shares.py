"""Which arm a user is in, from a stable hash and the shares of now alone: not from how they came about. Pure.

Users of the settings' split are places on a line. A holdout keeps the first of its places, and, beyond its share by
the settings, adds users by an order of its own; no other arm's share moves it. All others are in a race: each arm has
a time for each user, exponential at the arm's home weight, with the arm of the settings the first (what comes after a
first exponential time is exponential again). A weight that changes divides the times of that arm alone, so that users
move only to or from it, as many as the share moves by, and equal shares mean equal arms.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from headrace.streams.state import short_hash

UNITS = 1_000_000_000  # places


class Shares:
    """The split as it stands."""

    def __init__(self, shares: Mapping[str, float], salt: str, holdouts: Collection[str] = ()) -> None:
        """`shares` sum to 1; the order in which they are written is the order of the places. `holdouts`: of these."""
        self._salt = salt
        self.arms = list(shares)
        ends, total = [], 0.0
        for share in shares.values():
            total += share
            ends.append(round(min(total, 1.0) * UNITS))
        ends[-1] = UNITS
        self._line = list(zip(ends, self.arms, strict=True))
        starts = [0, *ends[:-1]]
        taken = [n for n in range(len(ends)) if ends[n] > starts[n]]
        self._ends, self._owners = [ends[n] for n in taken], [self.arms[n] for n in taken]
        self._starts = dict(zip(self.arms, starts, strict=True))
        self._home = {arm: end - start for arm, start, end in zip(self.arms, starts, ends, strict=True)}
        self._begun = {arm: self._home[arm] for arm in self.arms if arm in holdouts}
        self._held = dict(self._begun)  # places of every holdout
        self._rest = UNITS - sum(self._begun.values())  # places that the settings give to the others
        self._weights = self._settings_weights([arm for arm in self.arms if arm not in self._begun])
        self._all = ""  # the arm that has all of the weight; the weights of the others are those to come back to
        self._settled = dict(self._weights)

    def _settings_weights(self, arms: Iterable[str]) -> dict[str, int]:
        """In the proportions of the settings; finer than places, so that a small share rounds to itself."""
        weights = {arm: UNITS * self._home[arm] for arm in arms}
        return weights if any(weights.values()) else dict.fromkeys(weights, UNITS)

    def arm(self, user_id: str) -> str:
        """By stable hash, salted apart from the partition."""
        place = short_hash(self._salt, user_id) * UNITS >> 64
        home = self._owners[bisect_right(self._ends, place)]
        if self._held != self._begun:
            if (holdout := self._holdout(user_id, home, place)) is not None:
                return holdout
        elif home in self._held:
            return home
        moved = self._all or self._weights != self._settled
        return self._first(user_id, home) if moved or home in self._held else home

    def _holdout(self, user_id: str, home: str, place: int) -> str | None:
        """The holdout that the user is in. Of several, those named first add first."""
        if home in self._held:
            return home if place - self._starts[home] < self._held[home] else None
        turn = short_hash(f"{self._salt}/holdout", user_id) * self._rest >> 64
        for arm, size in self._held.items():
            added = max(0, size - self._begun[arm])
            if turn < added:
                return arm
            turn -= added
        return None

    def _first(self, user_id: str, home: str) -> str:
        """The arm whose time is the first."""
        if self._all:
            return self._all
        began = 0.0
        if home in self._weights:
            began = self._drawn("", user_id) / self._rest
        times = {}
        for arm, weight in self._weights.items():
            if weight:
                later = 0.0 if arm == home else self._drawn(arm, user_id)
                times[arm] = (began * self._home[arm] + later) / weight
        return min(times, key=times.__getitem__)

    def _drawn(self, arm: str, user_id: str) -> float:
        """Exponential with mean 1; `arm` "": of the first."""
        return -math.log((short_hash(f"{self._salt}/race/{arm}", user_id) + 0.5) / 2.0**64)

    def share(self, arm: str) -> float:
        return self.told()[arm]

    def told(self) -> dict[str, float]:
        """{arm: share}, in the order of the settings."""
        weights = {self._all: 1} if self._all else self._weights
        free, total = UNITS - sum(self._held.values()), sum(weights.values()) or 1
        return {arm: self._held[arm] / UNITS if arm in self._held else free * weights.get(arm, 0) / total / UNITS
                for arm in self.arms}  # fmt: skip

    def most(self, arm: str) -> float:
        """The largest share that the arm can have while holdouts keep theirs."""
        others = [max(size, self._begun[other] if arm in self._held else 0)
                  for other, size in self._held.items() if other != arm]  # fmt: skip
        return (UNITS - sum(others)) / UNITS

    def movable(self, arm: str) -> bool:
        """Whether there is anybody who could take what the arm leaves."""
        return bool(self._weights) if arm in self._held else len(self._weights) > 1

    def move(self, arm: str, share: float) -> None:
        """Gives `arm` this share, at most what `most` says; holdouts keep theirs, and the others what is left in the
        proportions that they have, or, where none has any, had before, or have by the settings."""
        units = round(share * UNITS)
        if arm in self._held:
            self._held[arm] = units
            return
        free = UNITS - sum(self._held.values())
        if self._all and self._all != arm:
            self._weights = {other: UNITS**2 * (other == self._all) for other in self._weights}
            self._all = ""
        if units >= free:
            self._all = arm
            return
        self._all = ""
        others = {other: weight for other, weight in self._weights.items() if other != arm}
        if not any(others.values()):
            others = self._settings_weights(others)
        weight = round(units * sum(others.values()) / (free - units))
        weights = {other: others.get(other, weight) for other in self._weights}
        while max(weights.values()) > 1e60:  # floats end at 1e308
            weights = {other: -(-weight // UNITS) for other, weight in weights.items()}
        self._weights = weights

    # -- the record ---------------------------------------------------------------------------------------------------

    def _from(self) -> list[object]:
        return [self._salt, [list(entry) for entry in self._line], list(self._begun)]

    def written(self) -> str:
        """The shares, and what they began from."""
        split = {"weights": self._weights, "all": self._all, "held": self._held}
        return json.dumps({"from": self._from(), "split": split})

    def resume(self, written: str) -> bool:
        """Becomes what was written; False, and nothing, where it began from other settings."""
        said = json.loads(written)
        if said["from"] not in (self._from(), self._from()[:2]):
            return False
        split = said["split"] if "split" in said else self._as_split(said["table"])
        weights = {arm: int(split["weights"][arm]) for arm in self._weights}
        held = {arm: int(split["held"][arm]) for arm in self._held}
        self._weights, self._held, self._all = weights, held, str(split["all"])
        return True

    def _as_split(self, table: list[tuple[int, str]]) -> dict[str, Any]:
        """From a record that says whose every place is, as (end, arm) in order: the shares are the same."""
        sizes, start = dict.fromkeys(self.arms, 0), 0
        for end, arm in table:
            sizes[arm] += end - start
            start = end
        weights = {arm: UNITS * sizes[arm] for arm in self._weights}
        return {"weights": weights if any(weights.values()) else self._weights, "all": "", "held": sizes}
