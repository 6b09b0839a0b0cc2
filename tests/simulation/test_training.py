"""headrace train: policies get better in the world, the same seed gives the same bits, and what is written serves."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.policy import checks
from headrace.policy.base import Policy
from headrace.policy.registry import make
from headrace.simulation import commands, presets
from headrace.simulation.laws import Laws
from headrace.simulation.loop import Loop, text_vectors
from headrace.simulation.presets import make_vector_env
from headrace.simulation.settings import DAY_MS, HOUR_MS, WorldSettings
from headrace.simulation.training import Episode, mean_of, rolling, train
from headrace.simulation.world import World
from headrace.streams import start
from headrace.streams.errors import SettingsError
from headrace.streams.settings import Settings

DIM = 16
ITEMS = 200  # and an eighth more to come


def world(**options: Any) -> Any:
    return make_vector_env("ecommerce", num_envs=16, dim=DIM, action="slate", k=5, candidates=40, horizon=12, **options)


def linucb() -> Policy:
    return make("linucb", dim=DIM, alpha=0.2, floor=0.05)


def test_it_learns_and_the_same_seed_gives_the_same_bits() -> None:
    told: list[Episode] = []
    first, second = linucb(), linucb()
    trained = train(first, world(), episodes=200, seed=3, ended=told.append)
    again = train(second, world(), episodes=200, seed=3)
    assert told == trained.episodes == again.episodes and checks.bits(first) == checks.bits(second)
    assert [e.number for e in told] == list(range(1, 201)) and max(e.steps for e in told) == 12
    by_chance = train(make("random", dim=DIM), world(), episodes=200, seed=3, learn=False)
    learned, error = mean_of(trained, last=100)
    random, _ = mean_of(by_chance, last=200)
    assert learned > random + 3 * error, (learned, random)


def test_delayed_conversions_teach_what_they_earned() -> None:
    """All rewards that the world pays are learned: at once, or as corrections of the example they belong to."""
    laws = replace(Laws(), conversion=0.5, delay=2.0)
    taught: list[float] = []
    ids: set[int] = set()

    class Watched(type(linucb())):  # type: ignore[misc]
        def learn(self, examples: Any) -> None:
            taught.append(float(examples.rewards.sum()))
            assert bool(examples.fresh.all()) or set(examples.ids.tolist()) <= ids
            ids.update(examples.ids.tolist())
            super().learn(examples)

    policy = Watched(dim=DIM)
    env = world(laws=laws, conversion_reward=3.0)
    trained = train(policy, env, episodes=32, seed=0)
    clicks_alone = train(linucb(), world(laws=laws, conversion_reward=0.0), episodes=32, seed=0, learn=False)
    assert sum(taught) > clicks_alone.rewards.sum()
    assert trained.steps >= sum(e.steps for e in trained.episodes)


def test_what_follows_a_slate_is_told_to_policies_that_follow() -> None:
    followed: list[Any] = []

    class Following(type(linucb())):  # type: ignore[misc]
        follows = True

        def follow(self, steps: Any) -> None:
            followed.append(steps)

    train(Following(dim=DIM), world(laws=Laws(churn=0.3)), episodes=40, seed=0, step_s=60.0)
    assert len(followed) > 5
    for a, b in itertools.pairwise(followed):
        assert np.array_equal(a.next_items, b.items) and np.array_equal(a.next_states, b.states)
    assert any(steps.terminal.any() for steps in followed) and followed[0].elapsed_s[0] == 60.0


def test_steps_hold_conversions_that_are_still_to_come() -> None:
    """As in the running system, where a step is told when its decision closes."""
    seen: list[float] = []

    class Following(type(linucb())):  # type: ignore[misc]
        follows = True

        def follow(self, steps: Any) -> None:
            seen.extend(steps.rewards.ravel().tolist())

    laws = Laws(bias=0.0, conversion=1.0, delay=3.0)
    train(Following(dim=DIM), world(laws=laws, click_reward=1.0, conversion_reward=4.0), episodes=20, seed=0)
    assert set(seen) == {0.0, 5.0}


def test_rolling_means() -> None:
    assert rolling(np.arange(1.0, 5.0)).tolist() == [1.0, 1.5, 2.0, 2.5]
    assert rolling(np.arange(400.0))[-1] == np.arange(380.0, 400.0).mean()


@pytest.fixture(scope="module", autouse=True)
def _one_small_catalogue() -> Iterator[None]:
    """The same items in every test: their texts are encoded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.PRESETS, "news", replace(presets.PRESETS["news"], items=ITEMS + ITEMS // 8))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), worker={"candidates": 60}, policy={"alpha": 0.2})
    return commands.run_train(settings, episodes=150, preset="news", policy="linucb", seed=1)


def test_the_command_writes_a_policy_its_curve_and_every_episode(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read = start.read(folder)
    assert read.policy == "linucb" and read.made["episodes"] == 150 and read.made["world"] == "news"
    assert read.made["reward"] > read.made["random"]
    lines = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    assert [line["episode"] for line in lines] == list(range(1, 151))
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    settings = Settings(data_dir=folder.parent, worker={"candidates": 20})
    commands.run_train(settings, episodes=3, preset="news", policy="lints", out=folder.parent / "short")
    said = capsys.readouterr().out.splitlines()
    first = lines_of(folder.parent / "short")[0]
    assert said[0] == f"Episode 1: Reward {first['reward']:.2f}, Steps {first['steps']}"
    assert [line.split(":")[0] for line in said[:3]] == ["Episode 1", "Episode 2", "Episode 3"]
    assert said[-1].endswith(f'start = "{folder.parent / "short"}"')


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]


def test_the_running_system_serves_it_from_the_first_slate(folder: Path) -> None:
    """World, engine and learner, in one process: the policy's arm decides with it before anything is learned."""
    settings = Settings(
        policy={"name": "linucb", "start": str(folder), "alpha": 0.2},
        arms={"shares": {"policy": 1.0}},
        gate={"guard": False},
    )
    begin = 1_700_000_000_000
    shop = World(presets.small(WorldSettings(), items=ITEMS, users=60), start_ms=begin)
    loop = Loop(settings, shop, text_vectors(settings, shop.catalogue))
    served = loop.policies.serving("policy", "u0001")
    assert (served.name, served.version) == ("linucb", 0)
    played = loop.run(events=150, start_ms=begin, span_ms=DAY_MS // 24)
    assert played.decisions > 20 and loop.policies.serving("policy", "u0001").version > 0
    assert (
        loop.policies.serving("policy", "u0001").policy.snapshot()[1]["learned"]
        > served.policy.snapshot()[1]["learned"]
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"preset": "games"}, "unknown preset 'games'; choose one of ecommerce, social, video, news"),
        ({"policy": "popular"}, "it learns nothing here"),
        ({"policy": "linusb"}, "unknown; choose one of"),
        ({"episodes": 0}, "give at least 1"),
        ({"log": Path("events.csv")}, "--log and --items belong together"),
        ({"log": Path("e.csv"), "items": Path("i.csv"), "policy": "dqn", "episodes": 0}, "give --episodes, or choose"),
    ],
)
def test_wrong_use_is_one_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        commands.run_train(Settings(), **{"episodes": 1, **given})


@pytest.mark.parametrize("name", presets.PRESETS)
def test_presets_are_configurations_of_the_running_system(name: str, tmp_path: Path) -> None:
    """The shipped settings and the world of that kind of shop, through engine and learner."""
    from headrace.streams import configuration

    made = presets.preset(name)
    (tmp_path / "headrace.toml").write_text(made.config, encoding="utf-8")
    settings = configuration.load(tmp_path / "headrace.toml", {"policy": {"name": "linucb"}})
    assert settings.placements["default"].k == made.k
    assert settings.event_types[made.click].reward == made.click_reward
    assert settings.event_types[made.conversion].reward == made.conversion_reward
    begin = 1_700_000_000_000
    shop = World(presets.small(made.world, items=ITEMS, users=50), start_ms=begin)
    loop = Loop(settings, shop, text_vectors(settings, shop.catalogue))
    played = loop.run(events=300, start_ms=begin, span_ms=12 * HOUR_MS)
    assert played.decisions > 30 and played.versions > 0
    earned = {kind for kind, of in loop.engine.counts.items() if kind.startswith(f"outcomes/{made.click}/")}
    assert earned, f"no {made.click} was joined to a decision"
