"""The Gymnasium world: its checker is content, seeds are exact alone and beside others, each law does what it says."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from headrace.policy.features import SCALARS
from headrace.simulation.environment import RecommenderEnv, RecommenderVectorEnv
from headrace.simulation.laws import Laws
from headrace.simulation.presets import PRESETS, make_env, make_vector_env
from headrace.simulation.visitors import Visitors

D, ITEMS, USERS = 8, 60, 40
QUIET = Laws(bias=0.0, taste=0.0, quality=0.0, organic=0.0, ceiling=0.5)
EVERYTHING = Laws(
    position_bias=0.5, popular=1.0, conversion=0.3, delay=2.0, evolution=0.1, boredom=0.5, drift=0.1, churn=0.2,
    fading=0.02, trend=0.5,
)  # fmt: skip
ACTIONS = [
    {"action": "item"},
    {"action": "item", "candidates": 20},
    {"action": "item", "candidates": 2},
    {"action": "slate", "k": 4},
    {"action": "slate", "k": 4, "candidates": 20},
    {"action": "preference", "k": 4, "candidates": 20},
]


def data(seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "user_data": random.standard_normal((USERS, D)),
        "item_data": {
            "vector": random.standard_normal((ITEMS, D)),
            "popularity": random.random(ITEMS),
            "category": random.integers(5, size=ITEMS),
            "price": random.uniform(1, 90, ITEMS),
        },
        "num_items": ITEMS,
    }


def visitors(laws: Laws, *, size: int = 400, horizon: int = 30, **more: Any) -> Visitors:
    env = RecommenderVectorEnv(**data(), num_envs=size, laws=laws, horizon=horizon, **more)
    env.reset(seed=1)
    return env.visitors


def slates(world: Visitors, *, k: int = 4, seed: int = 0) -> Any:
    random = np.random.default_rng(seed)
    return np.stack([random.permutation(ITEMS)[:k] for _ in range(world.size)])


@pytest.mark.parametrize("options", ACTIONS, ids=str)
@pytest.mark.parametrize("laws", [Laws(), EVERYTHING], ids=["default", "every law"])
def test_gymnasiums_checker_is_content(options: dict[str, Any], laws: Laws) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(RecommenderEnv(**data(), laws=laws, context=[1.0], **options), skip_render_check=True)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_pass_the_checker_and_end(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = make_env(name, action="slate", candidates=30)
        check_env(env, skip_render_check=True)
    env.reset(seed=0)
    env.action_space.seed(0)
    steps, ended = 0, False
    while not ended:
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        steps, ended = steps + 1, terminated or truncated
        assert observation in env.observation_space and reward >= 0
    assert steps <= PRESETS[name].horizon


@pytest.mark.parametrize("options", ACTIONS, ids=str)
def test_visits_are_the_same_alone_and_beside_others(options: dict[str, Any]) -> None:
    """Observations, rewards and ends of visit i of a vector are those of an environment of its own, over restarts."""
    many = RecommenderVectorEnv(**data(), num_envs=3, laws=EVERYTHING, horizon=6, **options)
    alone = [RecommenderEnv(**data(), laws=EVERYTHING, horizon=6, **options) for _ in range(3)]
    many.action_space.seed(0)
    batch, _ = many.reset(seed=5)
    each = [env.reset(seed=5 + i)[0] for i, env in enumerate(alone)]
    restarts = 0
    for _ in range(25):
        _assert_same(batch, each)
        actions = many.action_space.sample()
        batch, rewards, terminated, truncated, infos = many.step(actions)
        for i, env in enumerate(alone):
            each[i], reward, ended, cut, _ = env.step(actions[i])
            assert (reward, ended, cut) == (rewards[i], terminated[i], truncated[i])
            if ended or cut:
                _assert_same_one(infos["final_obs"][i], each[i])
                each[i], _ = env.reset()
                restarts += 1
    assert restarts >= 6


def _assert_same(batch: Any, each: list[Any]) -> None:
    for i, one in enumerate(each):
        _assert_same_one({k: v[i] for k, v in batch.items()} if isinstance(batch, dict) else batch[i], one)


def _assert_same_one(a: Any, b: Any) -> None:
    for x, y in zip(a.values(), b.values(), strict=True) if isinstance(a, dict) else [(a, b)]:
        assert np.array_equal(x, y)


def test_same_seed_same_episode_another_seed_another() -> None:
    env = make_env("ecommerce", action="preference", candidates=40, horizon=20)
    action = np.ones(env.action_space.shape, np.float32)

    def play(seed: int) -> list[float]:
        env.reset(seed=seed)
        return [float(env.step(action)[1]) for _ in range(20)]

    assert play(3) == play(3)
    assert len({tuple(play(seed)) for seed in range(8)}) > 1


# -- the laws ---------------------------------------------------------------------------------------------------------
# Shares are over so many seeded draws that a bound of six standard errors would fail by chance less than once in 10^8.


def test_clicks_have_the_stated_chance_and_fall_with_the_position() -> None:
    world = visitors(replace(QUIET, position_bias=0.5), size=4_000)
    chance = 0.5 / 2 * (1 + np.arange(4)) ** -0.5  # ceiling · σ(0) · (1 + j)^−½
    clicks = np.concatenate([world.step(slates(world, seed=s)).clicks for s in range(5)])
    error = np.sqrt(chance * (1 - chance) / len(clicks))
    assert (np.abs(clicks.mean(axis=0) - chance) < 6 * error).all()


def test_a_repeat_and_an_empty_place_are_not_shown() -> None:
    world = visitors(replace(QUIET, ceiling=1.0, bias=30.0))
    shown = np.full((world.size, 4), 7)
    shown[:, 2] = world.items.none
    assert world.step(shown).clicks.sum(axis=0).tolist() == [world.size, 0, 0, 0]


def test_delayed_conversions_come_later_and_none_is_lost() -> None:
    laws = replace(QUIET, ceiling=1.0, bias=30.0, conversion=0.5, delay=3.0)
    world = visitors(laws, size=2_000, horizon=12, click_reward=0.0, conversion_reward=2.0)
    earned, made, at_once, waits = 0.0, 0, 0.0, []
    for step in range(12):
        after = world.step(slates(world))
        earned += after.rewards.sum()
        made += int(after.converted.sum())
        waits += after.due[after.converted].tolist()
        at_once += after.rewards.sum() if step == 0 else 0
    assert after.truncated.all()
    assert earned == 2.0 * made
    assert abs(made / (2_000 * 4 * 12) - 0.5) < 6 * np.sqrt(0.25 / (2_000 * 48))
    assert abs(np.mean(waits) - 3.0) < 6 * np.sqrt(12 / len(waits))  # geometric from 0: variance m (1 + m)
    assert at_once < 0.5 * 2.0 * 2_000 * 4 * 0.5  # a quarter comes with the very step


def test_churn_ends_the_visits_of_those_who_find_nothing() -> None:
    bored = visitors(replace(QUIET, bias=-30.0, churn=1.0, memory=0.5))
    first = bored.step(slates(bored)).terminated.mean()
    assert abs(first - 0.5) < 6 * np.sqrt(0.25 / bored.size)  # satisfaction 1 → ½: he leaves with chance ½
    happy = visitors(replace(QUIET, bias=30.0, ceiling=1.0, churn=1.0))
    assert not happy.step(slates(happy)).terminated.any()


def test_boredom_lowers_what_was_shown_and_rests() -> None:
    world = visitors(replace(QUIET, bias=-30.0, boredom=1.0, rest=0.5))
    rows, shown = np.arange(world.size), slates(world, k=1)
    before = world.feel(rows, shown).mean()
    world.step(shown)
    after = world.feel(rows, shown).mean()
    for _ in range(6):
        world.step(np.full_like(shown, world.items.none))
    rested = world.feel(rows, shown).mean()
    assert after < before - 0.3 and after < rested and before - rested < 0.05


def test_tastes_move_towards_what_is_clicked_more_often_than_away() -> None:
    world = visitors(replace(QUIET, bias=30.0, ceiling=1.0, evolution=0.2))
    shown = slates(world, k=1)
    liked = np.einsum("bd,bd->b", world.taste, world.items.vectors[shown[:, 0]])
    world.step(shown)
    moved = np.einsum("bd,bd->b", world.taste, world.items.vectors[shown[:, 0]]) - liked
    for group, chance in ((liked > 0.4, 0.5 * (1 + liked[liked > 0.4].mean())), (liked < -0.4, 0.5 * (1 - 0.55))):
        share = (moved[group] > 0).mean()
        assert abs(share - chance) < 0.1 + 6 * np.sqrt(0.25 / group.sum())
    still = visitors(replace(QUIET, bias=30.0, ceiling=1.0))
    before = still.taste.copy()
    still.step(slates(still))
    assert np.array_equal(still.taste, before)


def test_drift_turns_tastes_by_the_stated_amount() -> None:
    world = visitors(replace(QUIET, drift=0.3))
    before = world.taste.copy()
    world.step(slates(world))
    # The part of a step across the taste has length 0.3 · √((d − 1) / d) on average of squares.
    tangent = np.sqrt(1 / np.einsum("bd,bd->b", world.taste, before) ** 2 - 1)
    assert 0.2 < np.sqrt((tangent**2).mean()) < 0.42


def test_news_appear_and_fade() -> None:
    world = visitors(replace(QUIET, fading=0.1), horizon=30, candidates=ITEMS)
    there = world.offered()[1].sum()
    old, rows = np.array([[world._born[:-1].argmin()]] * world.size), np.arange(world.size)
    before = world.feel(rows, old).mean()
    for _ in range(10):
        world.step(np.full((world.size, 1), world.items.none))
    assert world.offered()[1].sum() > there
    assert world.feel(rows, old).mean() == pytest.approx(before - 1.0)


# -- data -------------------------------------------------------------------------------------------------------------


def test_data_comes_as_arrays_tables_and_files(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    given = data()
    vectors = given["item_data"]["vector"]
    np.save(tmp_path / "users.npy", given["user_data"])
    np.savez(tmp_path / "items.npz", **given["item_data"])
    table = {name: column.tolist() for name, column in given["item_data"].items()}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "items.parquet")
    seen = []
    for users, items in (
        (given["user_data"], given["item_data"]),
        ({"taste": given["user_data"]}, tmp_path / "items.npz"),
        (tmp_path / "users.npy", tmp_path / "items.parquet"),
    ):
        env = RecommenderEnv(users, items, ITEMS, action="slate", k=3, candidates=20)
        seen.append(env.reset(seed=2)[0])
    for other in seen[1:]:
        _assert_same_one(seen[0], other)
    assert seen[0]["scalars"].shape == (20, len(SCALARS))
    assert RecommenderEnv(given["user_data"], vectors, 30).action_space.n == 30


def test_what_does_not_fit_is_refused() -> None:
    users, items = data()["user_data"], data()["item_data"]["vector"]
    for bad, said in (
        ({"num_items": 61}, "num_items is 61"),
        ({"user_data": users[:, :5]}, "must agree"),
        ({"user_data": users * np.nan}, "finite"),
        ({"action": "rating"}, "choose item, slate or preference"),
        ({"action": "slate", "k": 9, "candidates": 5}, "candidates is 5"),
        ({"context": [3.0]}, "from -1 to 1"),
        ({"item_data": {"vector": items, "price": np.ones(3)}}, "price has shape"),
        ({"user_data": "nowhere.npz"}, "check the path"),
    ):
        with pytest.raises(ValueError, match=said):
            RecommenderEnv(**{"user_data": users, "item_data": items, "num_items": ITEMS, **bad})
    with pytest.raises(ValueError, match="churn is 2"):
        Laws(churn=2)


def test_the_vector_offers_gymnasiums_api() -> None:
    envs = make_vector_env("video", num_envs=5, action="slate", candidates=30)
    observations, _ = envs.reset(seed=[1, 2, 3, 4, 5])
    envs.action_space.seed(0)
    assert observations in envs.observation_space
    observations, rewards, terminated, truncated, _ = envs.step(envs.action_space.sample())
    assert observations in envs.observation_space
    assert rewards.shape == terminated.shape == truncated.shape == (5,)
