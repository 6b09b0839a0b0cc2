"""Which items a rule is about: the conditions of its `where`, all of which must hold.

    {"category": "sport"}                that category or one below it; a list: any of them
    {"brand": ["a", "b"]}                any attribute that is carried: a word, a number, true or false, or a list
    {"price": {">=": 2, "<": 10}}        a range of price or of an attribute that is a number
    {"item_id": ["i1", "i2"]}
    {"age": {"<": "14d"}}                time since the item was first known

An item without the attribute does not match. One known since before ages were counted is older than anybody asks for.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.streams.records import item_key
from headrace.streams.sections import duration_ms

if TYPE_CHECKING:  # ingest reads rules too, and has no catalogue
    from headrace.streams.items import ItemStore

Bool = NDArray[np.bool_]
Rows = slice | NDArray[np.int64]
_Check = Callable[["ItemStore", Rows, int], Bool]
ALL = slice(None)

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_VALUES = 10_000  # in a list


class Where:
    """Raises ValueError, in one sentence, where the conditions cannot be read."""

    def __init__(self, where: dict[str, Any] | None) -> None:
        self._checks: list[_Check] = []
        plain: dict[str, Any] = {}
        for name, asked in (where or {}).items():
            check, plain[name] = _condition(name, asked)
            self._checks.append(check)
        self.key = json.dumps(plain, sort_keys=True)  # equal for conditions that say the same
        self.by_age = "age" in plain

    def matches(self, items: ItemStore, now: int, rows: Rows = ALL) -> Bool:
        """(capacity + 1,) at `now` (ms), or of `rows` alone. The last row, which is no item, does not match."""
        if isinstance(rows, slice):
            found = np.ones(items.none + 1, np.bool_)
            found[-1] = False
        else:
            found = rows != items.none
        for check in self._checks:
            found &= check(items, rows, now)
        return found


def _condition(name: str, asked: Any) -> tuple[_Check, Any]:
    """The check, and what is asked for in a form that is the same for all ways to say it."""
    if name == "age":
        bounds = _range(name, asked, _duration)
        return _in_range(bounds, _age), bounds
    if isinstance(asked, dict) and name not in ("category", "item_id"):
        bounds = _range(name, asked, _number)
        return _in_range(bounds, lambda items, rows, _: _column(items.numbers(name), items, rows)), bounds
    values = _values(name, asked)
    if name == "category":
        return _Category(values), values
    if name == "item_id":
        return _Ids(values), values
    return _Values(name, values), values


def _range(name: str, asked: Any, read: Callable[[str, Any], float]) -> dict[str, float]:
    if not isinstance(asked, dict) or not asked:
        raise ValueError(f"where.{_clip(name)}: say a range, such as {_example(name)}")
    for sign in asked:
        if sign not in _COMPARE:
            raise ValueError(f"where.{_clip(name)}: unknown operator {_clip(sign)!r}; use <, <=, > or >=")
    return {sign: read(name, bound) for sign, bound in asked.items()}


def _example(name: str) -> str:
    return '{"<": "14d"}' if name == "age" else '{"<": 10}'


def _number(name: str, bound: Any) -> float:
    if isinstance(bound, bool) or not isinstance(bound, (int, float)) or not -1e15 <= bound <= 1e15:
        raise ValueError(f"where.{_clip(name)}: a range is bound by numbers, such as {_example(name)}")
    return float(bound)


def _duration(name: str, bound: Any) -> float:
    try:
        return _number(name, duration_ms(bound))
    except ValueError:
        raise ValueError(f"where.{name}: a bound of an age is a duration, such as {_example(name)}") from None


def _values(name: str, asked: Any) -> list[Any]:
    """Sorted, each once."""
    words_only = name in ("category", "item_id")
    values = asked if isinstance(asked, list) else [asked]
    if not values:
        raise ValueError(f"where.{_clip(name)}: the list is empty, so that nothing could match; name one or more")
    if len(values) > _VALUES:
        raise ValueError(f"where.{_clip(name)}: {len(values)} values; at most {_VALUES}")
    found: dict[str, Any] = {}
    for value in values:
        if isinstance(value, str) and value:
            found[json.dumps(value)] = value
        elif words_only:
            raise ValueError(f"where.{name}: give a word, or a list of words, that is not empty")
        elif isinstance(value, bool):
            found[json.dumps(value)] = value
        elif isinstance(value, (int, float)):
            found[json.dumps(_number(name, value))] = float(value)
        else:
            raise ValueError(f'where.{_clip(name)}: give a word, a number, true, false, a list of them or {{"<": 10}}')
    return [found[key] for key in sorted(found)]


def _clip(name: str) -> str:
    return name if len(name) <= 60 else name[:57] + "..."


def _in_range(bounds: dict[str, float], values: Callable[[ItemStore, Rows, int], NDArray[np.float64]]) -> _Check:
    def check(items: ItemStore, rows: Rows, now: int) -> Bool:
        column = values(items, rows, now)
        found: Bool = ~np.isnan(column)  # NaN: the item lacks it
        for sign, bound in bounds.items():
            found &= _COMPARE[sign](column, bound)
        return found

    return check


def _age(items: ItemStore, rows: Rows, now: int) -> NDArray[np.float64]:
    since = items.since_ms[rows]
    return np.where(since < 0, math.nan, now - since)


def _column(column: NDArray[np.float64] | None, items: ItemStore, rows: Rows) -> NDArray[np.float64]:
    """Of `rows`; NaN all over where no item has the attribute."""
    if column is None:
        return np.full(items.none + 1 if isinstance(rows, slice) else len(rows), math.nan)
    return column[rows]


class _Accepted:
    """Which codes of a list of names that only grows are accepted."""

    def __init__(self, accepts: Callable[[str], bool]) -> None:
        self._accepts = accepts
        self._names: list[str] | None = None
        self._table: Bool = np.zeros(1, np.bool_)

    def of(self, codes: NDArray[np.int32], names: list[str]) -> Bool:
        if names is not self._names or len(names) != len(self._table) - 1:
            had = self._table[:-1].tolist() if names is self._names else []
            # the last one is what the code -1 finds: no name
            self._table = np.array([*had, *map(self._accepts, names[len(had) :]), False], np.bool_)
            self._names = names
        found: Bool = self._table[codes]
        return found


class _Category:
    def __init__(self, names: list[str]) -> None:
        wanted = frozenset(names)

        def inside(category: str) -> bool:
            parts = category.split("/")
            return any("/".join(parts[:n]) in wanted for n in range(1, len(parts) + 1))

        self._accepted = _Accepted(inside)

    def __call__(self, items: ItemStore, rows: Rows, now: int) -> Bool:
        return self._accepted.of(items.category[rows], items.category_names)


class _Ids:
    def __init__(self, names: list[str]) -> None:
        self._names = frozenset(names)
        self._keys = [item_key(name) for name in names]

    def __call__(self, items: ItemStore, rows: Rows, now: int) -> Bool:
        if not isinstance(rows, slice):
            ids, none = items.ids, items.none
            return np.array([row != none and ids[row] in self._names for row in rows.tolist()], np.bool_)
        found = np.zeros(items.none + 1, np.bool_)
        found[items.rows_of(self._keys)] = True
        return found


class _Values:
    """A carried attribute that is one of some words, numbers or booleans; a boolean is as good as 1 or 0."""

    def __init__(self, name: str, values: list[Any]) -> None:
        self._name = name
        words = frozenset(value for value in values if isinstance(value, str))
        self._words = _Accepted(words.__contains__) if words else None
        self._numbers = [float(value) for value in values if not isinstance(value, str)]

    def __call__(self, items: ItemStore, rows: Rows, now: int) -> Bool:
        column = _column(items.numbers(self._name), items, rows) if self._numbers else None
        found = np.zeros(items.none + 1 if isinstance(rows, slice) else len(rows), np.bool_)
        for number in self._numbers:
            found |= column == number
        words = items.words(self._name) if self._words else None
        if self._words and words:
            found |= self._words.of(words.codes[rows], words.names)
        return found
