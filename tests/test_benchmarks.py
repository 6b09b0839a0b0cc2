"""The benchmarks' page says what the last results say."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PAGE = BENCHMARKS.parent / "docs/benchmarks.md"


def module(name: str) -> ModuleType:
    """A benchmark as a module; they are scripts, beside the package."""
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == module("report").page(), "run python benchmarks/report.py"


def test_every_result_stands_on_the_page() -> None:
    names = {path.stem for path in (BENCHMARKS / "results").glob("*.json")}
    assert names <= module("report").SECTIONS.keys()


def test_the_standard_load_is_the_same_in_every_run() -> None:
    load = module("load")
    first, again = (list(load.event_messages(2_000, start=100)) for _ in range(2))

    def untimed(messages: list[tuple[str, bytes]]) -> list[dict[str, object]]:
        return [{**json.loads(message), "ts": 0} for _, message in messages]

    assert untimed(first) == untimed(again)
    assert [user for user, _ in first] == [message["user_id"] for message in untimed(first)]
    assert len({message["event_id"] for message in untimed(first)}) == 2_000
    shares = [sum(m["type"] == kind for m in untimed(first)) / 2_000 for kind in ("view", "click", "add_to_cart")]
    assert abs(shares[0] - 0.60) < 0.05 and abs(shares[1] - 0.25) < 0.05 and abs(shares[2] - 0.10) < 0.05
