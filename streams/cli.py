"""The command line: `headrace COMMAND`. Each command loads only what it needs.

Exit codes: 0 done, 1 failed, 2 wrong usage or settings. An error is one line on stderr that says what to do; --debug
shows the traceback.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.streams.cli_encoder import app as encoder_app
from headrace.streams.cli_explain import explain
from headrace.streams.cli_export import app as export_app
from headrace.streams.cli_options import AsJson, Config, Debug, Mapping
from headrace.streams.cli_policy import app as policy_app
from headrace.streams.cli_report import app as report_app
from headrace.streams.cli_rules import app as rules_app
from headrace.streams.cli_subject import erase, subject
from headrace.streams.errors import BrokerError, HeadraceError, SettingsError

if TYPE_CHECKING:
    from headrace.streams.settings import Settings

app = typer.Typer(
    name="headrace",
    help="Recommendations that learn from every event: Kafka in, Kafka out.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
topics_app = typer.Typer(help="Create the topics, or see how they differ from the settings.", rich_markup_mode=None)
items_app = typer.Typer(help="Bring a catalogue in.", rich_markup_mode=None)
events_app = typer.Typer(help="Bring a log of events in.", rich_markup_mode=None)
app.add_typer(topics_app, name="topics")
app.add_typer(items_app, name="items")
app.add_typer(events_app, name="events")
app.add_typer(export_app, name="export")
app.add_typer(encoder_app, name="encoder")
app.add_typer(policy_app, name="policy")
app.add_typer(report_app, name="report")
app.add_typer(rules_app, name="rules")
app.command()(explain)
app.command()(subject)
app.command()(erase)


@app.command()
def demo(
    seconds: Annotated[float, typer.Option("--seconds", metavar="N", help="How long the shop trades.")] = 60.0,
    rate: Annotated[float, typer.Option("--rate", metavar="EVENTS_PER_S", help="Events a second.")] = 500.0,
    bootstrap: Annotated[
        str | None,
        typer.Option("--bootstrap", metavar="HOST:PORT", help="A broker of yours; default: the embedded one."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="DIR", help="Where report.html is written.")
    ] = None,
    as_json: AsJson = False,
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="NAME", help="ecommerce, social, video or news.")
    ] = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Watch it learn: an embedded broker, every role, and a simulated shop; ends with a summary and a report."""
    from headrace.simulation.demo import run_demo
    from headrace.streams import logs

    logs.configure(debug=debug)
    run_demo(
        seconds=seconds, rate=rate, bootstrap=bootstrap, report=report, as_json=as_json, config=config, preset=preset
    )


