"""The next-item benchmark: its formats, its ranks and metrics, its intervals, and its own fast cross-entropy."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("next_item_data")


def module(name: str, data: ModuleType) -> ModuleType:
    return importlib.import_module(name)


def test_both_formats_give_the_same_histories(data: ModuleType, tmp_path: Path) -> None:
    plain, table, titles = (tmp_path / name for name in ("plain.txt", "table.inter", "table.item"))
    plain.write_text("1 3 1 2 10\n2 2 3 1\n3 1 2\n")  # the last user has too few
    table.write_text("user_id:token\titem_id_list:token_seq\titem_id:token\n1\t3 1 2\t10\n2\t2 3\t1\n3\t1\t2\n")
    titles.write_text("item_id:token\ttitle:token_seq\n1\tThis &amp; that\n2\tb\n3\tc\n4\tnobody had it\n")
    first, second = data.load(plain), data.load(table, titles=titles)
    assert first.ids == ["1", "2", "3", "10"] and second.ids == ["1", "2", "3", "4", "10"]
    assert second.titles == ["This & that", "b", "c", "nobody had it", ""]
    for histories in (first, second):
        named = [[histories.ids[row] for row in histories.history(user, "test")] for user in (0, 1)]
        assert named == [["3", "1", "2"], ["2", "3"]]
        assert [histories.ids[row] for row in histories.targets("test")] == ["10", "1"]
        assert [histories.ids[row] for row in histories.targets("valid")] == ["2", "3"]
        assert [histories.ids[row] for row in histories.trained(0)] == ["3", "1"]
        assert histories.counts().sum() == 3


@pytest.mark.parametrize("text", ["1 a b c\n", "user_id:token\titem_id_list:token_seq\titem_id:token\n1\t2 3\n", ""])
def test_a_file_of_neither_format_is_refused(data: ModuleType, tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(ValueError, match="x"):
        data.load(tmp_path / "x")


def test_ranks_leave_out_what_was_seen_and_draw_among_equals(data: ModuleType) -> None:
    n = 2_000
    items = np.tile([0, 1, 2, 3], n).astype(np.int32)
    users = data.Histories("x", list("abcdefgh"), None, items, np.arange(0, 4 * n + 1, 4))
    scores = np.array([9, 9, 9, 4, 4, 5, 4, 1], np.float32)  # 3 is asked for; 0, 1, 2 were seen; 4 and 6 are equal
    found = data.ranks(lambda histories: np.tile(scores, (len(histories), 1)), users, "test")
    assert set(found.tolist()) == {1, 2, 3}
    assert (np.bincount(found)[1:] > n / 5).all()
    assert np.array_equal(found, data.ranks(lambda h: np.tile(scores, (len(h), 1)), users, "test", batch=7))


def test_metrics_of_one_target(data: ModuleType) -> None:
    expected = [[1, 1], [1, 1 / np.log2(3)], [1, 1 / np.log2(11)], [0, 0]]
    assert np.allclose(data.metrics(np.array([0, 1, 9, 10], np.int32)), expected)


def test_the_bootstrap_is_the_normal_interval_for_many_users(data: ModuleType) -> None:
    random = np.random.default_rng(3)
    pairs = random.normal(0.1, 1, (4_000, 2))
    mean, low, high = data.paired_bootstrap(pairs, resamples=2_000)
    half = 1.96 * pairs.std(axis=0) / np.sqrt(len(pairs))
    assert np.allclose(mean, pairs.mean(axis=0))
    assert np.allclose(mean - low, half, rtol=0.1) and np.allclose(high - mean, half, rtol=0.1)


def test_fitted_peers_find_a_pattern_that_popularity_does_not(data: ModuleType) -> None:
    """Each user walks along a ring of 40 items: the next one follows from the latest alone."""
    peers = module("next_item_peers", data)
    random = np.random.default_rng(0)
    items = (random.integers(40, size=(300, 1)) + np.arange(6)).ravel() % 40
    ring = data.Histories("ring", [str(i) for i in range(40)], None, items.astype(np.int32), np.arange(0, 1801, 6))
    users = np.arange(300)
    hits = {
        name: data.metrics(data.ranks(score, ring, "test"))[:, 1].mean()
        for name, score in {
            "popularity": peers.popularity(ring),
            "item to item": peers.item_to_item(ring, users)[0],
            "ease": peers.ease(ring, users)[0],
        }.items()
    }
    assert hits["item to item"] > 0.99 and hits["ease"] > 2 * hits["popularity"]


def test_ease_is_the_closed_form(data: ModuleType) -> None:
    peers = module("next_item_peers", data)
    random = np.random.default_rng(1)
    items = np.concatenate([random.permutation(9)[:6] for _ in range(30)]).astype(np.int32)
    few = data.Histories("few", list("abcdefghi"), None, items, np.arange(0, 181, 6))
    x = np.zeros((30, 9))
    for user in range(30):
        x[user, few.trained(user)] = 1
    p = np.linalg.inv(x.T @ x + 2 * np.eye(9))
    expected = x @ (np.eye(9) - p / np.diag(p))
    assert np.allclose(peers._ease(few, 2.0)([few.trained(user) for user in range(30)]), expected, atol=1e-4)


def test_the_fast_cross_entropy_is_torchs(data: ModuleType) -> None:
    torch = pytest.importorskip("torch")
    models = module("next_item_models", data)
    torch.manual_seed(0)
    x, weight, targets = torch.randn(300, 16), torch.randn(500, 16) * 0.3, torch.randint(500, (300,))
    sides = [(x.clone().requires_grad_(), weight.clone().requires_grad_()) for _ in range(2)]
    ours = models.FullCrossEntropy.apply(*sides[0], targets)
    theirs = torch.nn.functional.cross_entropy(sides[1][0] @ sides[1][1].T, targets)
    (2 * ours).backward()
    (2 * theirs).backward()
    assert abs(float(ours.detach() - theirs.detach())) < 2e-3
    for mine, reference in zip(sides[0], sides[1], strict=True):
        assert float((mine.grad - reference.grad).norm() / reference.grad.norm()) < 5e-3


def test_every_position_is_a_target_once(data: ModuleType) -> None:
    models = module("next_item_models", data)
    sequences = [np.arange(n, dtype=np.int32) for n in (2, 3, 51, 52, 130)]
    pieces = [piece for sequence in sequences for piece in models._pieces(sequence)]
    met = [
        pair
        for items, targets in models._batches(pieces, np.random.default_rng(0))
        for pair in zip(items[targets >= 0].tolist(), targets[targets >= 0].tolist(), strict=True)
    ]
    assert sorted(met) == sorted((at, at + 1) for sequence in sequences for at in range(len(sequence) - 1))


@pytest.mark.parametrize("name", ["SASRec", "GRU4Rec"])
def test_a_trained_peer_looks_at_the_past_alone(data: ModuleType, name: str) -> None:
    torch = pytest.importorskip("torch")
    models = module("next_item_models", data)
    model = models.MODELS[name](20, 0.0).eval()
    items = torch.randint(20, (2, 9))
    changed = items.clone()
    changed[:, 5:] = 0
    with torch.inference_mode():
        assert torch.allclose(model(items)[:, :5], model(changed)[:, :5], atol=1e-6)


def test_the_real_files_give_their_published_popularity(data: ModuleType) -> None:
    path = data.FOLDER / "s3rec_lastfm/LastFM.txt"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    peers = module("next_item_peers", data)
    histories = data.load(path)
    assert (histories.n_users, histories.n_items, len(histories.items)) == (1_090, 3_646, 52_551)
    hr, ndcg = data.metrics(data.ranks(peers.popularity(histories), histories, "test")).mean(axis=0)
    assert abs(hr - 0.0385) < 0.002 and abs(ndcg - 0.0180) < 0.001


def test_ours_are_compared_seed_by_seed_and_pooled(data: ModuleType) -> None:
    benchmark = module("next_item", data)
    random = np.random.default_rng(2)
    better, worse = (
        {seed: data.metrics(random.integers(top, size=500).astype(np.int32)) for seed in range(2)} for top in (20, 60)
    )
    told = benchmark.compared({"headrace": better, "SASRec": worse, "EASE": {0: worse[0]}})
    assert set(told) == {"SASRec", "EASE"} and all(set(of["seeds"]) == {"0", "1"} for of in told.values())
    mean, low, high = told["SASRec"]["hr10"]
    assert low < mean < high and low > 0
    assert abs(mean - np.mean([told["SASRec"]["seeds"][s]["hr10"][0] for s in "01"])) < 1e-4
