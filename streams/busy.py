"""Crawlers and hot users keep their state and get their slates, but teach nothing: what they do is not what users like.

The rule, by event time and the user's own history alone: he is busy at an event when the last `worker.busy_events`
history events before it lie within `worker.busy_within`. A history shorter than that is held to the same rate.
"""

from __future__ import annotations

import msgspec

from headrace.streams.records import Opened, Outcome
from headrace.streams.settings import Worker
from headrace.streams.state import UserState


class Busy:
    """The rule of the settings."""

    def __init__(self, settings: Worker) -> None:
        self._events = min(settings.busy_events, settings.history)
        self._within_ms = settings.busy_within * self._events // settings.busy_events

    def at(self, state: UserState, ts: int) -> bool:
        since = state.nth_latest_second(self._events) if self._within_ms else None
        return since is not None and ts - 1000 * since < self._within_ms


def marked(record: Opened | Outcome, busy: bool) -> Opened | Outcome:
    """The record as one that teaches nothing, where `busy`."""
    return msgspec.structs.replace(record, busy=True) if busy else record
