"""Another encoder while events come: no event is lost, decisions say which encoder made them, heads follow."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from headrace.export import artifact
from headrace.export.defaults import ensure_text, ensure_user
from headrace.export.item_tower import FILE, ItemTower
from headrace.simulation.follow import Follower
from headrace.streams import encoders, kafka
from headrace.streams.errors import ArtifactMismatch, HeadraceError
from headrace.streams.metrics import Metrics
from headrace.streams.records import Opened, decode_policy_version, decode_transitions, item_key
from headrace.streams.serving import Serving
from headrace.streams.settings import Settings
from headrace.streams.supervise import Supervisor
from tests.integration.test_catalogue import Reader, running, send
from tests.integration.test_worker import PARTITIONS, assert_exact, metric, under_load

if TYPE_CHECKING:
    from tests.conftest import MakeSettings, WaitFor

pytestmark = pytest.mark.kafka


def another(folder: Path, change: Callable[[ItemTower], ItemTower]) -> Path:
    """The default user encoder with another item tower: a whole, sound artifact of another version."""
    before = artifact.load(ensure_user(), "user")
    with artifact.writing(folder) as scratch:
        for name in before.manifest.files:
            shutil.copy(before.path / name, scratch / name)
        change(ItemTower.load(before.path / FILE)).save(scratch / FILE)
        files = artifact.file_digests(scratch)
        artifact.write_manifest(scratch, msgspec.structs.replace(before.manifest, files=files))
    return folder


def turned(tower: ItemTower) -> ItemTower:
    return ItemTower(np.roll(tower.projection, 1, axis=0))


class Decided:
    """Decisions and heads, as they are committed."""

    def __init__(self, settings: Settings) -> None:
        self.by_encoder: Counter[tuple[int, str]] = Counter()
        self.by_policy: Counter[tuple[str, str, bool]] = Counter()  # encoder, policy, whether it has learned
        self.heads: list[str] = []  # the encoder of each published head
        self._follower = Follower(settings, {"transitions": self._on_transitions, "policy-versions": self._on_version})

    def __enter__(self) -> Decided:
        self._follower.open()
        return self

    def __exit__(self, *_: object) -> None:
        self._follower.close()

    def _on_transitions(self, message: kafka.Message) -> None:
        for record in decode_transitions(message.value() or b"").records:
            if isinstance(record, Opened):
                self.by_encoder[record.encoder_serial, record.encoder_version] += 1
                self.by_policy[record.encoder_version, record.policy, record.policy_version > 0] += 1

    def _on_version(self, message: kafka.Message) -> None:
        value = message.value()
        if value and not (message.key() or b"").startswith(b"\0"):
            version = decode_policy_version(value)
            if version.part == "lints":
                self.heads.append(str(version.meta["encoder"]))


def test_an_encoder_is_swapped_under_load(settings: MakeSettings, wait_for: WaitFor, tmp_path: Path) -> None:
    mine = settings(
        topics={"interactions_partitions": PARTITIONS},
        decisions={"assume_shown": True},
        arms={"shares": {"policy": 0.9, "random": 0.1}},
        policy={"name": "lints"},
        worker={"busy_within": 0},  # so few users do more than people do: they would teach nothing
    )
    old, new = artifact.load(ensure_user(), "user").version, another(tmp_path / "new", turned)
    with (
        under_load(mine) as (load, books),
        Decided(mine) as decided,
        Supervisor(mine, ["worker", "learner"]) as roles,
    ):
        wait_for(roles.ready, 60)
        wait_for(lambda: decided.by_policy[old, "lints", True] > 20, 60)
        wait_for(lambda: decided.by_encoder[1, old] > 0, 30)  # the learner has announced what the settings say

        serial, said = encoders.announce(mine, user=str(new), text=None, who="a test", why="another tower")
        assert serial == 2 and said.user_version not in ("", old)
        wait_for(lambda: decided.by_policy[said.user_version, "lints", True] > 20, 60)
        assert decided.by_encoder[2, said.user_version] > 20
        assert set(decided.heads) == {old, said.user_version}
        assert decided.heads == sorted(decided.heads, key=[old, said.user_version].index)  # none of the old one after
        worker = roles.pids()["worker"]
        assert metric(mine, worker, "headrace_encoder_serial") == 2

        encoders._send(mine, msgspec.structs.replace(said, user_version="sha256:other", why="not what lies there"))
        wait_for(lambda: metric(mine, worker, "headrace_encoder_swaps_total") == 2, 30)  # one swapped, one refused
        assert metric(mine, worker, "headrace_encoder_serial") == 2

        encoders.announce(mine, user=str(new), text=None, who="a test", why="the same again")
        wait_for(lambda: decided.by_encoder[4, said.user_version] > 20, 30)
        heads = len(decided.heads)
        wait_for(lambda: len(decided.heads) > heads + 1, 30)  # it is learned on

        load.stop()
        assert_exact(load, books, wait_for)
        assert roles.restarts() == {"worker": 0, "learner": 0}


def test_what_cannot_be_served_is_not_announced(settings: MakeSettings, tmp_path: Path) -> None:
    mine = settings()
    new = another(tmp_path / "new", turned)
    manifest = artifact.load(new).manifest
    artifact.write_manifest(new, msgspec.structs.replace(manifest, text_version="sha256:other"))
    with pytest.raises(ArtifactMismatch, match="trained over the text encoder sha256:other"):
        encoders.announce(mine, user=str(new), text=None, who="a test", why="another tower")
    with pytest.raises(HeadraceError, match="--why is empty"):
        encoders.announce(mine, user="default", text=None, who="a test", why=" ")
    assert [said.origin for _, said in encoders.history(mine)] == ["settings"]


def test_the_settings_are_announced_once_and_again_when_they_change(settings: MakeSettings, tmp_path: Path) -> None:
    mine = settings()
    assert encoders.of_the_settings(mine) == 1 and encoders.of_the_settings(mine) is None
    changed = mine.model_copy(update={"encoder": mine.encoder.model_copy(update={"artifact": str(tmp_path / "new")})})
    with pytest.raises(ArtifactMismatch):
        encoders.of_the_settings(changed)
    another(tmp_path / "new", turned)
    assert encoders.of_the_settings(changed) == 2
    assert encoders.of_the_settings(changed) is None

    refused: list[int] = []
    shutil.rmtree(tmp_path / "new")
    found = encoders.in_force(mine, refused=lambda serial, error: refused.append(serial))
    assert (refused, found.serial) == ([2], 1)


def other_texts(folder: Path) -> Path:
    """The default text encoder that reads three tokens of a text: other vectors, another version."""
    before = artifact.load(ensure_text(), "text")
    with artifact.writing(folder) as scratch:
        for name in before.manifest.files:
            shutil.copy(before.path / name, scratch / name)
        options = {**before.manifest.options, "max_length": 5}
        artifact.write_manifest(scratch, msgspec.structs.replace(before.manifest, options=options))
    return folder


def over(folder: Path, texts: Path) -> Path:
    """A user encoder that was trained over these texts, as its manifest says."""
    another(folder, turned)
    manifest = artifact.load(folder).manifest
    version = artifact.load(texts).version
    artifact.write_manifest(folder, msgspec.structs.replace(manifest, text_version=version))
    return folder


def test_another_text_encoder_takes_every_item_along(settings: MakeSettings, wait_for: WaitFor, tmp_path: Path) -> None:
    """Items are encoded anew under their own numbers; the worker changes over when all are, and not before."""
    mine = settings(topics={"requests_partitions": 2})
    texts = other_texts(tmp_path / "texts")
    users = over(tmp_path / "users", texts)
    names = [f"i{n}" for n in range(40)]
    titles = {name: f"a much longer title of thing number {n} in the shop" for n, name in enumerate(names)}
    send(mine, *({"item_id": name, "title": title, "price": 3.0} for name, title in titles.items()))
    with running(mine, tmp_path / "texts.sqlite"):
        reader = Reader(mine)
        before = {name: reader.wait(*names) and reader.items()[name] for name in names}
        more = mine.topics.model_copy(update={"requests_partitions": 3})  # than the shop's `items` has
        serving = Serving(mine.model_copy(update={"topics": more}), Metrics(CollectorRegistry(), "worker"))
        try:
            wait_for(lambda: serving.caught_up)
            serving.keep_up()
            old = serving.recommender
            serial, said = encoders.announce(mine, user=str(users), text=str(texts), who="a test", why="other texts")
            reader.wait(*names, text_version=said.text_version)
            for name, item in reader.items().items():
                assert item.vector != before[name].vector and item.generation == before[name].generation == 0
            assert serving.recommender is old and all(old.items.made[: len(names)])

            wait_for(serving.keep_up)
            new = serving.recommender
            assert (new.encoder_serial, new.texts.version) == (serial, said.text_version)
            wanted = new.encoder.tower.vectors(new.texts.encode([titles["i7"]]))  # the tower knows no ids and prices
            assert np.allclose(new.items.vectors[new.items.rows[item_key("i7")]], wanted[0], atol=2e-3)
        finally:
            serving.close()
            reader.close()
    with running(mine, tmp_path / "texts.sqlite") as again:  # it starts with what was announced, and has nothing to do
        assert again.metrics.registry.get_sample_value("headrace_text_encoder_info", {"version": said.text_version})
        send(mine, {"item_id": "new", "title": "one more"})
        reader = Reader(mine)
        assert reader.wait("new", *names).text_version == said.text_version
        assert len(reader.log) <= 3 * len(names) + 2  # each pending, encoded, encoded anew: no more than once
        reader.close()
