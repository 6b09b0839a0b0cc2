"""What serves: the policies of every arm and the behaviour models, swapped in from `policy-versions` between two
records."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.policy.base import Meta, Policy
from headrace.policy.behaviour import CoOccurrence, Popularity
from headrace.policy.names import BASELINES, LEARNED, TRAINED
from headrace.policy.snapshot import unpack
from headrace.streams.context import ContextEncoder
from headrace.streams.items import ItemStore
from headrace.streams.live import Live
from headrace.streams.placed import Placed
from headrace.streams.ramp import place
from headrace.streams.records import PolicyVersion
from headrace.streams.settings import NONE, Settings, policy_of_arm
from headrace.streams.start import begin
from headrace.streams.versions import MISFIT, SERVED, make_policy, version_of

log = logging.getLogger("headrace.worker")
_POPULAR = 400  # how far down the popularity list candidates are drawn from
_FOLLOWING = 16


@dataclass(frozen=True)
class Served:
    """A policy as it serves now."""

    name: str
    version: int
    policy: Policy


def serves(meta: Meta, arms: Mapping[str, str]) -> dict[str, str]:
    """Which policy each arm runs by the gate's record; nothing where the arms have changed since."""
    said: dict[str, str] = json.loads(str(meta["serves"]))
    same = said.keys() == arms.keys() and sorted(said.values()) == sorted(arms.values())
    return said if same else {}


def control_arm(settings: Settings) -> str:
    """The arm that the arm `policy` is held against; empty where there is none."""
    return settings.gate.control or next((arm for arm in BASELINES if arm in settings.arms.shares), "")


def stand_in(settings: Settings) -> str:
    """The policy that decides where the policy may not yet: the control arm's by the settings, whatever was promoted
    since; empty where the policy always decides."""
    return policy_of_arm(settings, control_arm(settings)) if settings.gate.loss else ""


