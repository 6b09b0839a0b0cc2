"""Reasons: the right one is named, in the shop's words."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from headrace.export.names import type_code
from headrace.policy.features import SCALARS
from headrace.streams.items import ItemStore
from headrace.streams.reasons.told import Reasons
from headrace.streams.reasons.words import catalogue, sentences
from headrace.streams.recent import ANCHOR, NONE, Recent
from headrace.streams.rules.in_force import InForce
from headrace.streams.settings import Settings
from tests.engine import T0, Log, event, request

ITEMS = cast(ItemStore, SimpleNamespace(none=5, ids=["a", "b", "c", "d", "e"]))


def told(
    lowered: Any, *, codes: list[int], rows: list[int], scores: list[float], popular: bool = False, **more: Any
) -> Any:
    """Reasons of one slate of the items a, b, c."""
    width = len(codes)
    recent = cast(Recent, SimpleNamespace(rows=np.array([rows]), codes=np.array([codes], np.uint8)))
    columns = np.zeros((1, 3, len(SCALARS)), np.float32)
    columns[:, :, SCALARS.index("popularity")] = popular
    settings = Settings(explanations=more.pop("explanations", {}), event_types=more.pop("event_types", {}))
    return Reasons(settings).of(
        ITEMS, recent, np.array(lowered, np.float32).reshape(1, width, 3), rows=np.array([[0, 1, 2]]),
        scores=np.array([scores], np.float32), columns=columns, explored=np.array([more.pop("explored", [False] * 3)]),
        force=InForce(**more.pop("force", {})), owing=more.pop("owing", ()),
    )[0]  # fmt: skip


def members(*rows: int) -> Any:
    found = np.zeros(6, np.bool_)
    found[list(rows)] = True
    return found


def test_what_lowers_the_score_most_is_named() -> None:
    codes = [type_code("view"), type_code("search"), type_code("purchase"), type_code("view"), NONE]
    lowered = [[0.1, 0.2, -0.3], [0.3, 0.1, -0.1], [0.2, 0.4, -0.2], [0.0, 0.0, 1e-9], [0.0, 0.0, 0.0]]
    said = told(lowered, codes=codes, rows=[3, 5, 4, 5, 5], scores=[1, 1, 1])
    assert said == ["because of what you searched", "because you bought e", "something new to you"]
    lowered[3] = [9, 9, 9]
    assert (
        told(lowered, codes=codes, rows=[3, 5, 4, 5, 5], scores=[1, 1, 1])
        == ["because of something you did before"] * 3
    )
    looked_at = told([[1, 1, 1]], codes=[ANCHOR], rows=[3], scores=[1, 1, 1], popular=True)
    assert looked_at == ["because you are looking at d"] * 3


def test_where_nothing_speaks_for_an_item_it_is_popular_or_new() -> None:
    said = told([[0, -1, 0]], codes=[1], rows=[3], scores=[1, 1, 1], popular=True, explored=[False, False, True])
    assert said == ["popular now", "popular now", "something new to you"]


def test_a_rule_is_named_where_it_does_more_than_any_entry() -> None:
    boosting = [("sale", members(0, 1, 2), 1.5), ("season", members(1), 3.0), ("less", members(2), 0.5)]
    # What the boost by a half adds, against an entry's part of the boosted score.
    said = told([[0.1, 0.1, 0.9]], codes=[1], rows=[3], scores=[1, 1, 1], force={"boosting": boosting})
    assert said == ["promoted by sale", "promoted by season", "because you viewed d"]
    below = told([[0.1, 0.1, 0.9]], codes=[1], rows=[3], scores=[-1, -1, -1], force={"boosting": boosting})
    assert below == ["promoted by sale", "promoted by season", "because you viewed d"]
    pins = [("front", 0, members(0)), ("second", 1, members(4))]
    pinned = told([[0.9, 0.9, 0.9]], codes=[1], rows=[3], scores=[1, 1, 1], force={"pins": pins})
    assert pinned == ["placed here by front", "because you viewed d", "because you viewed d"]
    owing = [("newcomers", members(0, 1), np.array([True])), ("other", members(0, 1, 2), np.array([False]))]
    made_up = told([[0.9, 0, 0]], codes=[1], rows=[3], scores=[1, 1, 1], owing=owing)
    assert made_up == ["because you viewed d", "brought forward by newcomers", "something new to you"]


def test_every_language_says_everything() -> None:
    words = catalogue()
    assert set(words) >= {"en", "de", "fr"}
    for language, said in words.items():
        assert said.keys() == words["en"].keys()
        assert sentences(language, said) == said  # each has the holes that it may have
        for key, sentence in said.items():
            assert [hole in sentence for hole in ("{item}", "{rule}")] == [
                hole in words["en"][key] for hole in ("{item}", "{rule}")
            ], (language, key)


def test_a_shop_chooses_language_and_single_sentences() -> None:
    own = {"language": "de", "words": {"view": "passend zu {item}"}}
    said = told([[1, 0, 0]], codes=[1], rows=[3], scores=[1, 1, 1], explanations=own)
    assert said == ["passend zu d", "etwas Neues für dich", "etwas Neues für dich"]


@pytest.mark.parametrize(
    ("explanations", "line"),
    [
        ({"language": "xx"}, "there are no words in 'xx': choose one of de, en, fr"),
        ({"words": {"vieww": "x"}}, "there is no sentence 'vieww': the keys are"),
        ({"words": {"view": "because of {user}"}}, "the sentence 'view' may name {item} in braces"),
        ({"words": {"popular": "{item}"}}, "the sentence 'popular' may name nothing in braces"),
        ({"words": {"view": "{item:d}"}}, "the sentence 'view' may name {item} in braces"),
        ({"words": {"view": "{item!x}"}}, "the sentence 'view' may name {item} in braces"),
        ({"words": {"view": "{item:{x}}"}}, "the sentence 'view' may name {item} in braces"),
        ({"words": {"view": "because { of"}}, "the sentence 'view' cannot be read"),
    ],
)
def test_words_that_cannot_be_are_refused(explanations: Any, line: str) -> None:
    with pytest.raises(ValueError, match="explanations") as refused:
        Settings(explanations=explanations)
    assert line in str(refused.value)


def test_an_event_type_called_as_a_rule_is_an_event_type() -> None:
    codes = [type_code(name) for name in ("boost", "popular", "quota")]
    types = {name: {} for name in ("boost", "popular", "quota")}
    said = told(np.eye(3), codes=codes, rows=[3, 4, 2], scores=[1, 1, 1], event_types=types)
    assert said == ["because you chose d", "because you chose e", "because you chose c"]
    braces = {"words": {"new": "{{new}}"}}
    assert told(-np.eye(3), codes=codes, rows=[3, 4, 2], scores=[1, 1, 1], explanations=braces) == ["{new}"] * 3


def test_slates_say_it_in_the_shops_language(make: Callable[..., Any]) -> None:
    """Nothing is learned yet and nobody has followed anything: in French it is new, or popular."""
    log = Log(make(explanations={"language": "fr"}))
    log.write(event(item="coffee-0"))
    (slate,) = log.write(request(at=T0 + 1))
    assert {item["reason"] for item in slate["items"]} <= {"populaire en ce moment", "du nouveau pour vous"}


def test_a_policy_that_cannot_explain_loses_no_slate(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = Log(make(arms={"shares": {"policy": 0.0, "popular": 1.0}}))
    policy = log.engine.recommender.policies.serving("popular", "u").policy

    def fails(*_: Any) -> Any:
        raise ValueError("no")

    monkeypatch.setattr(policy, "lowered", fails)
    slates = log.write(event(item="coffee-0")) + log.write(request(at=T0 + 1))
    assert len(slates) == 2 and all(item["reason"] for slate in slates for item in slate["items"])
    said = [record.getMessage() for record in caplog.records if "without reasons" in record.getMessage()]
    assert said == ["slates of popular version 0 go without reasons: ValueError('no')"]
