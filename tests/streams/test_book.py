"""The open-decision book: what teaches, once, and what never does."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.policy.features import SCALARS
from headrace.streams.book import Book, Lessons, Widths
from headrace.streams.records import Erased, Opened, Transition
from tests.factories import (
    make_behaviour,
    make_closed,
    make_impression,
    make_log,
    make_opened,
    make_outcome,
    make_transitions,
)

WIDTHS = Widths(state=64, context=0, scalars=len(SCALARS))


def read(book: Book, *records: Transition) -> list[tuple[int, float, bool]]:
    """What one message teaches: (position, reward, fresh)."""
    lessons = book.read(make_transitions(*records), 0)
    return list(zip(lessons.positions, lessons.rewards, lessons.fresh, strict=True))


def make_book() -> Book:
    """A book that holds r-1, three items."""
    book = Book(100, WIDTHS)
    assert read(book, make_opened()) == []
    return book


def test_an_impression_teaches_zero_once_and_outcomes_correct_it() -> None:
    book = make_book()
    assert read(book, make_impression(positions=[0, 2])) == [(0, 0.0, True), (2, 0.0, True)]
    assert read(book, make_impression(positions=[0, 1])) == [(1, 0.0, True)]
    assert read(book, make_outcome(position=2, reward=1.0)) == [(2, 1.0, False)]
    assert read(book, make_outcome(position=2, reward=-1.0, type="return")) == [(2, -1.0, False)]


def test_an_outcome_on_a_position_not_yet_learned_is_a_fresh_example() -> None:
    book = make_book()
    assert read(book, make_outcome(position=1, reward=2.0)) == [(1, 2.0, True)]
    assert read(book, make_impression(positions=[0, 1])) == [(0, 0.0, True)]


def test_closed_as_shown_teaches_what_is_missing_and_reconciles() -> None:
    book = make_book()
    read(book, make_impression(positions=[0]), make_outcome(position=0, reward=1.0))
    assert read(book, make_closed(rewards={0: 1.5, 1: 0.0, 2: 5.0})) == [
        (0, 0.5, False),
        (1, 0.0, True),
        (2, 5.0, True),
    ]


def test_a_return_after_the_end_corrects_what_was_learned_and_nothing_else() -> None:
    book = make_book()
    read(book, make_closed(rewards={0: 5.0}))
    assert read(book, make_outcome(position=0, reward=-5.0, type="return")) == [(0, -5.0, False)]
    assert read(book, make_outcome(position=1, reward=1.0)) == []


@pytest.mark.parametrize("closed_as", ["unshown", "altered", "erased"])
def test_closed_otherwise_teaches_nothing_more(closed_as: str) -> None:
    book = make_book()
    assert read(book, make_closed(closed_as=closed_as)) == []
    lessons = book.read(make_transitions(make_outcome(), make_impression(positions=[0])), 0)
    assert (lessons.positions, lessons.unmatched, len(book)) == ([], 2, 0)


def test_an_erased_user_teaches_nothing_more() -> None:
    book = make_book()
    read(book, make_opened("r-2", user="u2"))
    assert read(book, Erased("u1", 0), make_outcome("r-1"), make_outcome("r-2")) == [(0, 1.0, True)]


def test_nothing_unseen_is_learned_as_a_zero() -> None:
    """A shop that shows one slate in ten, and four positions of ten."""
    book = Book(1_000, WIDTHS)
    learned: list[tuple[str, int]] = []
    for n in range(200):
        name = f"r-{n}"
        seen = [0, 1, 2, 3] if n % 10 == 0 else []
        records: list[Transition] = [make_opened(name, k=10)]
        records += [make_impression(name, positions=seen), make_outcome(name, position=2)] if seen else []
        records += [
            make_closed(name, closed_as="shown" if seen else "unshown", rewards={p: float(p == 2) for p in seen})
        ]
        rows = read(book, *records)
        assert not seen or rows == [(0, 0.0, True), (1, 0.0, True), (2, 0.0, True), (3, 0.0, True), (2, 1.0, False)]
        learned += [(name, p) for p, _, fresh in rows if fresh]
    assert learned == [(f"r-{n}", p) for n in range(0, 200, 10) for p in range(4)]


def test_where_every_slate_counts_as_shown_opening_teaches() -> None:
    book = Book(100, WIDTHS, assume_shown=True)
    assert read(book, make_opened()) == [(0, 0.0, True), (1, 0.0, True), (2, 0.0, True)]
    assert read(book, make_outcome(position=2)) == [(2, 1.0, False)]
    assert read(book, make_closed(rewards={0: 0.0, 1: 0.0, 2: 1.0})) == []


@pytest.mark.parametrize(
    "record",
    [make_opened(), make_impression(positions=[0, 1]), make_outcome(position=1), make_closed(rewards={0: 0.0, 1: 1.0})],
    ids=["opened", "impression", "click", "closed"],
)
def test_a_repeated_record_changes_nothing(record: Transition) -> None:
    story = [make_opened(), make_impression(positions=[0, 1], outcome_id="i"), make_outcome(position=1, outcome_id="c")]
    story += [make_closed(rewards={0: 0.0, 1: 1.0}), make_outcome(position=1, reward=-1.0, outcome_id="r")]
    plain, repeated = Book(100, WIDTHS), Book(100, WIDTHS)
    expected = [read(plain, r) for r in story]
    seen = [read(repeated, r) + read(repeated, r) for r in story]
    assert seen == expected


def test_a_slate_closed_and_opened_again_stays_closed() -> None:
    book = make_book()
    read(book, make_closed(closed_as="unshown"))
    assert read(book, make_opened(), make_impression(positions=[0])) == []


def test_only_the_last_opened_are_held() -> None:
    book = Book(100, WIDTHS)
    for n in range(250):
        book.read(make_transitions(make_opened(f"r-{n}", user=f"u{n % 7}")), n)
    assert len(book) == 100
    assert book.replay_from(otherwise=250) == 150
    lessons = book.read(make_transitions(make_outcome("r-149"), make_outcome("r-150")), 250)
    assert (lessons.unmatched, lessons.positions) == (1, [0])


def test_a_decision_of_other_widths_is_not_held() -> None:
    book = Book(100, WIDTHS)
    lessons = book.read(make_transitions(make_opened(c=2), make_opened("r-2", d=32), make_outcome("r-2")), 0)
    assert (lessons.misfits, lessons.unmatched, len(book)) == (2, 1, 0)


def test_behaviour_passes_through_in_order() -> None:
    records = [make_behaviour(i) for i in (3, 1, 2)]
    assert Book(100, WIDTHS).read(make_transitions(*records), 0).behaviour == records


def test_rows_carry_the_features_of_their_position() -> None:
    widths = Widths(state=8, context=2, scalars=3)
    book, opened = Book(100, widths), make_opened(k=4, d=8, m=3, c=2)
    book.read(make_transitions(opened), 0)
    examples = book.read(make_transitions(make_impression(positions=[1, 3]), make_outcome(position=3)), 1).examples(
        widths
    )
    assert examples is not None
    at = [1, 3, 3]
    items = np.frombuffer(opened.items, "<f2").reshape(4, 8).astype(np.float32)
    np.testing.assert_array_equal(examples.items, items[at])
    np.testing.assert_array_equal(examples.scalars, np.frombuffer(opened.scalars, "<f4").reshape(4, 3)[at])
    np.testing.assert_array_equal(examples.states, np.tile(np.frombuffer(opened.state, "<f4"), (3, 1)))
    np.testing.assert_array_equal(examples.contexts, np.tile(np.frombuffer(opened.context, "<f4"), (3, 1)))
    np.testing.assert_array_equal(examples.propensities, np.frombuffer(opened.propensities, "<f8")[at])
    assert examples.positions.tolist() == at
    assert examples.ids[1] == examples.ids[2] != examples.ids[0]


def held(book: Book) -> dict[str, tuple[int, dict[int, float], set[str], bool]]:
    return {name: (x.learned, x.rewards, x.heard, x.closed) for name, x in book._held.items()}


def teaching(lessons: Lessons) -> list[tuple[int, int, float, bool]]:
    return [
        (x.id, p, r, f)
        for x, p, r, f in zip(lessons.decisions, lessons.positions, lessons.rewards, lessons.fresh, strict=True)
    ]


@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 30),
    at=st.integers(0, 119),
    repeats=st.sampled_from([0.0, 0.1, 0.9]),
)
@settings(max_examples=60, deadline=None)
def test_a_book_read_from_its_replay_offset_is_the_book(seed: int, size: int, at: int, repeats: float) -> None:
    log = make_log(seed, messages=120, d=4, m=2, repeats=repeats)
    widths = Widths(state=4, context=0, scalars=2)
    whole = Book(size, widths)
    for offset in range(at + 1):
        whole.read(log[offset], offset)
    again = Book(size, widths)
    for offset in range(whole.replay_from(otherwise=at + 1), at + 1):
        again.read(log[offset], offset)
    assert held(again) == held(whole)
    for offset in range(at + 1, 120):
        assert teaching(again.read(log[offset], offset)) == teaching(whole.read(log[offset], offset))
        assert again.replay_from(otherwise=offset) == whole.replay_from(otherwise=offset)


def test_an_erased_users_decisions_leave_no_trace_in_memory() -> None:
    book = Book(100, WIDTHS)
    for n in range(30):
        book.read(make_transitions(make_opened(f"r-{n}", user=f"u{n % 3}")), n)
    book.read(make_transitions(Erased("u1", 0)), 30)
    assert len(book) == 20
    assert "u1" not in book._of_user
    assert not any(isinstance(x, Opened) or x.user_id == "u1" for x in book._held.values())


def test_numbers_that_are_none_teach_nothing_and_huge_ones_are_bounded() -> None:
    widths = Widths(state=64, context=1, scalars=len(SCALARS))
    book = Book(100, widths)
    bad = np.full((3, len(SCALARS)), 0.5, "<f4")
    bad[1, 4] = np.nan
    huge = np.array([1e30], "<f4").tobytes()
    book.read(make_transitions(make_opened(c=1, context=huge, scalars=bad.tobytes())), 0)
    examples = book.read(make_transitions(make_impression(positions=[0, 1, 2])), 1).examples(widths)
    assert examples is not None
    assert examples.positions.tolist() == [0, 2]
    assert examples.contexts.max() == 100
    assert read(book, make_outcome(position=0, reward=math.nan)) == []
    assert read(book, make_outcome(position=0, reward=math.inf)) == [(0, 1e6, False)]
    assert read(book, make_outcome(position=0, reward=-1e9)) == [(0, -2e6, False)]
    swung = book.read(make_transitions(make_outcome(position=0, reward=5e9)), 9).examples(widths)
    assert swung is not None and swung.rewards.tolist() == [1e6], "policies refuse a larger change"
