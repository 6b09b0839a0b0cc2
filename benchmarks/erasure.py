"""1,000 users are erased in the middle of the demo's load: when their last byte leaves, and how the learning goes on.

    python benchmarks/erasure.py [--rate 300] [--before 30] [--after 60]

The demo's shop trades with topics kept as briefly as a minute allows. After `before` seconds 1,000 users who were there
leave the shop and are erased by messages in `erasures`, where the shop then writes nulls; the others go on. From then
on every byte under the broker's and headrace's folders is searched for all 1,000 ids, again and again; nothing is
compressed. In the end fifty of them come back.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from system import machine, write

from headrace.simulation import demo
from headrace.simulation.follow import Observer
from headrace.simulation.settings import WorldSettings
from headrace.simulation.shop import Shop
from headrace.simulation.tally import counted
from headrace.streams import kafka, topics
from headrace.streams.broker import Broker
from headrace.streams.changelog import user_key
from headrace.streams.settings import Settings
from headrace.streams.state import UserState
from headrace.streams.supervise import Supervisor

Figures = dict[str, Any]
_ERASED, _BACK = 1_000, 50
_KEPT = {"retention": 15_000, "dead_letters_retention": 15_000, "segment": 2_000}
_CLEANED = {"compaction_lag": 2_000, "tombstones": 500}
_PROMPT = {
    "log.retention.check.interval.ms": "500",
    "log.cleaner.backoff.ms": "500",
    "log.initial.task.delay.ms": "500",
    "log.segment.delete.delay.ms": "500",
    "compression.type": "uncompressed",
}
_ID = re.compile(rb"u\d{10}")  # so long that no vector holds one by chance


class Leaving(Shop):
    """The demo's shop, of whose users some leave: nothing of them is sent any more."""

    gone: frozenset[bytes] = frozenset()

    def begin(self) -> None:
        """Before the first event."""
        self.seen: set[bytes] = set()
        self.earns: list[tuple[float, bytes, str, float]] = []  # second, user, arm, expected reward of the slate shown

    def _write(self, message: bytes, *, key: bytes | None = None, partition: int = -1, on_delivery: Any = None) -> None:
        users = set(_ID.findall(message))
        if users & self.gone:
            self.sent += 1  # the pace stays the demo's
            return
        self.seen |= users
        super()._write(message, key=key, partition=partition, on_delivery=on_delivery)

    def _show(self, user: int, slate: Any, ts: int) -> None:
        items = [self.world.index[item.item_id] for item in slate.items if item.item_id in self.world.index]
        name = self.world.user_ids[user].encode()
        self.earns.append((self.clock.elapsed, name, slate.policy.arm, self.world.expected(user, items, ts)))
        super()._show(user, slate, ts)


class Search(threading.Thread):
    """Looks for ids in every file under a folder until it is closed; `last`: when a place held one the last time."""

    def __init__(self, folder: Path, wanted: frozenset[bytes]) -> None:
        super().__init__(name="search", daemon=True)
        self.folder, self.wanted = folder, wanted
        self.begun = time.monotonic()
        self.found: dict[str, int] = {}  # in the first pass
        self.last: dict[str, float] = {}
        self.passes: list[tuple[float, int]] = []  # seconds, ids found
        self.bytes = 0
        self.closing = threading.Event()

    def run(self) -> None:
        while not self.closing.wait(0.5):
            at = time.monotonic() - self.begun
            places: defaultdict[str, set[bytes]] = defaultdict(set)
            self.bytes = 0
            for path in self.folder.rglob("*"):
                try:
                    raw = path.read_bytes() if path.is_file() else b""
                except FileNotFoundError:  # deleted meanwhile
                    continue
                self.bytes += len(raw)
                if here := self.wanted.intersection(_ID.findall(raw)):
                    places[_place(path.relative_to(self.folder))] |= here
            self.found = self.found or {place: len(ids) for place, ids in places.items()}
            self.last |= dict.fromkeys(places, at)
            self.passes.append((at, len(set().union(*places.values())) if places else 0))


