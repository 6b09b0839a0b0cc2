"""`headrace train`, from its arguments to the folder that `policy.start` names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from headrace.policy.names import LEARNED, POLICIES
from headrace.simulation import fitting, presets, training, warm_start
from headrace.simulation.catalogue import make as make_catalogue
from headrace.simulation.environment import RecommenderVectorEnv
from headrace.simulation.loop import Models, text_vectors
from headrace.simulation.settings import WorldSettings
from headrace.streams import start
from headrace.streams.context import ContextEncoder
from headrace.streams.errors import SettingsError
from headrace.streams.load import read_events, read_items
from headrace.streams.settings import Settings
from headrace.streams.versions import make_policy

_RANDOM = 100  # episodes of random slates, to stand beside what was learned
_FITTED_STEP_S = 3_600.0  # fitting.py measures delays in steps of an hour


def run_train(
    settings: Settings,
    *,
    episodes: int,
    preset: str = "ecommerce",
    policy: str | None = None,
    out: Path | None = None,
    log: Path | None = None,
    items: Path | None = None,
    mapping: Path | None = None,
    seed: int = 0,
) -> Path:
    """Trains `policy` (default: the settings' own) for `episodes` visits; returns the folder it wrote.

    In the preset's world with a catalogue like the demo's; or, with `log` and `items`, in a world fitted to them, from
    a policy that was warm-started on the log. With a log `episodes` may be 0. Raises SettingsError in one line.
    """
    name = policy or settings.policy.name
    if name not in LEARNED:
        raise SettingsError(_not_trained_here(name))
    if episodes < (0 if log else 1):
        raise SettingsError(f"--episodes {episodes}: give at least {0 if log else 1}")
    if (log is None) != (items is None):
        raise SettingsError("--log and --items belong together: the events, and the catalogue they are about")
    kind = presets.preset(preset)
    models = Models(settings)
    learner = make_policy(settings, name, dim=models.users.dim)
    if not (episodes or learner.learns):
        raise SettingsError(
            f"--policy {name} learns from what follows a slate, which a log does not tell: give --episodes, or choose"
            " a policy that learns from clicks (docs/policies.md)"
        )
    parts: start.Parts = {}
    arguments: dict[str, Any] = {}
    step_s = kind.step_s
    if log is None or items is None:
        world, arguments = kind.name, presets.arguments(kind, seed=seed, items=_catalogue(settings, kind, models))
    else:
        world, step_s = log.stem, _FITTED_STEP_S
        catalogue = read_items(settings, items, mapping)
        warmed = warm_start.warm(settings, learner, catalogue, read_events(settings, log, mapping), models=models)
        print(warmed, flush=True)
        parts = warmed.behaviour
        if episodes:
            try:
                fitted = fitting.fit(settings, catalogue, read_events(settings, log, mapping), models=models)
            except ValueError as reason:
                raise SettingsError(f"--log {log}: {reason}; or stay at the warm start: --episodes 0") from None
            print(fitted, flush=True)
            arguments = {**fitted.arguments, "horizon": kind.horizon}
    made: dict[str, Any] = {"world": world, "episodes": episodes, "seed": seed, "policy": name}
    made["encoder"] = models.users.version
    besides: dict[str, bytes] = {}
    if episodes:
        env = _environment(settings, arguments)
        with _telling(episodes) as ended:
            trained = training.train(learner, env, episodes=episodes, seed=seed, step_s=step_s, ended=ended)
        last = max(1, min(_RANDOM, episodes // 2))
        mean, error = training.mean_of(trained, last=last)
        chance = training.train(
            make_policy(settings, "random", dim=models.users.dim), env, episodes=_RANDOM, seed=seed, learn=False
        )
        by_chance, _ = training.mean_of(chance, last=_RANDOM)
        print(f"the last {last} episodes earned {mean:.2f} ± {1.96 * error:.2f}; random slates earn {by_chance:.2f}")
        made |= {"reward": mean, "random": by_chance, "steps": trained.steps}
        besides = training.files_of(trained, title=f"{name} in the world of {world}")
    folder = out or training.folder_of(settings.data_dir, world, name)
    start.write(folder, learner, behaviour=parts, made=made, besides=besides)
    print(f"written to {folder}; to serve it: [policy] name = {name!r}, start = {str(folder)!r}".replace("'", '"'))
    return folder


def _environment(settings: Settings, arguments: dict[str, Any]) -> RecommenderVectorEnv:
    context = ContextEncoder(settings).encode([({}, "default")])[0]
    try:
        return RecommenderVectorEnv(
            num_envs=training.AT_ONCE, action="slate", k=settings.placements["default"].k,
            candidates=min(settings.worker.candidates, arguments["num_items"]), context=context.tolist(), **arguments,
        )  # fmt: skip
    except ValueError as error:
        raise SettingsError(f"the world cannot be made: {error}") from None


def _not_trained_here(name: str) -> str:
    if name not in POLICIES:
        return f"--policy {name}: unknown; choose one of {', '.join(LEARNED)}"
    return f"--policy {name}: it learns nothing here; choose one of {', '.join(LEARNED)} (an actor: docs/training.md)"


def _catalogue(settings: Settings, kind: presets.Preset, models: Models) -> dict[str, Any]:
    """Items with titles like the demo's, in the space of the user encoder: what is learned fits what is served."""
    catalogue = make_catalogue(WorldSettings(items=kind.items, arriving=0))
    vectors = models.users.project(text_vectors(settings, catalogue).astype(np.float32))
    random = np.random.default_rng([kind.items, 3])
    return {
        "vector": vectors,
        "item_id": catalogue.ids,
        "category": catalogue.category,
        "price": catalogue.price,
        **presets.popularity(kind, kind.items, random),
    }


@contextmanager
def _telling(episodes: int) -> Iterator[Callable[[training.Episode], None]]:
    """A line an episode; on a terminal with a bar and the time left below them."""
    if not sys.stdout.isatty():
        yield lambda episode: print(episode, flush=True)
        return
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console()) as bar:
        task = bar.add_task("training", total=episodes)

        def ended(episode: training.Episode) -> None:
            bar.console.print(str(episode), highlight=False)
            bar.advance(task)

        yield ended
