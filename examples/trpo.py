"""An agent of another library learns in headrace's world, and headrace serves what it learned.

    pip install sb3-contrib
    python examples/trpo.py [--steps 60000] [--out trained/trpo]

TRPO (Schulman et al. 2015, arXiv 1502.05477) sees what is known of the user and says what to prefer; the environment
shows the items that score most. The folder it writes is served by policy.name = "actor" and policy.start = FOLDER.
"""

import argparse

from sb3_contrib import TRPO
from stable_baselines3.common.env_util import make_vec_env

from headrace.policy.registry import make
from headrace.simulation.agents import actor_from_sb3
from headrace.simulation.presets import make_env, make_vector_env
from headrace.simulation.training import mean_of, train
from headrace.streams import start


def main(steps: int, out: str, episodes: int) -> dict[str, float]:
    world = {"name": "ecommerce", "dim": 64, "candidates": 120, "context": [1.0]}  # as wide as what the default serves
    env = make_vec_env(lambda: make_env(action="preference", **world), n_envs=8, seed=0)
    model = TRPO("MlpPolicy", env, n_steps=128, batch_size=256, learning_rate=1e-3, seed=0, device="cpu")
    model.learn(total_timesteps=steps)

    actor = actor_from_sb3(model, contexts=1, temperature=0.3, floor=0.05)
    start.write(out, actor, made={"agent": "TRPO", "steps": steps})

    earned = {}
    for policy in (make("random", dim=64, contexts=1), make("popular", dim=64, contexts=1, floor=0.05), actor):
        visits = make_vector_env(action="slate", num_envs=32, **world)
        earned[policy.name], error = mean_of(
            train(policy, visits, episodes=episodes, seed=1, learn=False), last=episodes
        )
        print(f"{policy.name:8} earns {earned[policy.name]:6.2f} ± {1.96 * error:.2f} a visit")
    print(f'written to {out}; to serve it: [policy] name = "actor", start = "{out}"')
    return earned


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--out", default="trained/trpo")
    parser.add_argument("--episodes", type=int, default=400, help="visits each policy is measured over")
    given = parser.parse_args()
    main(given.steps, given.out, given.episodes)
