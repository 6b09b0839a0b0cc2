"""Our own log for `headrace evaluate`: records of `transitions` become decisions with their rewards.

A decision counts as learning counts it: it was shown (an impression, an outcome, or its end says so), in the shop's own
order, to a user who is no crawler. Its reward is what is known at the end of what was read, returns included. Rewards
of several versions are never mixed: those of the latest are judged.

Under the uniform target every decision can be asked; under a policy those whose whole candidate table was logged
(`decisions.full_share`): they are re-scored exactly, by `Policy.distributions`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.policy.base import Policy, Query
from headrace.policy.evaluation.evaluation import Logged, Refused
from headrace.policy.evaluation.reward_model import folds, predict
from headrace.policy.features import SCALARS, FeatureMap
from headrace.streams.context import ContextEncoder
from headrace.streams.records import Closed, Erased, Opened, Outcome, Transitions, item_key
from headrace.streams.rules.logged import readable, unpack
from headrace.streams.settings import Settings
from headrace.streams.versions import make_policy

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
_AT_ONCE = 64  # decisions scored together
_LARGEST = 100.0  # of a feature that q̂ sees, as in streams/lessons.py
_NUMBERS = (("state", "<f4"), ("context", "<f4"), ("all_items", "<f2"), ("all_scalars", "<f4"))
_MIXED = "several"  # in place of the version of rewards


@dataclass
class Decision:
    """One decision: what estimators need of it; `opened` only where every candidate was logged."""

    user: int
    propensities: bytes  # float64 (k,)
    choices: int
    opened: Opened | None
    shown: set[int] = field(default_factory=set)
    rewards: dict[int, float] = field(default_factory=dict)
    heard: set[str] = field(default_factory=set)
    closed: bool = False
    version: str = ""  # of its rewards; empty where it has none
    bound: bool = False  # by rules: candidates left at a position were fewer than it seems

    @property
    def size(self) -> int:
        return len(self.propensities) // 8

    def under(self, version: str) -> None:
        """Something that it earned is told under this version."""
        self.version = version if self.version in ("", version) else _MIXED


class Decisions:
    """Takes in messages in their order. `left_out` counts decisions that are not judged, by the reason."""

    def __init__(self, settings: Settings, *, arm: str | None = None) -> None:
        self._settings = settings
        self._arm = arm
        self._found: dict[str, Decision] = {}
        self._of_user: dict[str, list[str]] = {}
        self._gone: set[str] = set()
        self._version = ""
        self._dim = 0
        self._contexts = ContextEncoder(settings).size
        self.arms: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()

    def read(self, message: Transitions) -> None:
        for record in message.records:
            match record:
                case Opened():
                    self._open(record)
                case Outcome():
                    self._outcome(record)
                case Closed():
                    self._close(record)
                case Erased():
                    for name in self._of_user.pop(record.user_id, []):
                        self._drop(name, "erased")

    def _open(self, record: Opened) -> None:
        name = record.recommendation_id
        if name in self._found or name in self._gone:
            return
        self.arms[record.arm] += 1
        if self._arm is not None and record.arm != self._arm:
            return
        if record.busy:
            self.left_out["of crawlers"] += 1
            return
        if len(record.propensities) != 8 * len(record.slate):
            self.left_out["damaged"] += 1
            return
        n = len(record.candidates) // 8
        full = self._fits(record, n)
        if full:
            self._dim = len(record.state) // 4
        self._found[name] = Decision(
            # A number that says who is the same, and no more.
            int.from_bytes(hashlib.blake2b(record.user_id.encode(), digest_size=7).digest(), "little"),
            record.propensities,
            n,
            record if full else None,
            shown=set(range(len(record.slate))) if self._settings.decisions.assume_shown else set(),
            bound=bool(record.rules or record.restricted),
        )
        self._of_user.setdefault(record.user_id, []).append(name)

    def _fits(self, record: Opened, n: int) -> bool:
        """Whether the whole table is there, of the widths that today's policies read."""
        d = len(record.state) // 4
        return (
            n > 0
            and len(record.candidates) == 8 * n
            and len(record.state) == 4 * d
            and len(record.all_items) == 2 * n * d
            and len(record.all_scalars) == 4 * n * len(SCALARS)
            and len(record.context) == 4 * self._contexts
            and (not record.constraints or readable(record.constraints, n))
            and {item_key(item) for item in record.slate} <= set(np.frombuffer(record.candidates, "<u8").tolist())
            and all(np.isfinite(np.frombuffer(getattr(record, name), dtype)).all() for name, dtype in _NUMBERS)
        )

    def _outcome(self, record: Outcome) -> None:
        if record.busy:
            self._drop(record.recommendation_id, "of crawlers")
            return
        decision = self._found.get(record.recommendation_id)
        if decision is None or record.outcome_id in decision.heard:
            return
        decision.heard.add(record.outcome_id)
        self._version = record.reward_version
        if record.type != "impression":
            decision.under(record.reward_version)
        for position in record.positions:
            if not 0 <= position < decision.size or (decision.closed and position not in decision.shown):
                continue
            decision.shown.add(position)
            if record.type != "impression":
                decision.rewards[position] = decision.rewards.get(position, 0.0) + record.reward

    def _close(self, record: Closed) -> None:
        decision = self._found.get(record.recommendation_id)
        if decision is None or decision.closed:
            return
        if record.closed_as != "shown" or len(record.shown) != len(record.rewards):
            self._drop(record.recommendation_id, record.closed_as if record.closed_as != "shown" else "damaged")
            return
        decision.closed = True
        self._version = record.reward_version
        if any(record.rewards):
            decision.under(record.reward_version)
        decision.rewards = {p: r for p, r in zip(record.shown, record.rewards, strict=True) if 0 <= p < decision.size}
        decision.shown = set(decision.rewards)

    def _drop(self, name: str, reason: str) -> None:
        if self._found.pop(name, None) is not None:
            self._gone.add(name)
            self.left_out[reason] += 1

    def judged(self) -> list[Decision]:
        """Those that were shown, in the order they were opened."""
        for d in self._found.values():  # an encoder of another width made it: its table says nothing to today's
            if d.opened is not None and len(d.opened.state) != 4 * self.dim:
                d.opened = None
        shown = [d for d in self._found.values() if d.shown]
        judged = [d for d in shown if d.version in ("", self._version)]
        for why, count in (
            ("not seen yet", len(self._found) - len(shown)),
            (f"with rewards of a version before {self._version}", len(shown) - len(judged)),
        ):
            if count:
                self.left_out[why] = count
        return judged

    @property
    def dim(self) -> int:
        """d of states and items, those of the latest decision that was logged whole; 0 where there is none."""
        return self._dim


