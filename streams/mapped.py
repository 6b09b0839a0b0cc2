"""A row of a file becomes a message of ours, as its mapping says; or an Unmappable that says why not."""

from __future__ import annotations

import datetime
import hashlib
import math
import re
from collections.abc import Callable
from functools import lru_cache
from string import Formatter
from typing import Any

import msgspec

from headrace.streams.mapping import EventFields, Fields, Value, When, zone_of
from headrace.streams.rows import Row

Message = dict[str, Any]
Read = Callable[[Row], Any]

_MS = {"s": 1e3, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
_TEXTS = (
    "title",
    "text",
    "category",
    "user_id",
    "item_id",
    "event_id",
    "order_id",
    "recommendation_id",
    "placement",
    "decision_id",
)
_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Unmappable(ValueError):
    """This row is no message. `str()` is the reason, without the row's own values, so that rows are counted by it."""


def mapper(fields: Fields) -> Callable[[Row, int], Message]:
    """The function from a row and its number to a message: fields that are empty in the row are left out.

    It raises Unmappable. `event_id`, where the mapping has none, is a digest of the message.
    """
    plain: list[tuple[str, Read]] = []
    nested: list[tuple[str, list[tuple[str, Read]]]] = []
    for name, source in fields.sources().items():
        if isinstance(source, dict):
            nested.append((name, [(key, _scalar(value)) for key, value in source.items()]))
        else:
            required = name == "event_id" or type(fields).model_fields[name].is_required()
            plain.append((name, _field(name, source, required=required)))
    skips = [(_condition(skip), f"left out: {skip.reason}") for skip in fields.skip]
    needs_id = isinstance(fields, EventFields) and fields.event_id is None

    def mapped(row: Row, number: int) -> Message:
        row["row"] = row.get("row", number)
        for holds, reason in skips:
            if holds(row):
                raise Unmappable(reason)
        message = {name: value for name, read in plain if (value := read(row)) is not None}
        for name, reads in nested:
            inner = {key: value for key, read in reads if (value := read(row)) is not None}
            if inner:
                message[name] = inner
        if needs_id:
            message["event_id"] = hashlib.blake2b(msgspec.json.encode(message), digest_size=12).hexdigest()
        return message

    return mapped


def _field(name: str, source: Value, *, required: bool) -> Read:
    """Reads one field with the type the contract gives it; a required one that is empty makes the row unmappable."""
    if name == "ts":
        read = _time(source)
    elif name in _TEXTS or name == "type":
        read = _text(source)
    elif name in ("price", "value", "quantity", "propensity", "reward"):
        read = _number(name, source)
    elif name in ("position", "candidates"):
        read = _whole(name, source)
    elif name == "available":
        read = _flag(source)
    elif name == "shown":
        read = _ids(source)
    else:
        read = _raw(source)  # vector
    if not required:
        return read
    where = f"column '{source.column}' is empty" if source.column else "empty"

    def filled(row: Row) -> Any:
        value = read(row)
        if value is None:
            raise Unmappable(f"no {name}: {where}")
        return value

    return filled


def _raw(source: Value) -> Read:
    """The value as the file has it; None where it is empty."""
    if source.template is not None:
        read = _filled(source.template)
    elif source.rules:
        read = _first_that_holds(source)
    elif source.column is not None:
        column = source.column

        def read(row: Row) -> Any:
            value = row.get(column)
            return None if value == "" or (isinstance(value, float) and math.isnan(value)) else value

    else:
        constant = source.constant

        def read(row: Row) -> Any:
            return constant

    return _translated(source, read) if source.values or source.pattern else read


def _filled(template: str) -> Read:
    parts = [(literal, name) for literal, name, _, _ in Formatter().parse(template)]

    def read(row: Row) -> str | None:
        made = []
        for literal, name in parts:
            made.append(literal)
            if name:
                value = as_text(row.get(name))
                if value is None:
                    return None
                made.append(value)
        return "".join(made)

    return read


def _first_that_holds(source: Value) -> Read:
    choices = [(_condition(choice.when) if choice.when else None, choice.is_) for choice in source.rules]

    def read(row: Row) -> str | None:
        return next((word for holds, word in choices if holds is None or holds(row)), None)

    return read


def _translated(source: Value, inner: Read) -> Read:
    pattern = re.compile(source.pattern) if source.pattern else None
    where = f"column '{source.column}'" if source.column else "a value"

    def read(row: Row) -> Any:
        text = as_text(inner(row))
        if text is None:
            return None
        if pattern:
            found = pattern.search(text)
            text = as_text(found[1] if pattern.groups else found[0]) if found else None
        if source.values and text is not None:
            if text not in source.values:
                raise Unmappable(f"{where} holds a word that the mapping's values do not list")
            return source.values[text]
        return text

    return read


def as_text(value: Any) -> str | None:
    """Text without white space around it; None where that is empty. Whole numbers lose their ".0", lists get commas."""
    if value is None:
        return None
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, list):
        return ", ".join(text for part in value if (text := as_text(part))) or None
    if isinstance(value, bytes):
        return as_text(value.decode("utf-8", "replace"))
    return str(value)


