"""Text export takes any transformers model, and writes nothing where graph and torch disagree."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from headrace.export import artifact, onnx_graph, text
from headrace.export.commands import export_text
from headrace.export.int8 import loss
from headrace.export.pooling import POOLINGS, weights
from headrace.streams.texts import TextEncoder

TEXTS = ["red shoe", "tea", "red red tea shoes with a very long tail of letters", "a"]


def said(folder: Path, name: str, content: object) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of the user's own in a folder, with random weights."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "red", "shoe", "tea", "##s"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrtuvwxyz"] + [":"]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with a vocabulary of bytes and no padding token, with random weights."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([*TEXTS, "trail running shoe"] * 4, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    model: Any
    if request.param == "llama":
        model = LlamaModel(LlamaConfig(
            vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=48, max_position_embeddings=64,
        ))  # fmt: skip
    else:
        model = GPT2Model(GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=2, n_positions=64))
    model.save_pretrained(folder)
    return folder


def test_any_model_by_path_is_served_as_torch_computes_it(small_model: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    manifest = export_text(str(small_model), tmp_path / "text", report=lines.append)
    assert manifest.dims == {"text": 32} and manifest.parity["onnx_vs_torch"] <= text.PARITY
    assert manifest.pooling == "mean" and manifest.version in lines[-1]
    expected = text.TextTower.from_name(str(small_model)).embed(TEXTS)
    encoder = TextEncoder(tmp_path / "text")
    assert np.abs(encoder.encode(TEXTS) - expected).max() < 1e-5
    assert encoder.version == artifact.load(tmp_path / "text").version


def test_a_decoder_is_pooled_at_its_last_token(decoder: Path, tmp_path: Path) -> None:
    """Served vectors are those of the text alone, without any padding."""
    manifest = export_text(str(decoder), tmp_path / "text", report=lambda line: None)
    assert manifest.pooling == "last"
    tower = text.TextTower.from_name(str(decoder))
    served = TextEncoder(tmp_path / "text").encode(TEXTS)
    for title, vector in zip(TEXTS, served, strict=True):
        ids = torch.tensor([tower.tokenizer(title)["input_ids"]])
        with torch.inference_mode():
            last = tower.model(input_ids=ids).last_hidden_state[0, -1]
        assert np.abs(vector - (last / last.norm()).numpy()).max() < 1e-5
    assert np.abs(tower.embed(TEXTS) - served).max() < 1e-5
    assert np.isfinite(TextEncoder(tmp_path / "text").encode(["", "茶"])).all()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_has_no_weight_on_either_side(pooling: Any) -> None:
    rows = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]])
    expected = {
        "mean": rows,
        "cls": torch.tensor([[1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]),
        "last": torch.tensor([[0, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]),
    }
    assert torch.equal(weights(rows, pooling), expected[pooling])


def test_a_folder_says_its_pooling_and_prefixes_and_the_user_has_the_last_word(
    small_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(small_model, folder)
    said(folder, "1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    said(folder, "config_sentence_transformers.json", {"prompts": {"query": "q: ", "document": "d: "}})
    tower = text.TextTower.from_name(str(folder))
    assert (tower.pooling, tower.query_prefix, tower.text_prefix) == ("cls", "q: ", "d: ")
    tower = text.TextTower.from_name(str(folder), pooling="last", query_prefix="", text_prefix="p: ")
    assert (tower.pooling, tower.query_prefix, tower.text_prefix) == ("last", "", "p: ")
    said(folder, "1_Pooling/config.json", {"pooling_mode": "max"})
    with pytest.raises(
        ValueError, match="its pooling max cannot be exported; name one with --pooling: mean, cls, last"
    ):
        text.TextTower.from_name(str(folder))
    said(folder, "modules.json", [{"type": "sentence_transformers.models.Dense"}])
    with pytest.raises(ValueError, match="its Dense layer after the transformer cannot be exported"):
        text.TextTower.from_name(str(folder))
    assert text.TextTower.from_name(str(folder), pooling="mean").pooling == "mean"
    with pytest.raises(ValueError, match="pooling 'maen': choose from mean, cls, last"):
        text.TextTower.from_name(str(folder), pooling="maen")


def test_texts_and_queries_get_their_prefixes_and_these_are_part_of_the_version(
    small_model: Path, tmp_path: Path
) -> None:
    def encoder(name: str, **how: Any) -> TextEncoder:
        export_text(str(small_model), tmp_path / name, report=lambda line: None, **how)
        return TextEncoder(tmp_path / name)

    plain, prefixed = encoder("plain"), encoder("prefixed", query_prefix="q: ", text_prefix="text: ")
    assert np.abs(prefixed.encode(["red shoe"]) - plain.encode(["text: red shoe"])).max() < 1e-6
    assert np.abs(prefixed.encode_one("red shoe") - plain.encode_one("q: red shoe")).max() < 1e-6
    tower = text.TextTower.from_name(str(small_model), text_prefix="text: ")
    assert np.abs(tower.embed(["red shoe"]) - prefixed.encode(["red shoe"])).max() < 1e-5
    before = prefixed.unfamiliar
    prefixed.encode(["茶"])
    assert prefixed.unfamiliar == before + 1  # the prefix, which it knows, does not make the text known
    manifest = artifact.load(tmp_path / "plain").manifest
    texts_alone = manifest.options | {"text_prefix": "text: "}
    other = [
        msgspec.structs.replace(manifest, **change)
        for change in ({"pooling": "cls"}, {"options": texts_alone}, {"options": texts_alone | {"query_prefix": "q: "}})
    ]
    assert len({plain.version, *(manifest.version for manifest in other)}) == 4
    assert prefixed.version == other[2].version


def test_int8_says_what_it_costs(small_model: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    titles = [f"{first} {second}{third}" for first in ("red", "tea") for second in "abcdef" for third in "xyz"]
    manifest = export_text(str(small_model), tmp_path / "text", int8=True, titles=titles, report=lines.append)
    metrics = manifest.metrics
    assert manifest.options["int8"] is True and metrics["int8_titles"] == len(titles)
    assert 0.9 < metrics["int8_cosine"] <= metrics["int8_cosine_mean"] < 1 + 1e-6
    assert b"MatMulNBits" in (tmp_path / "text" / "text.onnx").read_bytes()
    assert f"{metrics['int8_neighbours_kept']:.3f} of the ten nearest kept" in " ".join(lines)
    encoder = TextEncoder(tmp_path / "text")
    together = encoder.encode(titles)
    assert [encoder.encode([title])[0].tobytes() for title in titles] == [row.tobytes() for row in together]


def test_what_int8_loses_is_counted_by_neighbours() -> None:
    angles = np.arange(40) * 0.05
    whole = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert loss(whole, whole).neighbours_kept == 1
    swapped = whole.copy()
    swapped[[0, 39]] = swapped[[39, 0]]  # the two ends: everybody else's neighbours change by one at most
    found = loss(whole, swapped)
    assert 0.5 < found.neighbours_kept < 1 and found.smallest_cosine == pytest.approx(np.cos(39 * 0.05), abs=1e-5)


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


@pytest.mark.parametrize(
    ("asked", "says"), [(["--model", "/no/such"], "cannot be loaded"), (["--pooling", "max"], "choose from mean")]
)
def test_a_mistake_is_told_as_one_and_not_as_a_bug(asked: list[str], says: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "headrace.streams.cli", "export", "text", str(tmp_path / "out"), *asked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and says in done.stderr and "--debug" not in done.stderr
    assert not (tmp_path / "out").exists()
