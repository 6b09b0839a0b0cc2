"""`headrace policy …`: what serves, and who decides it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from headrace.streams.cli_options import AsJson, Config, Debug

Name = Annotated[str, typer.Argument(metavar="POLICY")]
Why = Annotated[str, typer.Option("--why", help="For those who read the history.")]
Who = Annotated[str | None, typer.Option("--who", help="Default: the user of this machine.")]

app = typer.Typer(help="What serves, and who decides it.", rich_markup_mode=None)


@app.command("list")
def list_(as_json: AsJson = False, config: Config = None, debug: Debug = False) -> None:
    """The policies of all arms: versions, who is frozen, who challenges whom."""
    from headrace.streams import overview
    from headrace.streams.configuration import load

    entries = overview.policies(load(config))
    print(json.dumps(entries) if as_json else "\n".join(overview.as_lines(entries)))


@app.command()
def show(name: Name, as_json: AsJson = False, config: Config = None, debug: Debug = False) -> None:
    """One policy, its staged versions and what was done to it."""
    from headrace.streams import overview
    from headrace.streams.configuration import load

    entry = overview.policy(load(config), name)
    print(json.dumps(entry) if as_json else "\n".join(overview.described(entry)))


@app.command()
def freeze(name: Name, why: Why, who: Who = None, config: Config = None, debug: Debug = False) -> None:
    """It serves on and learns no more."""
    _command("freeze", name, why, who, config)


@app.command()
def unfreeze(name: Name, why: Why, who: Who = None, config: Config = None, debug: Debug = False) -> None:
    """It learns again, from what comes from now on."""
    _command("unfreeze", name, why, who, config)


@app.command()
def pin(
    name: Name,
    version: Annotated[int, typer.Argument(metavar="VERSION", help="One of the staged versions: see `show`.")],
    why: Why,
    who: Who = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """A staged version serves, frozen."""
    _command("pin", name, why, who, config, version)


@app.command()
def rollback(name: Name, why: Why, who: Who = None, config: Config = None, debug: Debug = False) -> None:
    """The last good staged version serves, frozen."""
    _command("rollback", name, why, who, config)


@app.command()
def promote(name: Name, why: Why, who: Who = None, config: Config = None, debug: Debug = False) -> None:
    """It serves the arm `policy`; what served there so far takes its place."""
    _command("promote", name, why, who, config)


@app.command()
def ramp(
    arm: Annotated[str, typer.Argument(metavar="ARM")],
    share: Annotated[float, typer.Argument(metavar="SHARE", help="0 to 1; the others keep their proportions.")],
    why: Why,
    who: Who = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """An arm gets another share of the users: as many change as it moves by."""
    _command("ramp", arm, why, who, config, share=share)


@app.command()
def live(why: Why, who: Who = None, config: Config = None, debug: Debug = False) -> None:
    """Slates go to the shop."""
    _command("live", "all", why, who, config)


@app.command()
def shadow(why: Why, who: Who = None, config: Config = None, debug: Debug = False) -> None:
    """Slates go to the side topic, the shop gets none."""
    _command("shadow", "all", why, who, config)


def _command(
    action: str,
    name: str,
    why: str,
    who: str | None,
    config: Path | None,
    version: int | None = None,
    share: float | None = None,
) -> None:
    from headrace.streams import overview
    from headrace.streams.commands import command
    from headrace.streams.configuration import load

    print(overview.line(command(load(config), action, name, version=version, share=share, who=who, why=why)))
