"""`RecommenderEnv`: the world as a Gymnasium environment, one user's visit an episode; and many visits at once.

    env = RecommenderEnv(user_data, item_data, num_items=1_000)                 arrays, tables or files: see tables.py
    env = make_env("news", action="slate")                                      a preset: see presets.py
    observation, info = env.reset(seed=1)
    observation, reward, terminated, truncated, info = env.step(action)

Actions                 what they are                                                           observation
    "item"              Discrete(n): the one item that is shown                                 see below
    "slate"             MultiDiscrete([n] · k): an item a position; a repeat stays empty         see below
    "preference"        Box(d + m): what to prefer; the k candidates that score most are shown   Box(d + c)

n is the number of candidates drawn anew each step, and the observation then a Dict of `state` (d + c,), `candidates`
(n, d), `scalars` (n, m) and `mask` (n,), as the running system has them. Without `candidates` n is `num_items`, an
action names an item for good, and the observation is the state alone. A preference is what policy/actor.py serves.

`info`: `shown` and `clicks` by position (−1 and 0 where nothing stood), `user`. Seeds are exact: the same seed and
actions give the same episode, alone or beside others (visit i of a vector seeded with s is that of an environment
seeded with s + i).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, SupportsFloat

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from headrace.policy.base import F32, F64, I64
from headrace.policy.features import SCALARS
from headrace.policy.slates import uniforms
from headrace.simulation.laws import Laws
from headrace.simulation.tables import Data, read_items, read_users
from headrace.simulation.visitors import Visitors

Action = Literal["item", "slate", "preference"]
Observation = Any  # Box: (d + c,) float32; Dict: see above
Info = dict[str, Any]


class _World:
    """What the one and the many have in common: visitors, spaces, and what an action shows."""

    def __init__(
        self,
        user_data: Data,
        item_data: Data,
        num_items: int,
        *,
        size: int,
        action: Action,
        k: int,
        candidates: int | None,
        laws: Laws,
        horizon: int,
        click_reward: float,
        conversion_reward: float,
        context: Sequence[float],
    ) -> None:
        if action not in ("item", "slate", "preference"):
            raise ValueError(f"action is {action!r}: choose item, slate or preference")
        if action == "item":
            k = 1
        users, items = read_users(user_data), read_items(item_data, num_items)
        if users.tastes.shape[1] != items.vectors.shape[1]:
            raise ValueError(
                f"tastes have {users.tastes.shape[1]} dimensions and items {items.vectors.shape[1]}: they must agree"
            )
        if candidates is not None and not k <= candidates <= num_items:
            raise ValueError(f"candidates is {candidates}: choose {k} (a slate) to {num_items} (num_items)")
        if not 1 <= k <= num_items or horizon < 1:
            raise ValueError(f"k is {k} and horizon {horizon}: choose 1 to {num_items}, and at least 1")
        given = np.array(context, np.float32)
        if given.ndim != 1 or not (np.abs(given) <= 1).all():
            raise ValueError("context must be a list of numbers from -1 to 1")
        self.visitors = Visitors(
            users, items, laws=laws, size=size, horizon=horizon, candidates=candidates,
            click_reward=click_reward, conversion_reward=conversion_reward, context=given,
        )  # fmt: skip
        self.k, self.action = k, action
        self.dim, n = items.vectors.shape[1], candidates or num_items
        state = _box(self.dim + len(given))
        self.with_candidates = candidates is not None and action != "preference"
        self.observation_space: spaces.Space[Any] = state
        if self.with_candidates:
            self.observation_space = spaces.Dict(
                {
                    "state": state,
                    "candidates": _box(n, self.dim),
                    "scalars": _box(n, len(SCALARS)),
                    "mask": spaces.MultiBinary(n),
                }
            )
        self.action_space: spaces.Space[Any] = _box(self.dim + len(SCALARS))
        if action == "item":
            self.action_space = spaces.Discrete(n)
        elif action == "slate":
            self.action_space = spaces.MultiDiscrete(np.full(k, n))

    def observe(self) -> Observation:
        """Of all visits, the first axis theirs."""
        visitors = self.visitors
        context = np.broadcast_to(visitors.context, (visitors.size, len(visitors.context)))
        if not self.with_candidates:
            return np.concatenate([visitors.states(), context], axis=1)
        query = visitors.query()
        return {
            "state": np.concatenate([query.states, context], axis=1),
            "candidates": query.items,
            "scalars": query.scalars,
            "mask": query.mask.astype(np.int8),
        }

    def shown(self, actions: Any) -> I64:
        """The slates (B, k) by row of the catalogue; a place that is not there stays empty."""
        rows, there = self.visitors.offered()
        if self.action == "preference":
            query = self.visitors.query()
            scores = rank(np.asarray(actions, np.float32), query.items, query.scalars)
            places = np.argsort(-np.where(there, scores, -np.inf), axis=1, kind="stable")[:, : self.k]
        else:
            places = np.asarray(actions, np.int64).reshape(self.visitors.size, self.k)
        everyone = np.arange(self.visitors.size)[:, None]
        return np.where(there[everyone, places], rows[everyone, places], self.visitors.items.none)


def rank(preferences: F32, items: F32, scalars: F32) -> F32:
    """Scores (B, n): preferences (B, d + m) · [items (B, n, d) | scalars (B, n, m)]."""
    return np.asarray(np.einsum("bf,bnf->bn", preferences, np.concatenate([items, scalars], axis=2)), np.float32)


def _box(*shape: int) -> spaces.Box:
    return spaces.Box(-1.0, 1.0, shape, np.float32)


class RecommenderEnv(gymnasium.Env[Observation, Any]):
    """One visit at a time."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        user_data: Data,
        item_data: Data,
        num_items: int,
        *,
        action: Action = "item",
        k: int = 10,
        candidates: int | None = None,
        laws: Laws | None = None,
        horizon: int = 50,
        click_reward: float = 1.0,
        conversion_reward: float = 0.0,
        context: Sequence[float] = (),
    ) -> None:
        """`user_data` (U, d) and `item_data` (≥ num_items, d) are arrays, tables or files: see tables.py.

        `k` positions of a slate, `candidates` n items drawn a step (None: all), `horizon` steps at most, `context` (c,)
        of every observation. Raises ValueError where shapes disagree or a value is out of range.
        """
        self._world = _World(
            user_data, item_data, num_items, size=1, action=action, k=k, candidates=candidates,
            laws=laws or Laws(), horizon=horizon, click_reward=click_reward, conversion_reward=conversion_reward,
            context=context,
        )  # fmt: skip
        self.observation_space, self.action_space = self._world.observation_space, self._world.action_space
        self._base, self._episode = np.uint64(0), 0
        self._seeded = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Info]:
        super().reset(seed=seed)
        if seed is not None or not self._seeded:
            self._base, self._episode, self._seeded = _base(self.np_random), 0, True
        visitors = self._world.visitors
        visitors.begin(np.zeros(1, np.int64), uniform_streams(np.array([self._base]), np.array([self._episode])))
        self._episode += 1
        return self._first(), {"user": int(visitors.user[0])}

    def step(self, action: Any) -> tuple[Observation, SupportsFloat, bool, bool, Info]:
        shown = self._world.shown(np.asarray(action)[None])
        after = self._world.visitors.step(shown)
        info = {
            "user": int(self._world.visitors.user[0]),
            "shown": np.where(shown[0] == self._world.visitors.items.none, -1, shown[0]),
            "clicks": after.clicks[0].astype(np.int8),
        }
        return self._first(), float(after.rewards[0]), bool(after.terminated[0]), bool(after.truncated[0]), info

    def _first(self) -> Observation:
        return _of(self._world.observe(), 0)


