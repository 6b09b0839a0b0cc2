"""The user encoder → its artifact: step graphs, window graph, projection, weights. Refused on a parity mismatch."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.export.artifact import SCHEMA, Manifest, file_digests, write_manifest, writing
from headrace.export.item_tower import FILE, ItemTower
from headrace.export.names import GAP_BUCKETS, N_TYPE_CODES
from headrace.export.onnx_graph import OPSET, check_parity, open_graph, run_graph, write_graph
from headrace.export.user_model import StepGraph, UserModel

BATCHES = (8, 64)
"""The users a step graph takes. Few fixed shapes: a user's result must not depend on whom he is encoded with."""
STEP_VS_WINDOW = 1e-4
ONNX_VS_TORCH = 1e-4  # of unit vectors, after the longest window; the steps' rounding adds up
_WINDOW = 50


def export(
    model: UserModel,
    items: ItemTower,
    folder: Path | str,
    *,
    source: str,
    text_version: str,
    trained_on: str = "",
    metrics: dict[str, float] | None = None,
) -> Manifest:
    """Writes the artifact into `folder`, whole or not at all.

    Raises ParityError if step and window, or ONNX and torch, differ by more than stated above.
    """
    model.eval()  # type: ignore[no-untyped-call]
    config = model.config
    if items.dim != config.dim:
        raise ValueError(f"the items' space has {items.dim} dimensions, the model {config.dim}")
    vectors, types, gaps = _probe(max(BATCHES), _WINDOW, config.dim)
    with torch.inference_mode():
        window = model(vectors, types, gaps).numpy()
        parity = {
            "step_vs_window": check_parity(
                "step form against window", window, _steps(model, vectors, types, gaps), tolerance=STEP_VS_WINDOW
            )
        }
    with writing(folder) as scratch:
        graph = scratch / "window.onnx"
        axes = {0: "users", 1: "events"}
        write_graph(
            model,
            (vectors[:3], types[:3], gaps[:3]),
            graph,
            inputs=["vectors", "types", "gaps"],
            outputs=["states"],
            dynamic={"vectors": axes, "types": axes, "gaps": axes},
        )
        feeds = {"vectors": vectors.numpy(), "types": types.numpy(), "gaps": gaps.numpy()}
        parity["window_onnx_vs_torch"] = check_parity(
            "window graph against torch", window, run_graph(graph, feeds)[0], tolerance=ONNX_VS_TORCH
        )
        for batch in BATCHES:
            graph = scratch / f"step-{batch}.onnx"
            cache = torch.zeros(batch, config.cache_floats)
            write_graph(
                StepGraph(model),
                (cache, vectors[:batch, 0], types[:batch, 0], gaps[:batch, 0]),
                graph,
                inputs=["cache", "vectors", "types", "gaps"],
                outputs=["new_cache", "state"],
            )
            parity[f"step_{batch}_onnx_vs_window"] = check_parity(
                f"step graph of {batch} against the window",
                window[:batch],
                _onnx_steps(graph, feeds, batch, config.cache_floats),
                tolerance=ONNX_VS_TORCH,
            )
        items.save(scratch / FILE)
        model.save_pretrained(scratch)
        manifest = Manifest(
            kind="user",
            schema=SCHEMA,
            source=source,
            dims={"text": items.text_dim, "state": config.dim, "cache": config.cache_floats},
            pooling="last",
            opset=OPSET,
            options={"batches": list(BATCHES), "type_codes": N_TYPE_CODES, "gap_buckets": GAP_BUCKETS},
            files=file_digests(scratch),
            parity=parity,
            metrics=metrics or {},
            created_by=f"headrace {version('headrace')}, torch {torch.__version__}",
            text_version=text_version,
            vocabulary=hashlib.sha256(items.id_keys.tobytes()).hexdigest() if len(items.id_keys) else "",
            trained_on=trained_on,
        )
        write_manifest(scratch, manifest)
    return manifest


def _probe(users: int, events: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random histories with a zero vector (an unknown item) here and there."""
    random = torch.Generator().manual_seed(5)
    vectors = torch.nn.functional.normalize(torch.randn(users, events, dim, generator=random), dim=-1)
    vectors *= (torch.rand(users, events, 1, generator=random) > 0.1).float()
    types = torch.randint(N_TYPE_CODES, (users, events), generator=random)
    return vectors, types, torch.randint(GAP_BUCKETS, (users, events), generator=random)


def _steps(model: UserModel, vectors: Tensor, types: Tensor, gaps: Tensor) -> NDArray[np.float32]:
    cache = torch.zeros(len(vectors), model.config.cache_floats)
    states = []
    for event in range(vectors.shape[1]):
        cache, state = model.step(cache, vectors[:, event], types[:, event], gaps[:, event])
        states.append(state.numpy())
    return np.stack(states, axis=1)


def _onnx_steps(graph: Path, feeds: dict[str, NDArray[np.float32]], batch: int, floats: int) -> NDArray[np.float32]:
    session = open_graph(graph)
    cache = np.zeros((batch, floats), np.float32)
    states = []
    for event in range(feeds["vectors"].shape[1]):
        tokens = {name: np.ascontiguousarray(array[:batch, event]) for name, array in feeds.items()}
        cache, state = session.run(None, {"cache": cache, **tokens})
        states.append(state)
    return np.stack(states, axis=1)
