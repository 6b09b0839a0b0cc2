"""The rules as they stand at each placement, as arrays over the catalogue's rows.

What a `where` matches is kept. When an item changes, only its row is asked about again, and when a rule changes, only
what it asks; the arrays are then put together anew, and only where something in them changed. Ages are taken by the
whole minute of event time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.policy.base import F32, I32
from headrace.streams.items import ItemStore
from headrace.streams.rules.in_force import InForce, Members
from headrace.streams.rules.rule import WINDOW, Rule
from headrace.streams.rules.where import ALL, Rows, Where
from headrace.streams.sections import duration_ms
from headrace.streams.settings import Settings

I64 = NDArray[np.int64]
_MINUTE = 60_000
_DAY = 86_400_000
_KEPT = 4  # states of a placement: partitions are not at the same event time
_SPARE = 16  # masks kept beside those of the rules in force


class Book(Protocol):
    """rules/book.py."""

    version: int

    def in_force(self, now_ms: int) -> list[Rule]:
        """The same list as long as nothing changes."""
        ...


@dataclass
class _Mask:
    members: Members
    changes: int  # of the items, up to which it is right


@dataclass
class _Codes:
    """A number by row for each value of an attribute, -1 where an item has none."""

    codes: I32
    changes: int
    of_value: dict[float, int]  # of numbers: only grows


@dataclass
class _Groups:
    members: Members
    codes: I32 | None
    groups: I32
    minute: int
    changes: int


_Part = tuple[Rule, Members | None, I32 | None]  # members, None: all; groups of a cap


@dataclass
class _Placed:
    """What stands at one placement, and of what it was made."""

    rules: list[Rule]
    minute: int  # -1 where no rule asks for an age
    version: int
    changes: int
    size: int  # of the arrays
    parts: list[_Part]
    force: InForce


class Standing:
    """Of one set of items; shared by all partitions of a worker. Arrays that it has given out never change."""

    def __init__(self, settings: Settings, items: ItemStore, book: Book) -> None:
        self._items, self._book = items, book
        self._placed: dict[str, list[_Placed]] = {name: [] for name in settings.placements}  # the latest last
        self._wheres: dict[str, tuple[Rule, Where]] = {}  # by rule id
        self._masks: OrderedDict[tuple[str, int], _Mask] = OrderedDict()  # by Where.key and minute: latest used last
        self._aged: dict[str, Members] = {}  # by Where.key: the latest mask of those that ask for an age
        self._codes: dict[str, _Codes] = {}  # by attribute
        self._groups: dict[tuple[str, str], _Groups] = {}  # by Where.key and attribute
        self._rows: dict[int, I64 | None] = {}  # changed rows by since when
        self._rows_at = -1

    def at(self, placement: str, now: int) -> InForce:
        """At event time `now` (ms); the same object as long as nothing in it changes."""
        rules, changes, version = self._book.in_force(now), self._items.changes, self._book.version
        minute = now // _MINUTE
        kept = self._placed.setdefault(placement, [])
        for placed in reversed(kept):
            if placed.rules is rules and placed.minute in (-1, minute):
                if (placed.changes, placed.version) != (changes, version):
                    self._refresh(placed, minute)
                return placed.force
        here = [rule for rule in rules if rule.placement in ("*", placement)]
        wheres = [self._where(rule) for rule in here]
        by_age = any(where.by_age for where in wheres)
        parts = self._parts(here, minute)
        before = kept[-1] if kept else None
        if before is not None and _same(before.parts, parts):
            force = before.force if before.version == version else replace(before.force, version=version)
        else:
            force = self._assembled(parts, before)
        kept.append(_Placed(rules, minute if by_age else -1, version, changes, self._items.none + 1, parts, force))
        del kept[:-_KEPT]
        self._forget(rules)
        return force

    def _refresh(self, placed: _Placed, minute: int) -> None:
        """Items have changed, or the book has been told what changes nothing here."""
        parts = self._parts([rule for rule, _, _ in placed.parts], minute)
        if not _same(placed.parts, parts):
            # at this minute, and by these rules, only the rows that changed can be others
            rows = self._changed(placed.changes) if placed.size == self._items.none + 1 else None
            placed.force = self._assembled(parts, placed, rows)
            placed.size = self._items.none + 1
        elif placed.version != self._book.version:
            placed.force = replace(placed.force, version=self._book.version)
        placed.parts, placed.changes, placed.version = parts, self._items.changes, self._book.version

    def _where(self, rule: Rule) -> Where:
        known = self._wheres.get(rule.rule_id)
        if known is None or known[0] is not rule:
            known = self._wheres[rule.rule_id] = rule, Where(rule.where)
        return known[1]

    def _parts(self, rules: list[Rule], minute: int) -> list[_Part]:
        """What each rule needs of the catalogue: its members, and of caps the groups."""
        parts: list[_Part] = []
        for rule in rules:
            where = self._where(rule)
            members = None if rule.action == "frequency" and not rule.where else self._members(where, minute)
            groups = (
                self._grouped(where, members, rule.by, minute) if rule.action == "cap" and members is not None else None
            )
            parts.append((rule, members, groups))
        return parts

    def _members(self, where: Where, minute: int) -> Members:
        """What matches. An array that was given out stays as it is."""
        items, key = self._items, (where.key, minute if where.by_age else -1)
        mask = self._masks.get(key)
        rows = None if mask is None or len(mask.members) != items.none + 1 else self._changed(mask.changes)
        if mask is None or rows is None:
            members = where.matches(items, minute * _MINUTE)
            before = mask.members if mask is not None else self._aged.get(where.key)
            if before is not None and np.array_equal(before, members):
                members = before
            mask = self._masks[key] = _Mask(members, items.changes)
        elif len(rows):
            found = where.matches(items, minute * _MINUTE, rows)
            if not np.array_equal(mask.members[rows], found):
                mask.members = mask.members.copy()
                mask.members[rows] = found
        mask.changes = items.changes
        self._masks.move_to_end(key)
        if where.by_age:
            self._aged[where.key] = mask.members
        return mask.members

    def _changed(self, since: int) -> I64 | None:
        if self._rows_at != self._items.changes:
            self._rows, self._rows_at = {}, self._items.changes
        if since not in self._rows:
            self._rows[since] = self._items.changed_since(since)
        return self._rows[since]

    def _grouped(self, where: Where, members: Members, by: str | None, minute: int) -> I32:
        """Groups of a cap: all its members one, or those of one value each."""
        codes = None if by is None else self._codes_of(by)
        key, minute = (where.key, by or ""), minute if where.by_age else -1
        known = self._groups.get(key)
        if known is not None and known.members is members and known.codes is codes:
            known.minute, known.changes = minute, self._items.changes
            return known.groups
        rows = None
        if known is not None and known.minute == minute and len(known.groups) == len(members):
            rows = self._changed(known.changes)
        if known is None or rows is None:
            groups = _groups_at(members, codes, ALL)
            if known is not None and np.array_equal(known.groups, groups):
                groups = known.groups
        else:
            found, groups = _groups_at(members, codes, rows), known.groups
            if not np.array_equal(groups[rows], found):
                groups = groups.copy()
                groups[rows] = found
        self._groups[key] = _Groups(members, codes, groups, minute, self._items.changes)
        return groups

    def _codes_of(self, by: str) -> I32:
        items = self._items
        known = self._codes.get(by)
        if known is not None and len(known.of_value) > 2 * len(items) + 1_024:  # most are values of long ago
            known = None
            self._groups = {key: groups for key, groups in self._groups.items() if key[1] != by}
        rows = None if known is None or len(known.codes) != items.none + 1 else self._changed(known.changes)
        if known is None or rows is None:
            of_value = {} if known is None else known.of_value
            codes = self._codes_at(by, ALL, of_value)
            known = self._codes[by] = _Codes(codes, items.changes, of_value)
        elif len(rows):
            found = self._codes_at(by, rows, known.of_value)
            if not np.array_equal(known.codes[rows], found):
                known.codes = known.codes.copy()
                known.codes[rows] = found
        known.changes = items.changes
        return known.codes

    def _codes_at(self, by: str, rows: Rows, of_value: dict[float, int]) -> I32:
        items = self._items
        if by == "category":
            return items.category[rows].copy()
        if by == "item_id":
            codes = np.arange(items.none + 1, dtype=np.int32)
            codes[-1] = -1
            return codes[rows].copy()
        if by == "age":  # by the day on which an item was first known
            since = items.since_ms[rows]
            numbers: NDArray[np.float64] | None = np.where(since < 0, np.nan, since // _DAY)
        else:
            column = items.numbers(by)
            numbers = None if column is None else column[rows]
        words = items.words(by)
        codes = np.full(len(items.category[rows]), -1, np.int32)
        if numbers is not None:  # even codes are words', odd ones numbers'
            values, at = np.unique(numbers, return_inverse=True)
            of = [-1 if v != v else 2 * of_value.setdefault(v, len(of_value)) + 1 for v in values.tolist()]
            codes = np.array(of, np.int32)[at] if of else codes
        if words is not None:
            spoken = words.codes[rows]
            codes = np.where(spoken >= 0, 2 * spoken, codes)
        return codes

    def _assembled(self, parts: list[_Part], before: _Placed | None, rows: I64 | None = None) -> InForce:
        """`rows`: those in which `parts`, of the same rules, are others than they were."""
        had, was = ([], None) if before is None else (before.parts, before.force)
        denying, boosting = _of(parts, "exclude", "only"), _of(parts, "boost")
        if was is not None and _same(denying, _of(had, "exclude", "only")):
            allowed = was.allowed
        else:
            allowed = _patched(was and was.allowed, denying, _allowed_at, rows)
        if was is not None and _same(boosting, _of(had, "boost")):
            boosts = was.boosts
        else:
            boosts = _patched(was and was.boosts, boosting, _boosts_at, rows)
        force = InForce(self._book.version, allowed, boosts, excluding=[rule.rule_id for rule, _, _ in denying])
        for rule, members, groups in parts:
            rule_id, value = rule.rule_id, rule.value
            if rule.action == "frequency":
                force.frequency.append((rule_id, members, int(value["most"]), int(duration_ms(value["within"]))))
            elif groups is not None:
                force.caps.append((rule_id, groups, int(rule.most or 0)))
            elif members is not None and rule.action == "boost":
                force.boosting.append((rule_id, members, float(value)))
            elif members is not None and rule.action == "pin":
                force.pins.append((rule_id, int(value), members))
            elif members is not None and rule.action == "share":
                force.shares.append((rule_id, members, rule.least, rule.most, int(value.get("window", WINDOW))))
        force.pins.sort(key=lambda pin: pin[1])
        return force

    def _forget(self, rules: list[Rule]) -> None:
        """What no rule has asked for in a while."""
        most = _SPARE + 2 * len(rules)
        while len(self._masks) > most:
            self._masks.popitem(last=False)
        if len(self._wheres) > most:
            here = {rule.rule_id for rule in rules}
            self._wheres = {rule_id: known for rule_id, known in self._wheres.items() if rule_id in here}
            keys = {where.key for _, where in self._wheres.values()}
            self._aged = {key: members for key, members in self._aged.items() if key in keys}
            self._groups = {key: known for key, known in self._groups.items() if key[0] in keys}
            self._codes = {by: codes for by, codes in self._codes.items() if by in {key[1] for key in self._groups}}


def _of(parts: list[_Part], *actions: str) -> list[_Part]:
    return [part for part in parts if part[0].action in actions]


def _same(a: list[_Part], b: list[_Part]) -> bool:
    return len(a) == len(b) and all(
        mine is other for one, two in zip(a, b, strict=True) for mine, other in zip(one, two, strict=True)
    )


def _patched(had: Any, parts: list[_Part], at: Callable[[list[_Part], Rows], Any], rows: I64 | None) -> Any:
    """What `at` makes of all rows, or of `rows` in a copy of what was had."""
    if had is None or rows is None:
        return at(parts, ALL)
    patched = had.copy()
    patched[rows] = at(parts, rows)
    return patched


def _groups_at(members: Members, codes: I32 | None, rows: Rows) -> I32:
    inside = members[rows].astype(np.int32) - 1  # 0, and of others -1, all whose bits are set
    found: I32 = inside if codes is None else codes[rows] | inside
    return found


def _allowed_at(parts: list[_Part], rows: Rows) -> Members | None:
    allowed: Members | None = None
    for rule, members, _ in parts:
        assert members is not None
        here = members[rows] if rule.action == "only" else ~members[rows]
        allowed = here if allowed is None else allowed & here
    return None if allowed is None else allowed.copy()


def _boosts_at(parts: list[_Part], rows: Rows) -> F32 | None:
    boosts: F32 | None = None
    for rule, members, _ in parts:
        assert members is not None
        here = members[rows]
        boosts = np.ones(len(here), np.float32) if boosts is None else boosts
        boosts[np.flatnonzero(here)] *= np.float32(rule.value)
    return boosts
