"""Which removed items are still remembered, in the order in which `item-vectors` says that they went.

The last of them keep their rows, so that what a history did with them still brings what is near; of more, histories
keep the contents. The order is the log's: a process that starts again remembers the contents of the same items.
"""

from __future__ import annotations

from collections import OrderedDict

ROWS, CONTENTS = 10_000, 100_000  # items
AT_ONCE = 1_024  # rows that are made free together, or a twentieth of all: whoever named them is looked for then


class Removed:
    """Item keys."""

    def __init__(self, rows: int = ROWS, contents: int = CONTENTS, at_once: int = AT_ONCE) -> None:
        self._most_rows, self._most, self.at_once = rows, contents, at_once
        self._rows: OrderedDict[int, None] = OrderedDict()  # of these, those that have a row; the latest last
        self._all: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, key: int) -> bool:
        return key in self._all

    def put(self, key: int, *, row: bool) -> None:
        """Removed now, or said to be once more."""
        self.back(key)
        self._all[key] = None
        if row:
            self._rows[key] = None

    def back(self, key: int) -> None:
        """It is an item again."""
        self._all.pop(key, None)
        self._rows.pop(key, None)

    def without_row(self) -> list[int]:
        """Those whose row is to be given up, the one removed longest ago first."""
        return _beyond(self._rows, self._most_rows)

    def forgotten(self) -> list[int]:
        """Those whose contents are to be given up."""
        return _beyond(self._all, self._most)


def _beyond(keys: OrderedDict[int, None], most: int) -> list[int]:
    """Takes out the oldest beyond `most`."""
    return [keys.popitem(last=False)[0] for _ in range(len(keys) - most)]
