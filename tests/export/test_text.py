"""Text export takes any transformers model, and writes nothing where graph and torch disagree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from headrace.export import artifact, onnx_graph, text
from headrace.export.commands import export_text
from headrace.streams.texts import TextEncoder


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of the user's own in a folder, with random weights."""
    folder = tmp_path_factory.mktemp("model")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "red", "shoe", "tea", "##s"]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    return folder


def test_any_model_by_path_is_served_as_torch_computes_it(small_model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    manifest = export_text(str(small_model), tmp_path / "text", report=said.append)
    assert manifest.dims == {"text": 32} and manifest.parity["onnx_vs_torch"] <= text.PARITY
    assert manifest.version in said[-1]
    texts = ["red shoe", "tea", "red red tea shoes with a very long tail of letters"]
    expected = text.TextTower.from_name(str(small_model)).embed(texts)
    encoder = TextEncoder(tmp_path / "text")
    assert np.abs(encoder.encode(texts) - expected).max() < 1e-5
    assert encoder.version == artifact.load(tmp_path / "text").version


def test_int8_says_what_it_costs(small_model: Path, tmp_path: Path) -> None:
    manifest = export_text(str(small_model), tmp_path / "text", int8=True, report=lambda line: None)
    assert 0.5 < manifest.metrics["int8_cosine"] < 1 and manifest.options["int8"] is True


def test_a_graph_that_differs_from_torch_is_not_written(small_model: Path, tmp_path: Path) -> None:
    tower = text.TextTower.from_name(str(small_model))
    tower.train()  # dropout in the reference: the mistake this check was first met by
    with pytest.raises(onnx_graph.ParityError, match=r"text encoder: largest difference .* nothing was written"):
        text.export(tower, tmp_path / "text")
    assert not (tmp_path / "text").exists()


def test_a_model_that_is_nowhere_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"'no/such-model' cannot be loaded.*name a folder with its weights") as error:
        text.TextTower.from_name("no/such-model")
    assert "\n" not in str(error.value)
