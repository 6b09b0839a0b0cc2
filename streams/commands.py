"""`headrace policy …`: what somebody wants of the learner, and what became of it.

A command is a record of `policy-commands`; the learner takes it at its next boundary, a quarter of a second while
events or ticks come, and writes what it did, for whom and why, to the history in `policy-versions`.
"""

from __future__ import annotations

import getpass
import time
import uuid
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Producer, TopicPartition

from headrace.streams import kafka, topics
from headrace.streams.errors import HeadraceError
from headrace.streams.gate import HISTORY
from headrace.streams.records import Command, PolicyVersion, decode_policy_version, encode_command
from headrace.streams.settings import Settings

ACTIONS = ("freeze", "unfreeze", "pin", "promote", "rollback", "ramp", "live", "shadow")
_WAIT_S = 10.0


@dataclass(frozen=True)
class Done:
    """A line of the history."""

    action: str
    policy: str
    who: str
    why: str
    champion: str
    ts: int  # ms
    command_id: str
    entry: int  # 0, 1, … in the order of what happened


def command(
    settings: Settings,
    action: str,
    policy: str,
    *,
    version: int | None = None,
    share: float | None = None,
    who: str | None,
    why: str,
) -> Done:
    """Sends a command and waits for what became of it. `policy`: for `ramp` the arm, for `live` and `shadow` ALL.

    Raises HeadraceError where the learner refuses it, or where none took it: nothing has then been done yet, and a
    learner that comes back within the topics' retention will still obey.
    """
    if not why.strip():
        raise HeadraceError("--why is empty: say in a few words why, for those who read the history")
    topics.require(settings, wait=False)
    position = kafka.read_to_end(settings, settings.topic("policy-versions"), lambda _: None)
    wanted = Command(
        command_id=uuid.uuid4().hex,
        action=action,
        policy=policy,
        who=who or getpass.getuser(),
        why=why.strip(),
        ts=int(time.time() * 1000),
        version=version,
        share=share,
    )
    producer = Producer(kafka.client_config(settings))
    kafka.produce(producer, settings.topic("policy-commands"), key=policy.encode(), value=encode_command(wanted))
    if producer.flush(_WAIT_S):
        raise HeadraceError(f"Kafka at {settings.bootstrap} took no command within {_WAIT_S:g} s: try again")
    done = _answer(settings, position, wanted.command_id)
    if done is None:
        raise HeadraceError(
            f"no learner took the command within {_WAIT_S:g} s: see that `headrace run` is up with ingest, worker and"
            f" learner; the first learner to come will obey it"
        )
    if done.action == "refused":
        raise HeadraceError(f"refused: {done.why}")
    return done


def _answer(settings: Settings, position: dict[int, int], command_id: str) -> Done | None:
    reader = kafka.consumer(settings, "headrace-commands", fetch_wait_max_ms=50)
    topic = settings.topic("policy-versions")
    reader.assign([TopicPartition(topic, partition, offset) for partition, offset in position.items()])
    deadline = time.monotonic() + _WAIT_S
    try:
        while time.monotonic() < deadline:
            for message in kafka.consume(reader, 100, 0.1):
                if error := message.error():
                    kafka.check(error)
                elif (message.key() or b"").startswith(HISTORY.encode() + b"/") and message.value():
                    found = as_done(decode_policy_version(message.value() or b""))
                    if found.command_id == command_id:
                        return found
        return None
    finally:
        reader.close()


def latest(settings: Settings) -> dict[str, PolicyVersion]:
    """The latest record of every part of `policy-versions`."""
    found: dict[str, PolicyVersion] = {}

    def keep(message: kafka.Message) -> None:
        key, value = message.key() or b"", message.value()
        if value is not None and not key.startswith(b"\0"):
            found[key.decode()] = decode_policy_version(value)

    topics.require(settings, wait=False)
    kafka.read_to_end(settings, settings.topic("policy-versions"), keep)
    return found


def as_done(record: PolicyVersion) -> Done:
    meta: dict[str, Any] = dict(record.meta)
    return Done(**{name: meta[name] for name in Done.__dataclass_fields__})


def history(records: dict[str, PolicyVersion]) -> list[Done]:
    """Everything that was done, oldest first."""
    lines = [as_done(record) for part, record in records.items() if part.startswith(HISTORY + "/")]
    return sorted(lines, key=lambda done: done.entry)
