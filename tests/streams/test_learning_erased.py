"""What an erasure leaves in a learner: nothing of the user that could be learned from again."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.policy.neural_linear import NeuralLinear
from headrace.streams.erased import Erased as ErasedUsers
from headrace.streams.learning import Learning
from headrace.streams.lessons import owners
from headrace.streams.records import Erased, Transition
from headrace.streams.settings import Settings
from tests.factories import T0, make_closed, make_impression, make_opened, make_outcome, make_transitions

DIM = 8


def learning(name: str = "neural_linear") -> Learning:
    return Learning(Settings(policy={"name": name}), dim=DIM)


def visit(user: str, number: int) -> list[Transition]:
    """A decision that was seen, clicked and closed."""
    name = f"r-{user}-{number}"
    told = {"user_id": user}
    return [
        make_opened(name, user=user, d=DIM, c=1, ts=T0 + number),
        make_impression(name, positions=[0, 1, 2], **told),
        make_outcome(name, position=1, **told),
        make_closed(name, rewards={0: 0.0, 1: 1.0, 2: 0.0}, **told),
    ]


def remembered(learner: Learning) -> np.ndarray:
    policy = learner.policies[0].policy
    assert isinstance(policy, NeuralLinear)
    return policy._remembered._owners


def test_the_book_and_the_memory_let_him_go_and_learn_on_from_others() -> None:
    learner = learning()
    learner.apply(make_transitions(*visit("ann", 0), *visit("bob", 0)), 0)
    assert np.isin(owners(["ann", "bob"]), remembered(learner)).all()

    versions = learner.apply(make_transitions(Erased("ann", T0 + 9), *visit("bob", 1), tick=True), 1)

    ann, bob = owners(["ann", "bob"])
    assert ann not in remembered(learner) and (remembered(learner) == bob).sum() == 6
    assert len(learner._book) == 2 and "ann" not in learner._book._of_user
    assert versions


def test_who_comes_back_is_learned_from_as_anybody() -> None:
    learner = learning()
    learner.apply(make_transitions(*visit("ann", 0), Erased("ann", T0 + 9)), 0)
    learner.apply(make_transitions(*visit("ann", 20)), 1)
    assert (remembered(learner) == owners(["ann"])).sum() == 3


def test_who_comes_back_within_one_message_is_new_in_it() -> None:
    """Of one message: what stands before `Erased` teaches nothing, what stands after it is a new user's."""
    told, other = [visit("ann", 0), visit("bob", 0)], visit("ann", 20)
    learner = learning()
    learner.apply(make_transitions(*told[0], *told[1], Erased("ann", T0 + 9), *other), 0)
    ann, bob = owners(["ann", "bob"])
    assert ((remembered(learner) == ann).sum(), (remembered(learner) == bob).sum()) == (3, 3)

    sums = []
    for records in ([*told[0], *told[1], Erased("ann", T0 + 9), *other], [*told[1], *other]):
        linear = learning("linucb")
        linear.apply(make_transitions(*records), 0)
        sums.append(linear.policies[0].policy.snapshot()[0]["moment"])
    assert np.array_equal(*sums)


@pytest.mark.parametrize("name", ["dqn", "slateq", "reinforce"])
def test_a_step_before_is_not_followed_and_one_after_is(name: str) -> None:
    steps = []
    for records in ([*visit("ann", 0), Erased("ann", T0 + 9), *visit("ann", 20)], visit("ann", 20)):
        learner = learning(name)
        learner.apply(make_transitions(*records), 0)
        steps.append(learner.policies[0].policy.snapshot()[0])
    assert steps[0].keys() == steps[1].keys() and all(np.array_equal(steps[0][key], steps[1][key]) for key in steps[0])


@pytest.mark.parametrize("known", [True, False])
def test_a_log_read_anew_teaches_nothing_of_him(known: bool) -> None:
    """`known` by the message of `erasures`, his records are passed over although the log says only later who he was."""
    told, never = learning("linucb"), learning("linucb")
    if known:
        erased = ErasedUsers()
        erased.add("ann", T0 + 9)
        told.leave_out(erased.covers)
    for offset, records in enumerate(
        [[*visit("ann", 0), *visit("bob", 0)], [Erased("ann", T0 + 9), *visit("ann", 20)]]
    ):
        told.apply(make_transitions(*records), offset)
    for offset, records in enumerate([visit("bob", 0), visit("ann", 20)]):
        never.apply(make_transitions(*records), offset)
    sums = [learner.policies[0].policy.snapshot()[0]["moment"] for learner in (told, never)]
    assert np.allclose(*sums) == known
