"""Slates within constraints: nothing broken, and every propensity the probability of the draw that was made."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from headrace.policy.checks import make_examples, make_query
from headrace.policy.constraints import Cap, Constraints, Pin, Quota
from headrace.policy.registry import POLICIES, make

K, N = 6, 30
NAMES = sorted(POLICIES)


@pytest.fixture(scope="module")
def policies():
    made = {name: make(name, dim=8, contexts=2) for name in NAMES}
    for policy in made.values():
        if policy.learns:
            policy.learn(make_examples(policy, n=300))
    return made


def constraints_of(seed, rows, *, n=N, k=K):
    random = np.random.default_rng(seed)
    some = lambda share: random.random((rows, n)) < share  # noqa: E731
    return Constraints(
        boosts=random.uniform(0.3, 3, (rows, n)).astype(np.float32) if random.random() < 0.5 else None,
        penalty=random.uniform(0, 1, rows).astype(np.float32) if random.random() < 0.3 else None,
        caps=tuple(
            Cap(random.integers(-1, 4, (rows, n)).astype(np.int32), random.integers(0, 4, rows))
            for _ in range(random.integers(0, 3))
        ),
        pins=tuple(Pin(int(p), some(0.1)) for p in sorted(random.choice(k, random.integers(0, 3), replace=False))),
        quotas=tuple(Quota(some(0.3), random.integers(0, 3, rows)) for _ in range(random.integers(0, 3))),
    )


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_nothing_is_broken_and_propensities_are_those_of_the_distribution(policies, name, seed):
    policy, rows = policies[name], 5
    query, constraints = make_query(policy, rows=rows, n=N, seed=seed % 1_000), constraints_of(seed, rows)
    slates = policy.decide(query, K, constraints)
    there = slates.index >= 0
    for i in range(rows):
        placed = slates.index[i][there[i]]
        assert len(set(placed.tolist())) == len(placed) and query.mask[i, placed].all()
        for cap in constraints.caps:
            groups = cap.groups[i, placed]
            assert all((groups == g).sum() <= cap.most[i] for g in groups[groups >= 0])
    p, _ = policy.distributions(query, slates.index, constraints)
    assert np.allclose(p.sum(axis=2)[there], 1, atol=1e-9)
    drawn = np.take_along_axis(p, np.maximum(slates.index, 0)[:, :, None], axis=2)[:, :, 0]
    assert np.array_equal(drawn[there], slates.propensities[there])


@pytest.mark.parametrize("name", NAMES)
def test_a_decision_alone_is_the_one_in_the_batch(policies, name):
    policy = policies[name]
    for seed in range(6):
        query, constraints = make_query(policy, rows=9, n=N, seed=seed), constraints_of(seed, 9)
        together = policy.decide(query, K, constraints)
        for i in (0, 4, 8):
            one = {f: getattr(query, f)[i : i + 1] for f in query.__dataclass_fields__}
            alone = policy.decide(replace(query, **one), K, constraints.take([i]))
            assert np.array_equal(alone.index[0], together.index[i])
            assert np.array_equal(alone.propensities[0], together.propensities[i])


@pytest.mark.parametrize("name", ["lints", "softmax", "squarecb", "epsilon_greedy", "random"])
def test_a_group_that_ends_beside_a_decision_changes_no_draw_of_it(policies, name):
    policy = policies[name]
    for seed in range(30):
        query = make_query(policy, rows=6, n=N, seed=seed)
        bound = Constraints(caps=(Cap(np.tile(np.arange(N) % 3, (6, 1)).astype(np.int32), np.array([K] * 5 + [1])),))
        together = policy.decide(query, K, bound).index
        free = policy.decide(query, K, bound.take([0] * 6)).index
        assert np.array_equal(together[:5], free[:5])


@pytest.mark.parametrize("name", ["lints", "softmax", "squarecb", "epsilon_greedy", "popular"])
def test_drawn_as_often_as_told(policies, name):
    policy, times = policies[name], 4_000
    single = make_query(policy, rows=1, n=12, seed=5)
    bound = constraints_of(11, 1, n=12, k=3)
    bound = replace(
        bound,
        pins=(Pin(1, np.arange(12)[None] % 3 == 0),),
        caps=(Cap((np.arange(12) % 4)[None].astype(np.int32), np.array([1])),),
    )
    many = {f: np.repeat(getattr(single, f), times, axis=0) for f in single.__dataclass_fields__}
    many["streams"] = np.arange(times, dtype=np.uint64)
    slates = policy.decide(replace(single, **many), 3, bound.take([0] * times))
    first = np.bincount(slates.index[:, 0]).argmax()
    for j, rows in ((0, np.ones(times, bool)), (1, slates.index[:, 0] == first)):
        shown = slates.index[rows]
        p = policy.distributions(single, shown[:1], bound)[0][0, j]
        counts, expected = np.bincount(shown[:, j], minlength=len(p)), p * len(shown)
        assert not counts[p == 0].any()
        there = p > 0
        statistic = ((counts - expected)[there] ** 2 / expected[there]).sum()
        assert statistic < chi2.ppf(1 - 1e-6, max(there.sum() - 1, 1))


def plain(n=10, k=4, **bound):
    """Popularity falls from the first candidate to the last."""
    policy = make("popular", dim=4, contexts=0, floor=1e-6)
    query = make_query(policy, rows=1, n=n, seed=1)
    query.scalars[:] = 0
    query.scalars[0, :, policy.scalars.index("popularity")] = np.linspace(1, 0.1, n)
    query = replace(query, mask=np.ones((1, n), np.bool_))
    return policy.decide(query, k, Constraints(**bound)).index[0].tolist()


def among(*rows, n=10):
    return np.isin(np.arange(n), rows)[None]


def test_a_pin_takes_its_place_and_nobody_takes_it_before():
    assert plain(pins=(Pin(2, among(0)),)) == [1, 2, 0, 3]
    assert plain(pins=(Pin(0, among(7)), Pin(1, among(7, 8)))) == [7, 8, 0, 1]
    assert plain(pins=(Pin(1, among(0, 1)), Pin(2, among(0)))) == [2, 1, 0, 3]


def test_a_pin_without_members_binds_nothing():
    assert plain(pins=(Pin(1, among()),)) == [0, 1, 2, 3]


def test_a_cap_ends_a_group():
    evens = np.where(np.arange(10) % 2 == 0, 0, -1)[None].astype(np.int32)
    assert plain(caps=(Cap(evens, np.array([1])),)) == [0, 1, 3, 5]
    assert plain(caps=(Cap(evens, np.array([0])),)) == [1, 3, 5, 7]


def test_a_slate_that_caps_leave_too_short_ends():
    assert plain(caps=(Cap(np.zeros((1, 10), np.int32), np.array([2])),)) == [0, 1, -1, -1]


def test_a_quota_is_paid_by_the_last_places():
    assert plain(quotas=(Quota(among(8, 9), np.array([2])),)) == [0, 1, 8, 9]
    assert plain(quotas=(Quota(among(0, 9), np.array([1])),)) == [0, 1, 2, 3]
    assert plain(quotas=(Quota(among(9), np.array([3])),)) == [0, 1, 2, 9]


def test_a_boost_lifts():
    boosts = np.ones((1, 10), np.float32)
    boosts[0, 5] = 3
    assert plain(boosts=boosts) == [5, 0, 1, 2]


def test_what_is_like_the_item_above_comes_later():
    policy = make("popular", dim=4, contexts=0, floor=1e-6)
    query = make_query(policy, rows=1, n=4, seed=1)
    query.scalars[:] = 0
    query.scalars[0, :, policy.scalars.index("popularity")] = [1, 0.9, 0.8, 0.1]
    query.items[0] = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]
    query = replace(query, mask=np.ones((1, 4), np.bool_))
    assert policy.decide(query, 3).index[0].tolist() == [0, 1, 2]
    assert policy.decide(query, 3, Constraints(penalty=np.array([0.5], np.float32))).index[0].tolist() == [0, 2, 1]
