"""Constraints as a record carries them: what is read back gives the same distribution."""

import numpy as np

from headrace.policy.checks import make_query
from headrace.policy.constraints import Constraints, Pin
from headrace.policy.registry import make
from headrace.streams.rules.logged import pack, readable, unpack
from tests.policy.test_bound import K, constraints_of


def test_what_is_read_back_gives_the_same_distribution():
    policy = make("softmax", dim=8, contexts=2)
    for seed in range(8):
        query, bound = make_query(policy, rows=4, n=30, seed=seed), constraints_of(seed, 4)
        query.mask[:] = np.arange(30) < np.array([30, 21, 12, 5])[:, None]
        slates = policy.decide(query, K, bound).index
        logged = [pack(bound, i, query.mask[i], places=K) for i in range(4)]
        again = unpack(logged, query.mask.sum(axis=1).tolist(), n=30)
        expected, _ = policy.distributions(query, slates, bound)
        found, _ = policy.distributions(query, slates, again)
        assert np.allclose(found, expected)
        assert readable(logged[0], 30) and not readable(logged[0][:-3], 30)


def test_a_shorter_slate_is_read_back_without_what_lies_beyond_it():
    """Slates of several lengths are bound together: a pin beyond the places of one keeps no item from it."""
    policy = make("softmax", dim=8, contexts=2)
    query = make_query(policy, rows=1, n=12, seed=3)
    query.mask[:] = True
    bound = Constraints(pins=(Pin(5, np.arange(12)[None] == 2),))
    slates = policy.decide(query, 4, bound)
    again = unpack([pack(bound, 0, query.mask[0], places=4)], [12], n=12)
    padded = np.full((1, K), -1)  # as evaluated beside a longer one
    padded[:, :4] = slates.index
    found, _ = policy.distributions(query, padded, again)
    assert np.array_equal(found[0, np.arange(4), slates.index[0]], slates.propensities[0])


def test_decisions_without_constraints_have_none():
    assert unpack([b"", b""], [3, 3], n=3) is None
