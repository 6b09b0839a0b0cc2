"""Who decides at a placement: its own arms, and its own policy where the arm `policy` decides."""

from __future__ import annotations

from headrace.streams.settings import Settings

_OWN = "policy"  # the arm that a placement's policy is for


class Placed:
    """The settings' placements, by name and by their number in the order of the settings."""

    def __init__(self, settings: Settings) -> None:
        self._placements = settings.placements
        numbered = enumerate(settings.placements.values())
        self._policies = {number: placement.policy for number, placement in numbered if placement.policy}
        self._compared = {number for number, p in enumerate(settings.placements.values()) if p.compared}

    @property
    def policies(self) -> list[str]:
        """All that placements name."""
        return list(dict.fromkeys(self._policies.values()))

    def arm(self, arm: str, placement: str) -> str:
        """What decides there for a user of `arm`, no holdout: it, or the first that may."""
        may = self._placements[placement].arms
        return arm if not may or arm in may else may[0]

    def policy(self, arm: str, placement: str) -> str:
        """The placement's own policy; empty where the arm runs what it runs everywhere."""
        return self._placements[placement].policy if arm == _OWN else ""

    def policy_at(self, arm: str, number: int) -> str:
        """`policy` by the placement's number."""
        return self._policies.get(number, "") if arm == _OWN else ""

    def compared(self, number: int) -> bool:
        """Whether decisions there tell arms apart: every arm decides there, with what it runs everywhere."""
        return number in self._compared
