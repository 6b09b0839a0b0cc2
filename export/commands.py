"""What `headrace export text|user` does. Loads torch: call it from a process that may."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from headrace.export import artifact, corpus, projection, text, to_onnx
from headrace.export.artifact import Manifest
from headrace.export.defaults import ensure_text
from headrace.export.item_tower import ItemTower
from headrace.export.light import train
from headrace.export.names import DEFAULT_TEXT
from headrace.export.user_model import UserConfig

Report = Callable[[str], None]

_TITLES = 3_000
_MOST_TITLES = 6_000  # neighbours of neighbours are found by brute force
_SEED = 1


def export_text(model: str, out: Path | str, *, int8: bool = False, report: Report = print) -> Manifest:
    """The text model `model` (hub name or folder) → the artifact folder `out`.

    Raises ValueError, one line with the cure: no weights, a parity mismatch, or other files in `out`.
    """
    report(f"text encoder: loading {model}")
    manifest = text.export(text.TextTower.from_name(model), out, int8=int8)
    report(f"text encoder: {manifest.version} in {out}, parity {manifest.parity['onnx_vs_torch']:.1e}")
    if int8:
        report(f"text encoder: int8, smallest cosine to the float32 vectors {manifest.metrics['int8_cosine']:.3f}")
    return manifest


def export_user(
    out: Path | str,
    *,
    titles: Sequence[str] | None = None,
    model: str = DEFAULT_TEXT,
    steps: int = 240,
    report: Report = print,
) -> Manifest:
    """Fits the projection to `titles`, trains the user encoder lightly, exports it to the artifact folder `out`.

    Without titles of the shop's own, some are made here. `model` is the text model whose vectors it will
    meet. Raises ValueError, one line with the cure.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a sum split among threads has other last bits on a machine with another number of cores
    try:
        source = f"titles made by headrace, seed {_SEED}" if titles is None else f"{len(titles)} titles"
        chosen = _sample(corpus.titles(_TITLES, seed=_SEED) if titles is None else sorted({*titles}))
        tower = text.TextTower.from_name(model)
        report(f"user encoder: encoding {len(chosen)} titles with {tower.name}")
        vectors = tower.embed(chosen)
        # Single words widen the projection: it should serve titles unlike those it was fitted to.
        words = tower.embed(_sample(tower.words())[: len(chosen) // 2])
        rows = projection.fit(np.concatenate([vectors, words]), UserConfig().dim)
        trained = train(projection.project(vectors, rows), steps=steps, report=report)
        manifest = to_onnx.export(
            trained.model,
            ItemTower(rows),
            out,
            source=f"{tower.name}, {source}",
            text_version=artifact.load(ensure_text(model), "text").version,
            metrics=trained.metrics,
        )
    finally:
        torch.set_num_threads(threads)
    report(f"user encoder: {manifest.version} in {out}, parity {max(manifest.parity.values()):.1e}")
    return manifest


def _sample(texts: Sequence[str]) -> list[str]:
    order = np.random.default_rng(_SEED).permutation(len(texts))[:_MOST_TITLES]
    return [texts[i] for i in order]
