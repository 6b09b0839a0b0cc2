"""A user encoder's artifact, opened for serving: everything that must fit is looked at before anything is encoded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from safetensors import SafetensorError, safe_open

from headrace.export import artifact, item_tower
from headrace.export.artifact import Artifact, ArtifactError
from headrace.export.item_tower import ItemTower
from headrace.export.names import GAP_BUCKETS, N_TYPE_CODES
from headrace.streams.errors import ArtifactMismatch
from headrace.streams.graph import open_graph
from headrace.streams.sums import NAMES, Sums

_CURE = "export it again with this headrace"


@dataclass(frozen=True)
class UserArtifact:
    version: str
    text_version: str  # of the text encoder over whose vectors it was trained
    dim: int  # of states
    text_dim: int
    cache: int  # floats of a user's recurrent state
    steps: dict[int, onnxruntime.InferenceSession]  # by the number of users that a step takes
    tower: ItemTower
    sums: Sums


def load(folder: Path | str, *, text: Artifact | None = None, threads: int = 1) -> UserArtifact:
    """`text`: the text encoder that is to serve beside it.

    Raises ArtifactMismatch, one line that says what does not fit and what to do: another kind or schema, a damaged
    file, another text encoder than it was trained over, items or graphs of other sizes than the manifest says.
    """
    try:
        found = artifact.load(folder, "user")
        if text is not None:
            _fits(found, text)
        return _opened(found, threads)
    except ArtifactError as error:
        raise ArtifactMismatch(str(error)) from None


def _fits(user: Artifact, text: Artifact) -> None:
    trained, dims = user.manifest.text_version, (user.manifest.dims.get("text"), text.manifest.dims.get("text"))
    cure = "name the text encoder that it was trained over, or train it over this one"
    if trained != text.version:
        raise ArtifactError(
            f"{user.path}: trained over the text encoder {trained or 'of no name'}, and {text.path} is "
            f"{text.version}; {cure}"
        )
    if dims[0] != dims[1]:
        raise ArtifactError(f"{user.path}: takes text vectors of {dims[0]}, {text.path} makes {dims[1]}; {cure}")


def _opened(found: Artifact, threads: int) -> UserArtifact:
    manifest, path = found.manifest, found.path
    sizes, dims = manifest.options.get("batches"), manifest.dims
    if not isinstance(sizes, list) or not sizes or not {"state", "text", "cache"} <= dims.keys():
        raise ArtifactError(f"{path}: the manifest names no dims or no batches; {_CURE}")
    codes = manifest.options.get("type_codes"), manifest.options.get("gap_buckets")
    if codes != (N_TYPE_CODES, GAP_BUCKETS):
        raise ArtifactError(
            f"{path}: knows {codes[0]} event types and {codes[1]} time gaps, this headrace has {N_TYPE_CODES} and "
            f"{GAP_BUCKETS}; {_CURE}"
        )
    steps = {size: _step(found, size, threads) for size in sorted(sizes)}
    return UserArtifact(
        found.version,
        manifest.text_version,
        dims["state"],
        dims["text"],
        dims["cache"],
        steps,
        _tower(found),
        _sums(found),
    )


def _tower(found: Artifact) -> ItemTower:
    try:
        tower = ItemTower.load(found.file(item_tower.FILE))
    except (KeyError, ValueError, SafetensorError) as error:
        raise ArtifactError(f"{found.path}: {item_tower.FILE} cannot be read ({error}); {_CURE}") from None
    dims = found.manifest.dims
    if (tower.dim, tower.text_dim) != (dims["state"], dims["text"]):
        raise ArtifactError(
            f"{found.path}: items of {tower.text_dim} → {tower.dim} where the manifest says {dims['text']} → "
            f"{dims['state']}; {_CURE}"
        )
    vocabulary = hashlib.sha256(tower.id_keys.tobytes()).hexdigest() if len(tower.id_keys) else ""
    if vocabulary != found.manifest.vocabulary:
        raise ArtifactError(f"{found.path}: other items have an embedding than the manifest says; {_CURE}")
    return tower


def _sums(found: Artifact) -> Sums:
    name = "model.safetensors"
    try:
        with safe_open(found.file(name), framework="numpy") as tensors:
            parts = [tensors.get_tensor(part) for part in NAMES]
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{found.path}: {name} cannot be read ({error}); {_CURE}") from None
    count = parts[0].size
    wanted = [(count,), (count,), (N_TYPE_CODES, count), (GAP_BUCKETS, count)]
    if [part.shape for part in parts] != wanted or not all(np.isfinite(part).all() for part in parts):
        raise ArtifactError(f"{found.path}: {name} holds other sums than this headrace reads; {_CURE}")
    return Sums(*parts)


def _step(found: Artifact, size: int, threads: int) -> onnxruntime.InferenceSession:
    name, dims = f"step-{size}.onnx", found.manifest.dims
    try:
        graph = open_graph(found.file(name), threads=threads)
    except Exception as error:  # what ONNX Runtime raises has no class of its own
        raise ArtifactError(f"{found.path}: {name} is no graph ({str(error).splitlines()[0]}); {_CURE}") from None
    wanted = [
        ("cache", [size, dims["cache"]]),
        ("vectors", [size, dims["state"]]),
        ("types", [size]),
        ("gaps", [size]),
        ("new_cache", [size, dims["cache"]]),
        ("state", [size, dims["state"]]),
    ]
    has = [(arg.name, list(arg.shape)) for arg in (*graph.get_inputs(), *graph.get_outputs())]
    if has != wanted:
        shown = next((f"{n} {s}" for n, s in has if (n, s) not in wanted), "fewer")
        raise ArtifactError(f"{found.path}: {name} takes or gives {shown}, which this headrace does not know; {_CURE}")
    return graph
