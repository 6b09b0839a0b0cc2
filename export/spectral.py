"""Where item embeddings begin when there are no words to begin from: who was taken by the same users lies near.

The right singular vectors of the user × item matrix (PureSVD: Cremonesi, Koren & Turrin 2010, RecSys), after users and
items have been damped by a power of their degrees, without which the few most active and most popular rule the
components (EigenRec: Nikolakopoulos, Kalantzis, Gallopoulos & Garofalakis 2019, eq. 5).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.export.log import Log

_DAMPING = 0.25  # power of the degree taken off; chosen on a validation part (docs/encoder.md)
_MORE, _TURNS = 16, 6  # columns beyond the wanted ones, and power iterations (Halko, Martinsson & Tropp 2011, alg. 4.4)


def item_factors(log: Log, dim: int) -> NDArray[np.float32]:
    """Unit rows (N, dim); zeros for items that no user took. Of the log's wanted events."""
    n, users = len(log.keys), len(log.users)
    events = np.flatnonzero(log.wanted)
    pairs = np.unique(log.owners[events] * n + log.items[events])
    rows, columns = pairs // n, pairs % n
    degrees = np.bincount(rows, minlength=users)[rows] * np.bincount(columns, minlength=n)[columns]
    values = torch.from_numpy(degrees**-_DAMPING)  # float64, as all of this
    matrix = torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([rows, columns])), values, (users, n), check_invariants=True
    ).coalesce()
    across = matrix.transpose(0, 1).coalesce()
    width = min(dim + _MORE, n, users)
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(users, width, generator=generator, dtype=torch.float64)
    for _ in range(_TURNS):
        basis, _ = torch.linalg.qr(torch.sparse.mm(matrix, torch.sparse.mm(across, basis)))
    _, singular, right = torch.linalg.svd(torch.sparse.mm(across, basis).T, full_matrices=False)
    raw = (right[:dim].T * singular[:dim].sqrt()).numpy()
    raw = np.pad(raw, ((0, 0), (0, dim - raw.shape[1])))
    norms = np.linalg.norm(raw, axis=1, keepdims=True)
    return np.where(norms > 1e-9, raw / np.maximum(norms, 1e-9), 0).astype(np.float32)
