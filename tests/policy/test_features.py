from __future__ import annotations

import numpy as np
import pytest

from headrace.policy.checks import make_query
from headrace.policy.features import BLOCK, SCALARS, FeatureMap, by_candidate, unit
from headrace.policy.registry import make


@pytest.mark.parametrize(("contexts", "outer"), [(0, False), (3, False), (3, True)])
def test_folded_scores_are_those_of_the_feature_vectors(contexts: int, outer: bool) -> None:
    features = FeatureMap(dim=8, contexts=contexts, outer=outer)
    query = make_query(make("random", dim=8, contexts=contexts), rows=19, n=BLOCK)
    x = features.joint(query.states[:, None], query.contexts[:, None], query.items, query.scalars)
    weights = np.random.default_rng(0).standard_normal((5, features.size)).astype(np.float32)
    scored = np.concatenate([prepared.scores(weights) for _, prepared in features.chunks(query)])
    assert np.allclose(scored, (x @ weights.T).transpose(0, 2, 1), atol=1e-4)


def test_blocks_cover_x_once() -> None:
    features = FeatureMap(dim=8, contexts=2)
    columns = np.concatenate([np.arange(features.size)[block] for block in features.blocks.values()])
    assert np.array_equal(columns, np.arange(features.size))


def test_blocks_hold_what_they_say() -> None:
    features = FeatureMap(dim=4, contexts=1)
    state, item = np.array([[0, 3, 4, 0]], np.float32), np.array([[1, 1, 0, 0]], np.float32)
    scalars = np.arange(len(SCALARS), dtype=np.float32)[None] / 10
    x = features.joint(state, np.array([[2.0]], np.float32), item, scalars, np.array([3]))[0]
    taste = x[features.blocks["taste"]]
    assert np.allclose(taste, 2 * np.array([0, 0.6, 0, 0]))
    assert np.array_equal(x[features.blocks["item"]], item[0])
    signals = x[features.blocks["signals"]]
    assert np.array_equal(signals[: len(SCALARS)], scalars[0]) and np.isclose(signals[len(SCALARS)], 0.6)
    assert np.isclose(x[features.blocks["context_signals"]][0], 2 * 0.6)
    assert x[features.blocks["place"]] == 0.25 and x[features.blocks["one"]] == 1


def test_unit_leaves_zero_alone() -> None:
    assert np.array_equal(unit(np.array([[0, 0], [3, 4]], np.float32)), np.array([[0, 0], [0.6, 0.8]], np.float32))


def test_no_batch_and_no_width_changes_a_bit() -> None:
    random = np.random.default_rng(0)
    weights = random.standard_normal((50, 33, 64)).astype(np.float32)
    features = random.standard_normal((50, 64, 5 * BLOCK)).astype(np.float32)
    whole = by_candidate(weights, features)
    assert np.array_equal(by_candidate(weights[7:8], features[7:8]), whole[7:8])
    narrow = np.ascontiguousarray(features[:, :, :BLOCK])
    assert np.array_equal(by_candidate(weights, narrow), whole[:, :, :BLOCK])


def test_scalars_may_be_others() -> None:
    assert FeatureMap(dim=4, scalars=("popularity",)).size < FeatureMap(dim=4).size


def test_outer_gives_every_item_weights_of_its_own() -> None:
    """One-hot items: context × item is the feature vector of the disjoint LinUCB."""
    features = FeatureMap(dim=3, scalars=(), contexts=2, outer=True)
    states, context, no_scalars = np.zeros((1, 3), np.float32), np.array([[5, 7]], np.float32), np.zeros((3, 0))
    x = features.joint(states, context, np.eye(3, dtype=np.float32), no_scalars.astype(np.float32))
    outer = x[:, features.blocks["outer"]].reshape(3, 2, 3)
    assert not x[:, features.blocks["context"]].size, "what all items share would take part of what each has to learn"
    for item in range(3):
        assert np.array_equal(outer[item, :, item], [5, 7])
        assert not np.delete(outer[item], item, axis=1).any()
