"""An agent of another library trains in the world, is exported with parity, and serves like the others."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.export.item_tower import ItemTower
from headrace.policy import checks
from headrace.policy.actor import Actor
from headrace.streams import start
from headrace.streams.items import ItemStore
from headrace.streams.policies import Policies
from headrace.streams.settings import Settings

sb3_contrib = pytest.importorskip("sb3_contrib", reason="sb3-contrib is not installed: pip install --group dev")

from headrace.simulation.agents import actor_from_sb3  # noqa: E402
from headrace.simulation.presets import make_env  # noqa: E402

EXAMPLE = Path(__file__).parents[2] / "examples/trpo.py"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """examples/trpo.py as it is written, with fewer steps."""
    spec = importlib.util.spec_from_file_location("trpo", EXAMPLE)
    assert spec is not None and spec.loader is not None
    trpo = importlib.util.module_from_spec(spec)
    out = tmp_path_factory.mktemp("trained") / "trpo"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch and stable-baselines3
        spec.loader.exec_module(trpo)
        earned = trpo.main(4_096, str(out), 48)
    return out, earned


def test_trpo_trains_and_earns_more_than_random_slates(example: tuple[Path, dict[str, float]]) -> None:
    _, earned = example
    assert set(earned) == {"random", "popular", "actor"}
    assert earned["actor"] > earned["random"]


def test_what_it_learned_is_served_like_the_others(example: tuple[Path, dict[str, float]]) -> None:
    folder, _ = example
    settings = Settings(policy={"name": "actor", "start": str(folder)})
    assert start.check(settings) == f"actor from {folder}"
    served = Policies(settings, ItemStore(ItemTower(np.eye(64, dtype=np.float32))), dim=64).serving("policy", "u1")
    assert served.name == "actor" and isinstance(served.policy, Actor)
    for check in (
        checks.check_propensities_sum_to_one,
        checks.check_rescoring_gives_the_logged_propensities,
        checks.check_batch_changes_nothing,
    ):
        check(served.policy)


def model(**options: Any) -> Any:
    env = make_env("news", dim=6, action=options.pop("action", "preference"), candidates=20)
    return sb3_contrib.TRPO(options.pop("policy", "MlpPolicy"), env, n_steps=16, batch_size=16, device="cpu", **options)


def test_preferences_are_the_models_own() -> None:
    import torch

    given = model(policy_kwargs={"net_arch": [8, 8], "activation_fn": torch.nn.ReLU}, seed=3)
    with torch.no_grad():
        given.policy.action_net.weight.mul_(300)  # beyond the space of actions: both must cut
    actor = actor_from_sb3(given)
    random = np.random.default_rng(1)
    states = random.uniform(-1, 1, (50, 6)).astype(np.float32)
    expected, _ = given.predict(states, deterministic=True)
    assert np.allclose(actor.preferences(states, np.zeros((50, 0), np.float32)), expected, atol=1e-5)
    assert (np.abs(expected) == 1).any()


def test_a_network_that_is_not_the_model_is_not_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    given = model(seed=1)
    honest = given.predict
    monkeypatch.setattr(given, "predict", lambda x, deterministic: (honest(x, deterministic=True)[0] + 0.01, None))
    with pytest.raises(ValueError, match=r"preferences differ by 0\.01"):
        actor_from_sb3(given)


def test_any_action_trains_and_what_is_no_preference_is_not_exported() -> None:
    slates = model(action="slate", policy="MultiInputPolicy").learn(32)
    with pytest.raises(ValueError, match='action="preference"'):
        actor_from_sb3(slates)
