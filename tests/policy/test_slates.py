from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from headrace.policy.choices import EpsilonGreedy, InverseGap
from headrace.policy.slates import Choice, Greedy, Mixture, Softmax, Votes, _mix, rescore, sample, uniforms

RANDOM = np.random.default_rng(3)


def test_uniforms_are_splitmix64() -> None:
    """The published outputs of seed 1234567."""
    gamma = 0x9E3779B97F4A7C15
    seeds = np.array([1234567 + (j + 1) * gamma & 2**64 - 1 for j in range(2)], np.uint64)
    with np.errstate(over="ignore"):
        assert _mix(seeds).tolist() == [6457827717110365317, 3203168211198807973]


def test_uniforms_depend_on_stream_and_draw_alone() -> None:
    streams = np.arange(1000, dtype=np.uint64)
    whole = uniforms(streams, 3)
    assert np.array_equal(uniforms(streams[::-1], 3)[::-1], whole)
    assert uniforms(streams[77:78], 3)[0] == whole[77]
    assert not np.isin(uniforms(streams, 4), whole).any()
    assert whole.min() >= 0 and whole.max() < 1
    counts = np.bincount((np.concatenate([uniforms(streams, j) for j in range(20)]) * 50).astype(int), minlength=50)
    assert ((counts - 400) ** 2 / 400).sum() < 49 + 6 * np.sqrt(98)


def test_votes_are_the_share_of_draws_whose_best_candidate_left_it_is() -> None:
    scores = RANDOM.standard_normal((3, 8, 6)).astype(np.float32)
    mask = np.ones((3, 6), np.bool_)
    mask[1, 4:] = False
    choice, left = Votes(scores.copy(), mask), mask.copy()
    for _ in range(3):
        expected = np.zeros((3, 6))
        for row, draw in itertools.product(range(3), range(8)):
            best = max(np.flatnonzero(left[row]), key=lambda a, r=row, m=draw: scores[r, m, a])
            expected[row, best] += 1 / 8
        assert np.allclose(choice.distribution(), expected)
        assert np.array_equal(choice.first(), expected.argmax(axis=1))
        gone = choice.first()
        left[np.arange(3), gone] = False
        choice.remove(np.arange(3), gone)


def test_equal_draws_vote_greedily_and_equal_logits_are_uniform() -> None:
    scores = RANDOM.standard_normal((4, 9)).astype(np.float32)
    mask = np.ones((4, 9), np.bool_)
    mask[0, 5:] = False
    streams = np.arange(4, dtype=np.uint64)
    greedy = sample(Greedy(scores, mask), mask, scores, 5, floor=0.2, streams=streams)
    votes = sample(Votes(np.repeat(scores[:, None], 7, axis=1), mask), mask, scores, 5, floor=0.2, streams=streams)
    assert np.array_equal(greedy.index, votes.index) and np.allclose(greedy.propensities, votes.propensities)
    even = sample(Softmax(np.zeros((4, 9), np.float32), mask), mask, scores, 5, floor=0.2, streams=streams)
    left = mask.sum(axis=1)[:, None] - np.arange(5)
    assert np.allclose(even.propensities, 1 / left)


def test_softmax_is_boltzmann() -> None:
    logits = RANDOM.standard_normal((1, 5)).astype(np.float32)
    pi = Softmax(logits, np.ones((1, 5), np.bool_)).distribution()
    assert np.allclose(pi, np.exp(logits) / np.exp(logits).sum(), atol=1e-6)
    far = np.array([[2000.0, 0.0, -2000.0]], np.float32)  # the best being gone, the next must not underflow away
    choice = Softmax(far, np.ones((1, 3), np.bool_))
    choice.remove(np.array([0]), np.array([0]))
    assert np.array_equal(choice.distribution(), [[0, 1, 0]])


def test_ties_go_to_the_lowest_index() -> None:
    scores, mask = np.zeros((1, 4), np.float32), np.array([[False, True, True, True]])
    for choice in (Greedy(scores, mask), Votes(np.zeros((1, 3, 4), np.float32), mask), Softmax(scores, mask)):
        assert choice.first().tolist() == [1]


@pytest.mark.parametrize("kind", ["greedy", "votes", "softmax"])
def test_probabilities_of_all_slates_sum_to_one(kind: str) -> None:
    scores = RANDOM.standard_normal((1, 4)).astype(np.float32)
    draws = RANDOM.standard_normal((1, 5, 4)).astype(np.float32)
    slates = np.array(list(itertools.permutations(range(4), 3)))
    mask = np.ones((len(slates), 4), np.bool_)
    made = {
        "greedy": lambda: Greedy(np.repeat(scores, len(slates), axis=0), mask),
        "votes": lambda: Votes(np.repeat(draws, len(slates), axis=0), mask),
        "softmax": lambda: Softmax(np.repeat(scores, len(slates), axis=0), mask),
    }
    probabilities = rescore(made[kind](), mask, slates, floor=0.3)
    each = np.take_along_axis(probabilities, slates[:, :, None], axis=2)[:, :, 0].prod(axis=1)
    assert each.min() > 0 and np.isclose(each.sum(), 1)


