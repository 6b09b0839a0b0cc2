"""`headrace export …`: transformers become ONNX artifacts that the running system serves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.streams.cli_options import Config, Debug
from headrace.streams.cli_train import train, tune

if TYPE_CHECKING:
    from headrace.streams.settings import Settings

_TEXT_MODEL = "all-MiniLM-L6-v2"  # as catalogue.text_model in the settings

Out = Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the artifact goes.")]

app = typer.Typer(help="Train a transformer, or take one, and write it as an ONNX artifact.", rich_markup_mode=None)
app.command()(train)
app.command()(tune)


@app.command()
def text(
    out: Out,
    model: Annotated[str, typer.Option("--model", help="A hub name or a folder.")] = _TEXT_MODEL,
    pooling: Annotated[
        str | None, typer.Option("--pooling", help="mean, cls or last; default: as the model's folder says.")
    ] = None,
    query_prefix: Annotated[
        str | None, typer.Option("--query-prefix", metavar="WORDS", help='Before queries, as "query: ".')
    ] = None,
    text_prefix: Annotated[
        str | None, typer.Option("--text-prefix", metavar="WORDS", help='Before items\' texts, as "passage: ".')
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Matrix products in 8 bits: faster; what is lost is measured and printed.")
    ] = False,
    titles: Annotated[
        Path | None, typer.Option("--titles", metavar="FILE.txt", help="Titles to measure int8's loss by, one a line.")
    ] = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Export a text encoder (items and queries). Refuses to write where ONNX and torch differ."""
    from headrace.export.commands import export_text

    _settings(config, debug=debug)
    lines = titles.read_text("utf-8").splitlines() if titles else ()
    export_text(
        model, out, pooling=pooling, query_prefix=query_prefix, text_prefix=text_prefix, int8=int8,
        titles=lines,
    )  # fmt: skip


@app.command()
def user(
    out: Out,
    titles: Annotated[
        Path | None, typer.Option("--titles", metavar="FILE.txt", help="Your items' titles, one a line.")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="The text model it will meet, or its artifact.")] = _TEXT_MODEL,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Training steps.")] = 240,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Train the user encoder lightly, without a log, and export it. Refuses to write where ONNX and torch differ."""
    from headrace.export.commands import export_user

    _settings(config, debug=debug)
    lines = titles.read_text("utf-8").splitlines() if titles else None
    export_user(out, titles=lines, text_encoder=model, steps=steps)


def _settings(config: Path | None, *, debug: bool) -> Settings:
    from headrace.streams import logs
    from headrace.streams.configuration import load

    logs.configure(debug=debug)
    return load(config)
