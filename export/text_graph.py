"""The vectors of texts as an exported text encoder gives them, in bulk, for training. Without torch.

What is served one by one, with a fallback for languages that the tokenizer does not know, is streams/texts.py; titles
in the tokenizer's language come out the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from headrace.export import artifact
from headrace.export.onnx_graph import open_graph

_ROWS = 32


class TextGraph:
    """Raises ArtifactError if the folder is no text encoder, or a corrupt one."""

    def __init__(self, folder: Path | str) -> None:
        loaded = artifact.load(folder, "text")
        options = loaded.manifest.options
        self.source, self.version = loaded.manifest.source, loaded.version
        self.dim = loaded.manifest.dims["text"]
        self._prefix = str(options.get("text_prefix", ""))
        self._tokenizer = Tokenizer.from_file(str(loaded.file("tokenizer.json")))
        self._tokenizer.enable_truncation(int(str(options["max_length"])))
        self._tokenizer.enable_padding(pad_id=int(str(options["pad_id"])))
        self._session = open_graph(loaded.file("text.onnx"))

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors (N, dim)."""
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for begin in range(0, len(order), _ROWS):
            rows = order[begin : begin + _ROWS]
            encodings = self._tokenizer.encode_batch([self._prefix + texts[row] for row in rows])
            feeds = {
                "input_ids": np.array([encoding.ids for encoding in encodings], np.int64),
                "attention_mask": np.array([encoding.attention_mask for encoding in encodings], np.int64),
            }
            vectors[rows] = self._session.run(None, feeds)[0]
        return vectors

    def words(self) -> list[str]:
        """Whole words of the vocabulary, sorted."""
        stems = {token.lstrip("▁Ġ") for token in self._tokenizer.get_vocab()}
        return sorted(stem for stem in stems if len(stem) > 3 and stem.isalpha())
