"""Declared context fields and the placement, as numbers: one-hot where the values are declared, scaled otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headrace.streams.records import Context
from headrace.streams.settings import Settings


class ContextEncoder:
    """Columns: every declared field in the order of the settings, then one per placement. A value that is not declared,
    missing or not finite is zero."""

    def __init__(self, settings: Settings) -> None:
        self._onehot: dict[str, dict[str, int]] = {}
        self._numbers: dict[str, tuple[int, float]] = {}
        at = 0
        for name, field in settings.context.items():
            if field.values:
                self._onehot[name] = {value: at + i for i, value in enumerate(field.values)}
                at += len(field.values)
            else:
                self._numbers[name] = (at, field.scale)
                at += 1
        self._placements = {name: at + i for i, name in enumerate(settings.placements)}
        self.size = at + len(self._placements)

    def encode(self, contexts: Sequence[tuple[Context, str]]) -> NDArray[np.float32]:
        """(context, placement) a row → float32 (B, size)."""
        out = np.zeros((len(contexts), self.size), np.float32)
        for i, (context, placement) in enumerate(contexts):
            out[i, self._placements[placement]] = 1
            for name, columns in self._onehot.items():
                column = columns.get(str(context[name])) if name in context else None
                if column is not None:
                    out[i, column] = 1
            for name, (column, scale) in self._numbers.items():
                value = context.get(name)
                if isinstance(value, (int, float)) and math.isfinite(value):
                    out[i, column] = value / scale
        return out
