"""`headrace rules …`: what the shop asks for, and what of it is in force."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from headrace.streams.cli_options import AsJson, Config, Debug

app = typer.Typer(help="What the shop's rules are, and which are in force.", rich_markup_mode=None)


@app.callback()
def _commands() -> None: ...


@app.command("list")
def list_(
    placement: Annotated[
        str | None, typer.Option("--placement", metavar="NAME", help="What is in force there alone.")
    ] = None,
    as_json: AsJson = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """The rules in force, those refused and why, and those whose time has passed."""
    from headrace.streams.configuration import load
    from headrace.streams.rules.listed import as_lines, listed

    told = listed(load(config), placement)
    print(json.dumps(told, ensure_ascii=False) if as_json else "\n".join(as_lines(told)))
