"""Every learner of `bandit_peers.py` behind one face: `act` on some rounds, then `learn` what was earned.

Peers are imported when they are made, so that one that is not installed costs only its own rows. Each `GRIDS` entry
holds as many configurations as every other: what is tuned is what its own documentation says to tune.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import product
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from uci import F64, Rounds

from headrace.policy import registry
from headrace.policy.base import Examples, Query

I64 = NDArray[np.int64]
Config = dict[str, Any]


class Learner(Protocol):
    def act(self, at: slice) -> I64:
        """The actions chosen for these rounds (B,)."""
        ...

    def learn(self, at: slice, actions: I64, rewards: F64) -> None:
        """`rewards` (B,), 0 or 1, are those of the actions that `act` chose for the same rounds."""
        ...


class Headrace:
    """A policy through its own interface: a slate of one from K candidates."""

    def __init__(self, rounds: Rounds, seed: int, *, policy: str, **options: Any) -> None:
        self._rounds = rounds
        self._outer = rounds.features is None  # one-hot items: an action's weights are those of context × item
        self._contexts = rounds.contexts if self._outer else rounds.contexts[:, :0]
        self._policy = registry.make(
            policy,
            dim=rounds.items.shape[1],
            scalars=rounds.scalar_names,
            contexts=self._contexts.shape[1],
            seed=seed,
            outer=self._outer,
            **options,
        )
        random = np.random.default_rng(seed)
        self._streams = random.integers(0, 2**63, len(rounds), dtype=np.uint64)

    def act(self, at: slice) -> I64:
        rounds, size = self._rounds, len(self._rounds.states[at])
        actions = len(rounds.items)
        slates = self._policy.decide(
            Query(
                states=rounds.states[at],
                contexts=self._contexts[at],
                keys=np.broadcast_to(np.arange(1, actions + 1, dtype=np.uint64), (size, actions)),
                items=np.broadcast_to(rounds.items, (size, *rounds.items.shape)),
                scalars=rounds.scalars[at],
                mask=np.ones((size, actions), np.bool_),
                streams=self._streams[at],
            ),
            1,
        )
        self._propensities = slates.propensities[:, 0]
        return slates.index[:, 0]

    def learn(self, at: slice, actions: I64, rewards: F64) -> None:
        rounds = self._rounds
        size = len(actions)
        self._policy.learn(
            Examples(
                states=rounds.states[at],
                contexts=self._contexts[at],
                items=rounds.items[actions],
                scalars=rounds.scalars[at][np.arange(size), actions],
                propensities=self._propensities,
                positions=np.zeros(size, np.int64),
                rewards=rewards,
                fresh=np.ones(size, np.bool_),
                ids=np.arange(at.start, at.start + size, dtype=np.uint64),
            )
        )


class VowpalWabbit:
    """`cb_explore_adf`; an action is drawn from the probabilities it predicts.

    `zero_cost` is the cost of what earned nothing, 1 less that of what earned 1: with 0 an action that was never tried
    looks bad, with 1 good (Bietti et al. 2021, arXiv 1802.04064, section 3.1).
    """

    def __init__(self, rounds: Rounds, seed: int, *, explore: str, zero_cost: float, rate: float) -> None:
        import vowpalwabbit

        crossed = "-q sa" if rounds.features is None else ""
        self._rounds, self._random, self._zero_cost = rounds, np.random.default_rng(seed), zero_cost
        if "regcb" in explore:
            explore += f" --cb_min_cost {zero_cost - 1} --cb_max_cost {zero_cost}"
        self._workspace = vowpalwabbit.Workspace(
            f"--cb_explore_adf {explore} -l {rate} {crossed} --random_seed {seed + 1} --quiet"
        )

    def act(self, at: slice) -> I64:
        actions, self._propensities = [], []
        for shared, lines in self._rounds.texts[at]:
            p = np.array(self._workspace.predict(lines if shared is None else [shared, *lines]))
            p /= p.sum()
            action = min(int(np.searchsorted(p.cumsum(), self._random.random(), side="right")), len(p) - 1)
            actions.append(action)
            self._propensities.append(max(float(p[action]), 1e-6))
        return np.array(actions)

    def learn(self, at: slice, actions: I64, rewards: F64) -> None:
        told = zip(self._rounds.texts[at], actions.tolist(), rewards.tolist(), self._propensities, strict=True)
        for (shared, lines), action, reward, p in told:
            lines = [*lines]
            lines[action] = f"0:{self._zero_cost - reward}:{p} {lines[action]}"
            self._workspace.learn(lines if shared is None else [shared, *lines])


class River:
    """LinUCBDisjoint; `noise` is its β, `alpha` its α: a ridge of α / β."""

    def __init__(self, rounds: Rounds, seed: int, *, ridge: float, noise: float) -> None:
        from river import bandit

        self._policy = bandit.LinUCBDisjoint(alpha=ridge * noise, beta=noise, seed=seed)
        self._actions = range(len(rounds.items))
        self._contexts = [dict(enumerate(row.tolist())) for row in _with_one(rounds)]

    def act(self, at: slice) -> I64:
        return np.array([self._policy.pull(self._actions, context=context) for context in self._contexts[at]])

    def learn(self, at: slice, actions: I64, rewards: F64) -> None:
        for action, context, reward in zip(actions.tolist(), self._contexts[at], rewards.tolist(), strict=True):
            self._policy.update(action, context, reward)


class MabWiser:
    """A linear policy; its first batch is drawn evenly, as it cannot decide before it has learned."""

    def __init__(self, rounds: Rounds, seed: int, *, policy: str, alpha: float, ridge: float) -> None:
        from mabwiser.mab import MAB, LearningPolicy

        learning = getattr(LearningPolicy, policy)(alpha=alpha, l2_lambda=ridge)
        self._mab = MAB(arms=list(range(len(rounds.items))), learning_policy=learning, seed=seed)
        self._contexts, self._random = _with_one(rounds), np.random.default_rng(seed)
        self._actions, self._fitted = len(rounds.items), False

    def act(self, at: slice) -> I64:
        contexts = self._contexts[at]
        if not self._fitted:
            return self._random.integers(self._actions, size=len(contexts))
        return np.atleast_1d(np.array(self._mab.predict(contexts)))

    def learn(self, at: slice, actions: I64, rewards: F64) -> None:
        teach = self._mab.partial_fit if self._fitted else self._mab.fit
        teach(actions, rewards, self._contexts[at])
        self._fitted = True


class ContextualBandits:
    """An online policy in batches; the first batch is drawn evenly."""

    def __init__(self, rounds: Rounds, seed: int, *, policy: str, base: str, penalty: float, **options: Any) -> None:
        from contextualbandits import linreg, online
        from sklearn.linear_model import SGDClassifier

        if base == "sgd":
            options["base_algorithm"] = SGDClassifier(loss="log_loss", alpha=penalty, random_state=seed)
        elif base == "ridge":
            options["base_algorithm"] = linreg.LinearRegression(lambda_=penalty)
        else:
            options["lambda_"] = penalty
        if base != "own":
            options["batch_train"] = True
        jobs = "njobs_arms" if policy.startswith("Bootstrapped") else "njobs"
        options[jobs] = 1
        self._policy = getattr(online, policy)(nchoices=len(rounds.items), random_state=max(seed, 1), **options)
        self._contexts, self._random = rounds.contexts.astype(np.float64), np.random.default_rng(seed)
        self._actions, self._fitted = len(rounds.items), False

    def act(self, at: slice) -> I64:
        contexts = self._contexts[at]
        if not self._fitted:
            return self._random.integers(self._actions, size=len(contexts))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(self._policy.predict(contexts)).astype(np.int64)

    def learn(self, at: slice, actions: I64, rewards: F64) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._policy.partial_fit(self._contexts[at], actions, rewards)
        self._fitted = True


def _with_one(rounds: Rounds) -> F64:
    """Contexts and a constant, for who has no intercept of its own (T, c + 1)."""
    return np.hstack([rounds.contexts, np.ones((len(rounds), 1), np.float32)]).astype(np.float64)


def _grid(**values: tuple[Any, ...]) -> list[Config]:
    return [dict(zip(values, config, strict=True)) for config in product(*values.values())]


_COSTS = {"zero_cost": (0.0, 1.0), "rate": (0.1, 0.5, 2.0)}
_RIDGES = (0.1, 1.0)
_VW = {
    "squarecb": "--squarecb --gamma_scale 100",
    "regcb": "--regcb --mellowness 0.001",
    "bag": "--bag 5 --greedify",
    "cover": "--cover 4 --psi 0.01 --nounif",
    "epsilon-greedy": "--epsilon 0.02",
}

_FLOOR = (0.002,)

GRIDS: dict[str, tuple[Callable[..., Learner], list[Config]]] = {
    "headrace lints optimistic": (
        Headrace,
        _grid(policy=("lints",), floor=_FLOOR, optimistic=(True,), alpha=(0.1, 0.15), ridge=(0.1, 0.2, 0.4)),
    ),
    "headrace lints": (Headrace, _grid(policy=("lints",), floor=_FLOOR, alpha=(0.1, 0.15), ridge=(0.1, 0.2, 0.4))),
    "headrace linucb": (Headrace, _grid(policy=("linucb",), floor=_FLOOR, alpha=(0.1, 0.3, 0.5), ridge=_RIDGES)),
    "headrace squarecb": (
        Headrace,
        _grid(policy=("squarecb",), floor=_FLOOR, gamma_scale=(10.0, 30.0, 100.0), ridge=_RIDGES),
    ),
    **{f"vw {name}": (VowpalWabbit, _grid(explore=(how,), **_COSTS)) for name, how in _VW.items()},
    "river LinUCBDisjoint": (River, _grid(ridge=(0.1, 0.3), noise=(10.0, 30.0, 100.0))),
    "mabwiser LinUCB": (MabWiser, _grid(policy=("LinUCB",), alpha=(0.1, 0.3, 1.0), ridge=_RIDGES)),
    "mabwiser LinTS": (MabWiser, _grid(policy=("LinTS",), alpha=(0.03, 0.1, 0.3), ridge=_RIDGES)),
    "contextualbandits LinUCB": (
        ContextualBandits,
        _grid(policy=("LinUCB",), base=("own",), alpha=(0.1, 0.3, 1.0), penalty=_RIDGES),
    ),
    "contextualbandits AdaptiveGreedy": (
        ContextualBandits,
        _grid(
            policy=("AdaptiveGreedy",),
            base=("ridge",),
            beta_prior=(None,),
            smoothing=((1.0, 2.0),),
            percentile=(10, 30, 50),
            penalty=_RIDGES,
        ),
    ),
    "contextualbandits SoftmaxExplorer": (
        ContextualBandits,
        _grid(policy=("SoftmaxExplorer",), base=("sgd",), multiplier=(1.0, 3.0, 10.0), penalty=(1e-4, 1e-3)),
    ),
}
