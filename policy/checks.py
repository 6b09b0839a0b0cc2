"""What every policy must pass. Use them on your own:

for check in yield_checks(MyPolicy(...)):
    check(policy)

A check works on copies, is seeded, and raises AssertionError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import fields, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from headrace.policy.base import F64, Examples, Policy, Query
from headrace.policy.rl.checks import assert_refused
from headrace.policy.rl.checks import yield_checks as yield_following_checks
from headrace.policy.snapshot import pack, unpack

Check = Callable[[Policy], None]
Rows = TypeVar("Rows", Query, Examples)


def yield_checks(policy: Policy) -> Iterator[Check]:
    """The checks that apply to `policy`, each to be called with it."""
    yield check_decide_is_pure
    yield check_propensities_sum_to_one
    yield check_rescoring_gives_the_logged_propensities
    yield check_frequencies_match_propensities
    yield check_batch_changes_nothing
    yield check_padding_changes_nothing
    yield check_unseen_and_few
    yield check_lowered_is_the_score_before_less_the_one_after
    yield check_same_examples_same_bits
    yield check_restored_continues_bit_for_bit
    yield check_refuses_what_is_not_finite
    yield check_refuses_foreign_snapshots
    if policy.learns:
        yield check_corrections_equal_the_final_reward
        yield check_weight_two_is_the_example_twice
        yield check_weight_zero_teaches_nothing
        yield check_learns_a_linear_truth
    if policy.follows:
        yield from yield_following_checks()


# -- material ---------------------------------------------------------------------------------------------------------


def make_query(policy: Policy, *, rows: int = 5, n: int = 12, seed: int = 0) -> Query:
    """Decisions about random items; about one candidate in ten is padding."""
    random = np.random.default_rng(seed)
    mask = random.random((rows, n)) < 0.9
    mask[:, 0] = True
    return Query(
        states=_directions(random, (rows, policy.dim)),
        contexts=random.random((rows, policy.contexts), np.float32),
        keys=random.integers(1, 2**63, (rows, n), dtype=np.uint64),
        items=_directions(random, (rows, n, policy.dim)),
        scalars=random.random((rows, n, len(policy.scalars)), np.float32),
        mask=mask,
        streams=random.integers(0, 2**63, rows, dtype=np.uint64),
    )


def make_examples(policy: Policy, *, n: int = 50, seed: int = 0, first_id: int = 0) -> Examples:
    """Fresh examples whose reward is `truth` and noise."""
    random = np.random.default_rng(seed)
    examples = Examples(
        states=_directions(random, (n, policy.dim)),
        contexts=random.random((n, policy.contexts), np.float32),
        items=_directions(random, (n, policy.dim)),
        scalars=random.random((n, len(policy.scalars)), np.float32),
        propensities=random.uniform(0.05, 1, n),
        positions=random.integers(0, 10, n),
        rewards=np.zeros(n),
        fresh=np.ones(n, np.bool_),
        ids=np.arange(first_id, first_id + n, dtype=np.uint64),
    )
    noise = random.normal(0, 0.1, n)
    return replace(examples, rewards=truth(examples.states, examples.items, examples.scalars) + noise)


def truth(states: Any, items: Any, scalars: Any) -> F64:
    """The expected reward: the first half of the directions count for a user's taste, and the first scalar counts."""
    half = states.shape[-1] // 2
    taste = (states[..., :half] * items[..., :half]).sum(axis=-1, dtype=np.float64)
    return np.asarray(taste + 0.3 * scalars[..., 0], np.float64)


def corrections(examples: Examples, rewards: F64) -> Examples:
    """`rewards` more for each example."""
    return replace(examples, rewards=rewards, fresh=np.zeros(len(rewards), np.bool_))


def take(batch: Rows, rows: Any) -> Rows:
    """Some rows of a query or of examples."""
    arrays = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return replace(batch, **{name: array[rows] for name, array in arrays.items() if array is not None})


def bits(policy: Policy) -> bytes:
    return pack(*policy.snapshot())[0]


def learned(policy: Policy, *, batches: int = 6, n: int = 60) -> Policy:
    """A copy that has learned a little."""
    policy = deepcopy(policy)
    for i in range(batches):
        policy.learn(make_examples(policy, n=n, seed=i, first_id=i * n))
    return policy


