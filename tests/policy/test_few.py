"""A few slates drawn in plain Python are those of the batch, bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.policy import few
from headrace.policy.choices import EpsilonGreedy, InverseGap
from headrace.policy.slates import Greedy, Softmax, Votes, sample


def choices(kind, rng, rows, n, mask):
    """Makes the choice of these rows repeated some times, and their scores."""
    scores = rng.integers(0, 6, (rows, n)).astype(np.float32)  # with ties
    draws = rng.integers(0, 6, (rows, 7, n)).astype(np.float32)
    makers = {
        "greedy": Greedy,
        "even": lambda s, m: Softmax(np.zeros(s.shape, np.float32), m),
        "softmax": Softmax,
        "epsilon": lambda s, m: EpsilonGreedy(s, m, epsilon=0.3),
        "no epsilon": lambda s, m: EpsilonGreedy(s, m, epsilon=0.0),
        "gap": lambda s, m: InverseGap(s, m, gamma=5.0),
    }

    def make(times):
        repeated = np.concatenate([mask] * times)
        if kind == "votes":
            return Votes(np.concatenate([draws] * times), repeated)
        return makers[kind](np.concatenate([scores] * times), repeated)

    return make, scores


@pytest.mark.parametrize("kind", ["greedy", "votes", "even", "softmax", "epsilon", "no epsilon", "gap"])
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, few.FEW),
    n=st.integers(1, 30),
    k=st.integers(1, 12),
    present=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
)
def test_plain_python_draws_what_the_batch_draws(kind, seed, rows, n, k, present):
    rng = np.random.default_rng(seed)
    mask = rng.random((rows, n)) < present
    make, scores = choices(kind, rng, rows, n, mask)
    assert make(1).by_row() is not None
    streams = rng.integers(0, 2**63, rows).astype(np.uint64)
    slates = sample(make(1), mask, scores, k, floor=0.2, streams=streams)
    times = few.FEW + 1  # more rows than a few: the array way
    batch = sample(
        make(times),
        np.concatenate([mask] * times),
        np.concatenate([scores] * times),
        k,
        floor=0.2,
        streams=np.concatenate([streams] * times),
    )
    assert slates.index.tolist() == batch.index[:rows].tolist()
    assert slates.propensities.tobytes() == batch.propensities[:rows].tobytes()
    assert slates.scores.tobytes() == batch.scores[:rows].tobytes()
    assert (slates.explored | (slates.index < 0)).tolist() == (batch.explored | (batch.index < 0))[:rows].tolist()
