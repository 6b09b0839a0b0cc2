"""A few slates drawn in plain Python are those of the batch, bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.policy import few
from headrace.policy.slates import Greedy, Softmax, Votes, sample


def choices(kind, rng, rows, n, mask):
    scores = rng.integers(0, 6, (rows, n)).astype(np.float32)  # with ties
    if kind == "greedy":
        return lambda: Greedy(scores, mask), scores
    if kind == "even":
        return lambda: Softmax(np.zeros((rows, n), np.float32), mask), scores
    if kind == "softmax":
        return lambda: Softmax(scores, mask), scores
    draws = rng.integers(0, 6, (rows, 7, n)).astype(np.float32)
    return lambda: Votes(draws.copy(), mask), scores


@pytest.mark.parametrize("kind", ["greedy", "votes", "even", "softmax"])
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
    streams = rng.integers(0, 2**63, rows).astype(np.uint64)
    one_by_one = [
        sample(make(), mask, scores, k, floor=0.2, streams=streams),
    ]
    padded = np.concatenate([mask] * (few.FEW + 1))  # more rows than a few: the array way
    batch = sample(
        _repeated(make, few.FEW + 1),
        padded,
        np.concatenate([scores] * (few.FEW + 1)),
        k,
        floor=0.2,
        streams=np.concatenate([streams] * (few.FEW + 1)),
    )
    for slates in one_by_one:
        assert slates.index.tolist() == batch.index[:rows].tolist()
        assert slates.propensities.tobytes() == batch.propensities[:rows].tobytes()
        assert slates.scores.tobytes() == batch.scores[:rows].tobytes()
        assert (slates.explored | (slates.index < 0)).tolist() == (batch.explored | (batch.index < 0))[:rows].tolist()


def _repeated(make, times):
    """The same rows several times over, in one choice."""
    choice = make()
    if isinstance(choice, Votes):
        scores = np.concatenate([choice._by_row] * times)
        return Votes(scores, np.isfinite(scores).any(axis=1))
    if isinstance(choice, Greedy):
        scores = np.concatenate([choice._scores] * times)
        return Greedy(scores, np.isfinite(scores))
    logits = np.concatenate([choice._logits] * times).astype(np.float32)
    return Softmax(logits, np.isfinite(logits))
