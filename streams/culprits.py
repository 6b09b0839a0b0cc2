"""Which entries of a batch make it fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def culprits(attempt: Callable[[Sequence[int]], object], count: int) -> list[tuple[int, Exception]]:
    """(index, its error) of each of `count` entries that fails alone, found by halving.

    `attempt(indexes)` tries these entries and leaves no trace. Raises what it raises for none at all.
    """

    def search(indexes: range) -> list[tuple[int, Exception]]:
        try:
            attempt(indexes)
            return []
        except Exception as error:
            if not indexes:
                raise  # it fails without any entry: not an entry's fault
            if len(indexes) == 1:
                return [(indexes[0], error)]
        half = len(indexes) // 2
        return search(indexes[:half]) + search(indexes[half:])

    return search(range(count))
