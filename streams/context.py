"""Declared context fields and the placement, as numbers.

    category    a column a value: 1 for the one that came
    number      divided by its scale, at most LARGEST either way
    hour        sin and cos of the time of day: 23:30 lies beside 00:30
    weekday     sin and cos of the day of the week, whichever day is 0
    placement   a column each

A value that is not declared, missing or not finite is zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headrace.streams.records import Context
from headrace.streams.settings import Settings

LARGEST = 100.0  # of a number: learning takes no more, and beyond it one value would decide alone
_TURN = {"hour": 24.0, "weekday": 7.0}  # of so many one turn of the circle is


class ContextEncoder:
    """Columns: every declared field in the order of the settings, then one per placement."""

    def __init__(self, settings: Settings) -> None:
        self._categories: dict[str, dict[str, int]] = {}
        self._numbers: dict[str, tuple[int, float]] = {}
        self._circles: dict[str, tuple[int, float]] = {}
        at = 0
        for name, field in settings.context.items():
            if field.means == "category":
                self._categories[name] = {value: at + i for i, value in enumerate(field.values)}
                at += len(field.values)
            elif field.means == "number":
                self._numbers[name] = (at, field.scale)
                at += 1
            else:
                self._circles[name] = (at, _TURN[field.means])
                at += 2
        self._placements = {name: at + i for i, name in enumerate(settings.placements)}
        self.size = at + len(self._placements)

    def encode(self, contexts: Sequence[tuple[Context, str]]) -> NDArray[np.float32]:
        """(context, placement) a row → float32 (B, size)."""
        out = np.zeros((len(contexts), self.size), np.float32)
        for i, (context, placement) in enumerate(contexts):
            out[i, self._placements[placement]] = 1
            for name, columns in self._categories.items():
                column = columns.get(str(context[name])) if name in context else None
                if column is not None:
                    out[i, column] = 1
            for name, (column, scale) in self._numbers.items():
                value = context.get(name)
                if isinstance(value, (int, float)) and math.isfinite(value):
                    out[i, column] = min(max(value / scale, -LARGEST), LARGEST)
            for name, (column, turn) in self._circles.items():
                value = context.get(name)
                if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= turn:
                    angle = 2 * math.pi * value / turn
                    out[i, column : column + 2] = math.sin(angle), math.cos(angle)
        return out
