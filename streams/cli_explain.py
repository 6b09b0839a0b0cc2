"""`headrace explain`: one slate, from the log."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from headrace.streams.cli_options import AsJson, Config, Debug


def explain(
    name: Annotated[str, typer.Argument(metavar="RECOMMENDATION_ID", help="As the slate's message has it.")],
    as_json: AsJson = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Show one slate from the log: who decided, the state, candidates, scores, propensities, rules, reasons."""
    from headrace.streams.configuration import load
    from headrace.streams.insight.explain import as_lines
    from headrace.streams.insight.explain import explain as look

    found = look(load(config), name)
    print(json.dumps(found, ensure_ascii=False) if as_json else "\n".join(as_lines(found)))
