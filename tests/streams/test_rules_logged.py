"""Constraints as a record carries them: what is read back gives the same distribution."""

import numpy as np

from headrace.policy.checks import make_query
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


def test_decisions_without_constraints_have_none():
    assert unpack([b"", b""], [3, 3], n=3) is None
