"""Which rules are in force: by the latest message of each id, in the order of offsets, and never two that conflict."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.streams.rules.book import RuleBook
from headrace.streams.settings import Settings

NOW = 1_790_000_000_000
SETTINGS = Settings(
    placements={"home": {}, "cart": {}},  # type: ignore[dict-item]
    rules={"attributes": ["brand", "stock", "size", "b"]},  # type: ignore[arg-type]
)
SPORT = {"category": "sport"}


def put(book: RuleBook, rule_id: str, offset: int, **rule: Any) -> None:
    book.put(rule_id, json.dumps({"rule_id": rule_id, **rule}).encode(), offset)


def ids(book: RuleBook, now: int = NOW) -> list[str]:
    return [rule.rule_id for rule in book.in_force(now)]


PIN = {"action": "pin", "where": SPORT, "value": 0}
SHARE = {"action": "share", "where": SPORT, "value": {"least": 0.6}}
NEW = {"age": {"<": "14d"}}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (PIN, {"action": "pin", "where": {"brand": "x"}, "value": 0}),
        ({**PIN, "placement": "home"}, {"action": "pin", "where": {"brand": "x"}, "value": 0}),
        (PIN, {"action": "exclude", "where": {"category": ["sport"]}}),
        (
            {"action": "exclude", "where": {"item_id": ["i1", "i2"]}},
            {"action": "pin", "where": {"item_id": ["i2"]}, "value": 3},
        ),
        (
            {"action": "pin", "where": {"item_id": "i2"}, "value": 3},
            {"action": "exclude", "where": {"item_id": ["i2"]}},
        ),
        ({"action": "only", "where": {"brand": ["x", "y"]}}, {"action": "only", "where": {"brand": "z"}}),
        ({"action": "only", "where": SPORT}, {"action": "only", "where": {"category": "sportive"}}),
        ({"action": "only", "where": {"price": {"<": 10}}}, {"action": "only", "where": {"price": {">=": 10}}}),
        ({"action": "only", "where": NEW}, {"action": "only", "where": {"age": {">": "30d"}}}),
        ({"action": "only", "where": {"size": 4}}, {"action": "only", "where": {"size": {">": 4}}}),
        ({"action": "only", "where": {"size": "x"}}, {"action": "only", "where": {"size": {">": 3, "<": 5}}}),
        (
            {"action": "boost", "where": NEW, "value": 2},
            {"action": "boost", "where": {"age": {"<": "336h"}}, "value": 3},
        ),
        (
            {"action": "cap", "where": {"brand": "x", "category": "a"}, "value": 2},
            {"action": "cap", "where": {"category": "a", "brand": ["x"]}, "value": 3, "placement": "cart"},
        ),
        (
            {"action": "cap", "value": {"by": "brand", "most": 1}},
            {"action": "cap", "where": {}, "value": {"by": "brand", "most": 2}},
        ),
        (SHARE, {"action": "share", "where": SPORT, "value": {"most": 0.5}}),
        (SHARE, {"action": "share", "where": NEW, "value": {"least": 0.5}}),
        (
            {"action": "boost", "where": SPORT, "value": 2},
            {"action": "boost", "where": SPORT, "value": 3.5},
        ),
        (
            {"action": "frequency", "value": {"most": 2, "within": "7d"}},
            {"action": "frequency", "value": {"most": 3, "within": "1d"}},
        ),
        ({"action": "cap", "where": SPORT, "value": 0}, SHARE),
        (PIN, {"action": "cap", "where": SPORT, "value": 0}),
        (SHARE, {"action": "exclude", "where": SPORT}),
    ],
)
def test_a_rule_that_conflicts_is_refused_in_one_line_that_names_both(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    book = RuleBook(SETTINGS)
    put(book, "the-first", 0, **first)
    put(book, "the-second", 1, **second)
    assert ids(book) == ["the-first"]
    (sentence,) = book.refused(NOW).values()
    assert "the-first" in sentence and "the-second" in sentence and "\n" not in sentence
    book.put("the-first", None, 2)
    assert ids(book) == ["the-second"] and not book.refused(NOW), "nothing is in its way any more"
    put(book, "the-first", 3, **first)
    assert ids(book) == ["the-second"], "the one before is in force"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({**PIN, "placement": "home"}, {**PIN, "placement": "cart"}),
        (PIN, {**PIN, "value": 1}),
        (PIN, {"action": "exclude", "where": {"category": "sport/shoes"}}),
        (
            {"action": "exclude", "where": {"item_id": ["i1"]}},
            {"action": "pin", "where": {"item_id": ["i1", "i2"]}, "value": 3},
        ),
        (
            {"action": "exclude", "where": {"item_id": ["i1"], "stock": {"<": 1}}},
            {"action": "pin", "where": {"item_id": ["i1"]}, "value": 3},
        ),
        ({"action": "only", "where": {"brand": ["x", "y"]}}, {"action": "only", "where": {"brand": ["y", "z"]}}),
        ({"action": "only", "where": SPORT}, {"action": "only", "where": {"category": "sport/shoes"}}),
        ({"action": "only", "where": {"price": {"<=": 10}}}, {"action": "only", "where": {"price": {">=": 10}}}),
        ({"action": "only", "where": {"size": 4}}, {"action": "only", "where": {"size": {">": 3, "<": 5}}}),
        (
            {"action": "cap", "where": SPORT, "value": 2},
            {"action": "cap", "where": SPORT, "value": {"by": "b", "most": 2}},
        ),
        (SHARE, {"action": "share", "where": NEW, "value": {"least": 0.4}}),
        (
            {**SHARE, "placement": "home"},
            {"action": "share", "where": NEW, "value": {"least": 0.6}, "placement": "cart"},
        ),
        ({"action": "share", "where": SPORT, "value": {"most": 0.6}}, {"action": "exclude", "where": SPORT}),
    ],
)
def test_rules_that_can_both_be_kept_are(first: dict[str, Any], second: dict[str, Any]) -> None:
    book = RuleBook(SETTINGS)
    put(book, "the-first", 0, **first)
    put(book, "the-second", 1, **second)
    assert ids(book) == ["the-first", "the-second"], book.refused(NOW)


def test_least_shares_of_a_placement_sum_with_those_of_all_placements() -> None:
    book = RuleBook(SETTINGS)
    for offset, (placement, least) in enumerate([("home", 0.6), ("cart", 0.3), ("*", 0.4), ("*", 0.1)]):
        where = {"brand": str(offset)}
        put(book, f"r{offset}", offset, action="share", placement=placement, where=where, value={"least": least})
    assert ids(book) == ["r0", "r1", "r2"], "at home 0.6 + 0.4 are all there is"
    assert "'r0'" in book.refused(NOW)["r3"]


@pytest.mark.parametrize(
    "rule",
    [
        {"action": "only"},
        {"action": "exclude", "where": SPORT, "value": 1},
        {"action": "exclude", "where": {"price": {"=": 1}}},
        {"action": "exclude", "where": {"age": "new"}},
        {"action": "exclude", "where": {"item_id": []}},
        {"action": "pin", "where": SPORT, "value": 100},
        {"action": "pin", "where": SPORT, "value": True},
        {"action": "pin", "value": 1},
        {"action": "boost", "where": SPORT, "value": 11},
        {"action": "boost", "where": SPORT},
        {"action": "cap", "value": -1},
        {"action": "cap", "value": {"by": "brand", "most": 0}},
        {"action": "cap", "value": {"by": "", "most": 1}},
        {"action": "share", "where": SPORT, "value": 0.5},
        {"action": "share", "where": SPORT, "value": {"window": 1000}},
        {"action": "share", "where": SPORT, "value": {"least": 0.5, "most": 0.4}},
        {"action": "share", "where": SPORT, "value": {"least": 0.5, "window": 10}},
        {"action": "frequency", "value": {"most": 33, "within": "7d"}},
        {"action": "frequency", "value": {"most": 3, "within": "a week"}},
        {"action": "frequency", "value": {"most": 3}},
        {"action": "exclude", "where": {"brnad": "x"}},
        {"action": "cap", "value": {"by": "colour", "most": 1}},
    ],
)
def test_a_rule_that_cannot_be_kept_has_no_effect_and_says_why(rule: dict[str, Any]) -> None:
    book = RuleBook(SETTINGS)
    put(book, "r", 0, action="exclude", where=SPORT)
    put(book, "r", 1, **rule)
    assert ids(book) == [] and len(book.refused(NOW)["r"]) > 20


def test_a_rule_about_what_items_do_not_carry_says_what_they_carry() -> None:
    """Else an `exclude` with a slip of the pen would exclude nothing, and nobody would know."""
    book = RuleBook(SETTINGS)
    put(book, "r", 0, action="exclude", where={"brnad": "x"})
    assert "'brnad'" in book.refused(NOW)["r"] and "brand" in book.refused(NOW)["r"]
    assert "rules.attributes" in book.refused(NOW)["r"]


def test_a_rule_stands_under_its_own_key() -> None:
    book = RuleBook(SETTINGS)
    book.put("another", b'{"rule_id": "r", "action": "exclude", "where": {"brand": "x"}}', 0)
    assert ids(book) == [] and "key" in book.refused(NOW)["another"]


def test_until_passes_and_what_waited_comes_into_force() -> None:
    book = RuleBook(SETTINGS)
    put(book, "a", 0, **PIN, until=NOW + 1)
    put(book, "b", 1, **PIN)
    assert ids(book) == ["a"] and not book.expired(NOW)
    assert ids(book, NOW + 1) == ["b"] and [rule.rule_id for rule in book.expired(NOW + 1)] == ["a"]
    assert ids(book) == ["a"], "another partition's clock may be earlier"


def test_a_conflict_across_partitions_is_refused_whichever_is_read_first_and_unknown_to_who_reads_one() -> None:
    said = [
        ("a", b'{"rule_id": "a", "action": "pin", "value": 0, "where": {"brand": "x"}}', 3, 0),
        ("b", b'{"rule_id": "b", "action": "pin", "value": 0, "where": {"brand": "y"}}', 2, 1),
    ]
    for order in (said, said[::-1]):
        book = RuleBook(SETTINGS)
        for message in order:
            book.put(*message)
        assert ids(book) == ["b"] and "'b'" in book.refused(NOW)["a"]
    for message in said:  # as ingest reads them: no dead letter
        book = RuleBook(SETTINGS)
        book.put(*message)
        assert book.rejection(message[0], NOW) is None


def test_the_list_is_the_same_until_something_changes() -> None:
    book = RuleBook(SETTINGS)
    put(book, "a", 0, **PIN, until=NOW + 1_000)
    kept = book.in_force(NOW)
    assert book.in_force(NOW + 999) is kept
    put(book, "b", 1, action="exclude", where={"brand": "x"})
    assert book.in_force(NOW) is not kept and [rule.rule_id for rule in kept] == ["a"]
    again = book.in_force(NOW)
    put(book, "a", 0, action="exclude", where={"brand": "y"})
    book.put("unheard of", None, 2)
    assert book.in_force(NOW) is again and book.version == 2, "heard before, and a null for nothing"


actions = st.sampled_from(
    [
        PIN,
        {**PIN, "placement": "home"},
        {**PIN, "value": 1},
        {"action": "exclude", "where": SPORT},
        {"action": "only", "where": {"brand": "x"}},
        {"action": "only", "where": {"brand": ["y", "x"]}},
        {"action": "only", "where": {"brand": "y"}},
        SHARE,
        {**SHARE, "where": NEW, "placement": "cart"},
        {"action": "pin", "value": "no"},
        None,
    ]
)
messages = st.lists(
    st.tuples(st.sampled_from("abcdef"), actions, st.none() | st.integers(NOW - 2, NOW + 2)), max_size=24
)


def filled(said: list[tuple[int, tuple[str, dict[str, Any] | None, int | None]]], *, asked: bool) -> RuleBook:
    book = RuleBook(SETTINGS)
    for offset, (rule_id, rule, until) in said:
        if rule is None:
            book.put(rule_id, None, offset)
        else:
            put(book, rule_id, offset, **rule, until=until)
        if asked:
            book.in_force(NOW)
    return book


@given(messages)
def test_a_compacted_topic_has_the_same_rules_in_force(
    said: list[tuple[str, dict[str, Any] | None, int | None]],
) -> None:
    numbered = list(enumerate(said))
    latest = {message[0]: offset for offset, message in numbered}
    compacted = [(offset, message) for offset, message in numbered if latest[message[0]] == offset]
    whole, short = filled(numbered, asked=True), filled(compacted, asked=False)
    for now in range(NOW - 3, NOW + 4):
        assert whole.in_force(now) == short.in_force(now)
        assert whole.refused(now) == short.refused(now)
        assert whole.expired(now) == short.expired(now)
