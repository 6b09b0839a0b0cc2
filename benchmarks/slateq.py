"""Long-term value: SlateQ's setting as published, and reinforcement learners against the bandits here.

    python benchmarks/slateq.py [--seeds 10] [--world interest|shop]      prints JSON and keeps it

World 1 is RecSim's interest evolution (Ie et al. 2019, section 6): slates of 3 of 10 documents, a session ends with the
user's budget. What is earned is minutes watched a session. World 2 is the shop of `headrace train`. Every policy learns
from slates of its own, from equally many of them, with floor 0.1, and is then judged on other users with floor 0.01.
Seeds are paired: one seed is the same users, documents and luck for all. One thread, said before numpy is loaded.
"""
# ruff: noqa: E402

from __future__ import annotations

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headrace.policy.base import Examples, Policy, Query, Slates, Steps
from headrace.policy.registry import make
from headrace.policy.rl.slateq import SlateQ
from headrace.simulation import presets, training
from headrace.simulation.interest_evolution import InterestEvolution, InterestSettings

RESULT = Path(__file__).parent / "results" / "slateq.json"
PUBLISHED = {"myopic": 4.46, "slateq, as published": 9.67}  # percent over random
BANDITS = ("epsilon_greedy", "squarecb", "linucb", "lints", "neural_linear")
SESSIONS, STEPS, JUDGED = 64, 300, 200  # sessions at once, steps of each while learning, sessions judged
SHOP, EPISODES, SHOP_JUDGED, CANDIDATES = "social", 400, 300, 40
LEARNING_FLOOR, JUDGED_FLOOR = 0.1, 0.01
TOPICS, SLATE, LENGTH = InterestSettings.topics, InterestSettings.slate, InterestSettings.length
# Alike for all learners; none was tuned against another.
_RL = {"rl_replay": 20_000, "rl_priority": 0.0}
_STEPWISE = {**_RL, "rl_horizon_s": 1.0, "rl_slate": SLATE}
_PATIENT = {**_STEPWISE, "rl_discount": 0.98}
_EYE = np.eye(TOPICS, dtype=np.float32)
Make = Callable[[float, int], Policy]  # of a floor and a seed


# -- world 1: interest evolution --------------------------------------------------------------------------------------

_SHAPE: dict[str, Any] = {"dim": TOPICS, "scalars": (), "contexts": 1}


def named(name: str, **options: Any) -> Make:
    return lambda floor, seed: make(name, floor=floor, seed=seed, **_SHAPE, **options)


def published(floor: float, seed: int) -> Policy:
    """Q(s, ⊥) taken for 0, slates optimised: QL-OT-OS of the paper, but for the target, which is in-sample here."""
    return SlateQ(null_value=False, floor=floor, seed=seed, **_SHAPE, **_PATIENT)


INTEREST: dict[str, Make] = {
    "random": named("random"),
    **{name: named(name) for name in BANDITS},
    "myopic": named("slateq", **_STEPWISE, rl_discount=0.0),
    "slateq, as published": published,
    "slateq": named("slateq", **_PATIENT),
    "dqn": named("dqn", **_PATIENT),
}


@dataclass
class Shown:
    """Slates of one step, and what became of them."""

    query: Query
    slates: Slates
    items: Any
    rewards: Any  # (U, k)
    ended: Any


def query_of(world: InterestEvolution, random: np.random.Generator) -> Query:
    """What the paper's agents see: interests and topics. Qualities and budgets are hidden."""
    users, n = world.topics.shape
    strength = np.linalg.norm(world.interests, axis=1, keepdims=True) / np.sqrt(TOPICS)
    return Query(
        states=world.interests.astype(np.float32),
        contexts=strength.astype(np.float32),  # a policy sees states at length 1
        keys=world.topics.astype(np.uint64),
        items=_EYE[world.topics],
        scalars=np.zeros((users, n, 0), np.float32),
        mask=np.ones((users, n), np.bool_),
        streams=random.integers(0, 2**63, users, dtype=np.uint64),
    )


def learn_interests(policy: Policy, seed: int, steps: int) -> None:
    world = InterestEvolution(SESSIONS, seed=seed, restart=True)
    random = np.random.Generator(np.random.Philox(key=(seed, 1)))
    before: Shown | None = None
    for _ in range(steps):
        query = query_of(world, random)
        slates = policy.decide(query, SLATE)
        items = np.take_along_axis(query.items, slates.index[:, :, None], axis=1)
        if policy.follows and before is not None:
            policy.follow(step_of(before, query, items))
        position, watched, ended = world.step(slates.index)
        rewards = np.zeros(slates.index.shape)
        took = np.flatnonzero(position >= 0)
        rewards[took, position[took]] = watched[took] / LENGTH
        before = Shown(query, slates, items, rewards, ended)
        if policy.learns:
            policy.learn(examples_of(before))


