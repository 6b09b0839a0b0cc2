"""`headrace report …`: what became of the slates, as pages and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headrace.streams.cli_options import AsJson, Config, Debug

app = typer.Typer(help="What became of the slates.", rich_markup_mode=None)


@app.callback()
def _several() -> None:
    """What became of the slates."""


@app.command()
def bias(
    first: Annotated[str | None, typer.Option("--from", metavar="TIME", help="2026-11-28 or 2026-11-28T14:30.")] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="TIME", help="The first moment left out.")] = None,
    last: Annotated[int | None, typer.Option("--last", metavar="N", min=1, help="The last N decisions alone.")] = None,
    new_days: Annotated[float, typer.Option("--new-days", metavar="D", min=0, help="An item is new so long.")] = 7.0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where bias.html is written; default: data_dir/reports.")
    ] = None,
    as_json: AsJson = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Who is shown, clicked and bought against the catalogue, and how popularity and position explain it."""
    from headrace.streams import logs
    from headrace.streams.configuration import load
    from headrace.streams.insight.bias_run import Asked, run

    logs.configure(debug=debug)
    run(load(config), Asked(first, end, last, new_days, out, as_json))
