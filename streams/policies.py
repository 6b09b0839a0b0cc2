"""What serves: the policies of every arm and the behaviour models, swapped in from `policy-versions` between two
records."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from headrace.policy.base import Policy
from headrace.streams.settings import Settings
from headrace.streams.state import short_hash

log = logging.getLogger("headrace.worker")
_POPULAR = 400  # how far down the popularity list candidates are drawn from
_FOLLOWING = 16


@dataclass(frozen=True)
class Served:
    """A policy as it serves now."""

    name: str
    version: int
    policy: Policy


def arm_of(settings: Settings, user_id: str) -> str:
    """The user's arm by stable hash, salted apart from the partition."""
    point = short_hash(settings.arms.salt, user_id) / 2**64
    for arm, share in settings.arms.shares.items():
        point -= share
        if point < 0:
            return arm
    return next(reversed(settings.arms.shares))


def policy_of_arm(settings: Settings, arm: str) -> str:
    """The policy an arm runs: as the settings say, else `policy` is the learned one and other arms are named after
    theirs."""
    if arm in settings.arms.policies:
        return settings.arms.policies[arm]
    return settings.policy.name if arm == "policy" else arm
