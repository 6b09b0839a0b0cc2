"""The world in which SlateQ was shown keeps its laws."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.simulation.interest_evolution import InterestEvolution, InterestSettings


def sessions(users: int, *, score: str, seed: int = 0, settings: InterestSettings | None = None) -> np.ndarray:
    """Minutes watched by each user under slates that are random, or the most appealing, or of the best quality."""
    world = InterestEvolution(users, seed=seed, settings=settings, restart=False)
    random, watched = np.random.default_rng(seed), np.zeros(users)
    for _ in range(2_000):
        if world.over.all():
            return watched
        scores = {
            "random": random.random(world.topics.shape),
            "appeal": world.appeal(),
            "quality": world.topic_quality[world.topics],
        }[score]
        watched += world.step(np.argsort(-scores, axis=1)[:, :3])[1]
    raise AssertionError("a session never ended")


def test_random_and_myopic_returns_are_the_published_ones() -> None:
    """159.2 and 166.3 minutes in Ie et al. 2019; of how many users is not told."""
    random, myopic = sessions(1_500, score="random"), sessions(1_500, score="appeal")
    assert abs(random.mean() - 159.2) < 4 and abs(myopic.mean() - 166.3) < 4
    assert sessions(500, score="quality").mean() > 1.4 * random.mean(), "patience does not pay"


def test_same_seed_same_world_whoever_acts() -> None:
    one, other = (InterestEvolution(50, seed=3, restart=True) for _ in range(2))
    for step in range(100):
        assert np.array_equal(one.topics, other.topics) and np.array_equal(one.quality, other.quality)
        one.step(np.tile([0, 1, 2], (50, 1)))
        other.step(np.tile([(step + 5) % 10, 3, 4], (50, 1)))


def test_choices_follow_the_masses() -> None:
    for settings in (InterestSettings(), InterestSettings(choice="logit", null=np.e)):
        world = InterestEvolution(40_000, seed=1, settings=settings, restart=True)
        slates = np.tile([4, 0, 7], (40_000, 1))
        mass = np.concatenate([world.appeal()[:, [4, 0, 7]], np.full((40_000, 1), settings.null)], axis=1)
        chance = (mass / mass.sum(axis=1, keepdims=True))[:, :3]
        position, watched, _ = world.step(slates)
        for j in range(3):
            deviation = np.sqrt((chance[:, j] * (1 - chance[:, j])).sum())
            assert abs((position == j).sum() - chance[:, j].sum()) < 6 * deviation
        assert np.array_equal(watched > 0, position >= 0)


def test_budget_and_interest_move_by_what_was_consumed() -> None:
    world = InterestEvolution(2_000, seed=2, restart=False)
    before, budget = world.interests.copy(), world.budget.copy()
    topics, quality = world.topics.copy(), world.quality.copy()
    position, watched, ended = world.step(np.tile([1, 2, 3], (2_000, 1)))
    took = np.flatnonzero(position >= 0)
    chosen = np.array([1, 2, 3])[position[took]]
    assert np.allclose((budget - world.budget)[position < 0], 0.5) and not ended.any()
    assert np.allclose((budget - world.budget)[took], 4 * (1 - 0.9 / 3.4 * quality[took, chosen]))
    moved = world.interests != before
    assert not moved[position < 0].any() and (moved[took].sum(axis=1) <= 1).all()
    old, new = before[took, topics[took, chosen]], world.interests[took, topics[took, chosen]]
    step = 0.3 * (1 - np.abs(old)) * (1 - old)
    up = np.isclose(new, np.clip(old + step, -1, 1))
    assert (up | np.isclose(new, np.clip(old - step, -1, 1))).all()
    chance = (old + 1) / 2
    assert abs(up.sum() - chance.sum()) < 6 * np.sqrt((chance * (1 - chance)).sum())
    assert (watched[took] == 4).all()


def test_a_session_that_is_over_stays_so() -> None:
    world = InterestEvolution(20, seed=0, restart=False)
    slates = np.tile([0, 1, 2], (20, 1))
    ends = np.zeros(20)
    for _ in range(1_000):
        over = world.over.copy()
        position, watched, ended = world.step(slates)
        ends += ended
        assert (position[over] == -1).all() and not watched[over].any() and not ended[over].any()
    assert (ends == 1).all() and world.over.all()


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="choose proportional or logit"):
        InterestEvolution(1, seed=0, settings=InterestSettings(choice="best"), restart=True)
