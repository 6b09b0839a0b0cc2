"""What the topic `rules` says now, for people: in force, refused and why, expired."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec

from headrace.streams import kafka, topics
from headrace.streams.errors import SettingsError
from headrace.streams.rules.book import RuleBook, heard
from headrace.streams.rules.rule import Rule
from headrace.streams.settings import Settings

Listed = dict[str, list[dict[str, Any]]]


def listed(settings: Settings, placement: str | None) -> Listed:
    """{"in_force", "refused", "expired"} by the clock of this machine: rules as written; of the refused, ids and `why`.

    `placement`: what is in force or expired there alone. Raises SettingsError where there is no such placement,
    BrokerError or TopicsError where Kafka or a topic is not there.
    """
    if placement is not None and placement not in settings.placements:
        known = ", ".join(sorted(settings.placements))
        raise SettingsError(f"--placement {placement}: there is no such placement; choose from {known}")
    topics.require(settings, wait=False)
    book = RuleBook(settings)
    kafka.read_to_end(settings, settings.topic("rules"), lambda message: book.put(*heard(message)))
    now_ms = int(time.time() * 1000)

    def written(rules: list[Rule]) -> list[dict[str, Any]]:
        return [_plain(rule) for rule in rules if placement is None or rule.placement in ("*", placement)]

    refused = [{"rule_id": rule_id, "why": why} for rule_id, why in book.refused(now_ms).items()]
    return {"in_force": written(book.in_force(now_ms)), "refused": refused, "expired": written(book.expired(now_ms))}


def _plain(rule: Rule) -> dict[str, Any]:
    return {name: value for name, value in msgspec.to_builtins(rule).items() if value is not None}


def as_lines(told: Listed) -> list[str]:
    """A line a rule."""
    lines = []
    for rule in told["in_force"]:
        until = f", until {_time(rule['until'])}" if "until" in rule else ""
        lines.append(f"in force  {_said(rule)}{until}")
    lines += [f"refused   {rule['rule_id']}: {rule['why']}" for rule in told["refused"]]
    lines += [f"expired   {_said(rule)}, since {_time(rule['until'])}" for rule in told["expired"]]
    return lines or ["there are no rules"]


def _said(rule: dict[str, Any]) -> str:
    parts = [f"{rule['rule_id']}: {rule['action']}"]
    parts += [json.dumps(rule[name], ensure_ascii=False) for name in ("where", "value") if name in rule]
    return f"{' '.join(parts)} at {rule['placement']}"


def _time(ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(ms / 1000))
