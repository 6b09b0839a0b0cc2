"""Arms' shares that move: as many users change their arm as the share moves by, and no other."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from headrace.streams.shares import UNITS, Shares
from headrace.streams.state import short_hash

START = {"policy": 0.7, "item_to_item": 0.1, "popular": 0.15, "new": 0.05}
HELD = {"policy": 0.5, "item_to_item": 0.1, "popular": 0.15, "new": 0.05, "holdout": 0.2}
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
    shares.move("idle", 0.5)
    assert shares.told() == pytest.approx({"policy": 0.0, "popular": 0.0, "idle": 0.5, "new": 0.5}, abs=1e-6)
    shares.move("idle", 0.0)
    shares.move("new", 0.2)
    assert shares.told() == pytest.approx({"policy": 0.5, "popular": 0.3, "idle": 0.0, "new": 0.2}, abs=1e-6)


def test_taken_back_in_turn_everybody_is_where_he_was_also_from_all_and_from_none() -> None:
    shares = Shares(HELD, "s", {"holdout"})
    shares.move("popular", 0.3)
    before = arms(shares)
    for to in (0.8, 0.0, 0.5):
        at = shares.share("new")
        shares.move("new", to)
        shares.move("holdout", 0.1)
        shares.move("holdout", 0.2)
        shares.move("new", at)
        assert arms(shares) == before, to
    shares.move("popular", HELD["popular"])
    assert arms(shares) == arms(Shares(HELD, "s"))


def test_what_is_ramped_takes_nobody_from_the_holdout_and_gives_it_nobody() -> None:
    shares = Shares(HELD, "s", {"holdout"})
    at_first = arms(shares)
    held = {user for user in USERS if at_first[user] == "holdout"}
    assert len(held) / len(USERS) == pytest.approx(0.2, abs=0.01)
    before = at_first
    for arm, share in (("new", 0.4), ("popular", 0.3), ("new", 0.75), ("policy", 0.8), ("new", 0.0)):
        shares.move(arm, share)
        now = arms(shares)
        assert {user for user in USERS if now[user] == "holdout"} == held
        assert all(arm in (before[user], now[user]) for user in USERS if before[user] != now[user])
        counted = Counter(now.values())
        assert {a: counted[a] / len(USERS) for a in HELD} == pytest.approx(shares.told(), abs=0.01)
        before = now


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 1.0])
def test_who_is_in_the_holdout_is_told_by_its_share_alone(share: float) -> None:
    plain, ramped = Shares(HELD, "s", {"holdout"}), Shares(HELD, "s", {"holdout"})
    at_first = {user for user, arm in arms(plain).items() if arm == "holdout"}
    plain.move("holdout", share)
    for arm, to in (("new", 0.4), ("holdout", 0.5), ("new", 0.1), ("policy", 0.2), ("holdout", 0.0)):
        ramped.move(arm, to)
    ramped.move("holdout", share)
    held = {user for user, arm in arms(ramped).items() if arm == "holdout"}
    assert held == {user for user, arm in arms(plain).items() if arm == "holdout"}
    assert held <= at_first or held >= at_first, "nobody is exchanged"
    assert len(held) / len(USERS) == pytest.approx(share, abs=0.01)
    assert plain.most("new") == pytest.approx(1 - share)


def test_two_holdouts_never_share_a_user() -> None:
    begun = {"policy": 0.6, "holdout": 0.2, "quiet": 0.2}
    shares = Shares(begun, "s", {"holdout", "quiet"})
    before = arms(shares)
    shares.move("holdout", 0.4)
    shares.move("quiet", 0.3)
    now, counted = arms(shares), Counter(arms(shares).values())
    assert {arm: counted[arm] / len(USERS) for arm in begun} == pytest.approx(shares.told(), abs=0.01)
    assert all(before[user] in (now[user], "policy") for user in USERS)
    assert shares.most("holdout") == pytest.approx(0.7) and not shares.movable("policy")


def test_shares_can_be_moved_for_ever() -> None:
    shares = Shares({"policy": 0.5, "popular": 0.5, "new": 0.0}, "s")
    for n in range(200):
        shares.move(("policy", "popular", "new")[n % 3], 0.999999)
        assert shares.share(("policy", "popular", "new")[n % 3]) == pytest.approx(0.999999)
        shares.arm("u")


def test_a_record_of_places_is_resumed_with_its_shares() -> None:
    shares = Shares(HELD, "s", {"holdout"})
    line = json.loads(shares.written())["from"][1]
    table = [[300_000_000, "policy"], [700_000_000, "new"], [900_000_000, "popular"], [UNITS, "holdout"]]
    assert shares.resume(json.dumps({"from": ["s", line], "table": table}))
    assert shares.told() == pytest.approx(
        {"policy": 0.3, "item_to_item": 0.0, "popular": 0.2, "new": 0.4, "holdout": 0.1}
    )
    assert shares.resume(json.dumps({"from": ["s", line], "table": line})) and arms(shares) == arms(Shares(HELD, "s"))


def test_what_is_written_is_resumed_under_the_same_settings_and_no_other() -> None:
    shares = Shares(START, "s")
    for arm, share in (("new", 0.3), ("popular", 0.05), ("new", 0.12), ("popular", 1.0)):
        shares.move(arm, share)
    again = Shares(START, "s")
    assert again.resume(shares.written())
    assert arms(again) == arms(shares) and again.written() == shares.written()
    other = Shares({**START, "policy": 0.6, "new": 0.15}, "s")
    before = arms(other)
    assert not other.resume(shares.written()) and arms(other) == before
    assert not Shares(START, "s", {"new"}).resume(shares.written()), "a holdout now"
    assert not Shares(START, "another salt").resume(shares.written())
