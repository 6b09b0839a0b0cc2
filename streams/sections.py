"""Sections of the settings that are the shop's: where it recommends, by what rules; settings.py has the rest."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from headrace.policy.names import POLICIES
from headrace.streams.reasons.words import sentences

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


SOURCES = (
    "similar", "complementary", "own", "following", "state", "queries", "popular", "random", "fresh", "near",
)  # fmt: skip
"""Where candidates come from, in order of precedence: see candidates.py."""


def _sources(given: Any) -> Any:
    """A list of names, or a table of shares; a share of 0 is the source's own."""
    if isinstance(given, (list, tuple)):
        given = dict.fromkeys(given, 0.0)
    unknown = [name for name in given if name not in SOURCES] if isinstance(given, dict) else []
    if unknown:
        raise ValueError(f"unknown source {unknown[0]!r}; choose among {', '.join(SOURCES)}")
    return given


class Placement(Section):
    """A place on the shop's pages: what a slate there is chosen from, and who decides."""

    k: int = Field(10, ge=1, le=100)
    sources: Annotated[dict[str, float], BeforeValidator(_sources)] = Field(default_factory=dict)  # empty: all
    policy: str = ""  # what the arm `policy` runs here; "": policy.name
    arms: tuple[str, ...] = ()  # who may decide here; a user of another arm gets the first of them. Empty: all
    diversity: float = Field(0.0, ge=0, le=10)  # λ of Constraints.penalty

    @field_validator("policy")
    @classmethod
    def _known_policy(cls, name: str) -> str:
        if name and name not in POLICIES:
            raise ValueError(f"unknown policy {name!r}; choose one of {', '.join(POLICIES)}")
        return name

    @model_validator(mode="after")
    def _shares_fit(self) -> Placement:
        shares = self.sources.values()
        if any(not 0 <= share <= 1 for share in shares) or sum(shares) > 1 + 1e-6:
            raise ValueError("shares of sources are between 0 and 1, and at most 1 together")
        return self

    @property
    def compared(self) -> bool:
        """Whether every arm decides here with the policy that it has everywhere: only then are arms comparable."""
        return not (self.arms or self.policy)


class ContextField(Section):
    """A declared context field: categories are one-hot, a number is divided by `scale`, hours and weekdays are points
    on a circle. Without a kind, a field with values is a category and one without a number."""

    kind: Literal["", "category", "number", "hour", "weekday"] = ""
    values: tuple[str, ...] = ()
    scale: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _values_fit(self) -> ContextField:
        if self.kind == "category" and not self.values:
            raise ValueError('a category needs its values: values = ["mobile", "desktop"]')
        if self.kind not in ("", "category") and self.values:
            raise ValueError(f"{self.kind} has no values: leave them out, or make it a category")
        return self

    @property
    def means(self) -> str:
        """Its kind, said or not."""
        return self.kind or ("category" if self.values else "number")


class RuleSettings(Section):
    """What rules can ask for: docs/rules.md."""

    # of an item's attributes; words of up to 128 characters, numbers, booleans. `published`: since when it is there, ms
    attributes: tuple[str, ...] = ("brand", "seller", "margin", "stock", "promoted", "published")


class Live(Section):
    """How it goes live: docs/going-live.md."""

    mode: Literal["live", "shadow"] = "live"  # "shadow": every slate goes to the side topic, until a command says live
    shadow: tuple[str, ...] = ()  # policies that decide beside the arms' own, for the side topic
    shadow_share: float = Field(0.1, ge=0, le=1)  # of the decisions: for so many those of `shadow` decide too
    clock: Literal["wall", "event"] = "wall"  # what worker.max_trigger_age is held against; "event": times made up


class Explanations(Section):
    """What `reason` says: docs/explanation.md."""

    entries: int = Field(10, ge=1, le=10)  # of the latest history, that may be named; fewer cost less
    language: str = "en"
    words: dict[str, str] = Field(default_factory=dict)  # single sentences of the shop's own, by key

    @model_validator(mode="after")
    def _readable(self) -> Explanations:
        sentences(self.language, self.words)
        return self


class Worth(Section):
    """What counts as money, and as a visit: docs/worth.md."""

    revenue: tuple[str, ...] = ("purchase",)  # event types whose value is a price that the shop gets
    margin: str = "margin"  # the item attribute that is its margin, as a share of the price
    visit_gap: Duration = duration_ms("30m")  # a visit begins with what comes so long after anything before


class Cost(Section):
    """Prices: docs/worth.md."""

    currency: str = Field("EUR", pattern=r"^[A-Z]{3}$")
    core_hour: float = Field(0.0, ge=0)  # of a core that is busy for an hour
    gib_hour: float = Field(0.0, ge=0)  # of a GiB of memory held for an hour
    gib_transferred: float = Field(0.0, ge=0)  # from or to Kafka
    alert_per_million: float = Field(0.0, ge=0)  # events: an alert says when they cost more; 0: never


class Identities(Section):
    """Who is anonymous, and how long what was not heard of again is kept: docs/identity.md, docs/bounds.md."""

    anonymous: str = ""  # "a-*", or a regular expression that begins with ^: these ids and no others are anonymous
    anonymous_ttl: Duration = duration_ms("30d")  # of event time since the last event; 0: for ever
    known_ttl: Duration = 0  # the same of users

    @field_validator("anonymous")
    @classmethod
    def _readable(cls, pattern: str) -> str:
        if pattern.startswith("^"):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern} is no regular expression: {error}") from None
        return pattern
