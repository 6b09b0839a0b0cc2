"""The gate, live: who serves the arm `policy`, what is frozen, which versions are staged. Pure, a part of the learner.

Every boundary it looks for alarms, takes the commands that wait, and asks whether a challenger has earned promotion.
All that it decides follows from the messages and the offsets at which commands were taken, both of which its record in
`policy-versions` holds: a learner that resumes decides what one that never stopped decides.
"""

from __future__ import annotations

import json
import logging
import math
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np

from headrace.policy.base import Arrays, Meta
from headrace.policy.evaluation.gate import Gate, Verdict
from headrace.policy.evaluation.guardrails import Alarm, Guardrails
from headrace.policy.evaluation.ledger import Ledger
from headrace.policy.names import LEARNED
from headrace.streams.frozen import Frozen
from headrace.streams.gate_commands import Entry, obey
from headrace.streams.lessons import Decision, Lessons
from headrace.streams.live import Live
from headrace.streams.parts import PolicyPart
from headrace.streams.placed import Placed
from headrace.streams.policies import control_arm, serves, stand_in
from headrace.streams.ramp import Ramp
from headrace.streams.records import Command, Opened, PolicyVersion, Transitions
from headrace.streams.settings import NONE, Settings, policy_of_arm
from headrace.streams.staging import Staging
from headrace.streams.versions import MISFIT, arrays_of, version_of

log = logging.getLogger("headrace.learner")
PART = "gate"
HISTORY = "history"
_HISTORY_KEPT = 1_000
_GUARDED = "policy"  # the arm
_CHECK_EVERY = 8  # boundaries: a snapshot made for its own sake is not for every one, and two seconds are soon enough


