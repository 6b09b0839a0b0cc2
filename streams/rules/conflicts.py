"""Which rules cannot both be kept, told from what they say alone.

A rule holds keys, and bars others: two conflict where one holds what the other bars and their placements meet. Lists of
items, conditions without a common value, and shares that sum over 1 are compared one by one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import msgspec

from headrace.streams.rules.rule import Rule
from headrace.streams.rules.where import Where
from headrace.streams.sections import duration_ms

_Key = tuple[object, ...]
_ONE = ("boost", "cap", "share", "frequency")  # actions of which items have one


class Conflicts:
    """What is in force so far; each rule is asked about before it is added."""

    def __init__(self) -> None:
        self._held: dict[_Key, list[Rule]] = defaultdict(list)
        self._of: dict[str, list[Rule]] = defaultdict(list)  # by action

    def add(self, rule: Rule) -> None:
        self._of[rule.action].append(rule)
        for key in _holds(rule):
            self._held[key].append(rule)

    def of(self, rule: Rule) -> str | None:
        """The sentence that refuses the rule, naming it and the first in its way; None where it may be in force."""
        for key, why in _bars(rule):
            for other in self._held.get(key, ()):
                if meet(rule, other):
                    return _sentence(rule, other, why)
        for other, why in self._compared(rule):
            if meet(rule, other):
                return _sentence(rule, other, why)
        return self._over_one(rule) if rule.least else None

    def _compared(self, rule: Rule) -> Iterator[tuple[Rule, str]]:
        if rule.action == "only":
            for other in self._of["only"]:
                if (name := _apart(rule, other)) is not None:
                    yield other, f"no item can have both values of {name}; widen one of them"
        elif rule.action == "pin":
            for other in self._of["exclude"]:
                if _all_excluded(rule, other):
                    yield other, "all items to be pinned are excluded; pin others, or exclude fewer"
        elif rule.action == "exclude":
            for other in self._of["pin"]:
                if _all_excluded(other, rule):
                    yield other, "all items that it pins are excluded; pin others, or exclude fewer"

    def _over_one(self, rule: Rule) -> str | None:
        """Whether the least shares sum over 1 at any of the rule's placements."""
        owed = [other for other in self._of["share"] if other.least and meet(rule, other)]
        for placement in {rule.placement, *(other.placement for other in owed)} if rule.placement == "*" else {""}:
            here = [other for other in owed if not placement or other.placement in ("*", placement)]
            total = math.fsum([rule.least or 0, *(other.least or 0 for other in here)])
            if here and total > 1 + 1e-9:
                largest = max(here, key=lambda other: other.least or 0)
                return _sentence(
                    rule, largest, f"least shares of one placement sum to {total:g}; lower them to 1 in all"
                )
        return None


def meet(one: Rule, other: Rule) -> bool:
    """Whether there is a placement at which both would be in force."""
    return "*" in (one.placement, other.placement) or one.placement == other.placement


def _sentence(rule: Rule, other: Rule, why: str) -> str:
    return f"rule {rule.rule_id!r} conflicts with rule {other.rule_id!r}, which is in force: {why}, or remove one"


def _holds(rule: Rule) -> Iterator[_Key]:
    where = _same(rule.where)
    if rule.action == "pin":
        yield "position", rule.value
        yield "pinned", where
    elif rule.action == "exclude" or (rule.action == "cap" and rule.value == 0):
        yield "none of", where
    if rule.action in _ONE:
        yield rule.action, where, rule.by
    if rule.least:
        yield "owed", where


def _bars(rule: Rule) -> Iterator[tuple[_Key, str]]:
    where = _same(rule.where)
    if rule.action == "pin":
        yield ("position", rule.value), f"both pin position {rule.value}; choose another position"
        yield ("none of", where), "it pins what the other leaves out; change the where of one"
    elif rule.action == "exclude" or (rule.action == "cap" and rule.value == 0):
        yield ("pinned", where), "it leaves out what the other pins; change the where of one"
        yield ("owed", where), "it leaves out what the other owes places; change the where of one"
    if rule.action in _ONE:
        yield (rule.action, where, rule.by), f"both {rule.action} the same items; change the where of one"
    if rule.least:
        yield ("none of", where), "it owes places to what the other leaves out; change the where of one"


def _same(where: dict[str, Any] | None) -> str:
    """Equal for conditions that say the same: whatever the order of names and lists, one value or a list of one."""
    return _canonical(msgspec.json.encode(where or {}))


@lru_cache(4_096)
def _canonical(where: bytes) -> str:
    return Where(msgspec.json.decode(where)).key


def _values(asked: Any) -> list[Any] | None:
    """The values that a condition allows; None for a range."""
    if isinstance(asked, dict):
        return None
    return list(asked) if isinstance(asked, list) else [asked]


def _all_excluded(pin: Rule, exclude: Rule) -> bool:
    if not pin.where or not exclude.where or set(exclude.where) != {"item_id"}:
        return False
    pinned, gone = _values(pin.where.get("item_id", {})), _values(exclude.where["item_id"])
    return bool(pinned) and gone is not None and all(item in gone for item in pinned or ())


def _apart(one: Rule, other: Rule) -> str | None:
    """An attribute of which no value satisfies both rules."""
    mine, others = one.where or {}, other.where or {}
    return next(
        (name for name in sorted(mine.keys() & others.keys()) if not _meets(name, mine[name], others[name])), None
    )


def _meets(name: str, a: Any, b: Any) -> bool:
    """Whether a value of the attribute satisfies both conditions."""
    if name == "category":
        return _categories_meet(a, b)
    if (values := _values(a)) is not None:
        return any(_allows(b, value) for value in values)
    if (values := _values(b)) is not None:
        return any(_allows(a, value) for value in values)
    return _ranges_meet(a, b)


def _categories_meet(a: Any, b: Any) -> bool:
    def inside(x: object, y: object) -> bool:
        return f"{x}/".startswith(f"{y}/")

    return any(inside(x, y) or inside(y, x) for x in _values(a) or () for y in _values(b) or ())


def _allows(asked: Any, value: Any) -> bool:
    values = _values(asked)
    return _ranges_meet(asked, {"<=": value, ">=": value}) if values is None else value in values


def _ranges_meet(a: dict[str, Any], b: dict[str, Any]) -> bool:
    bounds = [(sign, _number(bound)) for asked in (a, b) for sign, bound in asked.items()]
    if any(math.isnan(bound) for _, bound in bounds):
        return False
    low = max((bound for sign, bound in bounds if sign.startswith(">")), default=-math.inf)
    high = min((bound for sign, bound in bounds if sign.startswith("<")), default=math.inf)
    open_ = any(sign in "<>" and bound in (low, high) for sign, bound in bounds)
    return low < high or (low == high and not open_)


def _number(bound: Any) -> float:
    """NaN for what is no number: it meets nothing."""
    try:
        return float(duration_ms(bound))
    except (TypeError, ValueError):
        return math.nan
