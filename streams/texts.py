"""Texts → unit vectors, from an exported text encoder; without torch.

A text's vector does not depend on what it was encoded with, bit for bit: it is padded to a length that follows from
itself, and the graph runs on a few fixed numbers of rows, whose sums go the same way (tests/streams/test_texts.py).
"""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from headrace.export import artifact
from headrace.streams.errors import ArtifactMismatch
from headrace.streams.graph import open_graph

F32 = NDArray[np.float32]
_log = logging.getLogger("headrace.texts")

_LENGTHS = (4, 6, 8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # a text is padded to the next, in tokens
_ROWS = (2, 8, 32)  # not 1: onnxruntime reduces a single row another way, so that is for queries alone
_QUERIES = 4_096  # texts that encode_one remembers
_UNFAMILIAR = 0.5  # share of a text's tokens that say nothing
_ENGLISH = 0.15  # a vocabulary with fewer tokens beyond ASCII was made for English


class TextEncoder:
    """Raises ArtifactMismatch if `artifact_dir` is corrupt, of another schema version or no text encoder."""

    def __init__(self, artifact_dir: Path | str, *, threads: int = 1) -> None:
        try:
            loaded = artifact.load(artifact_dir, "text")
            graph, tokenizer = loaded.file("text.onnx"), loaded.file("tokenizer.json")
        except artifact.ArtifactError as error:
            raise ArtifactMismatch(str(error)) from None
        self.version = loaded.version
        self.dim = loaded.manifest.dims["text"]
        self.unfamiliar = 0  # texts that got the fallback so far
        self._source = loaded.manifest.source
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(int(loaded.manifest.options.get("max_length", _LENGTHS[-1])))  # type: ignore[arg-type]
        self._session = open_graph(graph, threads=threads)
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=False)
        beyond_ascii = sum(not token.isascii() for token in vocabulary)
        self._letters_say_nothing = beyond_ascii < _ENGLISH * len(vocabulary)
        self._queries: OrderedDict[str, F32] = OrderedDict()

    def encode(self, texts: Sequence[str]) -> F32:
        """Unit rows (N, dim), in the order given."""
        encodings = self._tokenizer.encode_batch([_clean(text) for text in texts])
        vectors = np.zeros((len(texts), self.dim), np.float32)
        by_length: dict[int, list[int]] = {}
        for row, encoding in enumerate(encodings):
            if self._is_unfamiliar(encoding):
                self._warn()
                vectors[row] = hashed_ngrams(texts[row], self.dim)
            else:
                by_length.setdefault(_padded(len(encoding.ids)), []).append(row)
        for length, rows in sorted(by_length.items()):
            for chunk in _chunks(rows):
                vectors[chunk] = self._run([encodings[row] for row in chunk], length)
        return vectors

    def encode_one(self, text: str) -> F32:
        """Unit vector (dim,), remembered for the queries that come again. Read-only.

        Always one row through the graph, at half the cost: a text's bits are its own, within rounding of `encode`'s.
        """
        known = self._queries.get(text)
        if known is None:
            known = self._encode_alone(text)
            known.flags.writeable = False
            self._queries[text] = known
            if len(self._queries) > _QUERIES:
                self._queries.popitem(last=False)
        else:
            self._queries.move_to_end(text)
        return known

    def _encode_alone(self, text: str) -> F32:
        encoding = self._tokenizer.encode(_clean(text))
        if self._is_unfamiliar(encoding):
            self._warn()
            return hashed_ngrams(text, self.dim)
        alone: F32 = self._run([encoding], _padded(len(encoding.ids)), rows=1)[0]
        return alone

    def _run(self, encodings: list[Encoding], length: int, *, rows: int | None = None) -> F32:
        rows = rows or next(size for size in _ROWS if size >= len(encodings))
        ids = np.zeros((rows, length), np.int64)
        mask = np.zeros((rows, length), np.int64)
        mask[:, 0] = 1  # an empty row needs one token to average over
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding.ids)] = encoding.ids
            mask[row, : len(encoding.ids)] = 1
        vectors: F32 = self._session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return vectors[: len(encodings)]

    def _is_unfamiliar(self, encoding: Encoding) -> bool:
        """Most of the text's tokens are [UNK], or single letters of a script that the vocabulary hardly knows."""
        unknown = known = 0
        for token, special in zip(encoding.tokens, encoding.special_tokens_mask, strict=True):
            # A tokenizer marks [UNK] as special only when it was added as such; it is told by its name in any case.
            if token in ("[UNK]", "<unk>"):
                unknown += 1
            elif not special:
                stem = token.removeprefix("##").lstrip("▁")
                nothing = self._letters_say_nothing and len(stem) <= 1 and not stem.isascii()
                unknown, known = unknown + nothing, known + (not nothing)
        return unknown > _UNFAMILIAR * (unknown + known)

    def _warn(self) -> None:
        self.unfamiliar += 1
        if self.unfamiliar == 1:
            _log.warning(
                "the text model %s does not know the language of some texts: they get hashed character n-grams, which "
                "tell them apart but know no meaning. Export a multilingual model with `headrace export text` and set "
                "[catalogue] text_model to its folder, or send each item's own `vector`.",
                self._source,
            )


def hashed_ngrams(text: str, dim: int) -> F32:
    """Unit vector (dim,) of the text's character 1-, 2- and 3-grams, by a seeded sparse random projection.

    Each n-gram adds ±1 in 8 of the dimensions, chosen by its hash (Li, Hastie & Church 2006, "Very sparse random
    projections"). Texts that share n-grams are near each other, others at right angles. Zero where there are none.
    """
    words = "".join(c if c.isalnum() else " " for c in unicodedata.normalize("NFKC", text).lower()).split()
    grams = [word[i : i + n] for word in words for n in (1, 2, 3) for i in range(len(word) - n + 1)] or list(
        text.strip()
    )
    vector = np.zeros(dim, np.float64)
    for gram in grams:
        digest = np.frombuffer(
            hashlib.blake2b(gram.encode(), digest_size=32, person=b"headrace-ngrams").digest(), "<u4"
        )
        np.add.at(vector, digest % dim, np.where(digest >> 31, len(gram), -len(gram)))  # longer n-grams say more
    norm = float(np.sqrt(vector @ vector))
    return (vector / norm if norm else vector).astype(np.float32)


def _clean(text: str) -> str:
    """Lone surrogates, which JSON can carry, are no text that a tokenizer takes."""
    return text.encode("utf-8", "replace").decode()


def _padded(length: int) -> int:
    return next((size for size in _LENGTHS if size >= length), length)


def _chunks(rows: list[int]) -> list[list[int]]:
    """Whole chunks of the largest size, then the rest in the fewest padded rows."""
    chunks = []
    while rows:
        size = max((size for size in _ROWS if size <= len(rows)), default=len(rows))
        chunks.append(rows[:size])
        rows = rows[size:]
    return chunks
