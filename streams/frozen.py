"""What each policy did not learn, or has forgotten: spans of offsets in `transitions`. Pure.

A restart skips the same messages; and what a policy has no example of, no later correction may correct.
"""

from __future__ import annotations

import json
from collections.abc import Container, Sequence

Span = Sequence[int]  # [from, to); to -1: open, the policy is frozen


def within(spans: Sequence[Span], offset: int) -> bool:
    return any(first <= offset and (end < 0 or offset < end) for first, end in spans)


class Frozen:
    """Spans by policy. A few bytes each time that somebody, or a guardrail, freezes one."""

    def __init__(self) -> None:
        self._spans: dict[str, list[list[int]]] = {}

    def __contains__(self, policy: str) -> bool:
        """Whether it learns nothing now."""
        spans = self._spans.get(policy)
        return bool(spans and spans[-1][1] < 0)

    @property
    def ever(self) -> list[str]:
        return list(self._spans)

    def missed(self, policy: str) -> Sequence[Span]:
        return self._spans.get(policy, ())

    def begin(self, policy: str, offset: int) -> None:
        """Nothing after the message at `offset` is learned, or what was is forgotten."""
        spans = self._spans.setdefault(policy, [])
        if policy in self:
            spans[-1][0] = min(spans[-1][0], offset + 1)
        else:
            spans.append([offset + 1, -1])

    def end(self, policy: str, offset: int) -> None:
        """What comes after the message at `offset` is learned again; nothing where it is not frozen."""
        if policy in self:
            self._spans[policy][-1][1] = offset + 1

    def told(self) -> str:
        return json.dumps(self._spans)

    def resume(self, told: str, *, among: Container[str]) -> None:
        self._spans = {policy: spans for policy, spans in json.loads(told).items() if policy in among}