class Policies:
    """One object a worker. `apply` takes what the learner published; everything else only reads."""

    def __init__(self, settings: Settings, items: ItemStore, *, dim: int, encoder_version: str = "") -> None:
        """A head that was learned with another encoder than `encoder_version` does not serve; empty: any may."""
        self._settings = settings
        self._encoder = encoder_version
        self._items = items
        self._served: dict[str, Served] = {}
        self.contexts = ContextEncoder(settings).size
        self._by_arm = {arm: policy_of_arm(settings, arm) for arm in settings.arms.shares}
        self.live = Live(settings)
        self._stand_in = stand_in(settings)
        self._share = settings.gate.loss or 1.0  # of the users of the arm `policy` whom the policy decides for
        self.placed = Placed(settings)
        for name in {*self._by_arm.values(), *self.placed.policies, *settings.live.shadow, "popular"} - {NONE}:
            self._served[name] = Served(name, 0, self._make(name, dim))
        self._popularity = Popularity(half_life_ms=settings.learner.popular_half_life)
        self._pairs = CoOccurrence()
        self._behaviour_version = 0
        self._pool: NDArray[np.int64] | None = None
        self._popular_rows = np.zeros(0, np.int64)
        self._scores = np.zeros(0, np.float32)  # popularity by row
        self._following: dict[int, NDArray[np.int64]] = {}
        self._freed = 0  # as ItemStore.freed: up to there, rows by number are right
        start = begin(settings, self._make(settings.policy.name, dim))
        fits = start is not None and (
            not encoder_version or start.made.get("encoder", encoder_version) == encoder_version
        )
        self._started = start.policy if start is not None and fits else ""
        if start is not None and not fits:
            log.warning(
                "the policy in %s was trained with another encoder than serves here and is left out", start.path
            )
        for part, (arrays, meta) in {} if start is None else (start.parts if fits else start.behaviour).items():
            self.apply(version_of(part, arrays, meta, version=0, offset=-1, replay_from=0, created_ms=0))

    def _make(self, name: str, dim: int) -> Policy:
        return make_policy(self._settings, name, dim=dim)

    # -- versions -----------------------------------------------------------------------------------------------------

    def apply(self, version: PolicyVersion) -> None:
        """Swaps one part in. A part that is damaged or does not fit is refused and the one before goes on serving."""
        name, _, shard = version.part.partition("/")
        if name not in SERVED and name != "gate":
            return  # the learner's own
        try:
            arrays, meta = unpack(version.arrays, version.sha256)
            if name == "popularity":
                self._popularity.restore(int(shard or 0), arrays, meta)
                self._behaviour_version = max(self._behaviour_version, version.version)
                self._scores, self._pool = np.zeros(0, np.float32), None
            elif name == "co_occurrence":
                self._pairs.restore(int(shard or 0), arrays, meta)
                self._following.clear()
            elif name == "gate":
                self._by_arm.update(serves(meta, self._by_arm))
                self._share = float(meta.get("share", 1.0))
                if "live" in meta:  # not in a record of the release before
                    self.live.resume(str(meta["live"]))
            elif name in self._served:
                if self._encoder and (meta.get("encoder") or self._encoder) != self._encoder:
                    return  # it speaks of other vectors; a head of ours follows
                policy = self._make(name, self._items.dim)
                if any(array.dtype.kind == "f" and not np.isfinite(array).all() for array in arrays.values()):
                    raise ValueError("it holds a number that is not finite")
                policy.restore(arrays, meta)
                self._served[name] = Served(name, version.version, policy)
        except MISFIT as error:
            log.warning("policy version %s of %s is refused: %s", version.version, version.part, error)

    def in_shadow(self) -> list[Served]:
        """Policies that decide beside the arms' own, as far as they have learned anything."""
        shadows = [self._served[name] for name in self._settings.live.shadow]
        return [s for s in shadows if s.version or s.name == self._started or s.name in BASELINES]

    def serving(self, arm: str, user_id: str, placement: str = "default") -> Served:
        """What decides now for a user of an arm at a placement. A policy that has learned nothing yet leaves its users
        to what is popular; one that is still held against a control leaves it those above its share (ramp.place)."""
        own = self.placed.policy(arm, placement)
        name = own or self._by_arm[arm]
        if not own and arm == "policy" and self._stand_in and self._share < 1 and place(user_id) >= self._share:
            name = self._stand_in
        served = self._served[name]
        if name in (*LEARNED, *TRAINED) and not served.version and name != self._started:
            name = "popular"
            served = self._served[name]
        if name in ("popular", "item_to_item"):
            return Served(name, self._behaviour_version, served.policy)
        return served

    # -- behaviour, by row --------------------------------------------------------------------------------------------

    def _ask_again(self) -> None:
        """Rows have become free: what is known by number may be said of other items."""
        if self._freed != self._items.freed:
            self._freed, self._scores = self._items.freed, np.zeros(0, np.float32)
            self._following.clear()

    def popularity(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """In [0, 1], of the shape of `rows`."""
        self._ask_again()
        if len(self._scores) != len(self._items.keys):
            self._scores = self._popularity.scores(self._items.keys)
            self._scores[len(self._items) :] = 0
        return self._scores[rows]

    def co_occurrence(
        self, recent: NDArray[np.uint64], keys: NDArray[np.uint64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """co_view and co_buy (B, n) of candidates after the items just seen (B, h)."""
        return self._pairs.scores(recent, keys)

    def shares(
        self, recent: NDArray[np.uint64], keys: NDArray[np.uint64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Of what followed each item just seen (B, h), views and purchases, the candidates' parts (B, h, n)."""
        return self._pairs.shares(recent, keys)

    def popular_rows(self) -> NDArray[np.int64]:
        """Rows that may be recommended now, most popular first."""
        pool = self._items.pool()
        if self._pool is not pool:
            self._pool = pool
            rows = self._items.rows_of(self._popularity.top(2 * _POPULAR).tolist())
            self._popular_rows = rows[self._items.available[rows]][:_POPULAR]
        return self._popular_rows

    def following(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Rows (len, 16) of what follows each item or query most, -1 where there is less."""
        self._ask_again()
        known = self._following
        listed = keys.tolist()
        asked = [key for key in dict.fromkeys(listed) if key not in known]
        if asked:
            found = self._pairs.neighbours(np.array(asked, np.uint64), _FOLLOWING)
            rows = self._items.rows_of(found.reshape(-1).tolist()).reshape(found.shape)
            rows[rows == self._items.none] = -1
            known.update(zip(asked, rows, strict=True))
        return np.stack([known[key] for key in listed])
