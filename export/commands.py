"""What `headrace export text|user` does. Loads torch: call it from a process that may."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from headrace.export import corpus, projection, text, to_onnx
from headrace.export.artifact import Manifest
from headrace.export.defaults import ensure_text
from headrace.export.int8 import Loss
from headrace.export.item_tower import ItemTower
from headrace.export.light import train
from headrace.export.names import DEFAULT_TEXT
from headrace.export.text_graph import TextGraph
from headrace.export.user_model import UserConfig

Report = Callable[[str], None]

_TITLES = 3_000
_MOST_TITLES = 6_000  # neighbours of neighbours are found by brute force
_SEED = 1
_KEPT = 0.95  # below it, what int8 saves is not worth what it loses


def export_text(
    model: str,
    out: Path | str,
    *,
    pooling: str | None = None,
    query_prefix: str | None = None,
    text_prefix: str | None = None,
    int8: bool = False,
    titles: Sequence[str] = (),
    report: Report = print,
) -> Manifest:
    """The text model `model` (hub name or folder) → the artifact folder `out`.

    What is None is as the model's folder says. int8's loss is measured over `titles`, or over some made here.
    Raises ValueError, one line with the cure: no weights, a parity mismatch, or other files in `out`.
    """
    report(f"text encoder: loading {model}")
    tower = text.TextTower.from_name(model, pooling=pooling, query_prefix=query_prefix, text_prefix=text_prefix)
    before = "".join(
        f", {prefix!r} before {what}"
        for what, prefix in (("queries", tower.query_prefix), ("texts", tower.text_prefix))
        if prefix
    )
    report(f"text encoder: {tower.pooling} pooling{before}")
    manifest = text.export(tower, out, int8=int8, titles=titles)
    if int8:
        kept = manifest.metrics["int8_neighbours_kept"]
        report(f"text encoder: int8, {Loss.of(manifest.metrics)}")
        if kept < _KEPT:
            report(f"text encoder: int8 keeps fewer than {_KEPT} of the ten nearest: better without --int8")
    report(f"text encoder: {manifest.version} in {out}, parity {manifest.parity['onnx_vs_torch']:.1e}")
    return manifest


def export_user(
    out: Path | str,
    *,
    titles: Sequence[str] | None = None,
    text_encoder: str | Path = DEFAULT_TEXT,
    steps: int = 240,
    report: Report = print,
) -> Manifest:
    """Fits the projection to `titles`, trains the user encoder lightly, exports it to the artifact folder `out`.

    Without titles of the shop's own, some are made here. `text_encoder` is the one whose vectors it will meet: a
    model's name, or the folder of an artifact. Raises ValueError, one line with the cure.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a sum split among threads has other last bits on a machine with another number of cores
    try:
        source = f"titles made by headrace, seed {_SEED}" if titles is None else f"{len(titles)} titles"
        chosen = _sample(corpus.titles(_TITLES, seed=_SEED) if titles is None else sorted({*titles}))
        texts = TextGraph(ensure_text(text_encoder))
        report(f"user encoder: encoding {len(chosen)} titles with {texts.source}")
        vectors = texts.embed(chosen)
        # Single words widen the projection: it should serve titles unlike those it was fitted to.
        words = texts.embed(_sample(texts.words())[: len(chosen) // 2])
        rows = projection.fit(np.concatenate([vectors, words]), UserConfig().dim)
        trained = train(projection.project(vectors, rows), steps=steps, report=report)
        manifest = to_onnx.export(
            trained.model,
            ItemTower(rows),
            out,
            source=f"{texts.source}, {source}",
            text_version=texts.version,
            metrics=trained.metrics,
        )
    finally:
        torch.set_num_threads(threads)
    report(f"user encoder: {manifest.version} in {out}, parity {max(manifest.parity.values()):.1e}")
    return manifest


def _sample(texts: Sequence[str]) -> list[str]:
    order = np.random.default_rng(_SEED).permutation(len(texts))[:_MOST_TITLES]
    return [texts[i] for i in order]
