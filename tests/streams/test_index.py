"""The nearest items: exact is exact, the graph finds nearly all of them, and what has gone never comes back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.streams.index import ItemIndex, recall

DIM = 16
EXACT, GRAPH = 10**9, 1


def clustered(n, *, seed=0, dim=DIM):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(4, n // 50), dim))
    vectors = centres[rng.integers(len(centres), size=n)] + 0.7 * rng.standard_normal((n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)


def filled(vectors, *, exact_below, at_once=50):
    index = ItemIndex(lambda: vectors, dim=vectors.shape[1], exact_below=exact_below)
    for start in range(0, len(vectors), at_once):
        rows = np.arange(start, min(start + at_once, len(vectors)))
        index.put(rows, vectors[rows])
    return index


def brute(vectors, held, query, k):
    """The scores of the k best of the rows held, best first."""
    return np.sort(vectors[sorted(held)] @ query)[::-1][:k]


def test_nothing_is_near_in_an_empty_index():
    index = ItemIndex(lambda: np.zeros((0, DIM), np.float32), dim=DIM)
    assert index.search(np.ones((2, DIM), np.float32), 3).tolist() == [[-1] * 3] * 2
    assert len(index) == 0 and index.exact and index.recall == 1.0


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    steps=st.lists(st.tuples(st.booleans(), st.integers(1, 400)), min_size=1, max_size=8),
    k=st.integers(1, 60),
    batch=st.integers(1, 20),
)
def test_exact_is_what_looking_at_every_item_gives_as_items_come_and_go(seed, steps, k, batch):
    rng = np.random.default_rng(seed)
    vectors = clustered(3_000, seed=seed % 7)
    index, held = ItemIndex(lambda: vectors, dim=DIM, exact_below=EXACT), set()
    for adds, count in steps:
        rows = rng.choice(len(vectors), count, replace=False)
        if adds:
            index.put(rows, vectors[rows])
            held |= set(rows.tolist())
        else:
            index.remove(rows)
            held -= set(rows.tolist())
        assert len(index) == len(held)
    queries = rng.standard_normal((batch, DIM)).astype(np.float32)
    for query, found in zip(queries, index.search(queries, k), strict=True):
        there = found[found >= 0]
        assert len(there) == min(k, len(held)) and set(there.tolist()) <= held
        assert len(set(there.tolist())) == len(there)
        np.testing.assert_allclose(vectors[there] @ query, brute(vectors, held, query, k), rtol=0, atol=1e-5)


@pytest.mark.parametrize("exact_below", [EXACT, GRAPH])
def test_an_answer_does_not_depend_on_what_is_asked_beside_it(exact_below):
    vectors = clustered(2_500)
    index = filled(vectors, exact_below=exact_below)
    queries = clustered(37, seed=3)
    together = index.search(queries, 24)
    for size in (1, 3, 16):
        parts = [index.search(queries[at : at + size], 24) for at in range(0, len(queries), size)]
        assert np.array_equal(np.concatenate(parts), together)


@pytest.mark.parametrize("exact_below", [EXACT, GRAPH, 1_500])
def test_the_same_calls_give_the_same_answers(exact_below):
    vectors, queries = clustered(2_000), clustered(50, seed=4)

    def run():
        index = filled(vectors, exact_below=exact_below)
        index.remove(np.arange(0, 2_000, 3))
        index.put(np.arange(0, 900, 3), vectors[: 2 * 900 : 6])
        return index.search(queries, 20)

    assert np.array_equal(run(), run())


def test_the_graph_finds_nearly_all_of_the_nearest():
    vectors, queries = clustered(4_000), clustered(100, seed=5)
    index = filled(vectors, exact_below=GRAPH)
    assert not index.exact
    assert recall(index.search(queries, 40), index.exactly(queries, 40)) > 0.9
    assert index.recall > 0.8  # the sample it takes itself


@pytest.mark.parametrize("exact_below", [EXACT, GRAPH, 800])
def test_what_was_removed_or_replaced_never_comes_back(exact_below):
    vectors = clustered(1_000)
    index = filled(vectors, exact_below=exact_below)
    gone = np.arange(0, 1_000, 2)
    index.remove(gone)
    found = index.search(vectors[gone], 30)
    assert len(index) == 500 and (found >= 0).all() and not np.isin(found, gone).any()
    elsewhere = -vectors[1:2]
    index.put(np.array([1]), elsewhere)  # the same item, on the other side
    assert index.search(elsewhere, 1)[0, 0] == 1 and 1 not in index.search(vectors[1:2], 30)[0]
    index.put(gone[:1], vectors[gone[:1]])
    assert index.search(vectors[:1], 1)[0, 0] == 0 and 0 in index and 2 not in index


def test_the_graph_is_whole_when_the_catalogue_has_grown_to_the_size_and_takes_over_for_good():
    vectors = clustered(1_200)
    index = ItemIndex(lambda: vectors, dim=DIM, exact_below=1_000)
    for start in range(0, 1_000, 10):
        assert index.exact
        index.put(np.arange(start, start + 10), vectors[start : start + 10])
    assert not index.exact
    assert (index.search(vectors[:1_000], 1)[:, 0] == np.arange(1_000)).mean() > 0.9
    index.remove(np.arange(5, 1_000))
    assert not index.exact and set(index.search(vectors[:1], 9)[0].tolist()) == {0, 1, 2, 3, 4, -1}