def step_of(before: Shown, query: Query, items: Any) -> Steps:
    size, k = before.rewards.shape
    all_shown, none = np.ones((size, k), np.bool_), np.zeros((size, k, 0), np.float32)
    return Steps(
        states=before.query.states, contexts=before.query.contexts, items=before.items, scalars=none,
        shown=all_shown, rewards=before.rewards, propensities=before.slates.propensities,
        next_states=query.states, next_contexts=query.contexts, next_items=items, next_scalars=none,
        next_shown=all_shown, elapsed_s=np.ones(size), terminal=before.ended, ids=np.arange(size, dtype=np.uint64),
    )  # fmt: skip


def examples_of(shown: Shown) -> Examples:
    size, k = shown.rewards.shape
    return Examples(
        states=shown.query.states.repeat(k, axis=0), contexts=shown.query.contexts.repeat(k, axis=0),
        items=shown.items.reshape(size * k, -1), scalars=np.zeros((size * k, 0), np.float32),
        propensities=shown.slates.propensities.ravel(), positions=np.tile(np.arange(k), size),
        rewards=shown.rewards.ravel(), fresh=np.ones(size * k, np.bool_), ids=np.arange(size * k, dtype=np.uint64),
    )  # fmt: skip


def judge_interests(policy: Policy, seed: int, users: int) -> float:
    """Minutes watched a session."""
    world = InterestEvolution(users, seed=1_000_000 + seed, restart=False)
    random = np.random.Generator(np.random.Philox(key=(seed, 2)))
    watched = np.zeros(users)
    while not world.over.all():
        watched += world.step(policy.decide(query_of(world, random), SLATE).index)[1]
    return float(watched.mean())


def interest_returns(make_one: Make, seed: int, *, steps: int = STEPS, users: int = JUDGED) -> float:
    policy = make_one(LEARNING_FLOOR, seed)
    if policy.learns or policy.follows:
        learn_interests(policy, seed, steps)
    judged = make_one(JUDGED_FLOOR, seed)
    judged.restore(*policy.snapshot())
    return judge_interests(judged, seed, users)


# -- world 2: the shop ------------------------------------------------------------------------------------------------

_PRESET = presets.preset(SHOP)
_SHOP_RL = {**_RL, "rl_train_every": 4, "rl_slate": _PRESET.k, "rl_discount": 0.9, "rl_horizon_s": _PRESET.step_s}


def shop_named(name: str, **options: Any) -> Make:
    return lambda floor, seed: make(name, dim=32, floor=floor, seed=seed, **options)


IN_SHOP: dict[str, Make] = {
    "random": shop_named("random"),
    **{name: shop_named(name) for name in ("squarecb", "linucb", "lints")},
    "slateq": shop_named("slateq", **_SHOP_RL),
    "dqn": shop_named("dqn", **_SHOP_RL),
}


def shop_returns(make_one: Make, seed: int, *, episodes: int = EPISODES, judged: int = SHOP_JUDGED) -> float:
    """Reward a visit."""
    policy = make_one(LEARNING_FLOOR, seed)
    env = presets.make_vector_env(SHOP, num_envs=SESSIONS, data_seed=seed, candidates=CANDIDATES, action="slate")
    if policy.learns or policy.follows:
        training.train(policy, env, episodes=episodes, seed=seed, step_s=_PRESET.step_s)
    served = make_one(JUDGED_FLOOR, seed)
    served.restore(*policy.snapshot())
    watched = training.train(served, env, episodes=judged, seed=1_000_000 + seed, learn=False)
    return training.mean_of(watched, last=judged)[0]


# -- figures ----------------------------------------------------------------------------------------------------------


