"""`headrace run`: each role is a process of its own; what dies is started again, what cannot start stops the whole.

    with Supervisor(settings, ["ingest", "worker"]) as roles:
        roles.wait(stop)

The processes get the settings through their environment and end with this process, also when it is killed.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from headrace.streams import child, http
from headrace.streams.configuration import as_environment
from headrace.streams.errors import HeadraceError, SettingsError
from headrace.streams.settings import Settings

ROLES = ("ingest", "catalogue", "worker", "learner")
Output = Callable[[str, str], None]

_DEATHS = 5  # in a row, before it was ready: the whole stops
_DRAIN_S = 10.0
_LOOK_S = 0.1
_ASK_S = 0.25

_log = logging.getLogger("headrace.run")


def to_stderr(name: str, line: str) -> None:
    print(f"{name:>9} | {line}", file=sys.stderr, flush=True)


@dataclass
class _Role:
    """One process and its history. `deaths` counts those in a row that came before it was ready."""

    name: str  # "worker", or "worker-2" for the second of several
    role: str
    process: subprocess.Popen[bytes] | None = None
    reader: threading.Thread | None = None
    ready: bool = False
    deaths: int = 0
    restarts: int = 0
    start_at: float = 0.0  # monotonic
    ask_at: float = 0.0
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=20))


class Supervisor:
    """Starts `roles`, `workers` of the role "worker", and watches them in a thread of its own.

    `output(name, line)` gets what they print. `error` is set once the whole had to stop.
    """

    def __init__(
        self, settings: Settings, roles: Sequence[str] = ROLES, *, workers: int = 1, output: Output = to_stderr
    ) -> None:
        self.error: HeadraceError | None = None
        self._settings = settings
        self._output = output
        self._roles = [_Role(name, role) for role in roles for name in _names(role, workers)]
        self._environment = {**_without_ours(), **as_environment(settings)}
        self._ending = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def __enter__(self) -> Supervisor:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        for role in self._roles:
            self._start(role)
        self._thread.start()

    def stop(self) -> None:
        """SIGTERM to all at once; they drain for at most 10 s, then they are killed."""
        self._ending.set()
        self._thread.join()

    def wait(self, stop: threading.Event) -> None:
        """Blocks until `stop` is set; raises the error line of a role that could not be kept running."""
        while not stop.is_set() and not self._ended.is_set():
            stop.wait(_LOOK_S)
        self.check()

    def check(self) -> None:
        """Raises HeadraceError where a role could not be kept running."""
        if self.error is not None:
            raise self.error

    def ready(self) -> bool:
        """Whether every role has said so since it was last started."""
        return all(role.ready for role in self._roles)

    def waiting_for(self) -> list[str]:
        return [role.name for role in self._roles if not role.ready]

    def pids(self) -> dict[str, int]:
        """{name: process id} of what runs now."""
        return {role.name: role.process.pid for role in self._roles if role.process and role.process.poll() is None}

    def restarts(self) -> dict[str, int]:
        return {role.name: role.restarts for role in self._roles}

    # -- the watching thread ------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        try:
            while not self._ending.wait(_LOOK_S):
                for role in self._roles:
                    self._look_after(role)
                    if self.error is not None:
                        return
        finally:
            self._end_all()
            self._ended.set()

    def _look_after(self, role: _Role) -> None:
        now = time.monotonic()
        if role.process is None:
            if now >= role.start_at:
                role.restarts += 1
                self._start(role)
        elif role.process.poll() is not None:
            self._died(role, role.process.returncode)
        elif not role.ready and now >= role.ask_at:
            role.ask_at = now + _ASK_S
            role.ready = _says_ready(self._settings, role.process.pid)
            role.deaths = 0 if role.ready else role.deaths

    def _start(self, role: _Role) -> None:
        # The settings come by the environment alone: an empty file keeps a headrace.toml of this folder out.
        arguments = ["-m", "headrace.streams.cli", "run", "--role", role.role, "--config", os.devnull]
        process = child.start([sys.executable, *arguments], stdout=subprocess.PIPE, env=self._environment)
        role.process, role.ready = process, False
        role.reader = threading.Thread(target=self._read, args=(role, process), name=f"{role.name} output", daemon=True)
        role.reader.start()

    def _read(self, role: _Role, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                text = line.decode("utf-8", "replace").rstrip()
                if text:
                    role.last_lines.append(text)
                    self._output(role.name, text)

    def _died(self, role: _Role, status: int) -> None:
        if role.reader is not None:
            role.reader.join(1)  # its last words
        words = role.last_lines[-1] if role.last_lines else "it said nothing"
        how = f"signal {-status}" if status < 0 else f"status {status}"
        role.deaths = 0 if role.ready else role.deaths + 1
        if status == SettingsError.exit_code:
            self.error = SettingsError(words.removeprefix("headrace: "))
        elif role.deaths >= _DEATHS:
            self.error = HeadraceError(f"{role.name} died {_DEATHS} times before it was ready ({how}): {words}")
        else:
            pause = 0.0 if role.ready else min(0.25 * 2**role.deaths, 4)
            _log.warning("%s ended with %s and is started again: %s", role.name, how, words)
            role.process, role.ready, role.start_at = None, False, time.monotonic() + pause

    def _end_all(self) -> None:
        running = [role.process for role in self._roles if role.process and role.process.poll() is None]
        if running:
            with ThreadPoolExecutor(len(running)) as pool:
                list(pool.map(lambda process: child.stop(process, grace_s=_DRAIN_S), running))


def _names(role: str, workers: int) -> list[str]:
    more = range(2, workers + 1) if role == "worker" else ()
    return [role, *(f"{role}-{number}" for number in more)]


def _without_ours() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}


def _says_ready(settings: Settings, pid: int) -> bool:
    address = http.address_of(settings, pid)
    if address is None:
        return False
    try:
        with urllib.request.urlopen(f"http://{address}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False
