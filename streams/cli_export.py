"""`headrace export …`: transformers become ONNX artifacts that the running system serves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.streams.cli_options import Config, Debug

if TYPE_CHECKING:
    from headrace.streams.settings import Settings

_TEXT_MODEL = "all-MiniLM-L6-v2"  # as catalogue.text_model in the settings

Out = Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the artifact goes.")]

app = typer.Typer(help="Train a transformer, or take one, and write it as an ONNX artifact.", rich_markup_mode=None)


@app.command()
def text(
    out: Out,
    model: Annotated[str, typer.Option("--model", help="A hub name or a folder.")] = _TEXT_MODEL,
    int8: Annotated[bool, typer.Option("--int8", help="Dynamic int8: half the time, near neighbours change.")] = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Export a text encoder (items and queries). Refuses to write where ONNX and torch differ."""
    from headrace.export.commands import export_text

    _settings(config, debug=debug)
    export_text(model, out, int8=int8)


@app.command()
def user(
    out: Out,
    titles: Annotated[
        Path | None, typer.Option("--titles", metavar="FILE.txt", help="Your items' titles, one a line.")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="The text model it will meet.")] = _TEXT_MODEL,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Training steps.")] = 240,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Train the user encoder lightly, without a log, and export it. Refuses to write where ONNX and torch differ."""
    from headrace.export.commands import export_user

    _settings(config, debug=debug)
    lines = titles.read_text("utf-8").splitlines() if titles else None
    export_user(out, titles=lines, model=model, steps=steps)


def _settings(config: Path | None, *, debug: bool) -> Settings:
    from headrace.streams import logs
    from headrace.streams.configuration import load

    logs.configure(debug=debug)
    return load(config)
