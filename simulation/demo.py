"""`headrace demo`: a broker, every role and a simulated shop; the learning live, then a summary and a report.

1. broker and topics     embedded, unless `bootstrap` names another
2. roles                 each a supervised process of its own; meanwhile the shop fills its shelf
3. trading               `seconds` at `rate` events a second
4. settling              what is still to come arrives, every decision closes with the same horizon
5. summary and report    from what was committed
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from headrace.simulation import presets, summary, tally
from headrace.simulation import report as pages
from headrace.simulation.follow import Observer
from headrace.simulation.settings import HOUR_MS, WorldSettings
from headrace.simulation.shop import Clock, Habits, Shop
from headrace.simulation.view import View
from headrace.simulation.world import Rewards, World
from headrace.streams import configuration, kafka, start, topics
from headrace.streams.broker import Broker
from headrace.streams.errors import HeadraceError, SettingsError
from headrace.streams.settings import Settings, policy_of_arm
from headrace.streams.supervise import Supervisor

SPEED = 10_080.0  # a minute of the demo is a week of the shop
_READY_S = 600.0  # with cold caches models are exported and 5,000 titles are encoded
_STUCK_S = 60.0  # without any progress while settling

_log = logging.getLogger("headrace.demo")


def run_demo(
    *,
    seconds: float = 60.0,
    rate: float = 500.0,
    bootstrap: str | None = None,
    report: Path | None = None,
    as_json: bool = False,
    config: Path | None = None,
    preset: str | None = None,
    world: WorldSettings | None = None,
    speed: float = SPEED,
) -> dict[str, Any]:
    """Runs the demo and returns its summary; with `as_json` it is also the only line on stdout.

    `preset` names another kind of shop (presets.py). `report` is the folder of `report.html` (default: `report` in the
    demo's data folder). Raises HeadraceError where a role or the broker cannot be kept running, or where an event is
    not accounted for.
    """
    if not 1 <= seconds <= 86_400 or not 1 <= rate <= 100_000:
        raise SettingsError(
            f"{seconds:g} seconds at {rate:g} events/s: choose 1 to 86400 seconds, 1 to 100000 events/s"
        )
    begun = time.monotonic()
    console = Console(stderr=as_json)
    with ExitStack() as stack:
        stack.enter_context(_sigterm_as_interrupt())
        settings = _settings(config, bootstrap, preset)
        view = stack.enter_context(
            View(console, seconds=seconds, arms=list(settings.arms.shares), policy=_learned(settings))
        )
        if bootstrap is None:
            view.say("starting the embedded broker")
            broker = stack.enter_context(Broker(settings.data_dir / "broker"))
            settings = _with_bootstrap(settings, broker.bootstrap)
        else:
            stack.callback(_delete_topics, settings)
        topics.create(settings)
        output = stack.enter_context((settings.data_dir / "roles.log").open("a", encoding="utf-8"))
        roles = stack.enter_context(Supervisor(settings, output=_log_lines(output)))
        observer = Observer(settings)
        observer.follower.open()
        stack.callback(observer.follower.close)
        kind = WorldSettings() if preset is None else presets.preset(preset).world
        shop = _open_shop(settings, world or kind, seconds=seconds, rate=rate, speed=speed)
        stack.callback(shop.close)
        _wait_until_ready(roles, observer, shop, view)

        view.say(f"trading: {seconds:g} s at {rate:g} events/s, {speed:g} times as fast as the clock")

        def look() -> None:
            roles.check()
            view.show(shop, observer)

        shop.trade(seconds, every=look)
        ended_ms = int(time.time() * 1000)
        look()
        if shop.first_slate is not None:
            view.say(f"the first recommendation came {shop.first_slate - begun:.1f} s after the start")
        view.say("settling: purchases still to come arrive, and every decision closes with the same horizon")
        _settle(settings, shop, observer, roles)
        run = summary.make(
            settings,
            shop,
            observer,
            tally.take(settings, shop.planted),
            seconds=seconds,
            speed=speed,
            ended_ms=ended_ms,
        )
        page = pages.write(run, report or settings.data_dir.parent / "report")
        if not as_json:
            _tell(console, run)
        console.print(f"report: {page}", highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(run.summary), flush=True)
    _check_accounts(run, settings)
    shutil.rmtree(settings.data_dir, ignore_errors=True)
    return dict(run.summary)


# -- parts, in the order they are met ---------------------------------------------------------------------------------


def _settings(config: Path | None, bootstrap: str | None, preset: str | None) -> Settings:
    """The demo's settings, with a data folder and, on a broker of the user's own, a topic prefix for this run alone."""
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    packaged, name = files("headrace.simulation"), "demo" if preset is None else presets.preset(preset).name
    with as_file(packaged.joinpath("demo.toml")) as base, as_file(packaged.joinpath(f"{name}.toml")) as kind:
        if preset is None:
            settings = configuration.load(config or base)
        elif config is None:
            settings = configuration.load(kind, base=base)
        else:
            settings = configuration.load(config, base=kind)
    start.check(settings)
    changes: dict[str, Any] = {"data_dir": (settings.data_dir / stamp).resolve()}
    if bootstrap is not None:
        changes["kafka"] = {**settings.kafka, "bootstrap.servers": bootstrap}
        changes["topics"] = settings.topics.model_copy(update={"prefix": f"headrace-demo-{stamp}."})
    changes["live"] = settings.live.model_copy(update={"clock": "event"})  # the shop's time is not the clock's
    settings = settings.model_copy(update=changes)
    settings.data_dir.mkdir(parents=True)
    return settings


def _with_bootstrap(settings: Settings, address: str) -> Settings:
    return settings.model_copy(update={"kafka": {**settings.kafka, "bootstrap.servers": address}})


def _learned(settings: Settings) -> str:
    return policy_of_arm(settings, "policy")


def _open_shop(settings: Settings, world: WorldSettings, *, seconds: float, rate: float, speed: float) -> Shop:
    """The shop with its shelf filled. Its world starts so far back that it ends, settled, before now."""
    settled = settings.close_after_ms + 3 * HOUR_MS
    start_ms = int(time.time() * 1000) - int(seconds * speed * 1000) - settled
    types = settings.event_types
    sent = dict(world.events)
    click, cart, purchase = (types[sent.get(kind, kind)].reward for kind in ("click", "add_to_cart", "purchase"))
    made = World(world, start_ms=start_ms, rewards=Rewards(click=click, add_to_cart=cart, purchase=purchase))
    shop = Shop(settings, made, Clock(start_ms=start_ms, speed=speed, seconds=seconds), rate=rate, habits=Habits())
    shop.open()
    shop.load_items()
    return shop


def _wait_until_ready(roles: Supervisor, observer: Observer, shop: Shop, view: View) -> None:
    """Every role has said that it is ready, and every item on the shelf has its vector."""
    shelf = int(shop.world.live.sum())
    deadline, said = time.monotonic() + _READY_S, 0.0
    while not (roles.ready() and len(observer.encoded) >= shelf):
        roles.check()
        observer.progress()
        if time.monotonic() > deadline:
            waiting = roles.waiting_for() or ["catalogue"]
            raise HeadraceError(f"not ready after {_READY_S:g} s: {', '.join(waiting)}; run it again with --debug")
        if time.monotonic() - said >= 5:
            said = time.monotonic()
            waiting = roles.waiting_for()
            known = f"{len(observer.encoded):,} of {shelf:,} items have a vector"
            view.say(f"waiting for {', '.join(waiting)}; {known}" if waiting else known)
        time.sleep(0.05)


def _settle(settings: Settings, shop: Shop, observer: Observer, roles: Supervisor) -> None:
    """Returns when the clock of every partition has passed the last window and every event has been seen."""
    closing = shop.settle(window_ms=settings.close_after_ms)

    def settled() -> tuple[bool, int]:
        """Whether all is done, and a number that grows while something is being done."""
        found = observer.progress()
        seen = tally.counted(found, "applied") + tally.counted(found, "duplicate") + observer.dead_letters
        clocks = [found[p].event_time for p in found]
        passed = len(clocks) == settings.topics.interactions_partitions and min(clocks) >= closing
        return passed and seen >= shop.sent, seen + sum(clocks)

    done, before, moved = False, -1, time.monotonic()
    while not done:
        roles.check()
        done, now = settled()
        if now != before:
            before, moved = now, time.monotonic()
        elif time.monotonic() - moved > _STUCK_S:
            _log.warning("nothing moves any more: the summary tells what was committed until now")
            return
        time.sleep(0.1)


def _tell(console: Console, run: pages.Run) -> None:
    s = run.summary
    table = Table(title="the last third: closed decisions whose slate was shown", title_justify="left")
    for column in ("arm", "decisions", "reward per decision", "95 % interval"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for name, e in run.arms.items():
        if e.decisions:
            table.add_row(name.replace("_", " "), f"{e.decisions:,}", f"{e.mean:.3f}", f"{e.low:.3f} – {e.high:.3f}")
    console.print(table)
    console.print(
        f"{s['events_sent']:,} events sent = {s['events_applied']:,} applied + {s['duplicates']:,} duplicates"
        f" + {s['dead_letters']:,} dead letters; {s['recommendations']:,} recommendations,"
        f" {s['policy_versions']:,} policy versions",
        highlight=False,
    )
    fresh, learned = s["freshness_ms"], s["outcome_to_policy_ms"]
    console.print(
        f"freshness p50 {fresh['p50']} ms, p99 {fresh['p99']} ms;"
        f" outcome to policy p50 {learned['p50']} ms, p99 {learned['p99']} ms",
        highlight=False,
    )
    for what, planted, found in run.planted:
        if planted != found and not what.startswith("rubbish: "):
            console.print(f"planted {what}: {found} of {planted} found", style="bold red", highlight=False)
    for note in run.missing[:10]:
        console.print(f"  {note}", highlight=False)


def _check_accounts(run: pages.Run, settings: Settings) -> None:
    s = run.summary
    accounted = s["events_applied"] + s["duplicates"] + s["dead_letters"]
    if accounted != s["events_sent"] or run.missing:
        what = f"{s['events_sent'] - accounted} of {s['events_sent']} events are not accounted for"
        if accounted == s["events_sent"]:
            what = f"{len(run.missing)} planted messages are not as they should be: {run.missing[0]}"
        raise HeadraceError(f"{what}; the roles' log is {settings.data_dir / 'roles.log'}")


def _delete_topics(settings: Settings) -> None:
    """On a broker of the user's own nothing stays behind."""
    names = [topic.name for topic in topics.table(settings)]
    client = kafka.admin(settings)  # to be held until the answers are there
    for future in client.delete_topics(names, operation_timeout=10).values():
        try:
            future.result()
        except Exception as error:
            _log.warning("a topic of the demo was left behind: %s", error)


def _log_lines(output: Any) -> Callable[[str, str], None]:
    lock = threading.Lock()

    def write(name: str, line: str) -> None:
        with lock:
            if not output.closed:
                output.write(f"{name:>9} | {line}\n")
                output.flush()

    return write


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does: roles and broker are stopped in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
