"""q̂ is cross-fitted by user, and finds what there is to find."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.policy.evaluation import reward_model as model


def with_one(x):
    return np.concatenate([x, np.ones((*x.shape[:-1], 1))], axis=-1)


def test_folds_keep_users_together_and_are_the_same_in_every_run():
    users = np.repeat(np.arange(1_000), 3)
    fold = model.folds(users)
    assert (fold.reshape(-1, 3) == fold[::3, None]).all()
    assert np.bincount(fold[::3], minlength=5).min() > 150
    assert fold[:18:3].tolist() == model.folds(np.arange(6)).tolist()


def test_ridge_is_the_textbooks():
    rng = np.random.default_rng(0)
    x, y = with_one(rng.normal(size=(200, 3))), rng.normal(size=200)
    fold = np.arange(200) % 4
    fitted = model.fit(x, y, fold, ridge=2.0)
    others = fold != 1
    penalty = np.diag([2.0, 2.0, 2.0, 1e-9])
    by_hand = np.linalg.solve(x[others].T @ x[others] + penalty, x[others].T @ y[others])
    assert fitted.coefficients[1] == pytest.approx(by_hand)
    assert fitted.predict(x[:8], fold[:8]) == pytest.approx([x[i] @ fitted.coefficients[fold[i]] for i in range(8)])


def test_nobody_is_predicted_by_a_model_that_saw_him():
    """A reward that only its own row knows moves every fold's model but its own."""
    rng = np.random.default_rng(0)
    x, y = with_one(rng.normal(size=(100, 2))), rng.normal(size=100)
    fold = np.arange(100) % 5
    before = model.fit(x, y, fold, ridge=1.0).coefficients
    y[7] += 1_000
    after = model.fit(x, y, fold, ridge=1.0).coefficients
    moved = np.abs(after - before).max(axis=1) > 1e-6
    assert moved.tolist() == [True, True, False, True, True]


def test_the_penalty_is_chosen_by_what_the_left_out_folds_say():
    rng = np.random.default_rng(0)
    x = with_one(rng.normal(size=(400, 40)))
    fold = np.arange(400) % 5
    noise = rng.normal(size=400)
    assert model.fit(x, noise, fold).ridge >= 1_000
    assert model.fit(x, x[:, 0] * 3 + 0.01 * noise, fold).ridge == 1.0


def test_logistic_recovers_what_made_the_clicks():
    rng = np.random.default_rng(0)
    x = with_one(rng.normal(size=(40_000, 2)))
    true = np.array([1.0, -0.5, -1.0])
    y = (rng.random(len(x)) < 1 / (1 + np.exp(-x @ true))).astype(float)
    fitted = model.fit(x, y, np.arange(len(x)) % 5, logistic=True)
    assert fitted.coefficients == pytest.approx(np.tile(true, (5, 1)), abs=0.1)
    assert model.is_binary(y) and not model.is_binary(y * 2) and not model.is_binary(np.zeros(3))


def test_logistic_survives_what_a_line_separates():
    x = with_one(np.linspace(-1, 1, 40)[:, None])
    fitted = model.fit(x, (x[:, 0] > 0).astype(float), np.arange(40) % 2, logistic=True)
    assert np.isfinite(fitted.coefficients).all()
    assert (fitted.predict(x, np.arange(40) % 2) > 0.5).tolist() == (x[:, 0] > 0).tolist()


def test_slates_without_noise_are_predicted_to_their_ends():
    """Linear rewards by item; what is still to come is the sum of what the target would show below."""
    rng = np.random.default_rng(0)
    n, k = 3_000, 3
    x = with_one(rng.normal(size=(n, k, 2))).astype(np.float32)
    expected = with_one(np.broadcast_to(rng.normal(size=(n, 1, 2)), (n, k, 2))).astype(np.float32)
    beta = np.array([1.0, 2.0, 0.5])
    rewards, shown = x @ beta, np.ones((n, k), np.bool_)
    p = model.predict(x, expected, rewards, shown, model.folds(np.arange(n)), ridge=1e-6)
    assert p.q == pytest.approx(rewards, abs=1e-3)
    assert p.v == pytest.approx(expected @ beta, abs=1e-3)
    assert p.q_onwards[:, 2] == pytest.approx(rewards[:, 2], abs=1e-3)
    assert p.v_onwards[:, 2] == pytest.approx((expected @ beta)[:, 2], abs=1e-3)
    # What is below is the same for every item, but not known from x: the model of position 1 knows its own reward.
    assert np.corrcoef(p.q_onwards[:, 1], rewards[:, 1])[0, 1] > 0.99


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        model.fit(np.ones((2, 1)), np.array([1.0, np.nan]), np.array([0, 1]))


def test_no_position_is_predicted_by_a_model_that_saw_its_user():
    """Rewards of one fold move what is said of all others, now and onwards, and nothing of what is said of itself."""
    rng = np.random.default_rng(0)
    x, expected = (with_one(rng.normal(size=(60, 3, 2))).astype(np.float32) for _ in range(2))
    fold, shown = np.arange(60) % 5, np.ones((60, 3), bool)
    rewards = rng.normal(size=(60, 3))
    told = fold == 2
    before = model.predict(x, expected, rewards, shown, fold, ridge=1.0)
    after = model.predict(x, expected, rewards + 7.0 * told[:, None], shown, fold, ridge=1.0)
    for name in ("q", "v", "q_onwards", "v_onwards"):
        old, new = getattr(before, name), getattr(after, name)
        assert new[told] == pytest.approx(old[told], abs=1e-9), name
        assert (np.abs(new[~told] - old[~told]) > 0.1).all(), name
