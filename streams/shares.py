"""Which arm a user is in: every place in [0, 1) belongs to an arm, and a user's place is a stable hash. Pure.

A share that moves takes or gives as many places as it moves by, and no other user changes his arm. What comes back goes
home: a move that is taken back leaves every user where he was.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from headrace.streams.state import short_hash

UNITS = 1_000_000_000  # places


@dataclass
class _Piece:
    """Places [start, end) of one owner, which the settings gave to `home`."""

    start: int
    end: int
    owner: str
    home: str


class Shares:
    """The split as it stands. `home`: the arm of every place by the settings."""

    def __init__(self, shares: Mapping[str, float], salt: str) -> None:
        """`shares` sum to 1; the order in which they are written is the order of the places."""
        self._salt = salt
        self.arms = list(shares)
        ends, total = [], 0.0
        for share in shares.values():
            total += share
            ends.append(round(min(total, 1.0) * UNITS))
        ends[-1] = UNITS
        self._home = list(zip(ends, self.arms, strict=True))
        self._become(self._home)

    def _become(self, table: list[tuple[int, str]]) -> None:
        """`table`: (end, arm) in order; empty and adjacent pieces of one arm are joined."""
        joined: list[tuple[int, str]] = []
        start = 0
        for end, arm in table:
            if end > start:
                if joined and joined[-1][1] == arm:
                    joined.pop()
                joined.append((end, arm))
            start = max(start, end)
        self._ends, self._owners = [end for end, _ in joined], [arm for _, arm in joined]

    def arm(self, user_id: str) -> str:
        """By stable hash, salted apart from the partition."""
        return self._owners[bisect_right(self._ends, short_hash(self._salt, user_id) * UNITS >> 64)]

    def share(self, arm: str) -> float:
        return self._sizes()[arm] / UNITS

    def told(self) -> dict[str, float]:
        """{arm: share}, in the order of the settings."""
        return {arm: size / UNITS for arm, size in self._sizes().items()}

    def _sizes(self) -> dict[str, int]:
        sizes, start = dict.fromkeys(self.arms, 0), 0
        for end, arm in zip(self._ends, self._owners, strict=True):
            sizes[arm] += end - start
            start = end
        return sizes

    def move(self, arm: str, share: float) -> None:
        """Gives `arm` this share; the others keep what is left in proportion to what they have, or, where none has
        any, to what the settings give them."""
        sizes = self._sizes()
        change = round(share * UNITS) - sizes[arm]
        others = {other: size for other, size in sizes.items() if other != arm}
        if not any(others.values()):
            others = {other: self._size_at_home(other) or 1 for other in others}
        pieces = self._pieces()
        parts = _in_proportion(abs(change), others)
        moves = [(other, arm, n) if change > 0 else (arm, other, n) for other, n in parts.items()]
        for fits in (_goes_home, _is_away, _any):  # in this order, so that what comes back is what left
            moves = [(giver, to, _hand_over(pieces, giver, to, amount, fits)) for giver, to, amount in moves]
        self._become([(piece.end, piece.owner) for piece in pieces])

    def _size_at_home(self, arm: str) -> int:
        start, found = 0, 0
        for end, owner in self._home:
            found += (end - start) * (owner == arm)
            start = end
        return found

    def _pieces(self) -> list[_Piece]:
        """All places, cut wherever owner or home changes."""
        home_ends = [end for end, _ in self._home]
        cuts = sorted({0, *self._ends, *home_ends})
        pieces = []
        for start, end in pairwise(cuts):
            owner = self._owners[bisect_right(self._ends, start)]
            pieces.append(_Piece(start, end, owner, self._home[bisect_right(home_ends, start)][1]))
        return pieces

    # -- the record ---------------------------------------------------------------------------------------------------

    def written(self) -> str:
        """The table, and what it began from."""
        return json.dumps({"from": [self._salt, self._home], "table": list(zip(self._ends, self._owners, strict=True))})

    def resume(self, written: str) -> bool:
        """Becomes what was written; False, and nothing, where it began from other settings."""
        said = json.loads(written)
        if said["from"] != json.loads(json.dumps([self._salt, self._home])):
            return False
        self._become([(int(end), str(arm)) for end, arm in said["table"]])
        return True


Fits = Callable[[_Piece, str], bool]


def _goes_home(piece: _Piece, taker: str) -> bool:
    return piece.home == taker


def _is_away(piece: _Piece, taker: str) -> bool:
    return piece.home != piece.owner


def _any(piece: _Piece, taker: str) -> bool:
    return True


def _hand_over(pieces: list[_Piece], giver: str, taker: str, amount: int, fits: Fits) -> int:
    """Gives `taker` up to `amount` of the giver's places that fit, the last first; returns how many are still owed."""
    for at in range(len(pieces) - 1, -1, -1):
        piece = pieces[at]
        if not amount or piece.owner != giver or not fits(piece, taker):
            continue
        part = min(amount, piece.end - piece.start)
        amount -= part
        if part < piece.end - piece.start:
            pieces.insert(at + 1, _Piece(piece.end - part, piece.end, taker, piece.home))
            piece.end -= part
        else:
            piece.owner = taker
    return amount


def _in_proportion(amount: int, weights: Mapping[str, int]) -> dict[str, int]:
    """`amount` as whole numbers in proportion to the weights (largest remainders)."""
    total = sum(weights.values())
    parts = {name: amount * weight // total for name, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda name: -(amount * weights[name] % total))
    for name in by_remainder[: amount - sum(parts.values())]:
        parts[name] += 1
    return parts