def _place(path: Path) -> str:
    """The topic, without prefix and partition; else the file."""
    parts = path.parts
    return parts[2].removeprefix("headrace.").rpartition("-")[0] if parts[:2] == ("broker", "data") else str(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=300.0, help="events/s")
    parser.add_argument("--before", type=float, default=30.0, help="seconds before the erasures")
    parser.add_argument("--after", type=float, default=60.0, help="seconds from the erasures on")
    given = parser.parse_args()
    figures: Figures = {"benchmark": "erasure", "machine": machine(), **vars(given)}
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = Path(name)
        os.environ["HEADRACE_DATA_DIR"] = str(folder / "data")
        with Broker(folder / "broker", properties=_PROMPT, short_lived=False) as broker:
            settings = demo._with_bootstrap(demo._settings(None, None, None), broker.bootstrap)
            kept = settings.topics.model_copy(update={**_KEPT, **_CLEANED})
            settings = settings.model_copy(update={"topics": kept})
            topics.create(settings)
            with (
                (settings.data_dir / "roles.log").open("a", encoding="utf-8") as output,
                Supervisor(settings, output=demo._log_lines(output)) as roles,
            ):
                figures |= measured(settings, roles, folder, given)
    write("erasure", figures)


def measured(settings: Settings, roles: Supervisor, folder: Path, given: argparse.Namespace) -> Figures:
    seconds = given.before + given.after
    observer = Observer(settings)
    observer.follower.open()
    demo.Shop = Leaving  # type: ignore[misc]
    opened = demo._open_shop(
        settings,
        WorldSettings(items=1_500, arriving=100, users=4_000),
        seconds=seconds,
        rate=given.rate,
        speed=demo.SPEED,
    )
    assert isinstance(opened, Leaving)
    shop = opened
    shop.begin()
    shop.world.user_ids[:] = [f"u{number:010d}" for number in range(len(shop.world.user_ids))]
    run = _Run(settings, shop, observer, folder, given)
    shelf = int(shop.world.live.sum())
    while not (roles.ready() and len(observer.encoded) >= shelf):
        roles.check()
        time.sleep(0.1)
    try:
        shop.trade(seconds, every=run.look, interval_s=0.25)
        assert run.search is not None
        run.search.closing.set()
        run.search.join()
        return run.figures(seconds) | {"roles_restarted": sum(roles.restarts().values())}
    finally:
        shop.close()
        observer.follower.close()


class _Run:
    """What happens while the shop trades, in this order: erasures, nulls, the return of some."""

    def __init__(
        self, settings: Settings, shop: Leaving, observer: Observer, folder: Path, given: argparse.Namespace
    ) -> None:
        self.settings, self.shop, self.observer, self.folder, self.given = settings, shop, observer, folder, given
        self.search: Search | None = None
        self.erased: list[str] = []
        self.erased_ms = 0
        self.applied_s = self.clean_s = 0.0
        self.version = 0
        self.back: list[str] = []
        self._said = 0.0

    def look(self) -> None:
        if self.search is None:
            if self.shop.clock.elapsed >= self.given.before:
                self._erase()
            return
        since = time.monotonic() - self.search.begun
        if since - self._said >= 0.5:  # Kafka closes a segment when something is written after its time
            self._said = since
            self._message("nobody", {"user_id": "nobody", "ts": self.erased_ms})
        if not self.applied_s:
            if counted(self.observer.progress(), "applied", of="erasures") >= _ERASED:
                self.applied_s = since
                for user in self.erased:
                    self._message(user, None)  # the shop's own topic holds the key until then
        elif not self.back and len(self.search.passes) > 2 and not any(n for _, n in self.search.passes[-3:]):
            self.clean_s = self.search.passes[-3][0]
            self.back = self.erased[:_BACK]
            self.search.wanted = frozenset(user.encode() for user in self.erased[_BACK:])  # of the others nothing again
            self.shop.gone -= {user.encode() for user in self.back}
            for user in self.back:
                ts, item = self.shop.clock.now(), self.shop.world.catalogue.ids[0]
                event = {"event_id": f"back-{user}", "user_id": user, "type": "view", "ts": ts, "item_id": item}
                self.shop._write(msgspec.json.encode(event), key=user.encode())

    def _erase(self) -> None:
        seen = sorted(user.decode() for user in self.shop.seen)
        rng = np.random.default_rng(1)
        self.erased = [seen[i] for i in rng.permutation(len(seen))[:_ERASED]]
        assert len(self.erased) == _ERASED, f"only {len(seen)} users were there: give --before more seconds"
        self.shop.gone = frozenset(user.encode() for user in self.erased)
        for user in self.erased:
            self.shop._slates.pop(user, None)
        self.erased_ms = self.shop.clock.now()
        self.version = max(self.shop.versions.values())
        for user in self.erased:
            self._message(user, {"user_id": user, "ts": self.erased_ms})
        self.search = Search(self.folder, self.shop.gone)
        self.search.start()

    def _message(self, user: str, message: dict[str, Any] | None) -> None:
        value = None if message is None else msgspec.json.encode(message)
        kafka.produce(self.shop._producer, self.settings.topic("erasures"), key=user.encode(), value=value)

    def figures(self, seconds: float) -> Figures:
        search = self.search
        assert search is not None
        stayed = [e for e in self.shop.earns if e[1] not in {user.encode() for user in self.erased}]
        span = min(20.0, self.given.before, self.given.after)
        spans = {"before": self.given.before - span, "after": self.given.before, "end": seconds - span}
        earned = {
            name: {
                arm: _mean([x for at, _, of, x in stayed if of == arm and begins <= at < begins + span])
                for arm in ("policy", "random")
            }
            for name, begins in spans.items()
        }
        cleaned = 2 * _CLEANED["compaction_lag"] + _CLEANED["tombstones"]
        return {
            "erased": len(self.erased),
            "applied_s": round(self.applied_s, 2),
            "searches": len(search.passes),
            "searched_bytes": search.bytes,
            "found_at_first": dict(sorted(search.found.items())),
            "last_found_s": {place: round(at, 1) for place, at in sorted(search.last.items())},
            "clean_s": round(self.clean_s, 1),
            "stated_s": {
                "kept": (_KEPT["retention"] + _KEPT["segment"]) / 1000,
                "compacted": cleaned / 1000,
            },
            "found_again": max(found for at, found in search.passes if at >= self.clean_s),
            "version": {"then": self.version, "end": max(self.shop.versions.values())},
            "reward": {"span_s": span, **earned},
            "back": self._returned(),
        }

    def _returned(self) -> Figures:
        """Of those who came back: nothing in their states is older than their erasure."""
        wanted = {user_key(user): user for user in self.back}
        last: dict[bytes, bytes | None] = {}
        deadline = time.monotonic() + 20
        while len(last) < len(wanted) and time.monotonic() < deadline:
            kafka.read_to_end(
                self.settings,
                self.settings.topic("users-changelog"),
                lambda m: last.update({m.key() or b"": m.value()}) if m.key() in wanted and m.value() else None,
            )
        oldest = [
            int(np.frombuffer(UserState.unpack(raw).seconds, np.uint32).min())
            for raw in last.values()
            if raw is not None
        ]
        return {"users": len(self.back), "states": len(oldest), "older": sum(1000 * s < self.erased_ms for s in oldest)}


