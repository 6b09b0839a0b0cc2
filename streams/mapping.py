"""Which column of a file is which field of our messages: a small TOML, checked before the first row is read.

    [events]
    user_id = "Customer ID"                                      # a column
    event_id = { template = "{Invoice}-{StockCode}-{row}" }      # several; {row} is the row's number in the file
    placement = { constant = "home" }                            # the same for every row
    ts = { column = "InvoiceDate", format = "%Y-%m-%d %H:%M:%S", zone = "Europe/London" }
    quantity = { column = "Quantity", absolute = true }
    type = [{ when = { column = "Quantity", below = 0 }, is = "return" }, { is = "purchase" }]
    context = { country = "Country" }

docs/files.md has the whole of it; examples/mappings holds three that are tested.
"""

from __future__ import annotations

import re
import tomllib
from datetime import UTC, tzinfo
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from headrace.streams.errors import SettingsError


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return value


def _template(value: str) -> str:
    try:
        names = template_columns(value)
    except ValueError as error:
        raise ValueError(f"not a template: {error}; write it as in '{{Invoice}}-{{row}}'") from None
    if not names:
        raise ValueError("names no column; write it as in '{Invoice}-{row}', or give a constant")
    return value


def _zone(value: str) -> str:
    zone_of(value)
    return value


def zone_of(name: str) -> tzinfo:
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        raise ValueError("unknown time zone; write one such as 'UTC' or 'Europe/London'") from None


def template_columns(template: str) -> list[str]:
    return [name for _, name, _, _ in Formatter().parse(template) if name]


Pattern = Annotated[str, BeforeValidator(_pattern)]


class When(_Part):
    """A condition on one column; every test given must hold."""

    column: str
    equals: str | float | None = None
    below: float | None = None
    above: float | None = None
    matches: Pattern | None = None  # the pattern is found somewhere in the text
    empty: bool | None = None

    @model_validator(mode="after")
    def _tests(self) -> When:
        if all(t is None for t in (self.equals, self.below, self.above, self.matches, self.empty)):
            raise ValueError("tests nothing; give equals, below, above, matches or empty")
        return self


class Choice(_Part):
    """`is` where `when` holds; without a `when` it always does."""

    when: When | None = None
    is_: str = Field(alias="is")


class Value(_Part):
    """Where a field's value comes from: one of column, template, constant or rules; the rest is what is done to it."""

    column: str | None = None
    template: Annotated[str, BeforeValidator(_template)] | None = None
    constant: str | float | bool | None = None
    rules: tuple[Choice, ...] = ()
    values: dict[str, str] = {}  # what the file says -> what headrace says; another word is an unmappable row
    pattern: Pattern | None = None  # only what its first group finds
    absolute: bool = False  # a number without its sign
    unit: Literal["s", "ms", "us", "ns"] | None = None  # of a time that is a number; ms where nothing is said
    format: str | None = None  # of a time that is text, in strptime's letters; ISO 8601 where nothing is said
    zone: Annotated[str, BeforeValidator(_zone)] = "UTC"  # of a time that names none

    @model_validator(mode="after")
    def _one_source(self) -> Value:
        given = [self.column is not None, self.template is not None, self.constant is not None, bool(self.rules)]
        if sum(given) != 1:
            raise ValueError("give one of column, template, constant, or a list of rules")
        return self

    @property
    def columns(self) -> list[str]:
        """The columns this value reads."""
        if self.column is not None:
            return [self.column]
        if self.template is not None:
            return [name for name in template_columns(self.template) if name != "row"]
        return [choice.when.column for choice in self.rules if choice.when]


def _short(value: Any) -> Any:
    """`"Price"` stands for a column, a list for rules."""
    if isinstance(value, str):
        return {"column": value}
    if not isinstance(value, dict | list):
        raise ValueError("name a column, or write a table such as { constant = 1 }")
    return {"rules": value} if isinstance(value, list) else value


Source = Annotated[Value, BeforeValidator(_short)]


class Skip(When):
    """Rows that are left out on purpose, and why: they are counted under this reason."""

    reason: str


class Fields(_Part):
    """What items and events have in common."""

    flatten: str | None = None  # a column that holds a list of records: each becomes a row
    skip: tuple[Skip, ...] = ()

    def sources(self) -> dict[str, Value | dict[str, Value]]:
        """Message field -> where it comes from, for the fields that were given."""
        return {
            name: value
            for name in type(self).model_fields
            if isinstance(value := getattr(self, name), Value) or (isinstance(value, dict) and value)
        }

    def columns(self) -> list[str]:
        """Every column that is read, `flatten`'s own left out."""
        values = [v for s in self.sources().values() for v in (s.values() if isinstance(s, dict) else [s])]
        return list(dict.fromkeys([c for v in values for c in v.columns] + [skip.column for skip in self.skip]))