def _ids(source: Value) -> Read:
    raw = _raw(source)

    def read(row: Row) -> list[str] | None:
        value = raw(row)
        if value is not None and not isinstance(value, list):
            raise Unmappable("shown is no list of ids")
        return None if value is None else [as_text(part) or "" for part in value]

    return read


def _text(source: Value) -> Read:
    raw = _raw(source)
    return lambda row: as_text(raw(row))


def as_number(value: Any) -> float | None:
    """Raises ValueError where it is neither a number nor empty."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _number(name: str, source: Value) -> Read:
    raw = _raw(source)

    def read(row: Row) -> float | None:
        try:
            number = as_number(raw(row))
        except (TypeError, ValueError):
            raise Unmappable(f"{name} is not a number") from None
        return abs(number) if source.absolute and number is not None else number

    return read


def _whole(name: str, source: Value) -> Read:
    number = _number(name, source)

    def read(row: Row) -> int | None:
        value = number(row)
        if value is not None and not value.is_integer():
            raise Unmappable(f"{name} is not a whole number")
        return None if value is None else int(value)

    return read


def _flag(source: Value) -> Read:
    text = _text(source)

    def read(row: Row) -> bool | None:
        word = text(row)
        if word is None:
            return None
        if word.lower() not in _FLAGS:
            raise Unmappable("available is neither true nor false; translate the file's words with values")
        return _FLAGS[word.lower()]

    return read


def _scalar(source: Value) -> Read:
    """An attribute or a context field: a number or a truth value stays what it is, all else is text."""
    raw = _raw(source)

    def read(row: Row) -> str | float | bool | None:
        value = raw(row)
        return value if isinstance(value, bool | int | float) else as_text(value)

    return read


def _time(source: Value) -> Read:
    """Unix milliseconds from a number, a text or a timestamp."""
    raw, zone, scale = _raw(source), zone_of(source.zone), _MS[source.unit or "ms"]

    @lru_cache(65_536)  # logs repeat their times; strptime is the slowest step of a row
    def parsed(text: str) -> int:
        if source.unit is not None or (source.format is None and re.fullmatch(r"\d+(\.\d+)?", text)):
            return round(float(text) * scale)
        try:
            if source.format is not None:
                moment = datetime.datetime.strptime(text, source.format)
            else:
                moment = datetime.datetime.fromisoformat(text)
        except ValueError:
            wanted = f"written as {source.format}" if source.format else "ISO 8601 (say how it is written with format)"
            raise Unmappable(f"ts is not {wanted}") from None
        return _milliseconds(moment)

    def _milliseconds(moment: datetime.datetime) -> int:
        return round((moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp() * 1e3)

    def read(row: Row) -> int | None:
        value = raw(row)
        if isinstance(value, datetime.datetime):
            return _milliseconds(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return round(value * scale)
        text = as_text(value)
        if text is None:
            return None
        try:
            return parsed(text)
        except OverflowError:
            raise Unmappable("ts is no time") from None
        except Unmappable:
            raise
        except ValueError:
            raise Unmappable("ts is not a number") from None

    return read


def _condition(when: When) -> Callable[[Row], bool]:
    pattern = re.compile(when.matches) if when.matches is not None else None
    equals = as_text(when.equals)

    def holds(row: Row) -> bool:
        value = row.get(when.column)
        text = as_text(value)
        if when.empty is not None and (text is None) != when.empty:
            return False
        if when.equals is not None and text != equals:
            return False
        if pattern is not None and not (text is not None and pattern.search(text)):
            return False
        if when.below is None and when.above is None:
            return True
        try:
            number = as_number(value)
        except (TypeError, ValueError):
            return False
        return number is not None and not (
            (when.below is not None and number >= when.below) or (when.above is not None and number <= when.above)
        )

    return holds
