"""The log that training reads: sorted, checked, split and fingerprinted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from headrace.export.log import Log, leave_one_out, temporal
from headrace.export.names import type_code


def make_log(**changes: Any) -> Log:
    """ann: 0, a search, 2, 1 (dismissed); bob: 2; cleo: 1, 0."""
    given: dict[str, Any] = {
        "users": ["cleo", "ann", "bob", "ann", "ann", "cleo", "ann"],
        "items": [0, 2, 2, 0, -1, 1, 1],
        "asked": [-1, -1, -1, -1, 0, -1, -1],
        "types": [type_code(name) for name in ("view", "view", "view", "view", "search", "purchase", "dismiss")],
        "seconds": [90, 30, 50, 10, 20, 80, 40],
        "keys": [11, 12, 13],
        "texts": np.eye(3, 4, dtype=np.float32),
        "words": np.ones((1, 4), np.float32),
    }
    return Log.of(**(given | changes))


def histories(log: Log) -> dict[str, list[int]]:
    cut = np.split(log.items, log.offsets[1:-1])
    return {user: items.tolist() for user, items in zip(log.users, cut, strict=True)}


def test_events_in_any_order_become_histories_in_order_of_time() -> None:
    log = make_log()
    assert histories(log) == {"ann": [0, -1, 2, 1], "bob": [2], "cleo": [1, 0]}
    assert log.seconds.tolist() == [10, 20, 30, 40, 50, 80, 90] and log.asked.tolist() == [-1, 0, -1, -1, -1, -1, -1]
    assert log.wanted.tolist() == [True, False, True, False, True, True, True]
    assert log.text_dim == 4 and np.isnan(log.values).all()


def test_without_times_the_order_given_counts() -> None:
    log = make_log(seconds=None)
    assert histories(log) == {"ann": [2, 0, -1, 1], "bob": [2], "cleo": [0, 1]}
    assert log.seconds.tolist() == [0, 1, 2, 3, 0, 0, 1]


def test_the_last_wanted_item_is_left_out() -> None:
    """What was dismissed is not asked for, and what came after the item asked for is not known."""
    split = leave_one_out(make_log())
    assert histories(split.history) == {"ann": [0, -1], "bob": [], "cleo": [1]}
    assert split.targets.tolist() == [2, -1, 0]
    assert histories(make_log().without_last(2)) == {"ann": [], "bob": [], "cleo": []}


def test_a_split_in_time_asks_for_the_first_item_after_it() -> None:
    split = temporal(make_log(), share=0.5)
    assert histories(split.history) == {"ann": [0, -1, 2, 1], "bob": [], "cleo": []}
    assert split.targets.tolist() == [-1, -1, -1]
    later = temporal(make_log(users=["ann"] * 7), share=0.5)
    assert later.history.seconds.tolist() == [10, 20, 30, 40] and later.targets.tolist() == [2]
    with pytest.raises(ValueError, match="all events are of one moment"):
        temporal(make_log(seconds=[5] * 7))
    with pytest.raises(ValueError, match="no event of an item"):
        temporal(make_log(types=[type_code("return")] * 7))


def test_who_is_erased_leaves_nothing_behind() -> None:
    log = make_log()
    assert histories(log.without({"ann"})) == {"bob": [2], "cleo": [1, 0]}
    assert histories(make_log(erased={"bob", "nobody"})) == {"ann": [0, -1, 2, 1], "cleo": [1, 0]}
    never = make_log(erased={"ann"})
    assert log.without({"ann"}).fingerprint() == never.fingerprint() != log.fingerprint()
    assert log.without({"nobody"}) is log
    assert log.without(log.users).users == () and len(log.without(log.users).items) == 0


def test_items_held_out_keep_their_rows() -> None:
    log = make_log().without_items([2])
    assert histories(log) == {"ann": [0, -1, 1], "bob": [], "cleo": [1, 0]} and len(log.keys) == 3


def test_the_fingerprint_is_of_the_content() -> None:
    log = make_log()
    assert log.fingerprint() == make_log().fingerprint() == replace(log, users=("x", "y", "z")).fingerprint()
    others = [
        make_log(seconds=[90, 30, 50, 10, 20, 80, 41]),
        make_log(values=[1.0] * 7),
        make_log(prices=[1.0, 2.0, np.nan]),
        make_log(categories=["a", None, "b"]),
        make_log(words=np.zeros((1, 4), np.float32)),
        make_log(keys=[11, 12, 14]),
    ]
    assert len({log.fingerprint(), *(other.fingerprint() for other in others)}) == 1 + len(others)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        ({"texts": np.zeros((2, 4), np.float32)}, "3 item keys, texts (2, 4)"),
        ({"categories": ("a",)}, "3 items, 1 categories"),
        ({"prices": np.ones(2, np.float32)}, "2 prices"),
        ({"words": np.ones((1, 5), np.float32)}, "not of the items' text space of 4"),
        ({"keys": np.array([1, 1, 2], np.uint64)}, "an item key occurs twice"),
        ({"offsets": np.array([0, 4, 7])}, "do not cut 7 events among 3 users"),
        ({"offsets": np.array([0, 4, 3, 7])}, "offsets fall"),
        ({"types": np.zeros(6, np.uint8)}, "columns of"),
        ({"types": np.full(7, 64, np.uint8)}, "a type code of 64"),
        ({"items": np.full(7, 3, np.int32)}, "items holds a row outside -1 … 2"),
        ({"asked": np.full(7, -2, np.int32)}, "asked holds a row outside -1 … 0"),
        ({"seconds": np.arange(7)[::-1].copy()}, "not in order of time"),
    ],
)
def test_what_does_not_fit_together_is_refused(harm: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as error:
        replace(make_log(), **harm)
    assert says in str(error.value) and "\n" not in str(error.value)
