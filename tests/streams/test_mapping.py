"""A mapping file is checked before the first row, and says in one line what is wrong with it."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from headrace.streams.errors import SettingsError
from headrace.streams.mapped import Unmappable, mapper
from headrace.streams.mapping import EventFields, ItemFields, by_name, check_columns, read_mapping

EXAMPLES = Path(__file__).parents[2] / "examples" / "mappings"
EVENT = {"user_id": "u", "type": {"constant": "view"}, "ts": "t", "item_id": "i"}


def events(**changes: object) -> EventFields:
    return EventFields.model_validate({**EVENT, **changes})


def mapped(fields: EventFields | ItemFields, number: int = 1, **row: object) -> dict[str, object]:
    return mapper(fields)({"u": "u1", "t": 10**12, "i": "i1", **row}, number)


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("[events]\nuser='x'", r"unknown key events\.user; known here are .*user_id"),
        ("[events]\nuser_id='u'\ntype='t'", r"events\.ts is missing; say which column it is"),
        ("[evnts]", r"unknown key evnts; known here are csv, items, events"),
        ("[items]\nitem_id={}", r"give one of column, template, constant"),
        ("[items]\nitem_id=3", r"events?\.|items\.item_id = 3: name a column"),
        ("[items]\nitem_id={template='abc'}", r"names no column"),
        ("[items]\nitem_id={template='{a'}", r"not a template"),
        ("[items]\nitem_id={column='a', pattern='('}", r"not a regular expression"),
        ("[items]\nitem_id='a'\nkeep='newest'", r"items\.keep = 'newest'.*'every'"),
        ("[items]\nitem_id='a'\nskip=[{column='b', reason='r'}]", r"tests nothing; give equals, below"),
        (
            "[items]\nitem_id='a'\nskip=[{column='b', belo=1, reason='r'}]",
            r"unknown key items\.skip\.0\.belo; known.*below",
        ),
        ("[events]\nuser_id='u'\ntype='t'\nts={column='t', zone='Mars'}", r"ts\.zone = 'Mars': unknown time zone"),
        ("[events]\nuser_id='u'\ntype='t'\nts={column='t', unit='h'}", r"ts\.unit = 'h'"),
        ("[items", "not TOML"),
    ],
)
def test_a_wrong_mapping_is_named_in_one_line(tmp_path: Path, toml: str, says: str) -> None:
    path = tmp_path / "map.toml"
    path.write_text(toml)
    with pytest.raises(SettingsError, match=says) as raised:
        read_mapping(path)
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)


def test_a_missing_mapping_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        read_mapping(tmp_path / "none.toml")


@pytest.mark.parametrize("name", ["online-retail-ii", "movielens", "otto"])
def test_shipped_mappings_are_whole(name: str) -> None:
    mapping = read_mapping(EXAMPLES / f"{name}.toml")
    assert mapping.items is not None and mapping.events is not None


def test_a_column_that_is_not_there_is_named_beside_those_that_are() -> None:
    with pytest.raises(SettingsError, match=r"no column 'Custmer' .* its columns are Customer, t"):
        check_columns(events(user_id="Custmer", ts="t", item_id="t"), ["Customer", "t"])


def test_a_template_and_a_condition_name_columns_too() -> None:
    fields = events(event_id={"template": "{a b}-{row}"}, type=[{"when": {"column": "q", "below": 0}, "is": "return"}])
    assert set(fields.columns()) == {"u", "t", "i", "a b", "q"}


def test_columns_that_bear_our_names_need_no_mapping() -> None:
    fields = by_name(ItemFields, ["item_id", "title", "colour", "keep"])
    assert fields.columns() == ["item_id", "title"] and fields.keep == "every"
    with pytest.raises(SettingsError, match="no column is called user_id, type; the columns are ts, id"):
        by_name(EventFields, ["ts", "id"])


@pytest.mark.parametrize(
    ("source", "value", "milliseconds"),
    [
        ("t", 1_700_000_000_000, 1_700_000_000_000),
        ("t", "1700000000000", 1_700_000_000_000),
        ({"column": "t", "unit": "s"}, "1700000000.25", 1_700_000_000_250),
        ({"column": "t", "unit": "us"}, 1_700_000_000_000_000, 1_700_000_000_000),
        ("t", "2023-11-14T22:13:20Z", 1_700_000_000_000),
        ("t", "2023-11-14 23:13:20+01:00", 1_700_000_000_000),
        ("t", datetime.datetime(2023, 11, 14, 22, 13, 20), 1_700_000_000_000),
        ({"column": "t", "format": "%d.%m.%Y %H:%M", "zone": "Europe/London"}, "01.07.2010 12:30", 1_277_983_800_000),
    ],
)
def test_times(source: object, value: object, milliseconds: int) -> None:
    assert mapped(events(ts=source), t=value)["ts"] == milliseconds


@pytest.mark.parametrize(
    ("changes", "row", "reason"),
    [
        ({}, {"u": ""}, "no user_id: column 'u' is empty"),
        ({}, {"u": float("nan")}, "no user_id: column 'u' is empty"),
        ({}, {"t": "yesterday"}, "ts is not ISO 8601"),
        ({"ts": {"column": "t", "format": "%Y"}}, {"t": "x"}, "ts is not written as %Y"),
        ({"ts": {"column": "t", "unit": "s"}}, {"t": "x"}, "ts is not a number"),
        ({"value": "v"}, {"v": "cheap"}, "value is not a number"),
        ({"position": "v"}, {"v": "1.5"}, "position is not a whole number"),
        ({"type": {"column": "v", "values": {"a": "view"}}}, {"v": "b"}, "column 'v' holds a word that"),
        ({"type": [{"when": {"column": "v", "equals": "a"}, "is": "view"}]}, {"v": "b"}, "no type: empty"),
        ({"skip": [{"column": "v", "equals": 1, "reason": "a test"}]}, {"v": 1.0}, "left out: a test"),
        ({"shown": "v"}, {"v": "a,b"}, "shown is no list"),
    ],
)
def test_rows_that_make_no_message_say_why(changes: dict[str, object], row: dict[str, object], reason: str) -> None:
    with pytest.raises(Unmappable, match=reason):
        mapped(events(**changes), **row)


def test_values_are_read_with_the_types_of_the_contract() -> None:
    fields = events(
        user_id="u",
        type=[{"when": {"column": "q", "below": 0}, "is": "return"}, {"is": "purchase"}],
        quantity={"column": "q", "absolute": True},
        value="p",
        placement={"constant": "home"},
        event_id={"template": "{i}/{row}"},
        context={"country": "c", "age": "a"},
        position="n",
        shown="s",
    )
    assert mapped(fields, 7, u=13085.0, q="-3", p="1.5", c=" UK ", a=3, n="2", s=[1, "b"], i=" x ") == {
        "user_id": "13085",
        "type": "return",
        "ts": 10**12,
        "item_id": "x",
        "event_id": "x/7",
        "value": 1.5,
        "quantity": 3.0,
        "position": 2,
        "placement": "home",
        "shown": ["1", "b"],
        "context": {"country": "UK", "age": 3},
    }
    items = ItemFields.model_validate(
        {
            "item_id": "i",
            "available": "a",
            "category": {"column": "g", "pattern": "^([^|]+)"},
            "vector": "v",
            "text": "x",
        }
    )
    assert mapped(items, a="no", g="Drama|War", v=[0.5, 1.0], x="  ") == {
        "item_id": "i1",
        "available": False,
        "category": "Drama",
        "vector": [0.5, 1.0],
    }


def test_event_ids_come_from_the_row_alone() -> None:
    fields = events(value="v")
    first, again, other = (mapped(fields, n, v=v)["event_id"] for n, v in ((1, 2.0), (9, 2.0), (1, 3.0)))
    assert first == again != other
