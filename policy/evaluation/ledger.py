"""Shown decisions and their rewards by arm and user bucket: the evidence that the gate looks at.

One user's decisions hang together, so the gate counts users, not decisions. It needs no user's name for that: users
fall into G buckets by hash, and what is summed by bucket has the clustering of users in it (Cameron and Miller 2015,
"A Practitioner's Guide to Cluster-Robust Inference", section 2: any grouping that keeps a cluster whole will do).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headrace.policy.base import F64, I64, Arrays


@dataclass(frozen=True)
class Value:
    """Reward a shown decision of one arm."""

    mean: float
    variance: float  # of the mean, robust to what hangs together within a bucket
    decisions: float
    clusters: float  # how many buckets of equal influence would make this variance


class Ledger:
    """A (arms) × G (buckets) sums, however many decisions. Start a new one whenever an arm begins, ends, changes its
    share of traffic or its policy (a new version of the same learner is no change): all arms must be counted over the
    same time, or the hour of the day counts as a difference between them."""

    def __init__(self, arms: Sequence[str], *, buckets: int = 512) -> None:
        """Raises ValueError for no arms, an arm named twice, or fewer than two buckets."""
        if not arms or len(set(arms)) != len(arms):
            raise ValueError(f"arms are {list(arms)}: name at least one, each once")
        if buckets < 2:
            raise ValueError(f"buckets is {buckets}: choose at least 2")
        self.arms, self.buckets = tuple(arms), buckets
        self._row = {arm: row for row, arm in enumerate(self.arms)}
        self._decisions = np.zeros((len(self.arms), buckets))
        self._rewards = np.zeros((len(self.arms), buckets))

    def bucket(self, user_id: str) -> int:
        """A user's bucket: the same in every process, and independent of how users are split into arms."""
        digest = hashlib.blake2b(user_id.encode(), digest_size=8, person=b"gate-bucket").digest()
        return int.from_bytes(digest, "little") % self.buckets

    def shown(self, arm: str, bucket: int, decisions: int = 1) -> None:
        """`decisions` more were seen by users of this bucket. One that nobody saw does not count."""
        self._decisions[self._row_of(arm), bucket] += decisions

    def rewarded(self, arm: str, bucket: int, reward: float) -> None:
        """Reward of a shown decision, as it becomes known; a correction or a return is the change, and may be negative.

        Raises ValueError where it is not finite.
        """
        if not np.isfinite(reward):
            raise ValueError(f"a reward of the arm {arm!r} is {reward}")
        self._rewards[self._row_of(arm), bucket] += reward

    def add(self, arm: str, buckets: I64, decisions: F64, rewards: F64) -> None:
        """Many at once: arrays of one length N; a bucket may come more than once."""
        if not np.isfinite(rewards).all():
            raise ValueError(f"a reward of the arm {arm!r} is not finite")
        row = self._row_of(arm)
        self._decisions[row] += np.bincount(buckets, decisions, self.buckets)
        self._rewards[row] += np.bincount(buckets, rewards, self.buckets)

    def value(self, arm: str) -> Value:
        """The ratio Σ reward / Σ decisions over buckets and its delta-method variance:

            V = G / (G - 1) · Σ_g (r_g - m n_g)² / (Σ n)²          (Deng, Knoblich and Lu 2018, arXiv 1803.06336)

        over the G buckets that hold a decision. Nothing shown: a mean of 0 with an infinite variance.
        """
        row = self._row_of(arm)
        n, r = self._decisions[row], self._rewards[row]
        total, held = float(n.sum()), int(np.count_nonzero(n))
        if total <= 0 or held < 2:
            return Value(float(r.sum() / total) if total > 0 else 0.0, float("inf"), total, 0.0)
        mean = float(r.sum() / total)
        squares = np.square(r - mean * n)
        spread = float(squares.sum())
        shares = squares / squares.max() if spread > 0 else squares  # of rewards of any size: their squares may be tiny
        clusters = float(shares.sum() ** 2 / np.square(shares).sum()) if spread > 0 else 0.0
        return Value(mean, held / (held - 1) * spread / total**2, total, clusters)

    def arrays(self) -> Arrays:
        """Everything, as copies: `decisions` and `rewards` (A, G), and the arms' names."""
        names = np.frombuffer("\n".join(self.arms).encode(), np.uint8).copy()
        return {"arms": names, "decisions": self._decisions.copy(), "rewards": self._rewards.copy()}

    def restore(self, arrays: Arrays) -> None:
        """Becomes what `arrays` saw. Raises ValueError, and is unchanged, where arms or buckets are others."""
        missing = {"arms", "decisions", "rewards"} - set(arrays)
        if missing:
            raise ValueError(f"the ledger lacks {min(missing)!r}")
        arms = tuple(np.asarray(arrays["arms"], np.uint8).tobytes().decode(errors="replace").split("\n"))
        if arms != self.arms:
            raise ValueError(f"the ledger is of the arms {', '.join(arms)}, this one of {', '.join(self.arms)}")
        for name in ("decisions", "rewards"):
            if arrays[name].shape != self._decisions.shape or not np.isfinite(arrays[name]).all():
                raise ValueError(f"the ledger's {name} have another shape or are not finite: start a new ledger")
        self._decisions = np.array(arrays["decisions"], np.float64)
        self._rewards = np.array(arrays["rewards"], np.float64)

    def _row_of(self, arm: str) -> int:
        if arm not in self._row:
            raise ValueError(f"the ledger does not know the arm {arm!r}: it holds {', '.join(self.arms)}")
        return self._row[arm]
