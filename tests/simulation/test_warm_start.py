"""A shop's own log: a policy warm-started on it, and a world fitted to it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from headrace.policy import checks
from headrace.simulation import commands, fitting, presets, training
from headrace.simulation.environment import RecommenderEnv
from headrace.simulation.loop import Loop, Models, as_event, text_vectors
from headrace.simulation.settings import DAY_MS, WorldSettings
from headrace.simulation.warm_start import warm
from headrace.simulation.world import Interaction, World
from headrace.streams import start
from headrace.streams.errors import SettingsError
from headrace.streams.load import read_events, read_items
from headrace.streams.messages import ShopItem
from headrace.streams.records import Event
from headrace.streams.settings import Settings
from headrace.streams.versions import make_policy

BEGIN = 1_700_000_000_000
EVENTS = 700
SETTINGS = Settings(
    policy={"name": "linucb", "alpha": 0.2, "floor": 0.05},
    arms={"shares": {"policy": 0.5, "popular": 0.5}},
    gate={"guard": False},
    worker={"max_trigger_age": "6h"},
)


def shop() -> World:
    return World(presets.small(WorldSettings(), items=200, users=60), start_ms=BEGIN)


def organic(world: World) -> list[Interaction]:
    """A week in which nobody is shown a slate."""
    log: list[Interaction] = []
    while len(log) < EVENTS:
        ts = BEGIN + len(log) * 7 * DAY_MS // EVENTS
        world.advance(ts)
        log += [*world.due(ts), *world.visit(ts).events]
    return log[:EVENTS]


def catalogue() -> list[ShopItem]:
    world = shop()
    return [msgspec.convert(world.catalogue.message(int(i)), ShopItem) for i in np.flatnonzero(world.live)]


@pytest.fixture(scope="module")
def models() -> Models:
    return Models(SETTINGS)


@pytest.fixture(scope="module")
def log() -> list[Interaction]:
    return organic(shop())


def test_on_day_one_it_earns_more_than_bestsellers(models: Models, log: list[Interaction], tmp_path: Path) -> None:
    learner = make_policy(SETTINGS, "linucb", dim=models.users.dim)
    warmed = warm(SETTINGS, learner, catalogue(), [as_event(event) for event in log], models=models)
    assert warmed.events == EVENTS and warmed.lessons > 100
    again = make_policy(SETTINGS, "linucb", dim=models.users.dim)
    warm(SETTINGS, again, catalogue(), [as_event(event) for event in log], models=models)
    assert checks.bits(again) == checks.bits(learner)

    folder = start.write(tmp_path / "warm", learner, behaviour=warmed.behaviour)
    policy = SETTINGS.policy.model_copy(update={"start": str(folder)})
    world = shop()
    organic(world)
    worth: dict[str, list[float]] = {"policy": [], "popular": []}

    class Watched(Loop):
        def _show(self, user: int, slate: Any, ts: int) -> list[Interaction]:
            items = [self.world.index[item.item_id] for item in slate.items]
            worth[slate.policy.arm].append(self.world.expected(user, items, ts))
            return super()._show(user, slate, ts)

    loop = Watched(
        SETTINGS.model_copy(update={"policy": policy}), world, text_vectors(SETTINGS, world.catalogue), models=models
    )
    loop.replay(log)
    assert loop.policies.serving("policy", "u0001").name == "linucb"
    loop.run(events=500, start_ms=BEGIN + 7 * DAY_MS, span_ms=DAY_MS)
    assert min(map(len, worth.values())) > 20
    # Three times as much in benchmarks/warm_start.py.
    assert np.mean(worth["policy"]) > 1.2 * np.mean(worth["popular"])


def test_the_command_takes_a_log(log: list[Interaction], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [msgspec.json.encode(event) for event in log]
    (tmp_path / "events.jsonl").write_bytes(b"\n".join([*lines, lines[3], b"{not json"]))
    (tmp_path / "items.jsonl").write_bytes(b"\n".join(msgspec.json.encode(item) for item in catalogue()))
    settings = SETTINGS.model_copy(update={"data_dir": tmp_path / "data"})
    folder = commands.run_train(
        settings, episodes=6, log=tmp_path / "events.jsonl", items=tmp_path / "items.jsonl", seed=1
    )
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("warm start: 700 events of the log")
    assert "logits a standard deviation" in said[1] and said[2].startswith("Episode 1: Reward ")
    read = start.read(folder)
    assert folder.name == "events-linucb" and {"popularity/0", "linucb"} <= set(read.parts)
    assert int(read.parts["linucb"][1]["learned"]) > 500
    assert json.loads((folder / "manifest.json").read_text())["made"]["world"] == "events"
    assert len(read_items(settings, tmp_path / "items.jsonl")) == len(catalogue())
    events = list(read_events(settings, tmp_path / "events.jsonl"))
    assert len(events) == EVENTS and all(a.ts <= b.ts for a, b in itertools.pairwise(events))


def test_the_fitted_world_knows_its_users_and_can_be_learned_in(models: Models, log: list[Interaction]) -> None:
    fitted = fitting.fit(SETTINGS, catalogue(), [as_event(event) for event in log], models=models)
    table, users = fitted.arguments["item_data"], fitted.arguments["user_data"]
    counts = {name: 0 for name in table["item_id"]}
    for event in log:
        counts[event.item_id or ""] = counts.get(event.item_id or "", 0) + (event.type != "return")
    seen = np.array([counts[name] for name in table["item_id"]])
    assert np.corrcoef(seen, table["popularity"])[0, 1] > 0.8
    laws = fitted.arguments["laws"]
    assert laws.taste > 0.5  # what comes next is like what came before
    assert len(users["taste"]) == len(users["activity"]) > 20
    env = RecommenderEnv(**fitted.arguments, action="slate", k=5, candidates=40)
    check_env(env, skip_render_check=True)
    env.reset(seed=0)
    env.action_space.seed(0)
    clicks = np.mean([env.step(env.action_space.sample())[4]["clicks"].mean() for _ in range(40)])
    assert 0.002 < clicks < 0.2
    assert training.folder_of(Path("x"), "a", "b") == Path("x/trained/a-b")


def test_positions_clicks_and_conversions_come_from_the_log(models: Models) -> None:
    """A made-up log with known laws: η = 1, and every tenth click bought five hours later."""
    items = catalogue()[:12]
    events: list[Event] = []
    ts, number = BEGIN, 0

    def happens(kind: str, **fields: Any) -> None:
        nonlocal number
        number += 1
        events.append(Event(f"e{number}", f"u{number % 7}", kind, ts, 0, **fields))

    for page in range(240):
        ts += 60_000
        happens("impression", recommendation_id=f"r{page}", shown=[item.item_id for item in items[:4]])
        for position in range(4):
            if page % (4 * (1 + position)) == 0:  # a quarter at the top, then an eighth, a twelfth, …
                happens("click", item_id=items[position].item_id, position=position)
    clicks = [event for event in events if event.type == "click"]
    assert len(clicks) < 200
    few = fitting.fit(SETTINGS, items, events, models=models).arguments["laws"]
    assert few.position_bias == fitting.ASSUMED_POSITIONS
    many = sorted(
        [*events, *(msgspec.structs.replace(e, event_id=e.event_id + "b") for e in events)], key=lambda e: e.ts
    )
    bought = [
        msgspec.structs.replace(e, event_id=e.event_id + "p", type="purchase", ts=e.ts + 5 * 3_600_000)
        for e in clicks[:20]
    ]
    laws = fitting.fit(SETTINGS, items, [*many, *bought], models=models).arguments["laws"]
    assert laws.position_bias == pytest.approx(1.0, abs=0.01)
    assert laws.conversion == pytest.approx(20 / (2 * len(clicks)), rel=0.3) and laws.delay >= 0
    # σ(bias) is what an item nobody has a feeling for gets at the top; positions below get η's share of it.
    top = laws.ceiling / (1 + np.exp(-(laws.bias + laws.taste**2 / 2 + laws.popular * 0.3)))
    shares = np.mean([(1 + j) ** -laws.position_bias for j in range(4)])
    assert top * shares == pytest.approx(len(clicks) / (4 * 240), rel=0.01)
    elsewhere = [msgspec.structs.replace(e, position=40) if e.type == "click" else e for e in many]
    assert fitting.fit(SETTINGS, items, elsewhere, models=models).arguments["laws"].position_bias == few.position_bias


def test_a_log_that_a_world_cannot_be_fitted_to_is_still_a_warm_start(models: Models, tmp_path: Path) -> None:
    lone = [
        {"event_id": f"e{n}", "user_id": f"u{n}", "type": "view", "ts": BEGIN, "item_id": catalogue()[0].item_id}
        for n in range(3)
    ]
    (tmp_path / "events.jsonl").write_bytes(b"\n".join(msgspec.json.encode(event) for event in lone))
    (tmp_path / "items.jsonl").write_bytes(b"\n".join(msgspec.json.encode(item) for item in catalogue()))
    settings = SETTINGS.model_copy(update={"data_dir": tmp_path / "data"})
    files = {"log": tmp_path / "events.jsonl", "items": tmp_path / "items.jsonl"}
    with pytest.raises(SettingsError, match=r"no user with two items.*--episodes 0"):
        commands.run_train(settings, episodes=1, **files)
    assert start.read(commands.run_train(settings, episodes=0, **files)).policy == "linucb"


def test_a_log_of_other_items_is_refused(models: Models) -> None:
    strangers = [Event(f"e{n}", "u1", "view", BEGIN + n, 0, item_id=f"other-{n}") for n in range(5)]
    with pytest.raises(ValueError, match="no user with two items of this catalogue"):
        fitting.fit(SETTINGS, catalogue(), strangers, models=models)
