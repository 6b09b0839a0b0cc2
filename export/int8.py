"""A text graph's matrix products in 8 bits, and what that costs.

Weights are kept in 8 bits with a scale for each block of 128 along a column; onnxruntime quantises each row of the
input, block by block, as it multiplies (MatMulNBits, accuracy level 4). So a row's vector does not depend on the rows
beside it. onnxruntime's dynamic int8 has one scale for the whole batch: faster, but a title's vector changes with its
neighbours in the batch, and fewer of its near ones are kept (docs/texts.md has the figures).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_BLOCK = 128  # 32 keeps more neighbours and 256 fewer; 128 is the fastest of them
_NEIGHBOURS = 10


@dataclass(frozen=True)
class Loss:
    """What quantising changed, over a probe of titles."""

    titles: int
    neighbours_kept: float  # share of each title's ten nearest that are still among its ten nearest
    smallest_cosine: float  # between a title's two vectors
    mean_cosine: float

    @classmethod
    def of(cls, metrics: dict[str, float]) -> Loss:
        """What `metrics` of a manifest say."""
        return cls(
            int(metrics["int8_titles"]),
            metrics["int8_neighbours_kept"],
            metrics["int8_cosine"],
            metrics["int8_cosine_mean"],
        )

    def metrics(self) -> dict[str, float]:
        """For the manifest."""
        return {
            "int8_titles": self.titles,
            "int8_neighbours_kept": self.neighbours_kept,
            "int8_cosine": self.smallest_cosine,
            "int8_cosine_mean": self.mean_cosine,
        }

    def __str__(self) -> str:
        return (
            f"{self.neighbours_kept:.3f} of the ten nearest kept, cosine to the float32 vectors "
            f"{self.smallest_cosine:.4f} at least, {self.mean_cosine:.4f} on average, over {self.titles:,} titles"
        )


def quantise(graph: Path) -> None:
    """Rewrites the file: every product with a constant matrix in 8 bits. Tables and sums stay in float32."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    logger = logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer")
    level = logger.level
    logger.setLevel(logging.WARNING)  # it tells of every node
    try:
        how = DefaultWeightOnlyQuantConfig(block_size=_BLOCK, is_symmetric=True, accuracy_level=4, bits=8)
        quantiser = MatMulNBitsQuantizer(onnx.load(str(graph)), algo_config=how)
        quantiser.process()
    finally:
        logger.setLevel(level)
    graph.write_bytes(quantiser.model.model.SerializeToString(deterministic=True))


def loss(whole: NDArray[np.float32], quantised: NDArray[np.float32]) -> Loss:
    """`whole`, `quantised`: unit vectors (N, dim) of the same N > 1 titles, before and after."""
    cosines = np.sum(whole * quantised, axis=1)
    kept = [
        len(np.intersect1d(before, after, assume_unique=True)) / len(before)
        for before, after in zip(_nearest(whole), _nearest(quantised), strict=True)
    ]
    return Loss(len(whole), float(np.mean(kept)), float(cosines.min()), float(cosines.mean()))


def _nearest(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """(N, dim) → the rows (N, 10) nearest to each, itself left out."""
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -np.inf)
    return np.argsort(-likeness, axis=1, kind="stable")[:, : min(_NEIGHBOURS, len(vectors) - 1)]
