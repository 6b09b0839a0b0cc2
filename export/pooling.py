"""How a text model's token states become one vector: mean, first token, last token, and what its folder says of that.

A folder made by sentence-transformers says it itself: 1_Pooling/config.json names the pooling and
config_sentence_transformers.json the words to put before queries and texts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from headrace.export.errors import ExportError

Pooling = Literal["mean", "cls", "last"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)

_KEYS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}
_MODES = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
_KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")
_CHOICE = ", ".join(POOLINGS)


@dataclass(frozen=True)
class Said:
    """What a model's folder says; None and "" where it says nothing."""

    pooling: Pooling | None = None
    query_prefix: str = ""
    text_prefix: str = ""


def pooling_named(name: str) -> Pooling:
    """Raises ValueError for a name that is none."""
    for pooling in POOLINGS:
        if pooling == name:
            return pooling
    raise ExportError(f"pooling {name!r}: choose from {_CHOICE}")


def weights(mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Attention mask (B, L) of 0 and 1, padded left or right → each token's weight (B, L). At least one 1 a row."""
    if pooling == "mean":
        return mask
    places = torch.arange(mask.shape[1], device=mask.device)
    if pooling == "cls":
        first = torch.where(mask > 0, places, mask.shape[1]).min(dim=1, keepdim=True).values
        return (places == first).to(mask.dtype)
    last = (places * mask).max(dim=1, keepdim=True).values
    return (places == last).to(mask.dtype)


@torch.inference_mode()
def is_causal(model: torch.nn.Module, vocabulary: int) -> bool:
    """A token's state does not change with the tokens after it: then only the last one has seen the whole text."""
    ids = torch.tensor([[1, 2, 3], [1, 2, 4]]) % max(vocabulary, 1)
    first = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0]
    return bool(torch.allclose(first[0], first[1], atol=1e-6))


def said_by(where: str, *, pooling: Pooling | None = None) -> Said:
    """Reads the folder or the cached hub model `where`; a `pooling` given stands for what it says of that.

    Raises ValueError where it names a pooling, or layers after it, that are not exported here.
    """
    if pooling is None:
        for module in _json(where, "modules.json") or ():
            kind = str(module.get("type", "")).rpartition(".")[2]
            if kind not in _KNOWN_MODULES:
                raise ExportError(
                    f"text model {where!r}: its {kind} layer after the transformer cannot be exported; "
                    f"take another model, or leave the layer out by naming --pooling: {_CHOICE}"
                )
    prompts = (_json(where, "config_sentence_transformers.json") or {}).get("prompts") or {}
    return Said(
        pooling or _pooling(where, _json(where, "1_Pooling/config.json")),
        query_prefix=prompts.get("query") or "",
        text_prefix=prompts.get("document") or prompts.get("passage") or "",
    )


def _pooling(where: str, config: dict[str, Any] | None) -> Pooling | None:
    if config is None:
        return None
    named = config.get("pooling_mode")
    if isinstance(named, str):
        modes = [named]
    else:
        modes = [key for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    found = [(_MODES | _KEYS).get(mode) for mode in modes]
    if len(found) != 1 or found[0] is None:
        raise ExportError(f"text model {where!r}: its pooling {' + '.join(map(str, modes)) or 'is not named and'} "
                         f"cannot be exported; name one with --pooling: {_CHOICE}")  # fmt: skip
    return pooling_named(found[0])


def _json(where: str, name: str) -> Any:
    from transformers.utils.hub import cached_file

    folder, _, file = name.rpartition("/")
    try:
        found = cached_file(
            where, file, subfolder=folder,
            _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
    except OSError:
        return None
    return json.loads(Path(found).read_text("utf-8")) if found else None