class RecommenderVectorEnv(VectorEnv[Observation, Any, Any]):
    """Many visits at once, in arrays. One that ends begins anew in the same step: `infos["final_obs"]` has its last."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        user_data: Data,
        item_data: Data,
        num_items: int,
        *,
        num_envs: int,
        action: Action = "item",
        k: int = 10,
        candidates: int | None = None,
        laws: Laws | None = None,
        horizon: int = 50,
        click_reward: float = 1.0,
        conversion_reward: float = 0.0,
        context: Sequence[float] = (),
    ) -> None:
        """As RecommenderEnv, `num_envs` times."""
        self._world = _World(
            user_data, item_data, num_items, size=num_envs, action=action, k=k, candidates=candidates,
            laws=laws or Laws(), horizon=horizon, click_reward=click_reward, conversion_reward=conversion_reward,
            context=context,
        )  # fmt: skip
        self.num_envs = num_envs
        self.single_observation_space = self._world.observation_space
        self.single_action_space = self._world.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._bases = np.zeros(num_envs, np.uint64)
        self._episodes = np.zeros(num_envs, np.int64)
        self._seeded = False

    @property
    def visitors(self) -> Visitors:
        """The users behind it, for policies that decide on a `Query`: see training.py."""
        return self._world.visitors

    @property
    def k(self) -> int:
        """Positions of a slate."""
        return self._world.k

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        if seeds is not None or not self._seeded:
            each = [None] * self.num_envs if seeds is None else list(seeds)
            self._bases = np.array([_base(np_random(s)[0]) for s in each], np.uint64)
            self._episodes[:], self._seeded = 0, True
        self._begin(np.arange(self.num_envs))
        return self._world.observe(), {"user": self.visitors.user.copy()}

    def _begin(self, rows: I64) -> None:
        self.visitors.begin(rows, uniform_streams(self._bases[rows], self._episodes[rows]))
        self._episodes[rows] += 1

    def step(self, actions: Any) -> tuple[Observation, F64, Any, Any, Info]:
        return self.show(self._world.shown(actions))

    def show(self, shown: I64) -> tuple[Observation, F64, Any, Any, Info]:
        """A step whose slates (B, k) are given by row of the catalogue, `items.none` for nothing."""
        visitors = self.visitors
        users = visitors.user.copy()
        after = visitors.step(shown)
        infos: Info = {
            "user": users,
            "shown": np.where(shown == visitors.items.none, -1, shown),
            "clicks": after.clicks.astype(np.int8),
            "after": after,
        }
        ended = after.terminated | after.truncated
        if ended.any():
            last = self._world.observe()
            final = np.full(self.num_envs, None, object)
            for row in np.flatnonzero(ended):
                final[row] = _of(last, int(row))
            infos |= {"final_obs": final, "_final_obs": ended}
            self._begin(np.flatnonzero(ended))
        return self._world.observe(), after.rewards, after.terminated, after.truncated, infos


def uniform_streams(bases: Any, episodes: Any) -> Any:
    """The random stream of a visit (B,): a function of its environment's seed and its number there."""
    return (uniforms(bases, episodes) * 2.0**53).astype(np.uint64)


def _base(random: np.random.Generator) -> np.uint64:
    return np.uint64(random.integers(2**63))


def _of(observation: Observation, row: int) -> Observation:
    if isinstance(observation, dict):
        return {name: array[row] for name, array in observation.items()}
    return observation[row]
