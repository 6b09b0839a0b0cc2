"""What `headrace policy list` and `show` print: who serves, who learns, what was done."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from typing import Any

from headrace.policy.names import LEARNED
from headrace.policy.snapshot import unpack
from headrace.streams.commands import Done, history, latest
from headrace.streams.errors import HeadraceError
from headrace.streams.gate import PART
from headrace.streams.gate_commands import ALL
from headrace.streams.live import Live
from headrace.streams.records import PolicyVersion
from headrace.streams.settings import NONE, Settings, policy_of_arm

SHADOW = "shadow"  # what a policy of live.shadow has in place of an arm
_SHOWN = 20  # lines of the history


def policies(settings: Settings) -> list[dict[str, Any]]:
    """One entry a policy that an arm runs: arms, version, whether it learns, and how it fares against the champion."""
    records = latest(settings)
    return [_entry(settings, records, name) for name in _by_arm(settings, records)]


def policy(settings: Settings, name: str) -> dict[str, Any]:
    """`policies`' entry of one policy, with its staged versions and its history, its arms' and the
    mode's too, latest first.

    Raises HeadraceError where no arm runs it.
    """
    records = latest(settings)
    arms = _by_arm(settings, records)
    if name not in arms:
        raise HeadraceError(f"no arm runs {name!r}: choose one of {', '.join(arms)}")
    about = {name, ALL, *arms[name]}  # a ramp is of an arm, the mode of all
    lines = [done for done in history(records) if done.policy in about][-_SHOWN:]
    return {
        **_entry(settings, records, name),
        "staged": [version for _, version in _gate(records).get("staged", {}).get(name, [])],
        "history": [vars(done) for done in reversed(lines)],
    }


def _gate(records: dict[str, PolicyVersion]) -> dict[str, Any]:
    record = records.get(PART)
    if record is None:
        return {}
    return {name: json.loads(str(record.meta[name])) for name in ("serves", "frozen", "staged", "verdicts")}


def _live(settings: Settings, records: dict[str, PolicyVersion]) -> Live:
    """Mode and shares as commanded, else as the settings say."""
    live, record = Live(settings), records.get(PART)
    if record is not None and "live" in record.meta:
        live.resume(str(record.meta["live"]))
    return live


def _by_arm(settings: Settings, records: dict[str, PolicyVersion]) -> dict[str, list[str]]:
    serves = _gate(records).get("serves") or {arm: policy_of_arm(settings, arm) for arm in settings.arms.shares}
    arms: dict[str, list[str]] = defaultdict(list)
    for arm, name in serves.items():
        arms[name].append(arm)
    for name in settings.live.shadow:
        arms[name].append(SHADOW)
    for placement, placed in settings.placements.items():
        if placed.policy:
            arms[placed.policy].append(f"policy@{placement}")  # what the arm runs there alone
    return dict(arms)


def _entry(settings: Settings, records: dict[str, PolicyVersion], name: str) -> dict[str, Any]:
    gate, record, arms = _gate(records), records.get(name), _by_arm(settings, records)[name]
    spans, live = gate.get("frozen", {}).get(name, []), _live(settings, records)
    shares = live.shares.told()
    entry: dict[str, Any] = {
        "policy": name,
        "arms": arms,
        "shares": {arm: round(shares[arm], 6) for arm in arms if arm in shares},
        "mode": live.mode,
        "version": record.version if record else None,
        "age_s": round(time.time() - record.created_ms / 1000, 1) if record else None,
        "learns": name in LEARNED,
        "frozen": bool(spans) and spans[-1][1] < 0,
    }
    if record is not None:
        _, meta = unpack(record.arrays, record.sha256)
        entry["learned"] = meta.get("learned")
    verdicts = [gate["verdicts"][arm] for arm in arms if arm in gate.get("verdicts", {})]
    if verdicts:
        entry |= {key: verdicts[0][key] for key in ("lift", "lower", "upper", "decision", "decisions", "reason")}
    return entry


def as_lines(entries: list[dict[str, Any]]) -> list[str]:
    """A table of `policies`."""
    rows = [("policy", "arms", "share", "version", "age", "examples", "state", "against the champion")]
    for e in entries:
        state = "frozen" if e["frozen"] else "learns" if e["learns"] else "a control"
        if e["policy"] == NONE:
            state = "no slates"
        rows.append(
            (
                e["policy"], ",".join(e["arms"]), f"{100 * sum(e['shares'].values()):.3g}%" if e["shares"] else "-",
                str(e["version"] or "-"),
                f"{e['age_s']:g} s" if e["age_s"] is not None else "-",
                f"{e['learned']:,}" if e.get("learned") is not None else "-",
                state, e.get("reason", "champion" if "policy" in e["arms"] else "-"),
            )
        )  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]
    if entries and entries[0]["mode"] == "shadow":
        lines.append("in shadow: slates go to `recommendations-shadow`, the shop gets none")
    return lines


def described(entry: dict[str, Any]) -> list[str]:
    """`policy`, line by line."""
    staged = ", ".join(str(version) for version in entry["staged"]) or "none yet"
    lines = [*as_lines([entry]), f"staged versions, oldest first: {staged}"]
    return lines + [line(Done(**done)) for done in entry["history"]]


def line(done: Done) -> str:
    """One line of the history."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(done.ts / 1000))
    return f"{at}  {done.action} {done.policy} by {done.who}: {done.why}"
