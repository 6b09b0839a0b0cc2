"""One rule as the shop writes it, and what its action may be given: docs/rules.md."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import msgspec

from headrace.streams.rules.personal import TIMES
from headrace.streams.rules.where import Where
from headrace.streams.sections import duration_ms

POSITIONS = 100
BOOSTS = (0.1, 10.0)
WINDOW = 10_000  # slates that a share is kept over, where the rule says nothing
_OF_EVERY_ITEM = ("category", "price", "item_id", "age")
_NEEDS_WHERE = ("only", "pin", "boost", "share")


class Rule(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    """One message of `rules`."""

    rule_id: str
    action: Literal["exclude", "only", "pin", "boost", "cap", "share", "frequency"]
    placement: str = "*"
    where: dict[str, Any] | None = None
    value: Any = None
    until: int | None = None

    @property
    def by(self) -> str | None:
        """The attribute whose every value a cap counts apart; None: it counts what `where` matches together."""
        return self.value["by"] if self.action == "cap" and isinstance(self.value, dict) else None

    @property
    def least(self) -> float | None:
        """Of a share: of the places, at least; None where it has no such bound."""
        return self.value.get("least") if self.action == "share" else None

    @property
    def most(self) -> float | None:
        """Of a share: of the places, at most. Of caps and frequencies: how many, or how often, at most."""
        if self.action == "cap" and not isinstance(self.value, dict):
            return float(self.value)
        return self.value.get("most") if self.action in ("cap", "share", "frequency") else None


def fault(rule: Rule, *, attributes: Collection[str]) -> str | None:
    """What is wrong with a rule, in one sentence that says what to do; None where nothing is.

    `attributes` are those that items carry: `rules.attributes` of the settings.
    """
    wrong = _fault(rule)
    asked = {*(rule.where or ()), *([rule.by] if rule.by else ())} if wrong is None else set()
    if unknown := sorted(asked - {*_OF_EVERY_ITEM, *attributes}):
        known = ", ".join((*_OF_EVERY_ITEM, *attributes))
        return f"items carry no {unknown[0][:40]!r} here: ask for one of {known}, or add it to rules.attributes"
    return wrong


def _fault(rule: Rule) -> str | None:
    action, value = rule.action, rule.value
    if not rule.where and action in _NEEDS_WHERE:
        return f'{action} needs a where: say which items, such as {{"category": "sport"}}'
    try:
        Where(rule.where)
    except ValueError as error:
        return str(error)
    if action in ("exclude", "only"):
        return None if value is None else f"{action} takes no value: leave it out"
    if action == "pin":
        if not _whole(value, 0, POSITIONS - 1):
            return f"pin takes a position as value: a whole number, 0 (the first) to {POSITIONS - 1}"
    elif action == "boost":
        if not _number(value, *BOOSTS):
            return "boost takes a factor as value: {:g} to {:g}".format(*BOOSTS)
    elif action == "cap":
        return _cap(value)
    elif action == "share":
        return _share(value)
    else:
        return _frequency(value)
    return None


def _cap(value: Any) -> str | None:
    if isinstance(value, dict):
        fits = set(value) == {"by", "most"} and isinstance(value["by"], str) and value["by"]
        if not fits or not _whole(value["most"], 1, POSITIONS):
            return 'a cap by attribute takes {"by": "brand", "most": 2}: a name, and how many of one value, 1 to 100'
    elif not _whole(value, 0, POSITIONS):
        return 'cap takes a number of items a slate as value, 0 to 100, or {"by": "brand", "most": 2}'
    return None


def _share(value: Any) -> str | None:
    if (
        not isinstance(value, dict)
        or not value.keys() & {"least", "most"}
        or value.keys() - {"least", "most", "window"}
    ):
        return 'share takes {"least": 0.2}, {"most": 0.5} or both as value, and perhaps a "window" in slates'
    least, most = value.get("least", 0.0), value.get("most", 1.0)
    if not _number(least, 0, 1) or not _number(most, 0, 1):
        return "least and most of a share are parts of the places: numbers between 0 and 1"
    if least > most:
        return f"a share of at least {least:g} and at most {most:g} cannot be: make least the smaller one"
    if not _whole(value.get("window", WINDOW), 100, 10**9):
        return "the window of a share is a whole number of slates, 100 or more"
    return None


def _frequency(value: Any) -> str | None:
    fits = isinstance(value, dict) and set(value) == {"most", "within"}
    if not fits or not _whole(value["most"], 1, TIMES):
        return f'frequency takes {{"most": 3, "within": "7d"}} as value: most is 1 to {TIMES}'
    try:
        within = duration_ms(value["within"])
    except ValueError as error:
        return f"within of a frequency: {error}"
    if not _whole(within, 1, 10**12):
        return 'within of a frequency is a duration above 0, such as "12h" or "7d"'
    return None


def _whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _number(value: Any, least: float, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most
