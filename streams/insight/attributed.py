"""What each history entry did for the items of a logged slate: `headrace explain`'s attributions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from headrace.export.names import type_code
from headrace.streams.recent import ANCHOR, ENTRY_BYTES
from headrace.streams.records import Opened
from headrace.streams.settings import Settings
from headrace.streams.titles import Titles

Found = dict[str, Any]
_TOLD = 3  # entries an item, in lines for a person


def entry_keys(opened: Opened) -> list[int]:
    """Keys of the history entries that were weighed, latest first."""
    keys: list[int] = np.frombuffer(opened.entries[: len(opened.entries) // ENTRY_BYTES * 8], "<u8").tolist()
    return keys


def attributions(settings: Settings, opened: Opened, titles: Titles) -> list[list[Found]]:
    """By position, the entries by how much lower the item's score would be without each, the largest first."""
    keys, names = entry_keys(opened), {type_code(name): name for name in settings.event_types} | {ANCHOR: "anchor"}
    codes = opened.entries[8 * len(keys) :]
    lowered = np.frombuffer(opened.lowered, "<f2").reshape(len(keys), -1) if keys else np.zeros((0, len(opened.slate)))
    entries: list[Found] = [
        {"type": names.get(code, "?"), "item_id": titles[key][0], "title": titles[key][1]}
        if key in titles
        else {"type": names.get(code, "?"), "item_id": None, "title": None}
        for key, code in zip(keys, codes, strict=True)
    ]
    return [
        [{**entries[j], "place": j, "lowered": float(column[j])} for j in np.argsort(-column, kind="stable").tolist()]
        for column in lowered.T
    ]


def lines(slate: list[Found]) -> Iterator[str]:
    """For a person: what did most for each item."""
    if not any(item["attributions"] for item in slate):
        return
    yield "how much lower an item would be scored without an entry of the history:"
    for item in slate:
        told = [f"{_named(one)} {one['lowered']:.4f}" for one in item["attributions"][:_TOLD] if one["lowered"] > 0]
        yield f"  {item['position']:>2}  {', '.join(told) or 'none lowers it'}"


def _named(entry: Found) -> str:
    if entry["item_id"] is None:
        return str(entry["type"])
    return f"{entry['type']} {entry['item_id']}" + (f" ({entry['title']})" if entry["title"] else "")
