"""Full rankings: ties and what is not a number stand against the model."""

from __future__ import annotations

import numpy as np

from headrace.export import ranking
from headrace.export.behaviour import Questions


def test_ranks_are_those_of_a_loop_ties_before_and_what_was_met_out() -> None:
    random = np.random.default_rng(1)
    states = random.integers(-2, 3, (700, 3)).astype(np.float32)  # whole numbers: many ties
    items = random.integers(-2, 3, (30, 3)).astype(np.float32)
    targets = random.integers(30, size=700)
    seen = [random.choice(30, 4, replace=False).astype(np.int32) for _ in targets]
    for met in (seen, None):
        expected = []
        for user, target in enumerate(targets):
            out = {target, *([] if met is None else met[user].tolist())}
            others = [items[row] @ states[user] for row in range(30) if row not in out]
            expected.append(sum(score >= items[target] @ states[user] for score in others))
        assert ranking.ranks(states, items, targets, met).tolist() == expected


def test_a_model_that_diverged_ranks_last() -> None:
    broken = np.full((2, 3), np.nan, np.float32)
    found = ranking.ranks(broken, np.eye(3, dtype=np.float32), np.array([0, 1]), None)
    assert ranking.metrics(found, k=2)["ndcg2"] == 0
    asked = Questions([np.array([0]), np.array([1])], np.array([1, 2]))
    assert (asked.ranks(np.full((3, 2), np.nan, np.float32), decay=0.5) >= 2).all()