def compared(returns: dict[str, list[float]]) -> dict[str, Any]:
    """Means, gains over random, and the best learner over the best bandit; intervals over seeds, paired, 95 %."""
    rows = {name: np.array(values) for name, values in returns.items()}
    best_bandit = max((name for name in BANDITS if name in rows), key=lambda name: rows[name].mean())
    learners = [name for name in ("slateq", "dqn") if name in rows]
    best = max(learners, key=lambda name: rows[name].mean())
    return {
        "returns": {name: values.tolist() for name, values in rows.items()},
        "over_random": {name: gain(values, rows["random"]) for name, values in rows.items() if name != "random"},
        "best_bandit": best_bandit,
        "over_best_bandit": {name: gain(rows[name], rows[best_bandit]) for name in learners},
        "best": best,
    }


def gain(ours: Any, theirs: Any) -> dict[str, float]:
    """Percent by which `ours` earns more, of seeds as pairs: mean and 95 % t-interval."""
    ratio = 100 * (ours / theirs - 1)
    error = ratio.std(ddof=1) / np.sqrt(len(ratio)) if len(ratio) > 1 else 0.0
    return {"mean": float(ratio.mean()), "half_width": float(_T95.get(len(ratio), 1.96) * error)}


_T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


def run(world: str, seeds: int) -> None:
    policies, returns_of = (INTEREST, interest_returns) if world == "interest" else (IN_SHOP, shop_returns)
    returns: dict[str, list[float]] = {name: [] for name in policies}
    started = time.process_time()
    for seed in range(seeds):
        for name, make_one in policies.items():
            returns[name].append(returns_of(make_one, seed))
            print(f"{world} seed {seed} {name}: {returns[name][-1]:.2f}", flush=True)
        keep(world, compared(returns) | {"seeds": seed + 1, "cpu_s": round(time.process_time() - started)})


def keep(world: str, figures: dict[str, Any]) -> None:
    """Writes one world's figures so far; the other's stay."""
    if world == "interest":
        figures |= {"slates_learned_from": SESSIONS * STEPS, "sessions_judged": JUDGED, "published": PUBLISHED}
    else:
        figures |= {"preset": SHOP, "episodes": EPISODES, "visits_judged": SHOP_JUDGED, "candidates": CANDIDATES}
    held = json.loads(RESULT.read_text("utf-8")) if RESULT.exists() else {}
    RESULT.write_text(json.dumps(held | {world: figures}, indent=2) + "\n")


def section(f: dict[str, Any]) -> str:
    """Its part of docs/benchmarks.md."""
    lines = ["## Long-term value: reinforcement learners and bandits\n", _SAID]
    for world, title in (("interest", "Interest evolution, minutes a session"), ("shop", "A shop, reward a visit")):
        if found := f.get(world):
            lines += _table(found, title)
    return "\n".join(lines)


def _table(found: dict[str, Any], title: str) -> list[str]:
    published = found.get("published", {})
    lines = [f"| {title} | mean | over random | published |", "|---|---|---|---|"]
    for name, values in found["returns"].items():
        over = found["over_random"].get(name)
        told = "" if name not in published else f"{published[name]}" if over is None else f"+{published[name]} %"
        lines.append(f"| {name} | {np.mean(values):.2f} | {_percent(over)} | {told} |")
    over = found["over_best_bandit"]
    best = f"**{found['best']} over {found['best_bandit']}, the best bandit: {_percent(over[found['best']])}**"
    size = (
        f"{found['slates_learned_from']:,} slates to learn from, {found['sessions_judged']} sessions to judge"
        if "slates_learned_from" in found
        else f"preset {found['preset']}, {found['episodes']} visits to learn from, {found['visits_judged']} to judge"
    )
    return [*lines, "", f"{best} (to reach: ≥ 10 %). {found['seeds']} seeds, {size}; {found['cpu_s']} s of one core.\n"]


def _percent(found: dict[str, float] | None) -> str:
    return "" if found is None else f"{found['mean']:+.2f} ± {found['half_width']:.2f} %"


_SAID = """\
Percent with 95 % intervals over paired seeds. `myopic` is SlateQ with γ = 0. `slateq, as published` takes the value of
choosing nothing for 0, as RecSim's agent does; `slateq` learns it. Published: Ie et al. 2019, MYOP and QL-OT-OS;
choices are in proportion to 1 + interest, as in the public RecSim (`benchmarks/slateq.py`).
"""


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--seeds", type=int, default=10)
    asked.add_argument("--world", choices=("interest", "shop", "both"), default="both")
    asked = asked.parse_args()
    worlds = ("interest", "shop") if asked.world == "both" else (asked.world,)
    for world in worlds:
        run(world, asked.seeds)
    print(RESULT.read_text("utf-8"))


if __name__ == "__main__":
    main()