class ItemFields(Fields):
    """`[items]`. `keep`: which of several rows with one item id is sent; `every` sends all, the last one counts."""

    item_id: Source
    title: Source | None = None
    text: Source | None = None
    category: Source | None = None
    price: Source | None = None
    available: Source | None = None
    vector: Source | None = None
    attributes: dict[str, Source] = {}
    keep: Literal["every", "first", "last", "most_frequent"] = "every"


class EventFields(Fields):
    """`[events]`. Without an `event_id` it is a digest of the mapped event: rows that say the same are one event."""

    user_id: Source
    type: Source
    ts: Source
    item_id: Source | None = None
    event_id: Source | None = None
    value: Source | None = None
    quantity: Source | None = None
    order_id: Source | None = None
    recommendation_id: Source | None = None
    position: Source | None = None
    placement: Source | None = None
    text: Source | None = None
    shown: Source | None = None
    context: dict[str, Source] = {}


class LogFields(Fields):
    """`[log]`: a row is one item that was shown, for `headrace evaluate`; docs/evaluation.md describes each field."""

    item_id: Source
    propensity: Source
    reward: Source
    position: Source | None = None
    decision_id: Source | None = None
    user_id: Source | None = None
    ts: Source | None = None
    candidates: Source | None = None
    context: dict[str, Source] = {}
    targets: dict[str, Source] = {}


class CsvFormat(_Part):
    delimiter: str = Field(",", min_length=1, max_length=1)
    encoding: str = "utf-8"


class Mapping(_Part):
    """A mapping file: `[items]` for items load, `[events]` for events replay, `[log]` for evaluate; `[csv]` for a csv
    that is not plain."""

    csv: CsvFormat = CsvFormat()
    items: ItemFields | None = None
    events: EventFields | None = None
    log: LogFields | None = None


F = TypeVar("F", bound=Fields)


def read_mapping(path: Path) -> Mapping:
    """Raises SettingsError, in one line that names the key, its value and the cure."""
    try:
        content = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        return Mapping.model_validate(tomllib.loads(content))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not TOML: {error}") from None
    except ValidationError as error:
        raise SettingsError(f"{path}: {'; '.join(_in_words(error))}") from None


def _in_words(error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _known_keys(problem["loc"])
            lines.append(f"unknown key {where}" + (f"; known here are {', '.join(known)}" if known else ""))
        elif problem["type"] == "missing":
            lines.append(f"{where} is missing; say which column it is")
        else:
            said = problem["msg"].removeprefix("Value error, ")
            shown = "" if isinstance(problem["input"], dict | list) else f" = {problem['input']!r}"
            lines.append(f"{where}{shown}: {said}")
    return lines


def _known_keys(where: tuple[int | str, ...]) -> list[str]:
    """The keys of the table in which an unknown one was found."""
    parts = [part for part in where[:-1] if isinstance(part, str)]
    tables: dict[str, type[BaseModel]] = {
        "items": ItemFields,
        "events": EventFields,
        "log": LogFields,
        "csv": CsvFormat,
    }
    inner: dict[str, type[BaseModel]] = {"when": When, "rules": Choice, "skip": Skip}
    if not parts:
        table: type[BaseModel] = Mapping
    elif len(parts) == 1:
        table = tables[parts[0]]
    else:
        table = inner.get(parts[-1], Value)
    return [info.alias or name for name, info in table.model_fields.items()]


def by_name(fields: type[F], columns: list[str]) -> F:
    """The mapping of a file whose columns bear our own names. Raises SettingsError where a required one lacks."""
    known = {name: name for name in fields.model_fields if name in columns and name not in ("flatten", "skip", "keep")}
    known = {name: column for name, column in known.items() if name not in ("attributes", "context", "targets")}
    missing = [name for name, info in fields.model_fields.items() if info.is_required() and name not in known]
    if missing:
        raise SettingsError(
            f"no column is called {', '.join(missing)}; the columns are {', '.join(columns) or '(none)'}; "
            "say with --mapping which one is which"
        )
    return fields.model_validate(known)


def check_columns(fields: Fields, columns: list[str]) -> None:
    """Raises SettingsError for a column that the file does not have, naming those that it has."""
    wanted = [fields.flatten] if fields.flatten else fields.columns()
    missing = [repr(column) for column in wanted if column not in columns]
    if missing:
        raise SettingsError(
            f"the file has no column {', '.join(missing)} that the mapping names; "
            f"its columns are {', '.join(columns) or '(none)'}"
        )
