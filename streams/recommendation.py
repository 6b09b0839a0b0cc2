"""The message on `recommendations`, as the contract has it."""

from __future__ import annotations

import msgspec


class ShownItem(msgspec.Struct):
    item_id: str
    position: int
    score: float
    propensity: float
    explored: bool
    reason: str


class Trigger(msgspec.Struct):
    kind: str
    id: str


class PolicyName(msgspec.Struct):
    name: str
    version: int
    arm: str


class Recommendation(msgspec.Struct):
    """The message of the contract."""

    recommendation_id: str
    user_id: str
    ts: int
    placement: str
    trigger: Trigger
    items: list[ShownItem]
    policy: PolicyName
    encoder_version: str
    request_id: str | msgspec.UnsetType = msgspec.UNSET
    rules: list[str] | msgspec.UnsetType = msgspec.UNSET  # that bound this slate
    unmet: list[str] | msgspec.UnsetType = msgspec.UNSET  # that could not be met, or left the slate too short
    schema: int = 1


encode_recommendation = msgspec.json.Encoder().encode
