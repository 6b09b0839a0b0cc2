"""What is refused, what is the headline, and that a log made by a known policy gives the value known beforehand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headrace.policy.evaluation.evaluation import Logged, Refused, evaluate
from headrace.policy.evaluation.reward_model import folds, predict

EARNS = np.array([0.1, 0.3, 0.5])  # by action
MU = np.array([0.5, 0.3, 0.2])
PI = np.array([0.1, 0.2, 0.7])


def make_log(n: int = 3_000, *, k: int = 1, modelled: bool = True, seed: int = 0, target=PI) -> Logged:
    """Independent positions with three actions; every user comes about three times."""
    rng = np.random.default_rng(seed)
    action = rng.choice(3, size=(n, k), p=MU)
    rewards = (rng.random((n, k)) < EARNS[action]).astype(float)
    users, shown = rng.integers(0, n // 3, n), np.ones((n, k), np.bool_)
    log = Logged(rewards, MU[action], target[action], shown, np.full((n, k), 3), np.tile(np.arange(k), (n, 1)), users)
    if not modelled:
        return log
    x = np.concatenate([np.eye(3)[action], np.ones((n, k, 1))], axis=2).astype(np.float32)
    expected = np.broadcast_to(np.append(target, 1.0), x.shape).astype(np.float32)
    return replace(log, model=predict(x, expected, rewards, shown, folds(users)), known=np.arange(n))


def test_every_sound_interval_holds_the_value_and_the_logged_policys_stands_beside():
    answer = evaluate(make_log())
    truth = PI @ EARNS
    assert [e.name for e in answer.estimates] == ["IPS", "SNIPS", "DM", "DR", "SNDR", "Switch-DR", "DRos"]
    for e in answer.estimates:
        assert e.value == pytest.approx(truth, abs=0.06), e.name
        if e.interval is not None:
            assert e.interval.low < truth < e.interval.high, e.name
    assert {e.name for e in answer.estimates if e.interval is None} == {"DM", "Switch-DR", "DRos"}
    ips = answer.estimates[0]
    assert ips.anytime.low < truth < ips.anytime.high
    assert ips.bernstein.low < truth < ips.bernstein.high
    assert answer.logged.value == pytest.approx(MU @ EARNS, abs=0.03)
    assert (answer.headline, answer.slates) == ("SNDR", False)
    assert answer.diagnostics.ess == pytest.approx(3_000 / (PI**2 / MU).sum(), rel=0.05)
    assert answer.diagnostics.calibration == pytest.approx(1, abs=0.1)


def test_slates_are_judged_whole_where_the_weights_allow_it():
    gentle = np.array([0.4, 0.3, 0.3])
    answer = evaluate(make_log(k=3, target=gentle))
    assert answer.headline == "cascade-DR"
    assert answer.best.value == pytest.approx(3 * gentle @ EARNS, abs=0.06)
    assert evaluate(make_log(k=3, target=gentle, modelled=False)).headline == "SNRIPS"
    assert [p.position for p in answer.positions] == [0, 1, 2]
    assert answer.positions[0].value == pytest.approx(gentle @ EARNS, abs=0.05)


def test_slates_whose_weights_carry_too_little_are_judged_position_by_position():
    answer = evaluate(make_log(k=10))
    by_name = {e.name: e for e in answer.estimates}
    assert by_name["RIPS"].interval is None and not by_name["RIPS"].sound
    assert answer.headline == "SNDR" and "each position by itself" in answer.because
    assert answer.best.value == pytest.approx(10 * PI @ EARNS, abs=0.5)


def test_without_a_model_snips_is_the_headline():
    answer = evaluate(make_log(modelled=False))
    assert answer.headline == "SNIPS"
    known = np.arange(600)
    part = make_log(600)
    fewer = replace(make_log(), model=part.model, known=known)
    assert evaluate(fewer).headline == "SNIPS", "a model that knows a fifth of the log does not speak for it"


def test_the_same_log_gives_the_same_answer():
    assert evaluate(make_log(900)) == evaluate(make_log(900))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda log: replace(log, shown=np.zeros_like(log.shown)), "no decision that was shown"),
        (lambda log: replace(log, propensities=log.propensities * 0), "3,000 of 3,000 propensities are not in"),
        (lambda log: replace(log, propensities=log.propensities * 9), "propensities are not in"),
        (lambda log: replace(log, propensities=np.ones_like(log.target)), "100% of the choices had propensity 1"),
        (lambda log: replace(log, rewards=log.rewards * 0), "every reward in the log is 0"),
        (lambda log: replace(log, rewards=log.rewards * np.nan), "not a finite number"),
        (lambda log: replace(log, target=log.target * 0), "every weight is 0"),
        (lambda log: replace(log, propensities=log.propensities * 0.5), "weights average 2"),
    ],
)
def test_what_nobody_can_stand_behind_is_refused(change, reason):
    with pytest.raises(Refused, match=reason):
        evaluate(change(make_log(modelled=False)))


def test_a_small_effective_sample_is_refused_with_the_figures():
    with pytest.raises(Refused, match=r"effective sample is \d+ of 200 decisions, 150 are wanted"):
        evaluate(make_log(200, modelled=False), min_ess=150)
    assert evaluate(make_log(200, modelled=False), min_ess=50).decisions == 200


def test_a_choice_among_one_is_not_deterministic():
    """The last candidate left has propensity 1, and rightly so."""
    log = make_log(modelled=False)
    alone = np.arange(len(log.users)) % 2 == 0
    log.propensities[alone], log.target[alone], log.choices[alone] = 1.0, 1.0, 1
    assert evaluate(log).decisions == 3_000
