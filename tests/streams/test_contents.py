"""Generations: which contents of an item are kept, under which numbers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headrace.streams.contents import KEPT, Contents, Old, VectorFile, content_of, decode_record, old_key
from headrace.streams.records import Item, encode

EMPTY = b""
SAID = st.lists(st.sampled_from([EMPTY, *(b"%d" % n for n in range(8))]), max_size=60)


@given(SAID)
def test_a_number_means_one_content_for_as_long_as_it_is_kept(said: list[bytes]) -> None:
    """Whatever comes, goes and comes back: what a number once meant it means, or means nothing any more."""
    had, topic, meant = Contents(), dict[int, bytes](), dict[int, bytes]()
    for content in said:
        number, before = had.number_of(content), had
        had, store, drop = had.then(content)
        if store is not None:
            topic[store] = before.current
        if drop is not None:
            del topic[drop]
        assert (had.number, had.current, dict(had.old)) == (number, content, topic)
        if content:
            assert meant.setdefault(number, content) == content
        assert all(meant[number] == kept for number, kept in topic.items())
        assert len(topic) <= KEPT


@given(SAID)
def test_the_latest_that_were_replaced_are_kept(said: list[bytes]) -> None:
    had, left = Contents(), list[bytes]()
    for content in said:
        before = had.current
        had = had.then(content)[0]
        if before and before != content:
            left = [old for old in left if old != before] + [before]
        assert {kept for _, kept in had.old} >= set(left[-KEPT + 1 :])  # the current one may be kept besides


def test_a_first_content_is_number_nought_whenever_it_comes() -> None:
    assert Contents().then(EMPTY)[0].then(EMPTY)[0].then(b"a")[0].number == 0
    assert Contents().then(b"a")[0].then(EMPTY)[0].then(b"b")[0].number == 1
    assert Contents().then(b"a")[0].then(EMPTY)[0].then(b"a")[0].number == 0


def test_a_restart_goes_on_with_the_numbers() -> None:
    """What a new process knows: the number in the item's record, and what stands under keys of their own."""
    had = Contents()
    for content in (b"a", b"b", b"c", b"a"):
        had = had.then(content)[0]
    again = Contents(had.number, had.current, had.old)
    assert again.number_of(b"d") == 3 and again.number_of(b"c") == 2
    removed = had.then(EMPTY)[0]
    assert Contents(removed.number, EMPTY, removed.old).number_of(b"d") == 3


def test_a_content_is_words_category_and_the_price_s_bucket() -> None:
    item = Item("i", 0, 7, b"", "h", price=11.0, category="c")

    def content(**changes: object) -> bytes:
        return content_of(Item(**{f: getattr(item, f) for f in item.__struct_fields__} | changes))

    assert content() == content(price=12.0) == content(title="t", offset=9, available=False, generation=3)
    others = content(price=20.0), content(price=None), content(category="d"), content(vector_hash="g")
    assert len({content(), *others}) == 5
    assert content(pending=True) == content(removed=True) == EMPTY


def test_a_key_of_its_own_says_which_content_of_which_item() -> None:
    item = Item("an item of 3", 0, 7, b"", "h")
    assert decode_record(old_key("an item of 3", 12), encode(item)) == Old("an item of 3", 12, item)
    assert decode_record(old_key("ü", 0), None) == Old("ü", 0, None)
    assert decode_record(b"i", encode(item)) == item
    assert decode_record(b"\0applied 0", b"12") is None and decode_record(b"i", None) is None


def test_vectors_of_all_sizes_are_found_again_and_places_are_used_again() -> None:
    file, random = VectorFile(), np.random.default_rng(1)
    held = {}
    for turn in range(300):
        vector = random.bytes(int(random.choice([0, 6, 16])))
        held[turn] = vector, file.put(vector)
        if turn % 3:
            file.free(held.pop(int(random.choice(list(held))))[1])
    assert all(file.get(place) == vector for vector, place in held.values())
    assert file._end <= 300 * 16 / 2