class GatePart:
    """One a learner. `serves` says which policy each arm runs."""

    def __init__(self, settings: Settings) -> None:
        g = settings.gate
        self._settings = g
        self._placed = Placed(settings)
        self.serves = {arm: policy_of_arm(settings, arm) for arm in settings.arms.shares}
        self._split = json.dumps([settings.arms.salt, settings.arms.shares])
        self.live = Live(settings)
        self._stand_in = stand_in(settings)
        self._ramp = Ramp(loss=g.loss, planned=g.planned)
        self._gate = Gate(margin=g.margin, error=g.error, min_decisions=g.min_decisions, planned=g.planned)
        self.staging = Staging(every=g.stage_every, kept=g.staged)
        self.verdicts: dict[str, Verdict] = {}
        self.frozen = Frozen()
        self.known = -1
        self.commands = -1  # offset of the last command taken
        self.counts: Counter[tuple[str, str]] = Counter()  # (promotion, policy) or (rollback, rule)
        self._waiting: list[tuple[int, Command]] = []
        self._alarm: Alarm | None = None
        self._history: list[Entry] = []  # not yet published
        self._checked = 0  # examples that the guarded policy had learned when its arrays were looked at
        self._entries = 0  # of the history, published ones included
        self._dirty = False
        control = control_arm(settings) or None
        self._new_guard = partial(Guardrails, arm=_GUARDED, control=control, floor=settings.policy.floor)
        self.start_evidence()

    def start_evidence(self) -> None:
        """What was counted for other policies in these arms counts no more."""
        self._ledger = Ledger(list(self.serves))
        self._guard = self._new_guard()
        self.verdicts = {}

    def encoder_changed(self, version: str, policies: Sequence[str], *, offset: int) -> None:
        """Heads begin anew: nothing of before can be put back, or counts for or against them."""
        if offset <= self.known:
            return
        for policy in policies:
            self.staging.drop_after(policy, -1)
            self.frozen.end(policy, offset)
        self._ramp = Ramp(loss=self._settings.loss, planned=self._settings.planned)
        self.start_evidence()
        self.note(Entry("encoder", self.champion, "announcement", f"{version}: policies begin anew"))

    @property
    def champion(self) -> str:
        return self.serves.get(_GUARDED, "")

    def watch_anew(self) -> None:
        """Forgets what the guardrails saw."""
        self._guard.reset()

    @property
    def share(self) -> float:
        """Of the arm `policy`: how much the policy decides for."""
        return self._ramp.share

    def values(self) -> dict[str, tuple[int, float]]:
        """Of each arm the decisions shown and the reward per shown decision."""
        found = {arm: self._ledger.value(arm) for arm in self.serves}
        return {arm: (int(value.decisions), value.mean) for arm, value in found.items()}

    def wants(self, command: Command, offset: int) -> None:
        """Somebody's command: taken at the next boundary."""
        if offset > self.commands:
            self._waiting.append((offset, command))

    # -- what the log brings ------------------------------------------------------------------------------------------

    def observe(self, message: Transitions, lessons: Lessons, offset: int) -> None:
        """Counts what one message showed and earned, by arm."""
        if offset <= self.known:
            return
        self.known = offset
        shown, earned = Counter[tuple[str, int]](), defaultdict[tuple[str, int], float](float)
        ledger, ramp = self._ledger, self._ramp
        for decision in lessons.first_shown:
            if self._counts(decision):
                ledger.shown(decision.arm, ledger.bucket(decision.user_id))
                shown[decision.arm, decision.version] += 1
            if self._ramps(decision):
                ramp.shown(by_policy=decision.policy != self._stand_in, decisions=1)
                self._dirty = True
        for decision, reward in lessons.came:
            if not math.isfinite(reward):
                continue
            if reward and self._counts(decision):
                ledger.rewarded(decision.arm, ledger.bucket(decision.user_id), reward)
                earned[decision.arm, decision.version] += reward
            if reward and self._ramps(decision):
                ramp.rewarded(by_policy=decision.policy != self._stand_in, reward=reward)
                self._dirty = True
        self._dirty |= bool(shown or earned)
        if self._settings.guard:
            self._propensities(message)
            for arm, version in dict.fromkeys([*shown, *earned]):
                self._alert(
                    self._guard.rewarded(
                        arm=arm, version=version, decisions=shown[arm, version], reward=earned[arm, version]
                    )
                )

    def _counts(self, decision: Decision) -> bool:
        """Whether a decision was taken by what its arm runs now, where arms can be told apart."""
        return decision.policy == self.serves.get(decision.arm) and self._placed.compared(decision.placement)

    def _ramps(self, decision: Decision) -> bool:
        """Whether the policy decides there for its share of the arm's users alone."""
        return decision.arm == _GUARDED and not self._placed.policy_at(_GUARDED, decision.placement)

    def _propensities(self, message: Transitions) -> None:
        """Whether 1/p of the champion's first positions is the number of candidates on average."""
        for record in message.records:
            if (
                isinstance(record, Opened)
                and not record.restricted
                and (record.arm, record.policy) == (_GUARDED, self.champion)
                and 0 < len(record.propensities) == 8 * len(record.slate)
            ):
                first = struct.unpack_from("<d", record.propensities)[0]
                expected, observed = len(record.candidates) / 8, 1 / first if first > 0 else math.inf
                self._alert(self._guard.decided(record.policy_version, expected=expected, observed=observed))
                self._dirty = True

    def _alert(self, alarm: Alarm | None) -> None:
        self._alarm = self._alarm or alarm

    # -- a boundary ---------------------------------------------------------------------------------------------------

    def judge(self, parts: Sequence[PolicyPart], *, boundary: int, offset: int, now_ms: int) -> None:
        """Alarms first, then commands, then promotions; then versions are staged where it is time."""
        by_name = {part.policy.name: part for part in parts}
        alarm, self._alarm = self._alarm, None
        guarded = by_name.get(self.champion)
        if self._settings.guard and guarded is not None and self.champion not in self.frozen:
            self._guard_policy(guarded, alarm, boundary, offset)
        for at, command in self._waiting:
            obey(self, command, by_name, offset)
            self.commands = at
            self._dirty = True
        self._waiting.clear()
        if self._ramp.move():
            self._ledger, self.verdicts, self._dirty = Ledger(list(self.serves)), {}, True  # arms are counted alike
        if self._ramp.share == 1:
            for arm in self.serves:
                if arm != _GUARDED and _GUARDED in self.serves and self.serves[arm] != NONE:
                    self._judge_arm(arm)
        for part in parts:
            if part.policy.name not in self.frozen:
                self.staging.stage(part.policy, boundary=boundary, offset=offset, created_ms=now_ms)

    def _guard_policy(self, part: PolicyPart, alarm: Alarm | None, boundary: int, offset: int) -> None:
        if alarm is None and boundary % _CHECK_EVERY == 0:
            arrays, meta = part.policy.snapshot()
            if meta["learned"] != self._checked:
                self._checked, self._dirty = int(meta["learned"]), True
                alarm = self._guard.check_arrays(arrays, meta)
        if alarm is not None:
            self.counts["rollback", alarm.rule] += 1
            entry = Entry("rollback", part.policy.name, "guardrail", f"{alarm.rule}: {alarm.reason}")
            good = -1 if self._guard.last_good is None else self._guard.last_good
            while (to := self.staging.before(part.policy.name, good)) and not self.put_back(part, to, offset):
                pass  # what fits no more is no longer staged
            if to is None:
                part.begin_anew(offset=offset)
            self.rolled_back(part, offset, entry, to)

    def _judge_arm(self, arm: str) -> None:
        """How every arm fares beside the champion; only a challenger may take its place."""
        challengers = self._settings.challengers
        rivals = max(len(challengers), 1)
        verdict = self._gate.verdict(self._ledger, champion=_GUARDED, challenger=arm, challengers=rivals)
        self.verdicts[arm] = verdict
        if arm in challengers and verdict.decision == "promote" and self.serves[arm] not in self.frozen:
            self.promote(arm, Entry("promote", self.serves[arm], "gate", verdict.reason))

    def promote(self, arm: str, entry: Entry) -> None:
        """The challenger serves the arm `policy`; the champion so far goes on as the challenger."""
        self.serves[_GUARDED], self.serves[arm] = self.serves[arm], self.serves[_GUARDED]
        self.counts["promotion", entry.policy] += 1
        self.note(entry)
        self.start_evidence()

    def put_back(self, part: PolicyPart, to: PolicyVersion, offset: int) -> bool:
        """Whether the staged version fits the policy: the settings may have made another of it since."""
        try:
            part.become(*arrays_of(to), offset=offset)
        except MISFIT as error:
            log.warning("staged version %s of %s cannot be put back: %s", to.version, part.policy.name, error)
            self.staging.drop(to)
            return False
        return True

    def rolled_back(self, part: PolicyPart, offset: int, entry: Entry, to: PolicyVersion | None) -> None:
        """Stops learning, and forgets what was learned since: it may be what went wrong."""
        name = part.policy.name
        told = "to the beginning, as no version was staged yet" if to is None else f"to version {to.version}"
        self.frozen.begin(name, to.offset if to else -1)
        self.staging.drop_after(name, to.version if to else -1)
        self.note(Entry(entry.action, name, entry.who, f"{entry.why} ({told})", entry.command_id))
        if name == self.champion:
            self._guard.reset()

    def note(self, entry: Entry) -> None:
        log.warning("%s %s by %s: %s", entry.action, entry.policy, entry.who, entry.why)
        self._history.append(entry)
        self._dirty = True

    # -- the record ---------------------------------------------------------------------------------------------------

    def publish(self, *, boundary: int, offset: int, book: int, created_ms: int) -> list[PolicyVersion]:
        """The gate's record where it changed, what was staged, and the history's new lines.

        Never left out where a policy is published: a restart judges on from where the policies stand.

        `book` is the book's replay offset after the message at `offset`.
        """
        staged = self.staging.publish()
        if not self._dirty and not staged:
            return []
        self._dirty = False
        record = partial(version_of, version=boundary, offset=offset, replay_from=book, created_ms=created_ms)
        lines = []
        for entry in self._history:
            line: Meta = {**vars(entry), "champion": self.champion, "ts": created_ms, "entry": self._entries}
            lines.append(record(f"{HISTORY}/{self._entries % _HISTORY_KEPT}", {"none": np.zeros(0)}, line))
            self._entries += 1
        self._history.clear()
        arrays: Arrays = {f"ledger.{name}": array for name, array in self._ledger.arrays().items()}
        arrays |= {f"ramp.{name}": array for name, array in self._ramp.arrays().items()}
        arrays |= {f"guard.{name}": array for name, array in self._guard.arrays().items()}
        meta: Meta = {
            "serves": json.dumps(self.serves),
            "split": self._split,
            "stand_in": self._stand_in,
            "frozen": self.frozen.told(),
            "staged": json.dumps(self.staging.table()),
            "verdicts": json.dumps({arm: vars(v) for arm, v in sorted(self.verdicts.items())}),
            "share": self._ramp.share,
            "live": self.live.written(),
            "commands": self.commands,
            "checked": self._checked,
            "entries": self._entries,
        }
        return [*staged, *lines, record(PART, arrays, meta)]

    def resume(self, records: Iterable[PolicyVersion], *, offset: int, comparable: bool = True) -> None:
        """Becomes what was published; what does not fit the settings any more begins anew. `offset`: up to there
        versions reach. `comparable` False: rewards are others now, and so evidence begins anew."""
        self.known = offset  # what is read again without a record has been judged before, or was not to be
        latest = {record.part: record for record in records}
        record = latest.get(PART)
        if record is None:
            return
        try:
            self.commands = int(record.meta["commands"])  # obeyed once, whatever else is in the record
            if "live" in record.meta and not self.live.resume(str(record.meta["live"])):  # none in the release before's
                log.warning("[live] or [arms] are others than when shares or mode were commanded: settings stand")
                self._dirty = True
            arrays, meta = arrays_of(record)
            staged = json.loads(str(meta["staged"]))
            self._checked, self._entries = int(meta["checked"]), int(meta["entries"])
            said = serves(meta, self.serves)
            self.staging.resume(latest.values(), staged)
            self.frozen.resume(str(meta["frozen"]), among=LEARNED)
            self.known = record.offset
            same = said and comparable and meta.get("split", self._split) == self._split
            champion = json.loads(str(meta["serves"])).get(_GUARDED)
            self.serves = said or self.serves
            if champion == self.champion and meta.get("stand_in", self._stand_in) == self._stand_in:
                self._ramp.restore(_of(arrays, "ramp."))
            self.start_evidence()
            if same:
                self._ledger.restore(_of(arrays, "ledger."))
                self._guard.restore(_of(arrays, "guard."))
            else:
                log.warning("arms or rewards are not those that the gate knew: its evidence begins anew")
                self._dirty = True
        except MISFIT as error:
            log.warning("the gate's record cannot be resumed, its evidence begins anew: %s", error)
            self.start_evidence()
            self._dirty = True


def _of(arrays: Arrays, prefix: str) -> Arrays:
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}
