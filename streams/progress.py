"""How far long work has come: a bar on a terminal, a plain line every few seconds elsewhere. Both go to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

_EVERY_S = 5.0

Advance = Callable[[float, str], None]
"""Called with how much is done and a few words, such as `120,000 rows`."""


@contextmanager
def progress(title: str, *, total: float) -> Iterator[Advance]:
    """Shows `title` and how much of `total` is done while the block runs."""
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[words]}"),
        )
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=max(total, 1), words="")
            yield lambda done, words: bar.update(task, completed=done, words=words)
        return

    last = time.monotonic()

    def line(done: float, words: str) -> None:
        nonlocal last
        if time.monotonic() - last >= _EVERY_S:
            last = time.monotonic()
            print(f"{title}: {100 * done / max(total, 1):.0f} %, {words}", file=sys.stderr, flush=True)

    yield line
