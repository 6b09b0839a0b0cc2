"""The user encoder: two forms of one function, a sensible state without training, a better one with a little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from headrace.export import artifact, corpus, onnx_graph, projection, to_onnx
from headrace.export.item_tower import ItemTower
from headrace.export.light import train
from headrace.export.names import EVENT_TYPES, GAP_THRESHOLDS, N_TYPE_CODES, type_code
from headrace.export.sequences import sequences
from headrace.export.user_model import UserConfig, UserModel, decay_matrix

SMALL = {"dim": 16, "layers": 2, "heads": 2, "key_dim": 4, "feed_forward": 16, "head_decays": (0.5, 0.9)}


@pytest.fixture
def model() -> UserModel:
    torch.manual_seed(3)
    made = UserModel(UserConfig(**SMALL))
    for parameter in made.parameters():  # far from where it starts, so that every part has a say
        parameter.data += 0.3 * torch.randn_like(parameter)
    return made.eval()


def tokens(users: int, events: int, dim: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    vectors = torch.nn.functional.normalize(torch.randn(users, events, dim, generator=random), dim=-1)
    return (
        vectors,
        torch.randint(N_TYPE_CODES, (users, events), generator=random),
        torch.randint(64, (users, events), generator=random),
    )


@torch.inference_mode()
def test_the_recurrent_form_equals_the_parallel(model: UserModel) -> None:
    vectors, types, gaps = tokens(3, 40)
    window = model(vectors, types, gaps)
    cache = torch.zeros(3, model.config.cache_floats)
    for event in range(40):
        cache, state = model.step(cache, vectors[:, event], types[:, event], gaps[:, event])
        assert torch.allclose(state, window[:, event], atol=2e-5)


@torch.inference_mode()
def test_later_events_do_not_change_earlier_states(model: UserModel) -> None:
    vectors, types, gaps = tokens(2, 12)
    assert torch.allclose(
        model(vectors, types, gaps)[:, :8], model(vectors[:, :8], types[:, :8], gaps[:, :8]), atol=1e-6
    )


def test_decay_matrix_is_the_paper_s() -> None:
    expected = [[1, 0, 0], [0.5, 1, 0], [0.25, 0.5, 1]]
    assert decay_matrix(torch.tensor([0.5]), 3)[0].tolist() == expected


@torch.inference_mode()
def test_untrained_the_state_leans_towards_what_came_last() -> None:
    torch.manual_seed(0)
    model = UserModel(UserConfig()).eval()
    vectors, types, gaps = tokens(50, 10, 64)
    likeness = (model(vectors, types, gaps)[:, -1:] * vectors).sum(-1).mean(0)  # (10,): to each event
    assert likeness[-1] > 0.5 and likeness[-1] > likeness[-2] > likeness[0]


def test_a_head_without_decay_is_refused() -> None:
    with pytest.raises(ValueError, match="3 heads need as many head_decays, got 2"):
        UserConfig(heads=3, head_decays=(0.5, 0.9))


def test_event_types_have_lasting_codes() -> None:
    assert [type_code(name) for name in ("view", "purchase", "search", "impression")] == [1, 7, 12, 15]
    own = {type_code(f"own-{i}") for i in range(200)}
    assert min(own) >= 32 and max(own) < N_TYPE_CODES and len({*EVENT_TYPES}) == 15
    assert list(GAP_THRESHOLDS) == sorted(GAP_THRESHOLDS) and GAP_THRESHOLDS[-1] > 2**31


def test_the_projection_is_orthonormal_and_blind_to_the_common_part() -> None:
    random = np.random.default_rng(0)
    common = np.full(32, 0.5, np.float32)
    vectors = common + random.standard_normal((200, 32)).astype(np.float32) * np.linspace(1, 0.1, 32, dtype=np.float32)
    rows = projection.fit(vectors, 8)
    assert np.allclose(rows @ rows.T, np.eye(8), atol=1e-5)
    mean = vectors.mean(axis=0)
    assert np.abs(rows @ mean).max() < 1e-4 * np.linalg.norm(mean)
    assert np.abs(rows[0, :4]).max() > np.abs(rows[0, -4:]).max()  # the first component lies where the variance is
    with pytest.raises(ValueError, match="give more than 8 titles"):
        projection.fit(vectors[:8], 8)


def test_titles_and_sequences_follow_from_the_seed() -> None:
    assert corpus.titles(50, seed=4) == corpus.titles(50, seed=4) != corpus.titles(50, seed=5)
    items = projection.project(
        np.random.default_rng(0).standard_normal((100, 16)).astype(np.float32), np.eye(16, dtype=np.float32)
    )
    one, same, other = (sequences(items, 20, 15, seed=seed) for seed in (1, 1, 2))
    assert (one.items == same.items).all() and (one.gaps == same.gaps).all() and (one.items != other.items).any()
    shown = one.items >= 0
    assert (one.vectors[shown] == items[one.items[shown]]).all()
    assert set(one.types[~shown]) <= {0, type_code("search"), type_code("post")}


def test_light_training_beats_no_training_and_the_mean_on_items_it_never_saw() -> None:
    random = np.random.default_rng(0)
    topics = random.standard_normal((20, 16))
    made = topics[random.integers(20, size=600)] + 0.5 * random.standard_normal((600, 16))
    items = projection.project(made.astype(np.float32), np.eye(16, dtype=np.float32))
    said: list[str] = []
    result = train(items, config=UserConfig(**SMALL), steps=60, batch=32, report=said.append)
    figures = result.metrics
    assert figures["loss_last"] < figures["loss_first"]
    assert figures["hit10_trained"] > figures["hit10_untrained"] > figures["hit10_mean"]
    assert "hit10_trained" in said[-1] and "loss" in said[0]
    assert torch.equal(result.model.type_in.weight[0], result.model.type_in.weight[40])  # a code it never met


def test_export_writes_what_load_reads(model: UserModel, tmp_path: Path) -> None:
    manifest = to_onnx.export(
        model, ItemTower(np.eye(16, 32, dtype=np.float32)), tmp_path / "user", source="a test", text_version="sha256:0"
    )
    loaded = artifact.load(tmp_path / "user", "user")
    assert loaded.manifest == manifest and manifest.dims == {
        "text": 32,
        "state": 16,
        "cache": model.config.cache_floats,
    }
    assert manifest.parity["step_8_onnx_vs_window"] < 1e-4
    again = UserModel.from_pretrained(tmp_path / "user")  # training can go on from an artifact
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_model_whose_forms_disagree_is_not_written(model: UserModel, tmp_path: Path) -> None:
    model.step = lambda cache, vectors, types, gaps: (cache, vectors)  # type: ignore[method-assign]
    with pytest.raises(onnx_graph.ParityError, match=r"step form against window.*nothing was written"):
        to_onnx.export(
            model,
            ItemTower(np.eye(16, 32, dtype=np.float32)),
            tmp_path / "user",
            source="a test",
            text_version="sha256:0",
        )
    assert not (tmp_path / "user").exists()
