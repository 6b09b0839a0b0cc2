"""What the shop says of an item beside its words, as far as rules ask for it: from its message to columns by row.

A column holds words by code, numbers as they are, and booleans as 1 and 0; one attribute may be a word of one item and
a number of another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.streams.messages import MAX_NUMBER, MIN_TIME_MS, ShopItem

Attributes = dict[str, str | float | bool]
_WORD = 128  # characters

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]


def carried(item: ShopItem, names: Iterable[str]) -> Attributes:
    """The named attributes that rules can ask for, in the order of their names: words of up to 128 characters, finite
    numbers, booleans. Others are left out."""
    given = item.attributes or {}
    found: Attributes = {}
    for name in sorted(names):
        value = given.get(name)
        if isinstance(value, bool) or (isinstance(value, str) and 0 < len(value) <= _WORD):
            found[name] = value
        elif isinstance(value, (int, float)) and -MAX_NUMBER <= value <= MAX_NUMBER:
            found[name] = float(value)  # as a record read back has it
    return found


def since(attributes: Attributes, known_since_ms: int) -> int:
    """Since when (ms) an item counts as known: `published`, where that is a time, else when it was first heard of."""
    at = attributes.get("published")
    return int(at) if isinstance(at, float) and MIN_TIME_MS <= at <= MAX_NUMBER else known_since_ms


class Words:
    """Words of one attribute by row, -1 where there is none. `names` only grows."""

    def __init__(self, size: int) -> None:
        self.codes: I32 = np.full(size, -1, np.int32)
        self.names: list[str] = []
        self._code: dict[str, int] = {}

    def code(self, word: str) -> int:
        code = self._code.setdefault(word, len(self.names))
        if code == len(self.names):
            self.names.append(word)
        return code


class Columns:
    """The attributes of all items, by row."""

    def __init__(self) -> None:
        self._size = 0
        self.words: dict[str, Words] = {}
        self.numbers: dict[str, F64] = {}  # NaN: none

    def grow(self, size: int) -> None:
        for words in self.words.values():
            words.codes = _grown(words.codes, size, -1)
        for name, column in self.numbers.items():
            self.numbers[name] = _grown(column, size, math.nan)
        self._size = size

    def put(self, row: int, attributes: Attributes) -> bool:
        """Those not given are none. Returns whether anything changed."""
        for name, value in attributes.items():
            if isinstance(value, str):
                if name not in self.words:
                    self.words[name] = Words(self._size)
            elif name not in self.numbers:
                self.numbers[name] = np.full(self._size, math.nan)
        changed = False
        for name, words in self.words.items():
            word = attributes.get(name)
            code = words.code(word) if isinstance(word, str) else -1
            if words.codes[row] != code:
                words.codes[row], changed = code, True
        for name, column in self.numbers.items():
            given = attributes.get(name)
            number = math.nan if given is None or isinstance(given, str) else float(given)
            if not same(float(column[row]), number):
                column[row], changed = number, True
        return changed


def same(a: float, b: float) -> bool:
    return a == b or (a != a and b != b)


def _grown(column: NDArray[Any], size: int, fill: float) -> NDArray[Any]:
    """Longer, without the last row of before, which stood for no item."""
    new = np.full(size, fill, column.dtype)
    new[: len(column) - 1] = column[:-1]
    return new
