"""Child processes that end with this one, also when it is killed with kill -9."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

# Runs in the child before the program proper: asks the kernel for a signal when the parent is gone, then becomes the
# program, under the same process id. It is a program of its own because Python code between fork and exec may deadlock
# in a process with threads.
_LAUNCHER = """
import ctypes, os, sys
parent, number = int(sys.argv[1]), int(sys.argv[2])
ctypes.CDLL(None).prctl(1, number)
if os.getppid() != parent:
    os._exit(1)
os.execvp(sys.argv[3], sys.argv[3:])
"""


def start(
    command: Sequence[str],
    *,
    stdout: IO[bytes] | int | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    on_parent_death: signal.Signals = signal.SIGTERM,
) -> subprocess.Popen[bytes]:
    """Starts `command` in a session of its own (Ctrl-C reaches only us); stderr goes where stdout goes.

    The kernel ties a child to the *thread* that started it, so a thread is kept for each child as long as it lives.
    Outside Linux the child must be stopped by its owner. Raises OSError where the program cannot be started.
    """
    started: list[subprocess.Popen[bytes]] = []
    failed: list[OSError] = []
    ready = threading.Event()
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), str(int(on_parent_death))]
    prefix = launcher if sys.platform == "linux" else []

    def keep() -> None:
        try:
            process = subprocess.Popen(
                [*prefix, *command],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=None if stdout is None else subprocess.STDOUT,
                env=env,
                cwd=cwd,
                pass_fds=pass_fds,
                start_new_session=True,
            )
        except OSError as error:
            failed.append(error)
            ready.set()
            return
        started.append(process)
        ready.set()
        with contextlib.suppress(ChildProcessError):  # somebody else has seen its end
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    threading.Thread(target=keep, name=f"parent of {Path(command[0]).name}", daemon=True).start()
    ready.wait()
    if failed:
        raise failed[0]
    return started[0]


def stop(process: subprocess.Popen[bytes], *, grace_s: float) -> int:
    """SIGTERM, then SIGKILL after `grace_s` (0: at once); returns the exit status."""
    if grace_s:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(grace_s)
    process.kill()
    return process.wait()
