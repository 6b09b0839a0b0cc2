"""Arms' shares that move: as many users change their arm as the share moves by, and no other."""

from __future__ import annotations

import pytest

from headrace.streams.shares import Shares
from headrace.streams.state import short_hash

START = {"policy": 0.7, "item_to_item": 0.1, "popular": 0.15, "new": 0.05}
USERS = [f"u{n}" for n in range(20_000)]


def arms(shares: Shares) -> dict[str, str]:
    return {user: shares.arm(user) for user in USERS}


def walked(user: str) -> str:
    """The split of the settings, arm by arm."""
    point = short_hash("s", user) / 2**64
    for arm, share in START.items():
        point -= share
        if point < 0:
            return arm
    return "new"


def test_before_anything_moves_the_arms_are_those_of_the_settings() -> None:
    shares = Shares(START, "s")
    assert arms(shares) == {user: walked(user) for user in USERS}
    assert shares.told() == pytest.approx(START)


@pytest.mark.parametrize("to", [0.0, 0.02, 0.2, 0.6, 1.0])
def test_users_move_only_to_or_from_the_arm_whose_share_moves(to: float) -> None:
    shares = Shares(START, "s")
    before = arms(shares)
    shares.move("new", to)
    after = arms(shares)
    moved = [user for user in USERS if before[user] != after[user]]
    assert all("new" in (before[user], after[user]) for user in moved)
    assert len({before[user] == "new" for user in moved}) == 1  # all in, or all out
    assert len(moved) / len(USERS) == pytest.approx(abs(to - 0.05), abs=0.01)
    others = {arm: share * (1 - to) / 0.95 for arm, share in START.items() if arm != "new"}
    assert shares.told() == pytest.approx({**others, "new": to}, abs=1e-8)


def test_a_ramp_in_steps_is_nested_and_back_again_everybody_is_where_he_was() -> None:
    shares = Shares(START, "s")
    at_first, before = arms(shares), arms(shares)
    for share in (0.1, 0.25, 0.5, 0.9):
        shares.move("new", share)
        now = arms(shares)
        assert all(now[user] == "new" for user in USERS if before[user] == "new")
        before = now
    for share in (0.5, 0.1, 0.05):
        shares.move("new", share)
        now = arms(shares)
        assert all(before[user] == "new" for user in USERS if now[user] == "new")
        before = now
    assert before == at_first


def test_where_the_others_have_nothing_they_get_it_back_as_the_settings_say() -> None:
    shares = Shares({"policy": 0.5, "popular": 0.3, "idle": 0.0, "new": 0.2}, "s")
    shares.move("new", 1.0)
    shares.move("new", 0.2)
    assert shares.told() == pytest.approx({"policy": 0.5, "popular": 0.3, "idle": 0.0, "new": 0.2}, abs=1e-6)


def test_what_is_written_is_resumed_under_the_same_settings_and_no_other() -> None:
    shares = Shares(START, "s")
    for arm, share in (("new", 0.3), ("popular", 0.05), ("new", 0.12)):
        shares.move(arm, share)
    again = Shares(START, "s")
    assert again.resume(shares.written())
    assert arms(again) == arms(shares) and again.written() == shares.written()
    other = Shares({**START, "policy": 0.6, "new": 0.15}, "s")
    before = arms(other)
    assert not other.resume(shares.written()) and arms(other) == before
    assert not Shares(START, "another salt").resume(shares.written())
