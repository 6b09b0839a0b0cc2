"""Texts → unit vectors, from an exported text encoder; without torch.

A text's vector does not depend on what it was encoded with, bit for bit: it is padded to a length that follows from
itself, and the graph runs on a few fixed numbers of rows, whose sums go the same way (tests/streams/test_texts.py).
Words that the model does not know count by their letters, in the measure of their share (streams/unfamiliar.py).
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from headrace.export import artifact
from headrace.streams.errors import ArtifactMismatch
from headrace.streams.graph import open_graph
from headrace.streams.unfamiliar import Familiarity, hashed_ngrams

F32 = NDArray[np.float32]
_log = logging.getLogger("headrace.texts")

_LENGTHS = (4, 6, 8, 10, 12, 14, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # padded to the next, in tokens
_ROWS = (2, 8, 32)  # not 1: onnxruntime reduces a single row another way, so that is for queries alone
_QUERIES = 4_096  # texts that encode_one remembers
_UNKNOWN_COUNTS = 0.2  # length of the vector of a text of which nothing is known


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
        self.unfamiliar = 0  # texts that got the fallback so far, as a whole or in part
        self._source = loaded.manifest.source
        options = loaded.manifest.options
        self._text_prefix, self._query_prefix = str(options["text_prefix"]), str(options["query_prefix"])
        self._pad = int(options["pad_id"])  # type: ignore[arg-type]
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(int(options.get("max_length", _LENGTHS[-1])))  # type: ignore[arg-type]
        self._session = open_graph(graph, threads=threads)
        self._familiarity = Familiarity(self._tokenizer)
        self._queries: OrderedDict[str, F32] = OrderedDict()

    def encode(self, texts: Sequence[str]) -> F32:
        """Items' texts → rows (N, dim), in the order given.

        A row's length is what it may count beside the shop's own vector (vectors.fused): 1, and where words are
        unknown the share of those that are known, at least 0.2.
        """
        encodings, fallbacks = self._read(texts, self._text_prefix)
        vectors = np.zeros((len(texts), self.dim), np.float32)
        given = {row: encoding for row, encoding in enumerate(encodings) if encoding is not None}
        by_length: dict[int, list[int]] = {}
        for row, encoding in given.items():
            by_length.setdefault(_padded(len(encoding.ids)), []).append(row)
        for length, rows in sorted(by_length.items()):
            for chunk in _chunks(rows):
                vectors[chunk] = self._run([given[row] for row in chunk], length)
        for row, (ngrams, share) in fallbacks.items():
            vectors[row] = _blended(vectors[row], ngrams, share) * np.float32(max(1 - share, _UNKNOWN_COUNTS))
        return vectors

    def encode_one(self, text: str) -> F32:
        """A query's unit vector (dim,), remembered for those that come again. Read-only.

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
        [encoding], fallbacks = self._read([text], self._query_prefix)
        vector = np.zeros(self.dim, np.float32)
        if encoding is not None:
            vector = self._run([encoding], _padded(len(encoding.ids)), rows=1)[0]
        return _blended(vector, *fallbacks[0]) if fallbacks else vector

    def _read(self, texts: Sequence[str], prefix: str) -> tuple[list[Encoding | None], dict[int, tuple[F32, float]]]:
        """What the model is given of each text, None for nothing; by row, n-grams of the rest and their share."""
        whole = [prefix + _clean(text) for text in texts]
        encodings: list[Encoding | None] = []
        fallbacks = {}
        for row, encoding in enumerate(self._tokenizer.encode_batch(whole)):
            encodings.append(encoding)
            split = self._familiarity.split(whole[row], encoding, start=len(prefix))
            if split is not None:
                self._warn()
                encodings[row] = self._tokenizer.encode(prefix + split.known) if split.known else None
                fallbacks[row] = hashed_ngrams(split.unknown, self.dim), split.share
        return encodings, fallbacks

    def _run(self, encodings: list[Encoding], length: int, *, rows: int | None = None) -> F32:
        rows = rows or next(size for size in _ROWS if size >= len(encodings))
        ids = np.full((rows, length), self._pad, np.int64)
        mask = np.zeros((rows, length), np.int64)
        mask[:, 0] = 1  # an empty row needs one token to average over
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding.ids)] = encoding.ids
            mask[row, : len(encoding.ids)] = 1
        vectors: F32 = self._session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return vectors[: len(encodings)]

    def _warn(self) -> None:
        self.unfamiliar += 1
        if self.unfamiliar == 1:
            _log.warning(
                "the text model %s does not know the language of some texts, or of words in them: these get hashed "
                "character n-grams, which tell them apart but know no meaning. Export a multilingual model with "
                "`headrace export text` and set [catalogue] text_model to its folder, or send each item's own "
                "`vector`.",
                self._source,
            )


def _blended(known: F32, unknown: F32, share: float) -> F32:
    """The unit vector of `1 - share` parts of the one and `share` parts of the other; `known` is 0 where share is 1."""
    vector = (1 - share) * known.astype(np.float64) + share * unknown
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
