"""How the running system serves: the mode, live or in shadow, and the arms' shares. Commands move both. Pure.

The gate holds one and writes it into its record; every worker holds one and takes it from there. Settings that changed
since win: what was commanded under others is forgotten.
"""

from __future__ import annotations

import json

from headrace.streams.settings import NONE, Settings, policy_of_arm
from headrace.streams.shares import Shares


class Live:
    def __init__(self, settings: Settings) -> None:
        self._begun: str = settings.live.mode
        self.mode: str = settings.live.mode
        self.holdout = frozenset(arm for arm in settings.arms.shares if policy_of_arm(settings, arm) == NONE)
        self.shares = Shares(settings.arms.shares, settings.arms.salt, self.holdout)

    @property
    def in_shadow(self) -> bool:
        return self.mode == "shadow"

    def written(self) -> str:
        return json.dumps({"begun": self._begun, "mode": self.mode, "shares": self.shares.written()})

    def resume(self, written: str) -> bool:
        """Becomes what was written; False where settings have changed since, which then stand."""
        said = json.loads(written)
        same = said["begun"] == self._begun
        if same:
            self.mode = said["mode"]
        return self.shares.resume(said["shares"]) and same
