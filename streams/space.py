"""The space that policies learn in: which encoder made the states and item vectors of the decisions they learn from.

Features of two encoders are never mixed. A later announcement, seen in the log as a decision with a higher serial and
another version, ends the space: heads begin anew, and what is still told of older decisions teaches them nothing.
What follows is a function of the log alone. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from headrace.policy.base import Meta
from headrace.streams.records import Opened, PolicyVersion, Transitions

_UNKNOWN = "by the release before"  # of heads that do not say in which space they were learned


@dataclass(frozen=True)
class Space:
    """`version` is empty until the first decision tells it, `serial` then -1. `dim`: of states and item vectors;
    `since`: the offset of the message that began it."""

    dim: int
    serial: int = -1
    version: str = ""
    since: int = 0

    def after(self, message: Transitions, offset: int) -> Space:
        """The space from this message on: the first decision's under the highest serial there is."""
        found = self
        for record in message.records:
            if isinstance(record, Opened) and record.encoder_serial > found.serial:
                found = Space(len(record.state) // 4, record.encoder_serial, record.encoder_version, offset)
        return replace(found, since=self.since) if found is not self and found.same(self) else found

    def same(self, other: Space) -> bool:
        """Whether what was learned in one holds in the other: a new number for the same encoder changes nothing, and
        where nothing is known yet nothing is contradicted."""
        return self.dim == other.dim and (self.version == other.version or "" in (self.version, other.version))

    def meta(self) -> Meta:
        return {
            "encoder": self.version,
            "encoder_serial": self.serial,
            "encoder_since": self.since,
            "dim": self.dim,
        }

    def resumed(self, records: Iterable[PolicyVersion]) -> Space:
        """The space in which the newest of these heads was learned; this one where there are none."""
        found = [
            Space(
                int(record.meta.get("dim", self.dim)),
                int(record.meta.get("encoder_serial", -1)),
                str(record.meta.get("encoder", _UNKNOWN)),
                int(record.meta.get("encoder_since", 0)),
            )
            for record in records
        ]
        return max(found, key=lambda space: space.serial, default=self)
