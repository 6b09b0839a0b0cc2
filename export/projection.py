"""The item projection: text space → the smaller space in which states and items meet."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headrace.export.errors import ExportError


def fit(vectors: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    """Orthonormal rows (dim, text_dim): principal components of `vectors` (N, text_dim), at right angles to their mean.

    What all texts share says nothing about any of them; without it, two unrelated items are nearly at right angles too.
    Linear without an offset, so that a vector of another origin (an image encoder's) is treated fairly.
    Raises ValueError where there are fewer texts than dimensions.
    """
    if len(vectors) <= dim:
        raise ExportError(f"{len(vectors)} texts cannot span {dim} dimensions: give more than {dim} titles")
    x = vectors.astype(np.float64)
    mean = x.mean(axis=0)
    mean /= max(float(np.linalg.norm(mean)), 1e-12)
    x -= np.outer(x @ mean, mean)
    x -= x.mean(axis=0)
    _, _, components = np.linalg.svd(x, full_matrices=False)
    components = components[:dim]
    components *= np.sign(components[np.arange(dim), np.abs(components).argmax(axis=1)])[
        :, None
    ]  # SVD leaves the sign open
    return np.ascontiguousarray(components, np.float32)


def project(vectors: NDArray[np.float32], projection: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, text_dim) → unit rows (N, dim); for training. The worker's own is bit-stable: streams/encoder.py."""
    rows = vectors @ projection.T
    unit: NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return unit
