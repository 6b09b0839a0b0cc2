"""`headrace train`: a policy learns in the Gymnasium world, an episode a user's visit; or from a shop's own log.

    Episode 1: Reward 12.00, Steps 31

The policies are those that serve, deciding on what they would see there. What is written, a folder with the policy, its
learning curve and every episode, is what `policy.start` names.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from headrace.policy.base import F32, F64, I64, Bool, Examples, Policy, Query, Slates, Steps
from headrace.simulation.environment import RecommenderVectorEnv
from headrace.simulation.visitors import After

AT_ONCE = 32  # visits; a batch is learned after each step of all of them


@dataclass(frozen=True)
class Episode:
    """One visit: its number from 1 in the order the visits ended, what it earned, how many slates it had."""

    number: int
    reward: float
    steps: int

    def __str__(self) -> str:
        return f"Episode {self.number}: Reward {self.reward:.2f}, Steps {self.steps}"


@dataclass
class Trained:
    """What training led to. `steps` slates were shown in all, those of unfinished visits too."""

    episodes: list[Episode] = field(default_factory=list)
    steps: int = 0

    @property
    def rewards(self) -> F64:
        return np.array([episode.reward for episode in self.episodes])


def train(
    policy: Policy,
    env: RecommenderVectorEnv,
    *,
    episodes: int,
    seed: int = 0,
    step_s: float = 3_600.0,
    learn: bool = True,
    ended: Callable[[Episode], None] = lambda episode: None,
) -> Trained:
    """Lets `policy` decide and learn until `episodes` visits have ended; `ended` is called with each.

    A click teaches at once, a conversion as a correction when it comes. `step_s`: seconds between two slates of a user,
    for policies that discount by time. Without `learn` it is only watched. Same seed, same bits.
    """
    visitors, size, k = env.visitors, env.num_envs, env.k
    trained, earned, steps = Trained(), np.zeros(size), np.zeros(size, np.int64)
    lessons = _Lessons(click=visitors.click_reward, conversion=visitors.conversion_reward, step_s=step_s)
    env.reset(seed=seed)
    while len(trained.episodes) < episodes:
        query, (rows, _) = visitors.query(), visitors.offered()
        slates = policy.decide(query, k)
        chosen = np.take_along_axis(rows, np.maximum(slates.index, 0), axis=1)
        shown = np.where(slates.index >= 0, chosen, visitors.items.none)
        _, rewards, terminated, truncated, infos = env.show(shown)
        earned += rewards
        steps += 1
        trained.steps += size
        if learn:
            lessons.teach(policy, query, slates, infos["after"])
        for row in np.flatnonzero(terminated | truncated):
            if len(trained.episodes) < episodes:
                episode = Episode(len(trained.episodes) + 1, float(earned[row]), int(steps[row]))
                trained.episodes.append(episode)
                ended(episode)
            earned[row], steps[row] = 0, 0
    return trained


class _Lessons:
    """What each step teaches: its slates at once, conversions when they come, and what followed the slate before."""

    def __init__(self, *, click: float, conversion: float, step_s: float) -> None:
        self._click, self._conversion, self._step_s = click, conversion, step_s
        self._now, self._first_id = 0, 0
        self._coming: dict[int, list[Examples]] = {}  # corrections by the step they are known at
        self._before: _Shown | None = None

    def teach(self, policy: Policy, query: Query, slates: Slates, after: After) -> None:
        shown = slates.index >= 0
        at_once = after.converted & (after.due == 0)
        rewards = self._click * after.clicks + self._conversion * at_once
        items, scalars = _picked(query.items, slates.index), _picked(query.scalars, slates.index)
        row, position = np.nonzero(shown)
        examples = Examples(
            states=query.states[row],
            contexts=query.contexts[row],
            items=items[row, position],
            scalars=scalars[row, position],
            propensities=slates.propensities[row, position],
            positions=position,
            rewards=rewards[row, position],
            fresh=np.ones(len(row), np.bool_),
            ids=np.arange(self._first_id, self._first_id + len(row), dtype=np.uint64),
        )
        self._first_id += len(row)
        policy.learn(examples)
        due = after.due[row, position]
        for wait in np.unique(due[due > 0]):
            late = _late(examples, due == wait, self._conversion)
            self._coming.setdefault(self._now + int(wait), []).append(late)
        for correction in self._coming.pop(self._now, []):
            policy.learn(correction)
        if policy.follows:  # a step is told when its rewards are known: those still to come too
            whole = self._click * after.clicks + self._conversion * after.converted
            now = _Shown(query, slates, items, scalars, shown, whole, after.terminated | after.truncated)
            if self._before is not None:
                policy.follow(_steps(self._before, now, self._step_s, first_id=self._first_id))
            self._before = now
        self._now += 1


@dataclass(frozen=True)
class _Shown:
    query: Query
    slates: Slates
    items: F32
    scalars: F32
    shown: Bool
    rewards: F64
    ended: Bool


def _steps(a: _Shown, b: _Shown, step_s: float, *, first_id: int) -> Steps:
    size = len(a.ended)
    return Steps(
        states=a.query.states,
        contexts=a.query.contexts,
        items=a.items,
        scalars=a.scalars,
        shown=a.shown,
        rewards=a.rewards,
        propensities=a.slates.propensities,
        next_states=b.query.states,
        next_contexts=b.query.contexts,
        next_items=b.items,
        next_scalars=b.scalars,
        next_shown=b.shown,
        elapsed_s=np.full(size, step_s),
        terminal=a.ended,
        ids=np.arange(first_id, first_id + size, dtype=np.uint64),
    )


def _picked(columns: F32, index: I64) -> F32:
    """(B, k, f) of the candidates chosen, of (B, n, f)."""
    picked: F32 = columns[np.arange(len(index))[:, None], np.maximum(index, 0)]
    return picked


def _late(examples: Examples, which: Bool, reward: float) -> Examples:
    """The same examples, known to have earned `reward` more."""
    rows = {name: column[which] for name, column in vars(examples).items() if column is not None}
    n = int(which.sum())
    return Examples(**{**rows, "rewards": np.full(n, reward), "fresh": np.zeros(n, np.bool_)})


# -- what is left of it -----------------------------------------------------------------------------------------------


def files_of(trained: Trained, *, title: str) -> dict[str, bytes]:
    """`curve.png` and `episodes.jsonl`, for the policy's folder."""
    lines = [json.dumps({"episode": e.number, "reward": e.reward, "steps": e.steps}) for e in trained.episodes]
    return {"curve.png": _curve(trained.rewards, title), "episodes.jsonl": ("\n".join(lines) + "\n").encode()}


