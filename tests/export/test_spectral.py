"""Where embeddings begin: items that the same users took lie near."""

from __future__ import annotations

import numpy as np

from headrace.export.log import Log
from headrace.export.spectral import item_factors


def make_log() -> Log:
    """Two halves of the catalogue; nobody takes of both, nobody takes item 20."""
    random = np.random.default_rng(0)
    owners = np.repeat(np.arange(200), 6)
    items = random.integers(10, size=len(owners)) + 10 * (owners % 2)
    return Log.of(users=owners.astype(str), items=items, keys=np.arange(21), texts=np.zeros((21, 0), np.float32))


def test_items_of_the_same_users_lie_near_and_of_others_apart() -> None:
    found = item_factors(make_log(), 4)
    cosine = found @ found.T
    same, other = cosine[:10, :10], cosine[:10, 10:20]
    assert np.abs(other).max() < 0.1 and same.mean() > 0.3
    assert np.allclose(np.linalg.norm(found[:20], axis=1), 1, atol=1e-5) and not found[20].any()


def test_they_are_the_singular_vectors_of_the_damped_matrix() -> None:
    log = make_log()
    taken = np.zeros((200, 21))
    taken[log.owners, log.items] = 1
    users, items = taken.sum(axis=1, keepdims=True), np.maximum(taken.sum(axis=0), 1)
    _, singular, right = np.linalg.svd(taken * users**-0.25 * items**-0.25, full_matrices=False)
    raw = right[:4].T * np.sqrt(singular[:4])
    expected = raw[:20] / np.linalg.norm(raw[:20], axis=1, keepdims=True)
    found = item_factors(log, 4)[:20]
    assert np.abs(found @ found.T - expected @ expected.T).max() < 0.02


def test_more_dimensions_than_there_is_behaviour_for() -> None:
    few = Log.of(users=["a", "a", "b"], items=[0, 1, 1], keys=[1, 2, 3], texts=np.zeros((3, 0), np.float32))
    found = item_factors(few, 8)
    assert found.shape == (3, 8) and np.isfinite(found).all() and (found == item_factors(few, 8)).all()
