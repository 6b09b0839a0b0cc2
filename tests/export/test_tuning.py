"""The text model learns from behaviour: what is learned from, what is not, and that only a better one goes out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from headrace.export import tuning
from headrace.export.behaviour import Questions, behaviour, decayed, lower_bound, ndcg10
from headrace.export.log import Log
from headrace.export.text import TextTower
from headrace.export.tuning import Batch, NotBetterError, Recipe, Verdict, contrast, export_tuned, tune, with_adapters
from headrace.export.upper_blocks import UpperBlocks
from headrace.streams.texts import TextEncoder

THEMES, NOISE, ITEMS, USERS = 16, 40, 480, 1_000
SMALL = Recipe(
    blocks=2, steps=60, validations=3, users=48, negatives=64, learning_rate=2e-2, temperature=0.05, patience=3
)


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> TextTower:
    """A BERT of three blocks with random weights, whose words are whole tokens."""
    folder = tmp_path_factory.mktemp("model")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *(f"t{n}" for n in range(2 * THEMES)),
        *(f"w{n}" for n in range(NOISE)),
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=64, initializer_range=0.06,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    return TextTower.from_name(str(folder))


@pytest.fixture(scope="module")
def shop() -> tuple[Log, list[str]]:
    """Users keep to one theme. A title holds one word of its theme and three that say nothing: to be learned."""
    random = np.random.default_rng(0)
    theme = np.arange(ITEMS) % THEMES
    said = [f"t{2 * t + random.integers(2)}" for t in theme]
    titles = [" ".join([word, *(f"w{n}" for n in random.choice(NOISE, 3, replace=False))]) for word in said]
    users, items = [], []
    for user in range(USERS):
        users += [str(user)] * 6
        items += random.choice(np.flatnonzero(theme == user % THEMES), 6, replace=False).tolist()
    return Log.of(users=users, items=items, keys=np.arange(ITEMS), texts=np.zeros((ITEMS, 0), np.float32)), titles


def test_a_held_out_text_is_in_no_window_and_its_twins_neither(shop: tuple[Log, list[str]]) -> None:
    log, titles = shop
    found = behaviour(log, titles, seed=3, held_out=0.2)
    assert found.texts == sorted({*titles}) and found.held_out == round(len(found.texts) * 0.2)
    learned = set(np.concatenate(found.windows).tolist())
    stopping, judging = set(found.stopping.targets.tolist()), set(found.judging.targets.tolist())
    assert not stopping & learned and not judging & learned and not stopping & judging
    assert found.counts.sum() == sum(map(len, found.windows))
    assert all((window[1:] != window[:-1]).all() and len(window) > 1 for window in found.windows)
    for questions in (found.stopping, found.judging):
        assert all(t not in h for h, t in zip(questions.histories, questions.targets, strict=True))


def test_events_that_nobody_wanted_and_titles_that_are_missing_teach_nothing(shop: tuple[Log, list[str]]) -> None:
    log, titles = shop
    from headrace.export.names import type_code

    dismissed = np.where(log.items == 7, type_code("dismiss"), log.types).astype(np.uint8)
    nameless = ["" if item == 5 else title for item, title in enumerate(titles)]
    found = behaviour(replace(log, types=dismissed), nameless, seed=3)
    met = {found.texts[row] for window in found.windows for row in window}
    assert "" not in found.texts
    if titles.count(titles[7]) == 1:
        assert titles[7] not in met


def test_too_few_questions_are_refused_with_a_reason(shop: tuple[Log, list[str]]) -> None:
    log, titles = shop
    with pytest.raises(ValueError, match=r"the log asks \d+ users about a held-out item, 50 are needed"):
        behaviour(log.without({str(user) for user in range(20, USERS)}), titles, seed=1)
    with pytest.raises(ValueError, match="479 titles for the 480 items"):
        behaviour(log, titles[1:], seed=1)


def test_ranks_are_those_of_a_loop() -> None:
    random = np.random.default_rng(5)
    vectors = random.standard_normal((40, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    histories = [random.choice(40, n, replace=False) for n in (1, 3, 15)]
    targets = np.array([next(i for i in range(40) if i not in h) for h in histories])
    found = Questions(histories, targets).ranks(vectors, decay=0.6)
    for history, target, rank in zip(histories, targets, found, strict=True):
        asked = sum(0.6**k * vectors[row] for k, row in enumerate(history[::-1][:10]))
        np.testing.assert_allclose(asked, decayed(vectors, history, decay=0.6), atol=1e-5)
        better = [i for i in range(40) if i not in history and vectors[i] @ asked > vectors[target] @ asked]
        assert rank == len(better)
    np.testing.assert_allclose(ndcg10(np.array([0, 1, 9, 10])), [1, 1 / np.log2(3), 1 / np.log2(11), 0])


def test_a_query_is_what_came_before_decayed() -> None:
    batch = Batch.of([np.array([4, 9, 4, 2]), np.array([9, 7])], decay=0.5)
    assert batch.texts.tolist() == [2, 4, 7, 9]
    # 4 → 9; then 4 again, which is no answer; then 4, 9, 4 → 2; and 9 → 7 of another user
    assert batch.targets.tolist() == [3, 0, 2]
    np.testing.assert_allclose(batch.weights, [[0, 1, 0, 0], [0, 1.25, 0, 0.5], [0, 0, 0, 1]])
    assert batch.own.int().tolist() == [[1, 1, 0, 1], [1, 1, 0, 1], [0, 0, 1, 1]]


def test_the_loss_is_that_of_a_loop_with_masks_and_correction() -> None:
    random = np.random.default_rng(2)
    batch = Batch.of([np.array([4, 9, 1, 2]), np.array([3, 9]), np.array([5, 9])], decay=0.5)
    counts = np.array([3, 5, 2, 1, 6, 4, 0, 8, 2, 9, 1, 1])
    unit = [torch.nn.functional.normalize(torch.tensor(random.standard_normal((n, 6)), dtype=torch.float32), dim=1)
            for n in (len(batch.texts), 4)]  # fmt: skip
    vectors, drawn, rows = unit[0], unit[1], np.array([7, 8, 9, 0])  # 9 is in the batch: no candidate a second time
    recipe = Recipe(temperature=0.2, log_q=0.7)
    share = counts / counts.sum()
    loss = float(contrast(vectors, batch, drawn, rows, torch.from_numpy(share), recipe))

    def score(query: torch.Tensor, vector: torch.Tensor) -> float:
        return float(query @ vector) / 0.2

    met = [{4, 9, 1, 2}] * 3 + [{3, 9}, {5, 9}]
    forth, back = [], []
    queries = [torch.nn.functional.normalize(row @ vectors, dim=0) for row in batch.weights]
    for b, query in enumerate(queries):
        exponents = {}
        for column, text in enumerate(batch.texts):
            if text not in met[b] or column == batch.targets[b]:
                expected = len(batch.texts) * share[text] + 4 / np.count_nonzero(counts)
                exponents[int(text)] = score(query, vectors[column]) - 0.7 * np.log(expected)
        for at, text in enumerate(rows):
            if text not in batch.texts:
                expected = len(batch.texts) * share[text] + 4 / np.count_nonzero(counts)
                exponents[int(text)] = score(query, drawn[at]) - 0.7 * np.log(expected)
        own = int(batch.targets[b])
        forth.append(np.log(sum(np.exp(list(exponents.values())))) - exponents[int(batch.texts[own])])
        others = [score(q, vectors[own]) for c, q in enumerate(queries) if c == b or batch.texts[own] not in met[c]]
        back.append(np.log(np.sum(np.exp(others))) - score(query, vectors[own]))
    assert len(set(batch.targets.tolist())) < len(queries)  # a text that two ask for
    assert loss == pytest.approx((np.mean(forth) + np.mean(back)) / 2, rel=1e-4)


def test_the_upper_blocks_say_what_the_whole_model_says(tower: TextTower, shop: tuple[Log, list[str]]) -> None:
    titles = [*shop[1][:150], " ".join(["w1"] * 30), "w2"]
    whole = tower.embed(titles)
    upper = UpperBlocks(tower, titles, trained=2, max_tokens=64)
    assert np.abs(upper.all_vectors() - whole).max() < 2e-3  # what is kept is kept in half precision
    rows = np.array([151, 3, 150, 3])
    assert np.abs(upper.vectors(rows).detach().numpy() - whole[rows]).max() < 2e-3
    upper.release()
    np.testing.assert_array_equal(tower.embed(titles), whole)


def test_merged_weights_say_what_the_adapters_said(tower: TextTower, shop: tuple[Log, list[str]]) -> None:
    import copy

    adapted = copy.deepcopy(tower)
    adapters = with_adapters(adapted, SMALL)
    trained = {name: p for name, p in adapters.named_parameters() if p.requires_grad}
    assert trained and all("lora" in name and "layer.0." not in name for name in trained)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.2 * torch.randn_like(parameter))
    said = adapted.embed(shop[1][:50])
    adapted.model = adapters.merge_and_unload()
    assert np.abs(adapted.embed(shop[1][:50]) - said).max() < 1e-5
    assert np.abs(tower.embed(shop[1][:50]) - said).max() > 0.01
    assert type(adapted.model) is type(tower.model)


def test_behaviour_moves_texts_and_the_served_graph_says_so(
    tower: TextTower, shop: tuple[Log, list[str]], tmp_path: Path
) -> None:
    log, titles = shop
    said: list[str] = []
    heard: list[tuning.Progress] = []
    before = tower.embed(titles)
    out = tmp_path / "text"
    manifest = export_tuned(tower, log, titles, out, seed=1, recipe=SMALL, report=said.append, progress=heard.append)
    np.testing.assert_array_equal(tower.embed(titles), before)  # the model that was given stays as it is
    assert manifest.trained_on == log.fingerprint() and "tuned on 6000 events of 1000 users" in manifest.source
    assert manifest.metrics["tuned_ndcg10"] > 1.5 * manifest.metrics["frozen_ndcg10"]
    assert manifest.metrics["tuning_lower_bound"] > 0
    assert heard[-1].step <= SMALL.steps and heard[-1].best >= heard[-1].frozen
    learned_from = behaviour(log, titles, seed=1)
    served = TextEncoder(out).encode(learned_from.texts)
    judged = ndcg10(learned_from.judging.ranks(served, decay=SMALL.decay)).mean()
    assert judged == pytest.approx(manifest.metrics["tuned_ndcg10"], abs=0.01)


def test_the_same_seed_gives_the_same_model(tower: TextTower, shop: tuple[Log, list[str]]) -> None:
    log, titles = shop
    few = replace(SMALL, steps=6)
    first, second = (tune(tower, log, titles, seed=4, recipe=few) for _ in range(2))
    assert first.metrics == second.metrics
    np.testing.assert_array_equal(first.tower.embed(titles[:40]), second.tower.embed(titles[:40]))


def test_a_model_that_is_no_better_is_not_written(
    tower: TextTower, shop: tuple[Log, list[str]], tmp_path: Path
) -> None:
    random = np.random.default_rng(1)
    log, titles = shop
    chance = replace(log, items=random.integers(ITEMS, size=len(log.items)).astype(np.int32))
    with pytest.raises(NotBetterError, match=r"tuning did not pay, nothing was written: NDCG@10 .* frozen, .* tuned"):
        export_tuned(tower, chance, titles, tmp_path / "text", seed=1, recipe=replace(SMALL, steps=6), report=print)
    assert not (tmp_path / "text").exists()


@pytest.mark.parametrize(
    ("frozen", "tuned", "lower", "passed"),
    [(0.1, 0.104, 0.001, False), (0.1, 0.106, 0.001, True), (0.1, 0.2, -0.001, False), (0.1, 0.09, -0.02, False)],
)
def test_better_means_by_the_margin_and_surely(frozen: float, tuned: float, lower: float, passed: bool) -> None:
    assert Verdict(frozen=frozen, tuned=tuned, lower=lower, users=100, texts=9).passed is passed


def test_the_bound_counts_held_out_texts_and_not_the_users_who_met_them() -> None:
    by_text = np.random.default_rng(0).normal(0.3, 1.0, 400)
    texts = np.repeat(np.arange(400), 10)  # ten users each, who all agree: ten times the users, no more evidence
    error = by_text.std() / 400**0.5
    bound = lower_bound(by_text[texts], texts, seed=1)
    assert bound == pytest.approx(by_text.mean() - 1.96 * error, abs=0.3 * error)
    assert lower_bound(np.full(4_000, 0.2), texts, seed=1) == pytest.approx(0.2)
