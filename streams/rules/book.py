"""The rules of the topic, and which of them are in force: a function of the latest message of each id, in the order of
offsets.

Whoever has read the topic, compacted or not, has the same rules in force. A rule that conflicts with one before it
waits until that one goes, or its `until` passes.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from typing import NamedTuple

from headrace.streams.kafka import Message
from headrace.streams.messages import Decoder, Rejection
from headrace.streams.rules.conflicts import Conflicts
from headrace.streams.rules.rule import Rule
from headrace.streams.settings import Settings

Heard = tuple[str, bytes | None, int, int]  # key, value, offset, partition: what `put` takes


class _Said(NamedTuple):
    """The latest message of an id."""

    offset: int
    partition: int
    rule: Rule | Rejection


class _Judged:
    """What is in force, and what is not and why, from one `until` to the next."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self.refused: dict[str, str] = {}
        self.expired: list[Rule] = []
        self._conflicts = Conflicts()

    def add(self, rule_id: str, rule: Rule | Rejection, since_ms: float) -> None:
        if isinstance(rule, Rejection):
            self.refused[rule_id] = rule.sentence
        elif rule.until is not None and rule.until <= since_ms:
            self.expired.append(rule)
        elif (sentence := self._conflicts.of(rule)) is not None:
            self.refused[rule_id] = sentence
        else:
            self._conflicts.add(rule)
            self.rules.append(rule)


class RuleBook:
    """One a worker, whatever encoder it serves with. Not to be shared by threads."""

    def __init__(self, settings: Settings) -> None:
        self._decode = Decoder(settings).rule
        self.version = -1  # largest offset heard of
        self._said: dict[str, _Said] = {}
        self._heard: dict[int, int] = {}  # largest offset by partition
        self._untils: list[int] = []  # sorted
        self._judged: dict[int, _Judged] = {}  # by how many `until` have passed

    def put(self, rule_id: str, value: bytes | None, offset: int, partition: int = 0) -> None:
        """One message under its key. One heard before changes nothing; None takes the rule back."""
        if offset <= self._heard.get(partition, -1):
            return
        self._heard[partition] = offset
        self.version = max(self.version, offset)
        before = self._said.pop(rule_id, None)
        if value is None and before is None:
            return
        said = None if value is None else _Said(offset, partition, self.read(rule_id, value))
        dated = [at for at in (before, said) if at is not None and _until(at.rule) is not None]
        if before is None and said is not None and not dated and len(self._heard) == 1:
            self._said[rule_id] = said  # the last of them changes nothing for those before it
            for judged in self._judged.values():
                judged.rules, judged.refused = list(judged.rules), dict(judged.refused)
                judged.add(rule_id, said.rule, 0)
            return
        if said is not None:
            self._said[rule_id] = said
        for at in dated:
            until = _until(at.rule)
            assert until is not None
            if at is said:
                insort(self._untils, until)
            else:
                self._untils.remove(until)
        self._judged.clear()

    def read(self, rule_id: str, value: bytes) -> Rule | Rejection:
        """The message under its key."""
        rule = self._decode(value)
        if isinstance(rule, Rule) and rule.rule_id != rule_id:
            sentence = (
                f"rule_id {rule.rule_id[:40]!r} is not the message's key: write it there too, a null value needs it"
            )
            return Rejection("id", sentence)
        return rule

    def in_force(self, now_ms: int) -> list[Rule]:
        """In the order of offsets; the same list as long as nothing changes."""
        return self._at(now_ms).rules

    def refused(self, now_ms: int) -> dict[str, str]:
        """{rule_id: sentence} of what conflicts with a rule in force, and of what cannot be read."""
        return self._at(now_ms).refused

    def rejection(self, rule_id: str, now_ms: int) -> Rejection | None:
        """Why the id's latest message is not in force now; None where it is, was, or where there is none."""
        said = self._said.get(rule_id)
        if said is None:
            return None
        if isinstance(said.rule, Rejection):
            return said.rule
        sentence = self.refused(now_ms).get(rule_id)
        return None if sentence is None else Rejection("conflict", sentence)

    def expired(self, now_ms: int) -> list[Rule]:
        """Whose `until` has passed."""
        return self._at(now_ms).expired

    def _at(self, now_ms: int) -> _Judged:
        passed = bisect_right(self._untils, now_ms)
        judged = self._judged.get(passed)
        if judged is None:
            judged = self._judged[passed] = _Judged()
            since_ms = self._untils[passed - 1] if passed else 0
            for rule_id, said in sorted(self._said.items(), key=lambda entry: entry[1][:2]):
                judged.add(rule_id, said.rule, since_ms)
        return judged


def heard(message: Message) -> Heard:
    key = (message.key() or b"").decode(errors="replace")
    return key, message.value(), message.offset(), message.partition()


def _until(rule: Rule | Rejection) -> int | None:
    return rule.until if isinstance(rule, Rule) else None
