"""What every test may ask for: the real broker (once a session), settings of its own, a wait with a deadline."""

# ruff: noqa: E402

from __future__ import annotations

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before numpy: as the roles run
    os.environ.setdefault(_name, "1")

import itertools
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import hypothesis
import pytest

from headrace.streams import topics
from headrace.streams.broker import Broker
from headrace.streams.settings import Settings

# The same examples in every run, on however slow a machine: HYPOTHESIS_PROFILE=search looks for new ones.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.register_profile("search", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

INTEGRATION = Path(__file__).parent / "integration"
T = TypeVar("T")
_numbers = itertools.count(1)


class MakeSettings(Protocol):
    def __call__(self, *, create: bool = True, **sections: Any) -> Settings: ...


class WaitFor(Protocol):
    def __call__(self, condition: Callable[[], T], deadline: float = 20) -> T: ...


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where CI runs, everything is there: an integration test that is skipped tells of a missing part."""
    report = yield
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail") and INTEGRATION in item.path.parents:
        report.outcome, report.longrepr = "failed", f"skipped where CI runs: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the developer's shell have no say in a test."""
    for name in os.environ:
        if name.startswith("HEADRACE_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The session's broker, shared by all tests: do not kill this one."""
    with Broker(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture(scope="session")
def bootstrap(broker: Broker) -> str:
    return broker.bootstrap


@pytest.fixture
def settings(bootstrap: str, tmp_path: Path) -> MakeSettings:
    """`settings(worker={"seen": 4})`: on the session's broker, with topics (created) and a data folder of its own."""

    def make(*, create: bool = True, **sections: Any) -> Settings:
        number = next(_numbers)
        sections["kafka"] = {"bootstrap.servers": bootstrap, **sections.get("kafka", {})}
        sections["topics"] = {"prefix": f"t{number}.", **sections.get("topics", {})}
        sections["metrics"] = {"port": 0, **sections.get("metrics", {})}
        sections["live"] = {"clock": "event", **sections.get("live", {})}  # tests make times up
        made = Settings(data_dir=tmp_path / f"data-{number}", **sections)
        if create:
            topics.create(made)
        return made

    return make


@pytest.fixture
def wait_for() -> WaitFor:
    """`wait_for(lambda: ..., deadline=20)`: the first true value of the condition, or a failure after the deadline."""

    def wait(condition: Callable[[], T], deadline: float = 20) -> T:
        end = time.monotonic() + deadline
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() > end:
                pytest.fail(f"still {value!r} after {deadline:g} s")
            time.sleep(0.02)

    return wait
