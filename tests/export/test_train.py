"""Training from a log: it learns what there is to learn, and goes on where it was killed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from headrace.export import checkpoint, validation
from headrace.export.log import Log, leave_one_out
from headrace.export.names import GAP_BUCKETS, N_TYPE_CODES, type_code
from headrace.export.train import Progress, Recipe, Trained, train
from headrace.export.user_model import UserConfig

QUICK = Recipe(epochs=4, batch_events=256, learning_rate=0.01, dropout=0.0, id_dropout=0.1, item_weight_decay=0.0)
ITEMS = 40


def config() -> UserConfig:
    return UserConfig(dim=16, layers=1, heads=2, key_dim=4, feed_forward=16, head_decays=(0.5, 0.9))


def make_log(users: int = 150, *, texts: bool = True) -> Log:
    """After item i comes i + 7: to be learned from the ids alone, the texts are noise. Every fourth event is a search
    for what comes next."""
    random = np.random.default_rng(3)
    vectors = random.standard_normal((ITEMS, 24 if texts else 0)).astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    owners, items, asked = [], [], []
    for user in range(users):
        item = int(random.integers(ITEMS))
        for event in range(int(random.integers(4, 12))):
            item = (item + 7) % ITEMS
            if texts and event % 4 == 3:
                owners.append(f"u{user}")
                items.append(-1)
                asked.append(item)
            owners.append(f"u{user}")
            items.append(item)
            asked.append(-1)
    searches = type_code("search")
    types = np.where(np.array(items) < 0, searches, type_code("click"))
    return Log.of(
        users=owners, items=items, asked=asked, types=types, keys=np.arange(ITEMS) + 100, texts=vectors, words=vectors,
        categories=[f"all/{row % 4}" for row in range(ITEMS)], prices=np.where(np.arange(ITEMS) % 3, 9.5, np.nan),
    )  # fmt: skip


def weights(trained: Trained) -> list[np.ndarray]:
    return [*(value.numpy() for value in trained.model.state_dict().values()), trained.items.id_vectors]


@pytest.fixture(scope="module")
def log() -> Log:
    return make_log()


@pytest.fixture(scope="module")
def trained(log: Log) -> Trained:
    return train(log, recipe=QUICK, config=config())


def test_it_learns_what_comes_next(log: Log, trained: Trained) -> None:
    """A tenth of the items stands before the right one by chance; here nearly none does."""
    assert trained.metrics["valid_ndcg10"] > 0.8 and trained.metrics["valid_hit10"] > 0.95
    split = leave_one_out(log)
    items, words = validation.item_vectors(trained.items, log), validation.word_vectors(trained.items, log)
    found = validation.rank(trained.model, split, items=items, words=words)
    assert len(found.users) == (split.targets >= 0).sum() and np.median(found.ranks) == 0
    assert np.allclose(np.linalg.norm(items, axis=1), 1, atol=1e-5)


def test_validation_figures_are_those_of_the_model_that_is_returned(log: Log, trained: Trained) -> None:
    split = leave_one_out(log)
    items, words = validation.item_vectors(trained.items, log), validation.word_vectors(trained.items, log)
    found = validation.rank(trained.model, split, items=items, words=words)
    assert validation.ranking.metrics(found.ranks)["ndcg10"] == pytest.approx(trained.metrics["valid_ndcg10"], abs=0.02)


def test_types_and_gaps_it_never_met_stand_for_what_it_met(trained: Trained) -> None:
    types, gaps = trained.model.type_in.weight, trained.model.gap_in.weight
    assert len(types) == N_TYPE_CODES and len(gaps) == GAP_BUCKETS
    assert torch.equal(types[type_code("purchase")], types[0]) and not torch.equal(types[type_code("click")], types[0])
    assert torch.equal(gaps[40], gaps[1]) and not torch.equal(gaps[1], gaps[0])


def test_the_same_seed_gives_the_same_weights(log: Log, trained: Trained) -> None:
    again = train(log, recipe=QUICK, config=config())
    assert all((a == b).all() for a, b in zip(weights(trained), weights(again), strict=True))
    other = train(log, recipe=replace(QUICK, epochs=1), config=config(), seed=18)
    assert not (other.items.id_vectors == trained.items.id_vectors).all()


class Killed(Exception):
    pass


def test_killed_and_resumed_it_ends_as_if_it_had_never_been(log: Log, trained: Trained, tmp_path: Path) -> None:
    def die(progress: Progress) -> None:
        if progress.epoch == 3 and progress.step % 3 == 2:
            raise Killed

    with pytest.raises(Killed):
        train(log, recipe=QUICK, config=config(), checkpoint_dir=tmp_path, progress=die)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["epoch-2.safetensors", "progress.json"]
    said: list[Progress] = []
    resumed = train(log, recipe=QUICK, config=config(), checkpoint_dir=tmp_path, progress=said.append)
    assert said[0].epoch == 3 and said[-1].seconds_left == 0
    assert all((a == b).all() for a, b in zip(weights(trained), weights(resumed), strict=True))
    assert resumed.metrics["valid_ndcg10"] == trained.metrics["valid_ndcg10"]


def test_a_checkpoint_of_another_run_is_refused(log: Log, tmp_path: Path) -> None:
    one = replace(QUICK, epochs=1)
    train(log, recipe=one, config=config(), checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="a checkpoint of another log or recipe; name another folder") as error:
        train(make_log(120), recipe=one, config=config(), checkpoint_dir=tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "epoch-1.safetensors").write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"the checkpoint cannot be read .* delete it") as error:
        train(log, recipe=one, config=config(), checkpoint_dir=tmp_path)
    assert "\n" not in str(error.value)


def test_a_checkpoint_half_written_leaves_the_one_before(
    log: Log, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    def die(progress: Progress) -> None:
        if progress.epoch == 3:
            raise Killed

    with pytest.raises(Killed):
        train(log, recipe=QUICK, config=config(), checkpoint_dir=tmp_path, progress=die)
    before = (tmp_path / "progress.json").read_bytes()
    with monkeypatch.context() as full, pytest.raises(OSError):
        full.setattr(checkpoint.os, "replace", fail)
        train(log, recipe=QUICK, config=config(), checkpoint_dir=tmp_path)
    assert (tmp_path / "progress.json").read_bytes() == before
    resumed = train(log, recipe=QUICK, config=config(), checkpoint_dir=tmp_path)
    assert all((a == b).all() for a, b in zip(weights(trained), weights(resumed), strict=True))


def test_it_stops_early_and_returns_the_best(log: Log) -> None:
    said: list[Progress] = []
    recipe = replace(QUICK, epochs=30, patience=1)
    stopped = train(log, recipe=recipe, config=config(), progress=said.append)
    assert said[-1].epoch < 30 and stopped.metrics["epoch"] == said[-1].epoch - 1
    assert stopped.metrics["valid_ndcg10"] == said[-1].best


@pytest.mark.parametrize("recipe", [replace(QUICK, full_softmax=0, negatives=16), replace(QUICK, ids=False)])
def test_sampled_and_without_ids_it_learns_too(log: Log, recipe: Recipe) -> None:
    few = train(log, recipe=recipe, config=config())
    assert few.metrics["valid_ndcg10"] > 0.4 and len(few.items.id_keys) == (ITEMS if recipe.ids else 0)


def test_ids_alone_and_a_split_in_time() -> None:
    """Without texts there is no projection; the search for an unknown text is a zero vector."""
    made = train(make_log(texts=False), recipe=replace(QUICK, validation="time"), config=config())
    assert made.items.text_dim == 0 and made.metrics["valid_ndcg10"] > 0.5


def test_items_that_training_never_met_have_no_embedding(log: Log) -> None:
    made = train(log.without_items([0, 5]), recipe=replace(QUICK, epochs=1), config=config())
    assert sorted(set(log.keys.tolist()) - set(made.items.id_keys.tolist())) == [100, 105]
    assert np.linalg.norm(made.items.vectors(log.texts[:1], keys=log.keys[:1])) == pytest.approx(1, abs=1e-5)


def test_repeats_are_left_in_the_running_where_they_are_many(log: Log) -> None:
    turns = Log.of(users=[f"u{n // 9}" for n in range(900)], items=[n % 3 for n in range(900)], keys=np.arange(20),
                   texts=np.zeros((20, 0), np.float32))  # fmt: skip
    once = replace(QUICK, epochs=1)
    found, left, out = (train(turns, recipe=replace(once, repeats=r), config=config()) for r in (None, True, False))
    assert (found.items.id_vectors == left.items.id_vectors).all()
    assert not (found.items.id_vectors == out.items.id_vectors).all()
    few = train(log, recipe=once, config=config())
    masked = train(log, recipe=replace(once, repeats=False), config=config())
    assert (few.items.id_vectors == masked.items.id_vectors).all()


def test_a_log_with_nothing_to_learn_is_refused() -> None:
    log = Log.of(users=["a", "b"], items=[0, 1], keys=[1, 2], texts=np.zeros((2, 0), np.float32))
    with pytest.raises(ValueError, match="no user with three wanted items"):
        train(log, config=config())