def rolling(rewards: F64) -> F64:
    """The mean of each episode and those before it, up to a twentieth of all (at least 10)."""
    window = max(10, len(rewards) // 20)
    sums = np.cumsum(np.concatenate([[0.0], rewards]))
    first = np.maximum(np.arange(1, len(rewards) + 1) - window, 0)
    means: F64 = (sums[1:] - sums[first]) / (np.arange(1, len(rewards) + 1) - first)
    return means


def _curve(rewards: F64, title: str) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    episodes = np.arange(1, len(rewards) + 1)
    axes.plot(episodes, rewards, ".", color="#0072b2", alpha=0.2, markersize=4, markeredgewidth=0)
    axes.plot(episodes, rolling(rewards), color="#0072b2", linewidth=2)
    axes.set_xlabel("episode")
    axes.set_ylabel("reward")
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120, metadata={"Software": None})
    return out.getvalue()


def folder_of(base: Path, world: str, policy: str) -> Path:
    """Where a trained policy goes unless --out says otherwise."""
    return base / "trained" / f"{world}-{policy}"


def mean_of(trained: Trained, *, last: int) -> tuple[float, float]:
    """Mean reward of the last episodes and its standard error."""
    rewards = trained.rewards[-last:]
    return float(rewards.mean()), float(rewards.std(ddof=1) / len(rewards) ** 0.5) if len(rewards) > 1 else 0.0
