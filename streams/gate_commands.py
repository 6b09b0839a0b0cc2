"""What people command of the gate: whether it can be obeyed, and obeying. A part of the gate, as pure as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.streams.parts import PolicyPart
from headrace.streams.records import Command
from headrace.streams.settings import NONE

if TYPE_CHECKING:
    from headrace.streams.gate import GatePart

GUARDED = "policy"  # the arm
ALL = "all"  # what the commands live and shadow are about


@dataclass(frozen=True)
class Entry:
    """One line of the history: what was done, to which policy, by whom and why."""

    action: str
    policy: str
    who: str
    why: str
    command_id: str = ""


def obey(gate: GatePart, command: Command, parts: dict[str, PolicyPart], offset: int) -> None:
    """Does what was commanded, or notes in one line why not."""
    name = command.policy
    entry = Entry(command.action, name, command.who, command.why, command.command_id)
    problem = _problem(gate, command, parts)
    if problem:
        _refuse(gate, command, problem)
    elif command.action == "promote":
        gate.promote(next(arm for arm, policy in gate.serves.items() if policy == name and arm != GUARDED), entry)
    elif command.action == "freeze":
        gate.frozen.begin(name, offset)
        gate.note(entry)
    elif command.action == "unfreeze":
        gate.frozen.end(name, offset)
        if name == gate.champion:
            gate.watch_anew()
        gate.note(entry)
    elif command.action == "ramp":
        _ramp(gate, command)
    elif command.action in ("live", "shadow"):
        gate.live.mode = command.action
        gate.start_evidence()
        gate.note(entry)
    elif (to := gate.staging.find(name, command.version)) and gate.put_back(parts[name], to, offset):  # or pin
        gate.rolled_back(parts[name], offset, entry, to)
        gate.counts["rollback", "command"] += 1
    else:
        _refuse(gate, command, "this version was made under other settings and fits no more: choose another")


def _ramp(gate: GatePart, command: Command) -> None:
    """The arm has the share from here on. Arms are compared anew: an arm that was larger for a while is compared by the
    hour, not by its policy."""
    assert command.share is not None
    before = gate.live.shares.share(command.policy)
    gate.live.shares.move(command.policy, command.share)
    gate.start_evidence()
    why = f"{command.why} (share {before:g} to {command.share:g})"
    gate.note(Entry(command.action, command.policy, command.who, why, command.command_id))


def _refuse(gate: GatePart, command: Command, problem: str) -> None:
    why = f"{command.action}: {problem}"
    gate.note(Entry("refused", command.policy, command.who, why, command.command_id))


def _problem(gate: GatePart, command: Command, parts: dict[str, PolicyPart]) -> str:
    """Why a command cannot be obeyed, in one line that says what to do; empty where it can."""
    name = command.policy
    if command.action == "ramp":
        return _ramp_problem(gate, command)
    if command.action in ("live", "shadow"):
        return f"it is in mode {command.action} already" if gate.live.mode == command.action else ""
    if command.action == "promote":
        if name == gate.champion:
            return f"{name} serves the arm `policy` already"
        if name == NONE or name in gate.live.holdout:
            return "a holdout gets no slates and decides nothing: promote a policy"
        if name not in gate.serves.values():
            return f"no arm runs {name}: give it a share in [arms.shares] first"
        return ""
    if name not in parts:
        return f"{name} is not learned here: choose one of {', '.join(parts)}"
    if command.action == "unfreeze" and name not in gate.frozen:
        return f"{name} is not frozen"
    if command.action == "freeze" and name in gate.frozen:
        return f"{name} is frozen already"
    if command.action in ("pin", "rollback") and gate.staging.find(name, command.version) is None:
        known = ", ".join(str(v) for v in gate.staging.versions(name))
        if not known:
            return f"no version of {name} is staged yet: `headrace policy freeze {name}` keeps it as it is"
        return f"there is no such staged version of {name}: choose one of {known}"
    if command.action not in ("freeze", "unfreeze", "pin", "rollback"):
        return f"{command.action!r} is no command"
    return ""


def _ramp_problem(gate: GatePart, command: Command) -> str:
    shares = gate.live.shares
    if command.policy not in shares.arms:
        known = ", ".join(shares.arms)
        return f"there is no arm {command.policy!r}: choose one of {known}, or give it a share in [arms.shares] (or 0)"
    if command.share is None or not 0 <= command.share <= 1:
        return f"a share lies between 0 and 1, not {command.share}"
    if not shares.movable(command.policy):
        besides = " beside the holdout" if len(shares.arms) > 1 else ""
        return f"{command.policy} is the only arm{besides}: give another one a share in [arms.shares], 0 will do"
    if command.share > (most := shares.most(command.policy)) + 1e-9:
        return (
            f"{command.policy} can have {most:g} at most, holdouts keep the rest: "
            "`headrace policy ramp` of a holdout lowers its share"
        )
    if abs(shares.share(command.policy) - command.share) < 1e-6:
        return f"{command.policy} has this share already"
    return ""
