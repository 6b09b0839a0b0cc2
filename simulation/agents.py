"""Agents of other libraries, trained in RecommenderEnv with action="preference", as policies that headrace serves."""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.policy.actor import Actor
from headrace.policy.features import SCALARS

_CLOSE = 1e-5  # float32 of another library: sums in another order
_SAMPLES = 256


def actor_from_sb3(model: Any, *, contexts: int = 0, temperature: float = 0.1, floor: float = 0.1) -> Actor:
    """The policy that a stable-baselines3 or sb3-contrib model (TRPO, PPO, A2C) learned, as arrays.

    `contexts` c of the environment's observations; `temperature` of the softmax that serves: the smaller, the closer to
    always showing what scores most. What the model would do is compared on 256 random observations before it is handed
    over. Raises ValueError where the network is no plain MLP, or the two differ by more than 1e-5.
    """
    policy = model.policy
    if not hasattr(policy, "mlp_extractor") or not hasattr(policy, "action_net") or policy.squash_output:
        raise ValueError('this model has no plain actor: train TRPO, PPO or A2C with "MlpPolicy"')
    layers, activations = [], set()
    for module in (*policy.mlp_extractor.policy_net, policy.action_net):
        if hasattr(module, "weight"):
            weights = module.weight.detach().cpu().numpy().T
            layers.append((np.array(weights, np.float32), np.array(module.bias.detach().cpu().numpy(), np.float32)))
        else:
            activations.add(type(module).__name__.lower())
    if len(activations) > 1:
        raise ValueError(f"the network mixes activations ({', '.join(sorted(activations))}): use one")
    space = model.action_space
    width = len(SCALARS)
    if getattr(space, "shape", None) is None or space.shape[0] <= width or not np.all(space.high == space.high[0]):
        raise ValueError('the actions are no preferences: make the environment with action="preference"')
    actor = Actor(dim=space.shape[0] - width, contexts=contexts, floor=floor)
    actor.load(
        layers,
        activation=activations.pop() if activations else "tanh",
        clip=float(space.high[0]),
        temperature=temperature,
    )
    _check_parity(model, actor)
    return actor


def _check_parity(model: Any, actor: Actor) -> None:
    random = np.random.default_rng(0)
    observations = random.uniform(-1, 1, (_SAMPLES, actor.dim + actor.contexts)).astype(np.float32)
    expected, _ = model.predict(observations, deterministic=True)
    got = actor.preferences(observations[:, : actor.dim], observations[:, actor.dim :])
    apart = float(np.abs(got - expected).max())
    if not apart <= _CLOSE:
        raise ValueError(f"the exported network is not the model: preferences differ by {apart:.2g}")
