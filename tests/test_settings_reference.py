"""The settings reference in docs/operations.md is complete and its defaults are the code's."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter

from headrace.streams.sections import duration_ms
from headrace.streams.settings import Settings, builtin_event_types

REFERENCE = (Path(__file__).parents[1] / "docs/operations.md").read_text("utf-8").split("\n## Settings\n")[1]


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel], str]]:
    """(key as documented, the section it stands in, its name there)."""
    for name, field in model.model_fields.items():
        inner = [t for t in (field.annotation, *get_args(field.annotation)) if isinstance(t, type)]
        section = next((t for t in inner if issubclass(t, BaseModel)), None)
        if section is None:
            yield prefix + name, model, name
        else:
            yield from leaves(section, f"{prefix}{name}." + ("" if section is field.annotation else "*."))


def test_settings_reference_is_complete_and_right() -> None:
    documented = dict(re.findall(r"^\| `([\w.*]+)` \| `([^`]+)` \|", REFERENCE, re.MULTILINE))
    known = {key: (section, name) for key, section, name in leaves(Settings)}
    assert list(documented) == list(known)
    for key, (section, name) in known.items():
        field = section.model_fields[name]
        written: Any = tomllib.loads(f"value = {documented[key]}")["value"]
        adapter: TypeAdapter[Any] = TypeAdapter(field.annotation)
        value = duration_ms(written) if isinstance(field.default, int) and isinstance(written, str) else written
        assert adapter.validate_python(value) == field.get_default(call_default_factory=True), key


def test_event_types_table_is_complete_and_right() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (required|optional|none) \| (.*) \|$", REFERENCE, re.MULTILINE)
    table = {name: [item, *rest.split(" | ")] for name, item, rest in rows}
    says = {True: "yes", False: "no"}
    assert {name: row[:-1] for name, row in table.items()} == {
        name: [t.item, t.text, says[t.due], says[t.history], says[t.consumes], f"{t.reward:g}"]
        for name, t in builtin_event_types().items()
    }
    assert {name: duration_ms(row[-1]) for name, row in table.items()} == {
        name: t.window for name, t in builtin_event_types().items()
    }
