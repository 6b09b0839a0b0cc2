"""The comparison with other bandit libraries: its streams and its arithmetic."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("bandit_peers")


def test_interval_is_students(peers: ModuleType) -> None:
    """20 numbers of mean 0 and variance 1: the half width is t(.975, 19) / √20."""
    numbers = np.random.default_rng(0).standard_normal(20)
    numbers = (numbers - numbers.mean()) / numbers.std(ddof=1)
    mean, low, high = peers.interval(numbers)
    assert abs(mean) < 1e-12 and abs(high + low) < 1e-12
    assert abs(high - 2.0930 / 20**0.5) < 1e-4


def test_a_shop_stream_is_the_seeds_and_our_policy_learns_from_it(peers: ModuleType) -> None:
    first, again, other = (peers.shop_rounds.rounds(seed=seed, limit=400) for seed in (3, 3, 4))
    for name in ("contexts", "items", "scalars", "features", "expected", "uniforms"):
        assert np.array_equal(getattr(first, name), getattr(again, name)), name
    assert not np.array_equal(first.expected, other.expected)
    make, configs = peers.GRIDS["headrace linucb"]
    loss, _ = peers.play(first, make(first, 0, **configs[-1]))
    assert loss < 1 - first.expected.mean() - 0.01, "no better than by chance"


def test_classes_are_actions_and_features_have_one_scale(peers: ModuleType) -> None:
    if not peers.uci.FOLDER.exists():
        pytest.skip(f"{peers.uci.FOLDER} is not there")
    rounds = peers.uci.rounds("pendigits", seed=0, limit=2_000)
    assert rounds.contexts.shape == (2_000, 16) and rounds.items.shape == (10, 10)
    assert np.array_equal(rounds.expected.sum(axis=1), np.ones(2_000))
    assert np.isclose(np.square(rounds.contexts).sum(axis=1).mean(), 1, atol=0.05)


def test_every_learner_has_the_same_number_of_configurations(peers: ModuleType) -> None:
    assert {len(configs) for _, configs in peers.GRIDS.values()} == {6}