# -- into arrays ------------------------------------------------------------------------------------------------------


def uniform(decisions: Sequence[Decision], settings: Settings, *, dim: int) -> Logged:
    """Every decision, and every candidate left equally likely; q̂ where the whole table was logged."""
    log = _columns(decisions)
    k = log.rewards.shape[1]
    left = np.maximum(log.choices, 1)
    log = _with(log, target=np.where(log.positions >= 0, 1 / left, 1.0))
    known = [i for i, d in enumerate(decisions) if d.opened is not None]
    if not known or not dim:
        return log
    _, x, expected = _rescored([decisions[i] for i in known], make_policy(settings, "random", dim=dim), k)
    rows = np.array(known)
    return _with(log, model=_predicted(log.take(rows), x, expected), known=rows)


def whole(decisions: Sequence[Decision]) -> list[Decision]:
    """Those whose whole candidate table was logged. Raises Refused where there is none."""
    full = [d for d in decisions if d.opened is not None]
    if not full:
        raise Refused(
            f"none of {len(decisions):,} decisions was logged with all of its candidates: raise decisions.full_share, "
            "or judge the uniform target"
        )
    return full


def under(policy: Policy, full: Sequence[Decision]) -> Logged:
    """Decisions whose whole candidate table was logged, re-scored under `policy`."""
    log = _columns(full)
    chosen, x, expected = _rescored(full, policy, log.rewards.shape[1])
    log = _with(log, target=chosen)
    return _with(log, model=_predicted(log, x, expected), known=np.arange(len(full)))


def _with(log: Logged, **changes: Any) -> Logged:
    return Logged(**{**vars(log), **changes})


