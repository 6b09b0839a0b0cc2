"""What a role answers on HTTP: /metrics, /healthz (alive), /readyz (ready); and its place in targets.json.

A role listens on the set port, or on the next free one when several run on one host. `data_dir/targets.json` lists them
all in Prometheus' file_sd form; an entry goes with its process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from headrace.streams.errors import SettingsError
from headrace.streams.insight.cost import prices
from headrace.streams.metrics import Metrics
from headrace.streams.settings import Settings

_PORTS_TRIED = 200
_PID = "__meta_headrace_pid"
_Target = dict[str, Any]


class Server:
    """Answers until `close`, in threads of its own. `address` is host:port."""

    def __init__(self, server: WSGIServer, targets: Path, role: str) -> None:
        self.port: int = server.server_port
        host = str(server.server_address[0])
        self.host = "127.0.0.1" if host == "0.0.0.0" else host
        self._server = server
        self._targets = targets
        self._thread = threading.Thread(target=server.serve_forever, args=(0.2,), name="http", daemon=True)
        self._thread.start()
        # A label that begins with "__" is for discovery alone: the process id makes no new series at each restart.
        _register(targets, {"targets": [self.address], "labels": {"role": role, _PID: str(os.getpid())}})

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def close(self) -> None:
        _register(self._targets, None, gone=self.address)
        self._server.shutdown()
        self._server.server_close()


def serve(metrics: Metrics, *, ready: Callable[[], bool], alive: Callable[[], bool], settings: Settings) -> Server:
    """Starts answering and registers in targets.json. Raises SettingsError where no port can be had."""
    for resource, price in prices(settings.cost).items():
        metrics.price.labels(resource, settings.cost.currency).set(price)
    exposition = make_wsgi_app(metrics.registry)

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            answered: Iterable[bytes] = exposition(environ, start_response)
            return answered
        checks = {"/healthz": alive, "/readyz": ready}
        if path not in checks:
            status, text = "404 Not Found", "try /metrics, /healthz or /readyz"
        elif checks[path]():
            status, text = "200 OK", "ok"
        else:
            status, text = "503 Service Unavailable", "not alive" if path == "/healthz" else "not ready"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{text}\n".encode()]

    server = _listen(settings.metrics.host, settings.metrics.port, answer)
    return Server(server, settings.data_dir / "targets.json", metrics.role)


class _Threads(socketserver.ThreadingMixIn, WSGIServer):
    """One thread a request: a slow scrape holds no health check up."""

    daemon_threads = True

    def server_bind(self) -> None:
        """Binds without the base class' look-up of the machine's name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def _listen(host: str, port: int, app: Any) -> WSGIServer:
    for candidate in range(port, min(port + _PORTS_TRIED, 65_536)) if port else [0]:
        with contextlib.suppress(OSError):
            return make_server(host, candidate, app, _Threads, _Quiet)
    raise SettingsError(
        f"metrics.host = {host!r}, metrics.port = {port}: none of the {_PORTS_TRIED} ports from there can be had;"
        f" choose another port, or 0 for any, and a host that is this machine's"
    )


# -- targets.json -----------------------------------------------------------------------------------------------------


def address_of(settings: Settings, pid: int) -> str | None:
    """host:port of the process, None where it has not registered (yet)."""
    for target in _read(settings.data_dir / "targets.json"):
        if target.get("labels", {}).get(_PID) == str(pid):
            return str(target["targets"][0])
    return None


def _register(path: Path, mine: _Target | None, *, gone: str = "") -> None:
    """Adds `mine`, drops `gone` and what dead processes left behind; readers never see half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path.with_suffix(".lock")):
        kept = [target for target in _read(path) if gone not in target["targets"] and _runs(target)]
        if mine is not None:
            kept = [target for target in kept if target["targets"] != mine["targets"]] + [mine]
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
        partial.replace(path)


def _read(path: Path) -> list[_Target]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return []  # built again from what registers
    return [target for target in found if isinstance(target, dict) and "targets" in target]


def _runs(target: _Target) -> bool:
    pid = target.get("labels", {}).get(_PID, "")
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    return True


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
