"""The latest steps, drawn by priority, and chained where one follows another.

Prioritised replay: Schaul et al. 2016 (arXiv 1511.05952), proportional variant. Features are kept as float16: a replay
travels in the snapshot, which makes a restart exact.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.policy.base import F32, F64, I64, U64, Arrays, Steps

FEATURES = ("states", "contexts", "items", "scalars", "next_states", "next_contexts", "next_items", "next_scalars")
_NUMBERS = ("rewards", "propensities", "elapsed_s")
_FLAGS = ("shown", "next_shown", "terminal")
_OWN, _NEXT = ("items", "scalars", "shown", "rewards", "propensities"), ("next_items", "next_scalars", "next_shown")
_BY_POSITION = _OWN + _NEXT
_BETA = 0.4  # how far importance weights undo the priorities: Schaul et al., section 3.4
_UNKNOWN, _NEVER = -1, -2  # in place of a follower's number
_SMALLEST_REMAINDER = 0.01  # of 1 less a discount
_LEAST = 1e-3  # a step without error is still drawn now and then


class Replay:
    """A ring of `capacity` steps. Step number i, counted from the first, lies in slot i modulo capacity.

    A chain is found by content: a step whose state, context and slate are what an earlier one names as its next.
    """

    def __init__(self, capacity: int, *, priority: float) -> None:
        """`priority` is the exponent of |error|: 0 draws all steps alike."""
        self.capacity, self.exponent = capacity, priority
        self.added = 0
        self._ring: dict[str, NDArray[Any]] = {}
        self._priorities: F64 = np.zeros(0)
        self._followers: I64 = np.zeros(0, np.int64)  # the number of the step that followed
        self._owners: U64 = np.zeros(0, np.uint64)  # 0: nobody's
        self._blank = np.zeros(0, np.bool_)  # slots whose step was forgotten
        self._waiting: dict[bytes, int] = {}  # digest of a next decision → number of the step that awaits it
        self._awaits: dict[int, bytes] = {}

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    @property
    def there(self) -> int:
        """Steps held that were not forgotten."""
        return len(self) - int(np.count_nonzero(self._blank))

    def add(self, steps: Steps) -> None:
        """What is padding, or comes after a terminal step, must be 0 already."""
        n = len(steps.terminal)
        if not n:
            return
        self._make_room(steps)
        largest = self._priorities[: len(self)].max(initial=1.0)
        for i in range(n):
            number = self.added + i
            slot = number % self.capacity
            if (old := self._awaits.pop(number - self.capacity, None)) is not None:
                del self._waiting[old]
            for name, ring in self._ring.items():
                row = getattr(steps, name)[i]
                ring[slot] = 0
                if name in _BY_POSITION:
                    ring[slot, : len(row)] = row
                else:
                    ring[slot] = row
            self._priorities[slot], self._followers[slot] = largest, _UNKNOWN
            self._owners[slot], self._blank[slot] = 0 if steps.owners is None else steps.owners[i], False
            self._link(number, slot)
        self.added += n

    def _link(self, number: int, slot: int) -> None:
        before = self._waiting.pop(self._digest(slot, ""), None)
        if before is not None:
            del self._awaits[before]
            self._followers[before % self.capacity] = number
        if not self._ring["terminal"][slot]:
            self._await(number, slot)

    def _await(self, number: int, slot: int) -> None:
        awaited = self._digest(slot, "next_")
        if (other := self._waiting.get(awaited)) is not None:  # two that cannot be told apart: the later one waits on
            del self._awaits[other]
            self._followers[other % self.capacity] = _NEVER
        self._waiting[awaited], self._awaits[number] = number, awaited

    def _digest(self, slot: int, prefix: str) -> bytes:
        shown = self._ring[f"{prefix}shown"][slot]
        digest = hashlib.blake2b(digest_size=16)
        for name in ("states", "contexts"):
            digest.update(self._ring[prefix + name][slot].tobytes())
        for name in ("items", "scalars"):
            digest.update(self._ring[prefix + name][slot][shown].tobytes())
        return digest.digest()

    def _make_room(self, steps: Steps) -> None:
        """Allocates the ring, and widens it where a slate is longer than any before."""
        for name in FEATURES + _NUMBERS + _FLAGS:
            like = getattr(steps, name)
            dtype = np.float16 if name in FEATURES else np.float32 if name in _NUMBERS else np.bool_
            held = self._ring.get(name)
            shape = (self.capacity, *like.shape[1:])
            if held is None:
                self._ring[name] = np.zeros(shape, dtype)
            elif name in _BY_POSITION and shape[1] > held.shape[1]:
                wider = np.zeros(shape, dtype)
                wider[:, : held.shape[1]] = held
                self._ring[name] = wider
        if not len(self._priorities):
            self._priorities = np.zeros(self.capacity)
            self._followers = np.full(self.capacity, _UNKNOWN)
            self._owners = np.zeros(self.capacity, np.uint64)
            self._blank = np.zeros(self.capacity, np.bool_)

    def forget(self, owners: U64) -> None:
        """Blanks the steps of these owners: they are never drawn, and no chain leads to them."""
        gone = (self._owners != 0) & np.isin(self._owners, owners)
        for number in [number for number in self._awaits if gone[number % self.capacity]]:
            del self._waiting[self._awaits.pop(number)]
        for ring in (*self._ring.values(), self._priorities, self._owners):
            ring[gone] = 0
        self._followers[gone] = _NEVER
        self._blank |= gone

    # -- draw ---------------------------------------------------------------------------------------------------------

    def draw(self, size: int, random: np.random.Generator) -> tuple[I64, F32]:
        """`size` slots, with repeats, and their importance weights (size,), at most 1."""
        held = len(self)
        if not self.exponent:
            there = np.flatnonzero(~self._blank[:held])
            return there[random.integers(len(there), size=size)], np.ones(size, np.float32)
        cumulative = (self._priorities[:held] ** self.exponent).cumsum()
        slots = np.searchsorted(cumulative, random.random(size) * cumulative[-1], side="right").clip(max=held - 1)
        chance = self._priorities[slots] ** self.exponent / cumulative[-1]
        weights = (held * chance) ** -_BETA
        return slots, (weights / weights.max()).astype(np.float32)

    def reprioritise(self, slots: I64, errors: F32) -> None:
        self._priorities[slots] = np.abs(errors) + _LEAST

    def rows(self, slots: I64) -> dict[str, NDArray[Any]]:
        """The columns of those steps; features as float32."""
        taken = {name: ring[slots] for name, ring in self._ring.items()}
        return {name: rows.astype(np.float32) if name in FEATURES else rows for name, rows in taken.items()}

    def chained(self, slots: I64, n: int, *, gamma_s: float, mean: bool) -> tuple[F64, F64, I64]:
        """What n steps bring: discounted slate rewards after the first (B,), the discount to what comes then (B,), and
        the slots of the last step of each (B,).

        `gamma_s` is the discount of a second; a slate's reward is its positions' sum, or their `mean`. Chains end
        early where a step is terminal, forgotten or not yet there.
        """
        ring, last = self._ring, slots.copy()
        later, discount = np.zeros(len(slots)), gamma_s ** ring["elapsed_s"][slots].astype(np.float64)
        alive = np.ones(len(slots), np.bool_)
        for _ in range(n - 1):
            follower = self._followers[last]
            alive &= follower >= max(0, self.added - self.capacity)
            if not alive.any():
                break
            step = follower % self.capacity
            reward = ring["rewards"][step].sum(axis=1, dtype=np.float64)
            if mean:
                reward /= np.maximum(ring["shown"][step].sum(axis=1), 1)
            later += np.where(alive, discount * reward, 0.0)
            discount = np.where(alive, discount * gamma_s ** ring["elapsed_s"][step].astype(np.float64), discount)
            last = np.where(alive, step, last)
        discount[ring["terminal"][last]] = 0.0
        return later, discount, last

    def size_of_return(self, gamma_s: float) -> float:
        """The mean of |a slate's reward|, over 1 less the mean discount to the next."""
        held = len(self)
        there = ~self._blank[:held]
        reward = np.abs(self._ring["rewards"][:held][there].sum(axis=1, dtype=np.float64)).mean()
        discounts = gamma_s ** self._ring["elapsed_s"][:held].astype(np.float64) * ~self._ring["terminal"][:held]
        discounts = discounts[there]
        return float(reward / max(_SMALLEST_REMAINDER, 1 - discounts.mean()))

    # -- snapshot -----------------------------------------------------------------------------------------------------

    def arrays(self) -> Arrays:
        """Slots as they lie, copies."""
        held = len(self)
        if not held:
            return {}
        arrays: Arrays = {name: ring[:held].copy() for name, ring in self._ring.items()}
        return arrays | {
            "priorities": self._priorities[:held].copy(),
            "followers": self._followers[:held].copy(),
            "owners": self._owners[:held].copy(),
            "blank": self._blank[:held].copy(),
        }

    def restore(self, arrays: Arrays, added: int) -> None:
        """Raises ValueError where the arrays are not those of `added` steps."""
        held = min(added, self.capacity)
        self.__init__(self.capacity, priority=self.exponent)  # type: ignore[misc]
        if not held:
            return
        for name in FEATURES + _NUMBERS + _FLAGS + ("priorities", "followers"):
            if name not in arrays or len(arrays[name]) != held:
                raise ValueError(f"the snapshot's replay lacks {name} of {held} steps")
            whole = np.zeros((self.capacity, *arrays[name].shape[1:]), arrays[name].dtype)
            whole[:held] = arrays[name]
            if name == "priorities":
                self._priorities = whole
            elif name == "followers":
                self._followers = whole
            else:
                self._ring[name] = whole
        self._owners, self._blank = np.zeros(self.capacity, np.uint64), np.zeros(self.capacity, np.bool_)
        if len(arrays.get("owners", ())) == len(arrays.get("blank", ())) == held:  # else: of the release before
            self._owners[:held], self._blank[:held] = arrays["owners"], arrays["blank"]
        self.added = added
        for number in range(added - held, added):
            slot = number % self.capacity
            if self._followers[slot] == _UNKNOWN and not self._ring["terminal"][slot]:
                self._await(number, slot)