def test_rescoring_refuses_what_is_not_left() -> None:
    scores, mask = np.zeros((1, 3), np.float32), np.array([[True, True, False]])
    for slate in ([[0, 0]], [[2, 0]], [[3, 0]]):
        with pytest.raises(ValueError, match="not left"):
            rescore(Greedy(scores, mask), mask, np.array(slate), floor=0.1)
    cut = rescore(Greedy(scores, mask), mask, np.array([[1, -1]]), floor=0.1)
    assert np.isclose(cut[0, 0].sum(), 1) and not cut[0, 1].any()


def choices_of(rows: int) -> dict[str, Callable[[], Choice]]:
    random = np.random.default_rng(4)
    scores = np.repeat(random.standard_normal((1, 4)).astype(np.float32), rows, axis=0)
    draws = np.repeat(random.standard_normal((1, 5, 4)).astype(np.float32), rows, axis=0)
    mask = np.ones((rows, 4), np.bool_)
    return {
        "epsilon": lambda: EpsilonGreedy(scores, mask, epsilon=0.3),
        "gap": lambda: InverseGap(scores, mask, gamma=3.0),
        "mixture": lambda: Mixture(Votes(draws.copy(), mask), Softmax(scores, mask), 0.3),
    }


@pytest.mark.parametrize("kind", ["epsilon", "gap", "mixture"])
def test_drawn_as_often_as_it_says(kind: str) -> None:
    """All 12 slates of two from four: each as often as the product of its propensities."""
    rows = 200_000
    mask = np.ones((rows, 4), np.bool_)
    slates = sample(
        choices_of(rows)[kind](), mask, np.zeros((rows, 4), np.float32), 2, floor=0.2,
        streams=np.arange(rows, dtype=np.uint64),
    )  # fmt: skip
    pairs = np.array(list(itertools.permutations(range(4), 2)))
    probabilities = rescore(choices_of(12)[kind](), mask[:12], pairs, floor=0.2)
    each = np.take_along_axis(probabilities, pairs[:, :, None], axis=2)[:, :, 0].prod(axis=1)
    assert np.isclose(each.sum(), 1)
    counts = (slates.index[:, None, :] == pairs).all(axis=2).sum(axis=0)
    chi2 = ((counts - rows * each) ** 2 / (rows * each)).sum()
    assert chi2 < 11 + 6 * np.sqrt(22)  # the streams are fixed: this never fails by chance twice


def test_epsilon_is_spread_over_all_that_are_left() -> None:
    mask = np.array([[True, True, False, True]])
    choice = EpsilonGreedy(np.array([[1.0, 3.0, 9.0, 2.0]], np.float32), mask, epsilon=0.3)
    assert np.allclose(choice.distribution(), [[0.1, 0.8, 0, 0.1]])
    choice.remove(np.array([0]), np.array([1]))
    assert np.allclose(choice.distribution(), [[0.15, 0, 0, 0.85]])


def test_inverse_gap_is_squarecb() -> None:
    mask = np.array([[True, True, False, True]])
    choice = InverseGap(np.array([[1.0, 3.0, 9.0, 2.5]], np.float32), mask, gamma=4.0)
    others = [1 / (3 + 4 * 2), 1 / (3 + 4 * 0.5)]
    assert np.allclose(choice.distribution(), [[others[0], 1 - sum(others), 0, others[1]]])
    choice.remove(np.array([0]), np.array([1]))
    assert np.allclose(choice.distribution(), [[1 / (2 + 4 * 1.5), 0, 0, 1 - 1 / 8]])
    with pytest.raises(ValueError, match="gamma is 0"):
        InverseGap(np.zeros((1, 2), np.float32), mask[:, :2], gamma=0.0)


def test_a_mixture_is_the_weighted_sum_at_every_position() -> None:
    shares = np.array([0.0, 0.25, 1.0])
    scores, mask = RANDOM.standard_normal((3, 5)).astype(np.float32), np.ones((3, 5), np.bool_)
    mixed = Mixture(Greedy(scores, mask), Softmax(scores, mask), shares)
    first, second = Greedy(scores, mask), Softmax(scores, mask)
    for _ in range(3):
        expected = shares[:, None] * first.distribution() + (1 - shares[:, None]) * second.distribution()
        assert np.allclose(mixed.distribution(), expected)
        assert np.array_equal(mixed.first(), expected.argmax(axis=1))
        gone = expected.argmin(axis=1)
        for choice in (mixed, first, second):
            choice.remove(np.arange(3), gone)
    with pytest.raises(ValueError, match="choose one between 0 and 1"):
        Mixture(first, second, 1.5)
