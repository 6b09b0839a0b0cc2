"""`headrace encoder …`: which encoders serve, and by whose word."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from headrace.streams.cli_options import AsJson, Config, Debug

app = typer.Typer(help="Which encoders serve.", rich_markup_mode=None)


@app.command()
def show(as_json: AsJson = False, config: Config = None, debug: Debug = False) -> None:
    """What was announced: the last line is what workers that can read it serve."""
    from datetime import UTC, datetime

    import msgspec

    from headrace.streams import encoders, topics
    from headrace.streams.configuration import load

    settings = load(config)
    topics.require(settings, wait=False)
    found = encoders.history(settings)
    if as_json:
        print(json.dumps([{"serial": serial, **msgspec.to_builtins(said)} for serial, said in found]))
        return
    for serial, said in found:
        when = datetime.fromtimestamp(said.ts / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        print(f"{serial}  {when}  user {said.user} ({said.user_version})  text {said.text} ({said.text_version})")
        print(f"   by {said.who}: {said.why}")
    if not found:
        print("nothing is announced yet: the settings' artifacts serve")


@app.command()
def announce(
    user: Annotated[str, typer.Argument(metavar="ARTIFACT", help="Folder of a user encoder, or `default`.")],
    why: Annotated[str, typer.Option("--why", help="For those who read the history.")],
    text: Annotated[str | None, typer.Option("--text", help="Folder or name of another text encoder.")] = None,
    who: Annotated[str | None, typer.Option("--who", help="Default: the user of this machine.")] = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Running workers make it ready and change over between two records; heads begin anew."""
    from headrace.streams import encoders
    from headrace.streams.configuration import load

    serial, said = encoders.announce(load(config), user=user, text=text, who=who, why=why)
    print(f"announced as {serial}: user encoder {said.user_version}, text encoder {said.text_version}")
    print("workers make it ready and change over; `headrace_encoder_serial` tells which one each serves")
