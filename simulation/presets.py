"""Four worlds to learn in, each also a configuration of the running system: `NAME.toml` beside this file.

make_env("news", action="slate", k=8)             a Gymnasium environment
headrace train --preset news                      learns a policy in it
headrace demo --preset news                       the whole system, with a shop of that kind
headrace run --config FILE                        FILE is a copy of NAME.toml
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.policy.base import F32, I64
from headrace.policy.features import unit
from headrace.simulation.environment import RecommenderEnv, RecommenderVectorEnv
from headrace.simulation.laws import Laws
from headrace.simulation.settings import WorldSettings
from headrace.streams.errors import SettingsError


@dataclass(frozen=True)
class Preset:
    """One kind of shop. `click` and `conversion` are the event types that the laws' two events stand for."""

    name: str
    laws: Laws
    items: int
    users: int
    zipf: float  # popularity of the r-th item is r^−zipf
    k: int  # positions of a slate
    horizon: int  # slates in a visit, at most
    step_s: float  # seconds from one slate to the next
    click: str
    conversion: str
    click_reward: float
    conversion_reward: float
    world: WorldSettings  # of the demo

    @property
    def config(self) -> str:
        """The settings of headrace for this kind of shop, as TOML."""
        return files("headrace.simulation").joinpath(f"{self.name}.toml").read_text(encoding="utf-8")


PRESETS: dict[str, Preset] = {
    "ecommerce": Preset(
        name="ecommerce",
        laws=Laws(
            bias=-4.2, position_bias=0.5, popular=2.0, quality=0.5, boredom=0.3, conversion=0.05, delay=3.0,
            drift=0.02, churn=0.05, organic=0.4,
        ),
        items=1_000, users=2_000, zipf=0.8, k=10, horizon=40, step_s=6 * 3_600.0,
        click="click", conversion="purchase", click_reward=1.0, conversion_reward=5.0,
        world=WorldSettings(),
    ),
    "social": Preset(
        name="social",
        laws=Laws(
            bias=-3.8, position_bias=0.3, popular=1.5, quality=0.5, evolution=0.08, boredom=0.8, rest=0.9,
            conversion=0.1,
            churn=0.15, fading=0.02, trend=0.5, organic=0.1,
        ),
        items=1_500, users=2_000, zipf=1.0, k=8, horizon=60, step_s=1_800.0,
        click="like", conversion="share", click_reward=1.0, conversion_reward=1.0,
        world=WorldSettings(
            arriving=2_000, arrivals_per_day=250.0, stockouts_per_day=0.0, trend=0.4, trend_days=1.0,
            drift_per_day=0.06, tiring=0.3, clicked=1.5, pages=6.0, page_gap_s=120.0, search=0.05,
            cart=0.05, organic_purchase=0.0, click_to_cart=0.1, click_to_purchase=0.0,
            events=(("click", "like"), ("add_to_cart", "share")),
        ),
    ),
    "video": Preset(
        name="video",
        laws=Laws(
            bias=-3.8, position_bias=0.7, popular=2.0, quality=0.5, evolution=0.04, boredom=0.6, rest=0.85,
            conversion=0.4,
            churn=0.1, drift=0.01, organic=0.2,
        ),
        items=1_200, users=2_000, zipf=0.9, k=6, horizon=50, step_s=3_600.0,
        click="click", conversion="watched", click_reward=0.2, conversion_reward=1.0,
        world=WorldSettings(
            items=3_000, stockouts_per_day=0.0, pages=5.0, page_gap_s=600.0, search=0.15, cart=0.1,
            organic_purchase=0.2, click_to_cart=0.1, click_to_purchase=0.4, purchase_hours=0.4, purchase_sigma=0.5,
            returned=0.0, anonymous_purchases=0.1,
            events=(("add_to_cart", "like"), ("purchase", "watched")),
        ),
    ),
    "news": Preset(
        name="news",
        laws=Laws(
            bias=-3.8, position_bias=0.6, popular=2.0, quality=0.5, boredom=0.5, conversion=0.3, churn=0.2, fading=0.08,
            drift=0.05,
            trend=0.8, trend_steps=20.0, organic=0.2, browsed=3,
        ),
        items=800, users=2_000, zipf=1.2, k=8, horizon=25, step_s=900.0,
        click="click", conversion="read", click_reward=0.5, conversion_reward=1.0,
        world=WorldSettings(
            items=2_000, arriving=3_000, arrivals_per_day=400.0, stockouts_per_day=0.0, trend=0.6, trend_days=0.5,
            drift_per_day=0.05, quality=0.4, clicked=4.0, pages=3.0, page_gap_s=90.0, search=0.05, cart=0.02,
            organic_purchase=0.3, click_to_cart=0.05, click_to_purchase=0.3, purchase_hours=0.05, purchase_sigma=0.5,
            returned=0.0, anonymous_purchases=0.0,
            events=(("add_to_cart", "share"), ("purchase", "read")),
        ),
    ),
}  # fmt: skip


