"""policy.start: a folder is served from the first slate, learned on from, published, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.export.item_tower import ItemTower
from headrace.policy import checks
from headrace.policy.base import Policy
from headrace.policy.behaviour import Popularity, behaviour
from headrace.policy.registry import make
from headrace.streams import start
from headrace.streams.errors import HeadraceError, SettingsError
from headrace.streams.items import ItemStore
from headrace.streams.learning import Learning
from headrace.streams.policies import Policies
from headrace.streams.settings import Settings
from headrace.streams.versions import arrays_of, make_policy
from tests.factories import make_behaviour, make_log, make_opened, make_transitions

DIM = 8


def make_settings(folder: Path | str = "", *, name: str = "linucb", **more: Any) -> Settings:
    return Settings(policy={"name": name, "start": str(folder)}, **more)


def trained(settings: Settings, name: str = "linucb") -> Policy:
    return checks.learned(make_policy(settings, name, dim=DIM))


def popularity() -> start.Parts:
    model = Popularity()
    model.learn(behaviour([11, 11, 12, 13], ["view"] * 4, [1, 2, 3, 4], [b""] * 4))
    return {f"popularity/{shard}": content for shard, content in model.shards().items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return start.write(tmp_path / "trained", trained(make_settings()), behaviour=popularity(), made={"seed": 3})


def serving(settings: Settings) -> Policies:
    return Policies(settings, ItemStore(ItemTower(np.eye(DIM, dtype=np.float32))), dim=DIM)


def test_a_folder_is_read_as_it_was_written(folder: Path) -> None:
    read = start.read(folder)
    policy = trained(make_settings())
    arrays, meta = policy.snapshot()
    assert read.policy == "linucb" and read.made == {"seed": 3}
    assert read.parts["linucb"][1] == meta
    assert all(np.array_equal(read.parts["linucb"][0][name], array) for name, array in arrays.items())
    assert set(read.behaviour) == set(popularity())


def test_workers_serve_it_from_the_first_slate(folder: Path) -> None:
    nothing = serving(make_settings())
    assert nothing.serving("policy", "u1").name == "popular"
    started = serving(make_settings(folder))
    served = started.serving("policy", "u1")
    assert (served.name, served.version) == ("linucb", 0)
    assert checks.bits(served.policy) == checks.bits(trained(make_settings()))
    assert started.serving("random", "u1").name == "random"
    assert started._popularity.scores(np.array([11, 13, 99], np.uint64)).tolist() == pytest.approx(
        [1.0, 0.63, 0], abs=0.01
    )


def test_the_learner_begins_from_it_and_publishes_it(folder: Path) -> None:
    learning = Learning(make_settings(folder), dim=DIM)
    versions = {v.part: v for v in learning.apply(make_transitions(make_behaviour(), tick=True), 0)}
    assert _same(versions["linucb"])
    for offset in range(1, 20):
        versions |= {v.part: v for v in learning.apply(make_transitions(make_behaviour(), tick=True), offset)}
    assert set(popularity()) <= set(versions)


def _same(version: Any) -> bool:
    arrays, _ = arrays_of(version)
    expected, _ = trained(make_settings()).snapshot()
    return all(np.array_equal(arrays[name], array) for name, array in expected.items())


def test_a_restart_goes_on_from_the_versions_and_not_from_the_folder(folder: Path) -> None:
    settings = make_settings(folder, learner={"open_decisions": 100, "publish_messages": 4})
    log = make_log(1, messages=40, d=DIM, c=1)
    never_stopped, first = Learning(settings, dim=DIM), Learning(settings, dim=DIM)
    latest = {}
    for offset, message in enumerate(log):
        never_stopped.apply(message, offset)
        if offset < 25:
            latest |= {v.part: v for v in first.apply(message, offset)}
    again = Learning(settings, dim=DIM)
    for offset in range(again.resume(latest.values()), len(log)):
        again.apply(log[offset], offset)
    assert checks.bits(again.policies[0].policy) == checks.bits(never_stopped.policies[0].policy)
    assert never_stopped.policies[0].policy.snapshot()[1]["learned"] > trained(settings).snapshot()[1]["learned"]


def test_an_actor_is_served_and_not_learned(tmp_path: Path) -> None:
    actor = make("actor", dim=DIM, contexts=1)
    settings = make_settings(start.write(tmp_path / "actor", actor), name="actor")
    assert serving(settings).serving("policy", "u1").name == "actor"
    assert "actor" not in [part.policy.name for part in Learning(settings, dim=DIM).policies]
    with pytest.raises(SettingsError, match=r"policy\.start the folder of a trained one"):
        serving(make_settings(name="actor"))


def refused(settings: Settings) -> str:
    said = []
    for role in (serving, lambda s: Learning(s, dim=DIM)):
        with pytest.raises(SettingsError) as error:
            role(settings)
        said.append(str(error.value))
    assert said[0] == said[1] and "\n" not in said[0]
    return said[0]


def test_what_does_not_fit_is_one_clear_line(folder: Path, tmp_path: Path) -> None:
    assert "holds a linucb, and policy.name is 'lints'" in refused(make_settings(folder, name="lints"))
    two = {"default": {"k": 10}, "home": {"k": 3}}
    assert "does not fit these settings and encoder" in refused(make_settings(folder, placements=two))
    assert "name a folder that `headrace train` wrote" in refused(make_settings(tmp_path / "nowhere"))
    (folder / "linucb.safetensors").write_bytes(b"rubbish")
    assert "is damaged" in refused(make_settings(folder))
    (folder / "linucb.safetensors").unlink()
    assert "is missing" in refused(make_settings(folder))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "schema": 9}))
    assert "schema 9, this headrace reads 1" in refused(make_settings(folder))
    (folder / "manifest.json").write_text("{}")
    assert "write it again with `headrace train`" in refused(make_settings(folder))


def test_writing_replaces_an_older_one_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    start.write(folder, make("lints", dim=DIM, contexts=1))
    assert start.read(folder).policy == "lints" and not (folder / "linucb.safetensors").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep me")
    with pytest.raises(HeadraceError, match="holds other files"):
        start.write(mine, make("lints", dim=DIM, contexts=1))
    assert (mine / "notes.txt").read_text() == "keep me"


def test_check_tells_what_the_roles_would_begin_from(tmp_path: Path) -> None:
    assert start.check(Settings()) == "nothing learned"
    settings = Settings()
    wide = start.write(tmp_path / "wide", make_policy(settings, "linucb", dim=64))
    assert start.check(make_settings(wide)) == f"linucb from {wide}"
    narrow = start.write(tmp_path / "narrow", make_policy(settings, "linucb", dim=DIM))
    with pytest.raises(SettingsError, match="does not fit these settings and encoder"):
        start.check(make_settings(narrow))


def test_a_policy_trained_with_another_encoder_is_left_out(tmp_path: Path) -> None:
    """Where another encoder serves by now; popularity, which knows no vectors, stays."""
    folder = start.write(tmp_path / "start", trained(make_settings()), made={"encoder": "sha256:theirs"})
    items = ItemStore(ItemTower(np.eye(DIM, dtype=np.float32)))
    for version, serves in (("sha256:theirs", "linucb"), ("", "linucb"), ("sha256:ours", "popular")):
        policies = Policies(make_settings(folder), items, dim=DIM, encoder_version=version)
        assert policies.serving("policy", "u1").name == serves
    learning = Learning(make_settings(folder), dim=DIM)
    began = learning.policies[0].policy.learned
    learning.apply(make_transitions(make_opened(d=DIM, c=1, encoder_version="sha256:theirs")), 0)
    assert learning.policies[0].policy.learned == began > 0
    learning.apply(make_transitions(make_opened("r-2", d=DIM, c=1, encoder_version="sha256:ours", encoder_serial=1)), 1)
    assert learning.policies[0].policy.learned == 0