def _mean(values: list[float]) -> Figures:
    x = np.array(values)
    if len(x) < 2:
        return {"slates": len(x)}
    return {"slates": len(x), "mean": round(float(x.mean()), 4), "error": round(float(x.std() / len(x) ** 0.5), 4)}


def section(f: Figures) -> str:
    from report import _machine, _table

    kept, compacted = f["stated_s"]["kept"], f["stated_s"]["compacted"]
    rows = [
        ("all applied by the workers", f"{f['applied_s']} s", "≤ 60 s"),
        ("no byte of any of them", f"{f['clean_s']:.1f} s", f"≤ {f['applied_s'] + kept:.1f} s, and Kafka's checks"),
        ("found again, in the searches from then on", f"{f['found_again']} ids", "0"),
        ("policy versions: then, at the end", f"{f['version']['then']}, {f['version']['end']}", "rising"),
    ]
    for name, words in (("before", "before"), ("after", "after"), ("end", "at the end")):
        policy, random = (f["reward"][name][arm] for arm in ("policy", "random"))
        told = f"{policy['mean']:.3f} ± {1.96 * policy['error']:.3f}; {random['mean']:.3f}"
        span = f"the {f['reward']['span_s']:.0f} s {words}"
        rows.append((f"expected reward a slate of those who stay, {span}: policy; random", told, ""))
    back = f["back"]
    rows.append(
        (
            f"{back['users']} who came back: with a state, of it older than the erasure",
            f"{back['states']}, {back['older']}",
            "0",
        )
    )
    last = [
        (place, f"{at:.1f} s", f"{compacted:g} s" if place in ("users-changelog", "erasures") else f"{kept:g} s")
        for place, at in f["last_found_s"].items()
    ]
    lines = [
        "## Erasure\n",
        f"{f['erased']:,} users of the demo's shop ({f['rate']:.0f} events/s) are erased while it trades, with topics"
        f" kept for {_KEPT['retention'] // 1000} s and cleaned within {_CLEANED['compaction_lag'] // 1000} s; every"
        f" byte under the broker's and headrace's folders ({f['searched_bytes'] / 1e6:.0f} MB) was searched"
        f" {f['searches']} times"
        " ([docs](erasure.md)).\n",
        _table(f"{f['erased']:,} users erased", rows),
        "| an id was last found in | after the messages | stated, from when all are applied |\n|---|---|---|",
        *(f"| {a} | {b} | {c} |" for a, b, c in last),
        "",
        _machine(f["machine"]),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