def preset(name: str) -> Preset:
    """Raises SettingsError for an unknown name."""
    if name not in PRESETS:
        raise SettingsError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def item_table(preset: Preset, *, dim: int = 32, seed: int = 0) -> dict[str, Any]:
    """A made-up catalogue of the preset's shape, as `item_data`: (I, dim) around the centres of 40 categories."""
    random = np.random.default_rng([seed, 1])
    category = random.integers(40, size=preset.items)
    centres = unit(random.standard_normal((40, dim)).astype(np.float32))
    vectors = centres[category] + 0.8 * unit(random.standard_normal((preset.items, dim)).astype(np.float32))
    return {
        "vector": unit(vectors),
        "category": category,
        "price": np.exp(random.normal(3.4, 0.8, preset.items)),
        **popularity(preset, preset.items, random),
    }


def popularity(preset: Preset, n: int, random: np.random.Generator) -> dict[str, Any]:
    """The columns popularity and quality (n,): Zipf by rank, and what is good is popular rather than not."""
    quality = random.standard_normal(n)
    rank = np.argsort(np.argsort(-(quality + random.standard_normal(n))))
    count = 1_000 * (1.0 + rank) ** -preset.zipf
    return {"popularity": np.log1p(count) / np.log1p(1_000), "quality": quality}


def user_table(vectors: F32, category: I64, users: int, *, seed: int = 0) -> dict[str, Any]:
    """Made-up users for a catalogue, as `user_data`: each has two to four favourite categories, some come often."""
    random = np.random.default_rng([seed, 2])
    kinds = np.unique(category)
    mean = vectors.mean(axis=0)
    centres = unit(np.stack([vectors[category == kind].mean(axis=0) for kind in kinds]) - mean)
    weights = np.zeros((users, len(kinds)))
    for user in range(users):
        chosen = random.choice(len(kinds), size=min(int(random.integers(2, 5)), len(kinds)), replace=False)
        weights[user, chosen] = random.uniform(0.6, 1.0, len(chosen))
    noise = 0.3 * unit(random.standard_normal((users, vectors.shape[1])).astype(np.float32))
    return {
        "taste": unit((weights @ centres).astype(np.float32) + noise),
        "activity": random.lognormal(0, 0.8, users),
    }


def arguments(preset: Preset, *, dim: int = 32, seed: int = 0, items: dict[str, Any] | None = None) -> dict[str, Any]:
    """What RecommenderEnv and RecommenderVectorEnv are made of. `items`: a catalogue in place of the made-up one."""
    table = item_table(preset, dim=dim, seed=seed) if items is None else items
    vectors: NDArray[np.float32] = np.asarray(table["vector"], np.float32)
    return {
        "user_data": user_table(vectors, np.asarray(table["category"]), preset.users, seed=seed),
        "item_data": table,
        "num_items": len(vectors),
        "laws": preset.laws,
        "horizon": preset.horizon,
        "click_reward": preset.click_reward,
        "conversion_reward": preset.conversion_reward,
    }


def make_env(name: str, *, dim: int = 32, data_seed: int = 0, **options: Any) -> RecommenderEnv:
    """A preset's environment with a made-up catalogue; `options` are RecommenderEnv's and win over the preset's."""
    made = preset(name)
    return RecommenderEnv(**{"k": made.k, **arguments(made, dim=dim, seed=data_seed), **options})


def make_vector_env(
    name: str, *, num_envs: int, dim: int = 32, data_seed: int = 0, **options: Any
) -> RecommenderVectorEnv:
    """Many visits at once: see make_env."""
    made = preset(name)
    chosen = {"k": made.k, **arguments(made, dim=dim, seed=data_seed), **options}
    return RecommenderVectorEnv(num_envs=num_envs, **chosen)


def small(world: WorldSettings, *, items: int = 400, users: int = 250) -> WorldSettings:
    """The same kind of world with fewer items, an eighth more to come, and fewer users."""
    share = items / world.items
    return replace(
        world,
        items=items,
        users=users,
        arriving=items // 8,
        arrivals_per_day=world.arrivals_per_day * share,
        stockouts_per_day=world.stockouts_per_day * share,
    )