def _directions(random: np.random.Generator, shape: tuple[int, ...]) -> Any:
    vectors = random.standard_normal(shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


# -- deciding ---------------------------------------------------------------------------------------------------------


def check_decide_is_pure(policy: Policy) -> None:
    policy, query = learned(policy), make_query(policy)
    before, given = bits(policy), deepcopy(query)
    first, second = policy.decide(query, 4), policy.decide(query, 4)
    assert bits(policy) == before, "decide changed the policy"
    for name in vars(given):
        assert np.array_equal(getattr(query, name), getattr(given, name)), f"decide changed the query's {name}"
    for name in vars(first):
        assert np.array_equal(getattr(first, name), getattr(second, name)), f"the same query gave other {name}"


def check_propensities_sum_to_one(policy: Policy) -> None:
    policy, query = learned(policy), make_query(policy)
    slates = policy.decide(query, 4)
    probabilities, scores = policy.distributions(query, slates.index)
    assert scores.shape == query.mask.shape
    left = query.mask.copy()
    rows = np.arange(len(left))
    for j in range(4):
        at = probabilities[:, j]
        assert np.allclose(at.sum(axis=1), 1, atol=1e-12), f"position {j} sums to {at.sum(axis=1)}"
        floor = policy.floor / left.sum(axis=1, keepdims=True)
        assert (at[~left] == 0).all(), f"position {j} gives a chance to what is not left"
        assert (at >= floor * (1 - 1e-12))[left].all(), f"position {j} falls below the floor"
        left[rows, slates.index[:, j]] = False


def check_rescoring_gives_the_logged_propensities(policy: Policy) -> None:
    policy, query = learned(policy), make_query(policy)
    slates = policy.decide(query, 4)
    probabilities, scores = policy.distributions(query, slates.index)
    at = np.take_along_axis(probabilities, slates.index[:, :, None], axis=2)[:, :, 0]
    assert np.array_equal(at, slates.propensities), "another propensity than was logged"
    assert np.array_equal(np.take_along_axis(scores, slates.index, axis=1), slates.scores), (
        "another score than was logged"
    )
    best = probabilities.argmax(axis=2)
    assert np.array_equal(slates.explored, slates.index != best), "explored is not: other than the first choice"
    twice = np.repeat(slates.index[:, :1], 2, axis=1)
    assert_refused(lambda: policy.distributions(query, twice), "a slate that names a candidate twice")


def check_frequencies_match_propensities(policy: Policy, *, redraws: int = 3_000) -> None:
    """χ² of the first position, and of the second after the most frequent first."""
    policy, queries = learned(policy), make_query(policy, rows=2, n=6)
    for row in range(2):
        query = take(queries, np.full(redraws, row))
        query = replace(query, streams=np.arange(redraws, dtype=np.uint64) + np.uint64(row * redraws))
        index = policy.decide(query, 2).index
        first = np.bincount(index[:, 0], minlength=6)
        slate = np.array([[first.argmax(), -1]])
        slate[0, 1] = index[index[:, 0] == slate[0, 0], 1][0]
        probabilities, _ = policy.distributions(take(query, slice(1)), slate)
        _assert_frequencies(first, probabilities[0, 0])
        second = np.bincount(index[index[:, 0] == slate[0, 0], 1], minlength=6)
        _assert_frequencies(second, probabilities[0, 1])


def _assert_frequencies(counts: Any, probabilities: F64) -> None:
    expected = counts.sum() * probabilities
    possible = expected > 0
    assert not counts[~possible].any(), "drew what has no chance"
    chi2 = (((counts - expected) ** 2)[possible] / expected[possible]).sum()
    freedom = max(int(possible.sum()) - 1, 1)
    # Six standard deviations: the draws are seeded, so this never fails by chance twice.
    assert chi2 < freedom + 6 * np.sqrt(2 * freedom), f"χ² = {chi2:.1f} with {freedom} degrees of freedom"


def check_batch_changes_nothing(policy: Policy) -> None:
    policy, query = learned(policy), make_query(policy, rows=37, n=17)
    whole = policy.decide(query, 4)
    order = np.random.default_rng(0).permutation(37)
    for rows in (np.array([0]), np.array([36]), order, order[:20]):
        part = policy.decide(take(query, rows), 4)
        for name in vars(whole):
            assert np.array_equal(getattr(part, name), getattr(whole, name)[rows]), f"the batch changed {name}"


def check_padding_changes_nothing(policy: Policy) -> None:
    """Not even what is not a number: what is masked does not exist."""
    policy, query = learned(policy), make_query(policy, n=17)
    wide = {}
    for name in ("keys", "items", "scalars"):
        array = getattr(query, name)
        wide[name] = np.pad(array, [(0, 0), (0, 130)] + [(0, 0)] * (array.ndim - 2), constant_values=1)
    wide["mask"] = np.pad(query.mask, [(0, 0), (0, 130)])
    for name in ("items", "scalars"):
        wide[name][~wide["mask"]] = np.nan
    with np.errstate(invalid="ignore"):
        narrow, padded = policy.decide(query, 4), policy.decide(replace(query, **wide), 4)
    for name in vars(narrow):
        assert np.array_equal(getattr(narrow, name), getattr(padded, name)), f"padding changed {name}"


def check_unseen_and_few(policy: Policy) -> None:
    """A user and items without content, fewer candidates than k, none at all, an empty batch."""
    for p in (policy, learned(policy)):
        query = make_query(p, rows=4, n=6)
        query.states[0], query.items[1], query.scalars[1] = 0, 0, 0
        query.mask[2, 2:], query.mask[3] = False, False
        slates = p.decide(query, 9)
        sizes = query.mask.sum(axis=1)
        there = np.arange(9) < sizes[:, None]
        assert np.array_equal(slates.index >= 0, there), "a slate is not as long as its candidates"
        assert np.array_equal(slates.propensities > 0, there) and not slates.explored[~there].any()
        assert (slates.index[~there] == -1).all() and (slates.scores[~there] == 0).all()
        for row, size in enumerate(sizes):
            shown = slates.index[row, :size]
            assert set(shown) == set(np.flatnonzero(query.mask[row])), "a slate repeats or invents candidates"
        if sizes[2] > 0:
            assert slates.propensities[2, sizes[2] - 1] == 1 or np.isclose(slates.propensities[2, sizes[2] - 1], 1)
        probabilities, _ = p.distributions(query, slates.index)
        assert np.allclose(probabilities.sum(axis=2), there), "a position past the end has a distribution"
        assert p.decide(take(query, slice(0)), 9).index.shape == (0, 9)
        no_candidates = replace(
            query,
            keys=query.keys[:, :0],
            items=query.items[:, :0],
            scalars=query.scalars[:, :0],
            mask=query.mask[:, :0],
        )
        assert (p.decide(no_candidates, 2).index == -1).all()


# -- learning ---------------------------------------------------------------------------------------------------------


def check_lowered_is_the_score_before_less_the_one_after(policy: Policy) -> None:
    """And no decision's depends on who is explained beside it."""
    policy = learned(policy)
    shown = make_query(policy, rows=5, n=4)
    shown = replace(shown, mask=np.ones_like(shown.mask))
    others = [make_query(policy, rows=5, n=4, seed=seed) for seed in (1, 2, 3)]
    states, scalars = (np.stack([getattr(q, name) for q in others], axis=1) for name in ("states", "scalars"))
    unused = np.full((5, 1), -1, np.int64)
    before = policy.distributions(shown, unused)[1]
    lower = policy.lowered(shown, before.astype(np.float32), states, scalars)
    assert lower.shape == (5, 3, 4)
    for i, other in enumerate(others):
        after = policy.distributions(replace(shown, states=other.states, scalars=other.scalars), unused)[1]
        np.testing.assert_allclose(lower[:, i], before - after, rtol=1e-3, atol=1e-4)
    alone = policy.lowered(shown.take([3]), before[3:4].astype(np.float32), states[3:4], scalars[3:4])
    assert alone.tobytes() == lower[3].tobytes()


def check_same_examples_same_bits(policy: Policy) -> None:
    assert bits(learned(policy)) == bits(learned(policy))


def check_restored_continues_bit_for_bit(policy: Policy) -> None:
    """snapshot, restore, remember what the memory needs, learn the rest ≡ never stopped."""
    n, stop = 60, 5
    batches = []
    for i in range(9):
        fresh = make_examples(policy, n=n, seed=i, first_id=i * n)
        batches.append(fresh)
        if i:  # late rewards of the batch before
            batches.append(corrections(take(batches[-2], np.s_[::7]), np.full(len(range(0, n, 7)), 0.5)))
            batches[-2], batches[-1] = batches[-1], batches[-2]
    stop = len(batches) // 2
    never_stopped, at_stop = deepcopy(policy), deepcopy(policy)
    for batch in batches[:stop]:
        never_stopped.learn(batch)
    data, digest = pack(*never_stopped.snapshot())
    at_stop.restore(*unpack(data, digest))
    assert bits(at_stop) == data, "a snapshot of what was restored differs"
    query = make_query(policy)
    assert np.array_equal(at_stop.decide(query, 4).propensities, never_stopped.decide(query, 4).propensities)
    start, seen = stop, 0
    while start and seen < at_stop.memory:
        start -= 1
        seen += int(batches[start].fresh.sum())
    for batch in batches[start:stop]:
        at_stop.remember(batch)
    for batch in batches[stop:]:
        never_stopped.learn(batch)
        at_stop.learn(batch)
    assert bits(at_stop) == bits(never_stopped), "a restart learned something else"


def check_refuses_what_is_not_finite(policy: Policy) -> None:
    policy = learned(policy)
    before = bits(policy)
    for name in ("states", "items", "scalars", "contexts", "rewards"):
        for bad in (np.nan, np.inf):
            examples = make_examples(policy, n=3, seed=9, first_id=10**6)
            if getattr(examples, name).size:
                getattr(examples, name)[1] = bad
                assert_refused(partial(policy.learn, examples), f"{name} of {bad}")
    examples = make_examples(policy, n=3, seed=9, first_id=10**6)
    assert_refused(lambda: policy.learn(replace(examples, items=examples.items[:, :-1])), "items of another width")
    assert bits(policy) == before, "what was refused was learned"
    query = make_query(policy, rows=2)
    query.scalars[1, 0] = np.nan
    if policy.name != "random":
        assert_refused(lambda: policy.decide(query, 2), "a scalar that is not a number")


def check_refuses_foreign_snapshots(policy: Policy) -> None:
    policy = learned(policy)
    arrays, meta = policy.snapshot()
    before = bits(policy)
    assert_refused(lambda: policy.restore(arrays, meta | {"policy": "another"}), "another policy's snapshot")
    assert_refused(lambda: policy.restore(arrays, meta | {"layout": "another"}), "a snapshot of another layout")
    if arrays:
        assert_refused(lambda: policy.restore({}, meta), "a snapshot without arrays")
    assert bits(policy) == before, "what was refused was restored"


def check_corrections_equal_the_final_reward(policy: Policy) -> None:
    at_once, later = deepcopy(policy), deepcopy(policy)
    examples = make_examples(policy, n=40)
    at_once.learn(examples)
    later.learn(replace(examples, rewards=np.zeros(40)))
    later.learn(corrections(examples, examples.rewards * 0.25))
    later.learn(corrections(take(examples, slice(20, 40)), examples.rewards[20:] * 0.75))
    later.learn(corrections(take(examples, slice(20)), examples.rewards[:20] * 0.75))
    _assert_same_scores(at_once, later)


def check_weight_two_is_the_example_twice(policy: Policy) -> None:
    """Of a correction too, and a weight of 1 is none."""
    heavy, twice = learned(policy, batches=1, n=20), learned(policy, batches=1, n=20)
    examples = replace(make_examples(policy, n=20, seed=7, first_id=1_000), weights=np.repeat([1.0, 2.0], 10))
    late = replace(corrections(examples, np.full(20, 0.5)), weights=examples.weights)
    rows = np.repeat(np.arange(20), np.repeat([1, 2], 10))
    ids = 1_000 + np.arange(len(rows), dtype=np.uint64)
    for batch in (examples, late):
        heavy.learn(batch)
        twice.learn(replace(take(batch, rows), weights=None, ids=ids))
    _assert_same_scores(heavy, twice)


def check_weight_zero_teaches_nothing(policy: Policy) -> None:
    before = learned(policy, batches=1, n=20)
    after = deepcopy(before)
    examples = replace(make_examples(policy, n=20, seed=7, first_id=1_000), weights=np.zeros(20))
    after.learn(examples)
    after.learn(replace(corrections(examples, np.full(20, 0.5)), weights=np.zeros(20)))
    _assert_same_scores(before, after)


def _assert_same_scores(first: Policy, second: Policy) -> None:
    query = make_query(first)
    nothing = np.full((len(query.states), 1), -1)
    (_, expected), (_, got) = first.distributions(query, nothing), second.distributions(query, nothing)
    # What is left is float32 rounding of weights.
    assert np.allclose(got, expected, atol=1e-5), f"scores differ by {np.abs(got - expected).max():.2g}"


def check_learns_a_linear_truth(policy: Policy) -> None:
    """After 6,000 examples at least 70 % of the way from random slates to the best ones; the floor is in that."""
    policy = deepcopy(policy)
    for i in range(60):
        policy.learn(make_examples(policy, n=100, seed=i, first_id=i * 100))
    query = make_query(policy, rows=200, n=30, seed=1)
    value = np.where(query.mask, truth(query.states[:, None], query.items, query.scalars), np.nan)
    slates = policy.decide(query, 3)
    got = np.take_along_axis(value, slates.index, axis=1).mean()
    best = np.sort(np.where(query.mask, value, -np.inf), axis=1)[:, -3:].mean()
    by_chance = np.nanmean(value)
    share = (got - by_chance) / (best - by_chance)
    assert share >= 0.7, f"{policy.name} came {share:.0%} of the way"
