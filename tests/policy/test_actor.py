"""The actor: a network's preference ranks the candidates; what does not fit is refused and changes nothing."""

from __future__ import annotations

import itertools
from copy import deepcopy

import numpy as np
import pytest

from headrace.policy import checks
from headrace.policy.actor import Actor
from headrace.policy.features import SCALARS

D, C, M = 6, 2, len(SCALARS)


def trained(seed: int = 0, *, activation: str = "tanh") -> Actor:
    random = np.random.default_rng(seed)
    sizes = [D + C, 16, 8, D + M]
    layers = [
        (random.normal(size=(a, b)).astype(np.float32) / a**0.5, random.normal(size=b).astype(np.float32) / 10)
        for a, b in itertools.pairwise(sizes)
    ]
    actor = Actor(dim=D, contexts=C)
    actor.load(layers, activation=activation, clip=1.0, temperature=0.3)
    return actor


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_scores_are_the_written_out_network(activation: str) -> None:
    actor = trained(activation=activation)
    query = checks.make_query(actor, rows=4, n=7)
    arrays, _ = actor.snapshot()
    act = np.tanh if activation == "tanh" else lambda x: np.maximum(x, 0)
    x = np.concatenate([query.states, query.contexts], axis=1).astype(np.float64)
    for i in range(3):
        x = x @ arrays[f"weights.{i}"] + arrays[f"biases.{i}"]
        x = act(x) if i < 2 else x
    features = np.concatenate([query.items, query.scalars], axis=2)
    scores = np.einsum("bf,bnf->bn", x.clip(-1, 1), features)
    weights = np.where(query.mask, np.exp(scores / 0.3), 0)
    expected = 0.9 * weights / weights.sum(axis=1, keepdims=True) + 0.1 * query.mask / query.mask.sum(1, keepdims=True)
    probabilities, got = actor.distributions(query, np.full((4, 1), -1))
    assert np.allclose(got[query.mask], scores[query.mask], atol=1e-5)
    first = query.mask.argmax(axis=1)[:, None]
    probabilities, _ = actor.distributions(query, first)
    assert np.allclose(probabilities[:, 0], expected, atol=1e-5)


@pytest.mark.parametrize("check", list(checks.yield_checks(trained())))
def test_a_trained_network_passes_the_contract(check: checks.Check) -> None:
    check(trained())


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    actor = trained()
    before = checks.bits(actor)
    arrays, meta = actor.snapshot()
    narrow = dict(arrays, **{"weights.2": arrays["weights.2"][:, :-1], "biases.2": arrays["biases.2"][:-1]})
    nan = deepcopy(arrays)
    nan["biases.0"][0] = np.nan
    for bad, said in ((narrow, "are a preference"), (nan, "not finite")):
        with pytest.raises(ValueError, match=said):
            actor.restore(bad, meta)
    with pytest.raises(ValueError, match="unknown activation 'gelu'"):
        actor.restore(arrays, meta | {"activation": "gelu"})
    with pytest.raises(ValueError, match="layout"):
        Actor(dim=D, contexts=C + 1).restore(arrays, meta)
    assert checks.bits(actor) == before
