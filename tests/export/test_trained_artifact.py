"""What training makes is what serving serves: from a log to states, through the artifact."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from headrace.export import artifact, to_onnx, validation
from headrace.export.artifact import Manifest
from headrace.export.item_tower import FILE, ItemTower
from headrace.export.log import Log
from headrace.export.names import type_code
from headrace.export.train import Recipe, Trained, train
from headrace.export.user_model import UserConfig
from headrace.streams.encoder import History, UserEncoder

TYPES = [type_code(name) for name in ("view", "click", "purchase", "dismiss")]


@pytest.fixture(scope="module")
def log() -> Log:
    """30 users with 3 to 130 events, seconds to months apart: one window, and several."""
    random = np.random.default_rng(7)
    counts = random.integers(3, 131, size=30)
    n = int(counts.sum())
    gaps = np.exp(random.uniform(0, 16, n)).astype(np.int64)
    return Log.of(
        users=np.repeat([f"u{user}" for user in range(30)], counts), items=random.integers(20, size=n),
        types=random.choice(TYPES, size=n), seconds=1_700_000_000 + gaps.cumsum(),
        keys=np.arange(20) + 5, texts=random.standard_normal((20, 24)).astype(np.float32),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(log: Log) -> Trained:
    config = UserConfig(dim=16, layers=2, heads=2, key_dim=4, feed_forward=16, head_decays=(0.5, 0.9))
    return train(log.without_items([0]), recipe=Recipe(epochs=2, batch_events=256), config=config)


@pytest.fixture(scope="module")
def made(log: Log, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("made") / "user"
    manifest = to_onnx.export(
        trained.model, trained.items, folder, source="a test", text_version="sha256:text", trained_on=log.fingerprint(),
        metrics=trained.metrics,
    )  # fmt: skip
    return folder, manifest


def test_the_manifest_says_what_it_was_trained_on(log: Log, trained: Trained, made: tuple[Path, Manifest]) -> None:
    folder, manifest = made
    assert artifact.load(folder, "user").manifest == manifest
    assert manifest.trained_on == log.fingerprint() and manifest.text_version == "sha256:text"
    assert manifest.vocabulary == hashlib.sha256((np.arange(1, 20) + 5).astype(np.uint64).tobytes()).hexdigest()
    assert manifest.metrics["valid_ndcg10"] == trained.metrics["valid_ndcg10"]
    assert max(manifest.parity.values()) < 1e-4 and manifest.dims["text"] == 24


def test_the_served_state_is_the_trained_one(log: Log, trained: Trained, made: tuple[Path, Manifest]) -> None:
    """The same window, types and gaps, and the item tower of the artifact: within 1e-4."""
    folder, _ = made
    vectors = validation.item_vectors(ItemTower.load(folder / FILE), log)
    everybody = np.zeros(len(log.users), np.int32)
    expected = validation.states(trained.model, log, everybody, items=vectors, words=np.zeros((0, 16), np.float32))
    histories = []
    for user, name in enumerate(log.users):
        first, end = log.offsets[user], log.offsets[user + 1]
        events = slice(max(first, end - 50), end)
        histories.append(
            History(
                name,
                int(end - first),
                log.keys[log.items[events]],
                log.types[events],
                log.seconds[events].astype(np.uint32),
                np.zeros(events.stop - events.start, np.uint8),
            )
        )
    served = UserEncoder(folder, cache_bytes=0).encode(histories, lambda keys, _: vectors[keys.astype(np.int64) - 5])
    assert np.abs(served - expected).max() < 1e-4


def test_an_item_that_training_never_met_works_by_its_text(log: Log, made: tuple[Path, Manifest]) -> None:
    tower = ItemTower.load(made[0] / FILE)
    with_key, by_text = tower.vectors(log.texts, keys=log.keys), tower.vectors(log.texts)
    assert (with_key[0] == by_text[0]).all() and (with_key[1:] != by_text[1:]).any(axis=1).all()