@app.command()
def train(
    episodes: Annotated[int, typer.Option("--episodes", metavar="N", help="Visits of users to learn from.")],
    preset: Annotated[str, typer.Option("--preset", metavar="NAME", help="ecommerce, social, video or news.")] = (
        "ecommerce"
    ),
    policy: Annotated[
        str | None, typer.Option("--policy", metavar="NAME", help="Default: policy.name of the settings.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Default: trained/… in the settings' data_dir.")
    ] = None,
    log: Annotated[
        Path | None, typer.Option("--log", metavar="FILE", help="Events of your shop: warm start, and a world like it.")
    ] = None,
    items: Annotated[Path | None, typer.Option("--items", metavar="FILE", help="The catalogue of that log.")] = None,
    mapping: Mapping = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Learn a policy in a simulated world, or from a log, before it serves: policy.start names what is written."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before numpy: see `run`
        os.environ.setdefault(name, "1")
    from headrace.simulation.commands import run_train

    run_train(
        _settings(config, debug=debug), episodes=episodes, preset=preset, policy=policy, out=out, log=log, items=items,
        mapping=mapping, seed=seed,
    )  # fmt: skip


@app.command()
def run(
    role: Annotated[
        str, typer.Option("--role", help="ingest, catalogue, worker, learner (or several, with commas), or all.")
    ] = "all",
    workers: Annotated[int, typer.Option("--workers", min=1, help="How many worker processes.")] = 1,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Run the service. One role runs in this process; of several each gets a process of its own, watched over."""
    from headrace.streams.supervise import ROLES, Supervisor

    settings = _settings(config, debug=debug)
    roles = ROLES if role == "all" else tuple(dict.fromkeys(role.split(",")))
    for name in roles:
        if name not in ROLES:
            raise SettingsError(f"--role {role}: there is no role {name!r}; choose from {', '.join(ROLES)}, all")
    if len(roles) == 1 and workers == 1:
        # The learner's bits must not depend on the cores. Roles scale by processes.
        _one_thread()
        # Every role has threads that wait for Kafka: a thread that comes back from an array call must not wait 5 ms for
        # another to let go of the interpreter.
        sys.setswitchinterval(0.0002)
        importlib.import_module(f"headrace.streams.{roles[0]}").run(settings)
        return
    from headrace.streams import start, topics

    topics.require(settings)
    start.check(settings)
    stop = _stop_signal()
    with Supervisor(settings, roles, workers=workers) as supervisor:
        supervisor.wait(stop)


@app.command()
def broker(
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65_535, help="Default: the one it had, else a free one.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", metavar="DIR", help="Default: broker in the settings' data_dir.")
    ] = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Run the embedded development broker alone: one Apache Kafka node on loopback. Prints its address when ready."""
    from headrace.streams.broker import Broker

    folder = data_dir or _settings(config, debug=debug).data_dir / "broker"
    stop = _stop_signal()
    with Broker(folder, port=port, short_lived=False) as node:
        print(node.bootstrap, flush=True)
        while not stop.wait(0.2):
            if not node.running:
                raise BrokerError(f"Kafka has stopped: see {node.log_path}, and start it again")


@topics_app.command("create")
def topics_create(config: Config = None, debug: Debug = False) -> None:
    """Create the topics that are missing, with their settings."""
    from headrace.streams import topics

    settings = _settings(config, debug=debug)
    created = topics.create(settings)
    for name in created:
        print(f"created {name}")
    _tell_differences(
        topics.check(settings), f"all {len(topics.table(settings))} topics exist as the settings want them"
    )


@topics_app.command("check")
def topics_check(config: Config = None, debug: Debug = False) -> None:
    """Say how the topics differ from the settings."""
    from headrace.streams import topics

    settings = _settings(config, debug=debug)
    _tell_differences(topics.check(settings), f"all {len(topics.table(settings))} topics are as the settings want them")


@items_app.command("load")
def items_load(
    file: Annotated[Path, typer.Argument(metavar="FILE.{jsonl,csv,parquet}")],
    mapping: Mapping = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Send the items of a file to the topic `items`."""
    from headrace.streams.load import load_items

    print(load_items(_settings(config, debug=debug), file, mapping))


@events_app.command("replay")
def events_replay(
    file: Annotated[Path, typer.Argument(metavar="FILE.{jsonl,csv,parquet}")],
    mapping: Mapping = None,
    speed: Annotated[str, typer.Option("--speed", help="Times faster than it happened, or max.")] = "max",
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Send the events of a file to the topic `events`, in the order of their times."""
    from headrace.streams.load import replay_events

    print(replay_events(_settings(config, debug=debug), file, mapping, speed=_speed(speed)))


@app.command()
def check(config: Config = None, debug: Debug = False) -> None:
    """Validate the settings and reach Kafka, the topics and the models; say what is wrong and how to mend it."""
    from headrace.streams.check import check as look

    if not look(_settings(config, debug=debug), say=print, complain=_complain):
        raise typer.Exit(1)


@app.command()
def evaluate(
    log: Annotated[str, typer.Argument(metavar="LOG", help="A file, or transitions, or transitions@FROM:TO.")],
    target: Annotated[
        str | None, typer.Option("--target", metavar="T", help="uniform, popular, a policy's name, or a snapshot.")
    ] = None,
    mapping: Mapping = None,
    arm: Annotated[str | None, typer.Option("--arm", help="Only this arm's decisions.")] = None,
    min_ess: Annotated[float, typer.Option("--min-ess", help="No number from a smaller effective sample.")] = 100.0,
    level: Annotated[float, typer.Option("--level", help="Of the intervals.")] = 0.95,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE.png", help="Also draws it.")] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE.jsonl", help="Writes the topic range to a file.")
    ] = None,
    as_json: AsJson = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Judge a policy by a log of what another one showed; refuses to give a number it cannot stand behind."""
    _one_thread()  # many small matrices: threads would only wait for each other
    from headrace.streams.evaluate import Question, run

    run(_settings(config, debug=debug), Question(log, target, mapping, arm, min_ess, level, plot, save, as_json))


# -- what commands share ----------------------------------------------------------------------------------------------


def _settings(config: Path | None, *, debug: bool, overrides: dict[str, Any] | None = None) -> Settings:
    from headrace.streams import logs
    from headrace.streams.configuration import load

    logs.configure(debug=debug)
    return load(config, overrides)


def _one_thread() -> None:
    """Before numpy is loaded: matrix products on several threads sum in an order that depends on the cores."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def _stop_signal() -> threading.Event:
    """Set by SIGTERM and Ctrl-C."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        return float(text)
    except ValueError:
        raise SettingsError(f"--speed {text}: give a number of times faster than it happened, or max") from None


def _tell_differences(differences: list[str], well: str) -> None:
    for line in differences:
        _complain(line)
    if differences:
        raise typer.Exit(1)
    print(well)


def _complain(line: str) -> None:
    print(f"headrace: {line}", file=sys.stderr)


def main() -> None:
    """The console script: runs the command, turns what went wrong into one line and an exit code."""
    arguments = sys.argv[1:] or ["--help"]
    try:
        code = app(arguments, standalone_mode=False)
    except typer.TyperException as wrong:  # usage
        usage = getattr(getattr(wrong, "ctx", None), "command_path", "headrace")
        code = _failed(f"{wrong.format_message().rstrip('.')}; see `{usage} --help`", 2)
    except (typer.Abort, KeyboardInterrupt):
        code = _failed("stopped", 1)
    except BrokenPipeError:  # `headrace check | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except HeadraceError as error:
        code = _failed(str(error), error.exit_code)
    except Exception as error:
        ours = type(error).__module__.startswith("headrace.")  # policy and export have errors of their own
        text = str(error) if ours else f"{type(error).__name__}: {error}; run it again with --debug and report it"
        code = _failed(text, 1)
    sys.exit(code or 0)


def _failed(text: str, code: int) -> int:
    if "--debug" in sys.argv:
        import traceback

        traceback.print_exc()
    for line in text.splitlines() or [""]:
        _complain(line)
    return code


if __name__ == "__main__":
    main()
