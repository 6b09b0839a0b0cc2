"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings file; default: headrace.toml here.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error, and more of the log.")]
Mapping = Annotated[
    Path | None, typer.Option("--mapping", metavar="MAP.toml", help="Which column is which; see examples/mappings.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON value on stdout, nothing else.")]
