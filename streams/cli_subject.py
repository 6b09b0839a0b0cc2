"""`headrace subject` and `headrace erase`: what is held about a user, and its end."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from headrace.streams.cli_options import AsJson, Config, Debug

User = Annotated[str, typer.Argument(metavar="USER", help="His user_id.")]


def subject(user: User, as_json: AsJson = False, config: Config = None, debug: Debug = False) -> None:
    """Print everything that is held about a user, and when it leaves; with --json the records themselves too."""
    from headrace.streams.configuration import load
    from headrace.streams.people.subject import as_lines, describe

    found = describe(load(config), user)
    print(json.dumps(found, ensure_ascii=False) if as_json else "\n".join(as_lines(found)))


def erase(
    user: User,
    wait: Annotated[float, typer.Option("--wait", metavar="SECONDS", help="For the workers to have done it.")] = 60.0,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Ask for a user to be forgotten, wait until he is, and say what remains until when."""
    from headrace.streams.configuration import load
    from headrace.streams.people.erasure import erase as run

    for line in run(load(config), user, wait_s=wait):
        print(line, flush=True)
