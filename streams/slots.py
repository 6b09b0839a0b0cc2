"""A stable name for one of several processes of a role on a machine: its static membership survives a restart."""

from __future__ import annotations

import fcntl
import socket
from dataclasses import dataclass
from typing import IO

from headrace.streams.settings import Settings


@dataclass(frozen=True)
class Slot:
    """Held as long as the process lives: the kernel frees the lock of a killed one."""

    name: str
    lock: IO[str]


def claim(settings: Settings, role: str) -> Slot:
    """The lowest free slot of this role under `data_dir`, named after the machine."""
    folder = settings.data_dir / "slots"
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        lock = (folder / f"{role}-{number}").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return Slot(f"{socket.gethostname()}-{role}-{number}", lock)
        except BlockingIOError:
            lock.close()
            number += 1
