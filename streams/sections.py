"""Sections of the settings that are the shop's: where it recommends, by what rules; settings.py has the rest."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def duration_ms(value: Any) -> Any:
    """`"30m"` → 1,800,000. Units: ms, s, m, h, d; a bare number is milliseconds."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?\s*", value)
        if not match:
            raise ValueError('write a duration such as "250ms", "30m" or "7d"')
        return int(float(match[1]) * _UNITS[match[2] or "ms"])
    return value


Duration = Annotated[int, BeforeValidator(duration_ms), Field(ge=0)]
"""Milliseconds, written `"30m"` or `"7d"` in the settings."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Placement(Section):
    k: int = Field(10, ge=1, le=100)


class ContextField(Section):
    """A declared context field: `values` makes it one-hot, else it is a number divided by `scale`."""

    values: tuple[str, ...] = ()
    scale: float = Field(1.0, gt=0)