def _columns(decisions: Sequence[Decision]) -> Logged:
    n, k = len(decisions), max((d.size for d in decisions), default=1)
    rewards, propensities = np.zeros((n, k)), np.ones((n, k))
    shown, choices = np.zeros((n, k), np.bool_), np.ones((n, k), np.int64)
    positions = np.full((n, k), -1, np.int64)
    for i, d in enumerate(decisions):
        propensities[i, : d.size] = np.frombuffer(d.propensities, "<f8")
        choices[i, : d.size] = d.choices - np.arange(d.size)
        positions[i, : d.size] = np.arange(d.size)
        shown[i, list(d.shown)] = True
        for position, reward in d.rewards.items():
            rewards[i, position] = reward
    users = np.array([d.user for d in decisions], np.int64)
    return Logged(rewards, propensities, np.ones((n, k)), shown, choices, positions, users)


def _predicted(log: Logged, x: F32, expected: F32) -> Any:
    return predict(x, expected, log.rewards, log.shown, folds(log.users))


def _rescored(decisions: Sequence[Decision], policy: Policy, k: int) -> tuple[F64, F32, F32]:
    """π of what stood at each position (N, k), features of it (N, k, D), and their mean under π (N, k, D)."""
    features = FeatureMap(dim=policy.dim, scalars=policy.scalars, contexts=policy.contexts)
    chosen = np.ones((len(decisions), k))
    x, expected = (np.zeros((len(decisions), k, features.size), np.float32) for _ in range(2))
    place = 1 / (1 + np.arange(k, dtype=np.float32))
    for start in range(0, len(decisions), _AT_ONCE):
        part = [d.opened for d in decisions[start : start + _AT_ONCE] if d.opened is not None]
        query, slates = _query(part, policy, k)
        bound = unpack([o.constraints for o in part], query.mask.sum(axis=1).tolist(), n=query.mask.shape[1])
        probabilities, _ = policy.distributions(query, slates, bound)
        there, at = slates >= 0, np.maximum(slates, 0)
        rows = slice(start, start + len(part))
        picked = np.take_along_axis(probabilities, at[..., None], axis=2)[..., 0]
        chosen[rows] = np.where(there, picked, 1.0)
        every = features.joint(
            query.states[:, None],
            query.contexts[:, None].clip(-_LARGEST, _LARGEST),
            query.items,
            query.scalars.clip(-_LARGEST, _LARGEST),
        )  # (B, n, D)
        x[rows] = np.take_along_axis(every, at[..., None], axis=1)
        expected[rows] = probabilities.astype(np.float32) @ every
        for table in (x, expected):
            table[rows, :, features.blocks["place"]] = place[None, :, None]
            table[rows][~there] = 0
    return chosen, x, expected


def _query(opened: Sequence[Opened], policy: Policy, k: int) -> tuple[Query, I64]:
    """The decisions as they were asked, padded to the longest, and their slates as places in the candidates (B, k)."""
    d, m, rows = policy.dim, len(policy.scalars), len(opened)
    keys = [np.frombuffer(o.candidates, "<u8") for o in opened]
    n = max(len(row) for row in keys)
    all_keys, mask = np.zeros((rows, n), np.uint64), np.zeros((rows, n), np.bool_)
    items, scalars = np.zeros((rows, n, d), np.float32), np.zeros((rows, n, m), np.float32)
    slates = np.full((rows, k), -1, np.int64)
    for i, o in enumerate(opened):
        here = len(keys[i])
        all_keys[i, :here], mask[i, :here] = keys[i], True
        items[i, :here] = np.frombuffer(o.all_items, "<f2").reshape(here, d)
        scalars[i, :here] = np.frombuffer(o.all_scalars, "<f4").reshape(here, m)
        at = {key: j for j, key in enumerate(keys[i].tolist())}
        slates[i, : len(o.slate)] = [at[item_key(item)] for item in o.slate]
    states = np.stack([np.frombuffer(o.state, "<f4") for o in opened])
    contexts = np.stack([np.frombuffer(o.context, "<f4") for o in opened])
    query = Query(states, contexts, all_keys, items, scalars, mask, np.zeros(rows, np.uint64))
    return query, slates
