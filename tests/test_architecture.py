"""The shape of the code, held to: one-way imports, flat rooms, small files."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
ROOMS = ("streams", "policy", "export", "simulation")
# the rooms that have rooms of their own
INNER = (
    "policy.evaluation",
    "policy.rl",
    "streams.insight",
    "streams.people",
    "streams.reasons",
    "streams.rules",
)
LONGEST = 400


def test_imports_run_one_way():
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("folder", [*ROOMS, "tests", "benchmarks"])
def test_no_file_is_too_long_to_read(folder):
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert lengths, "the folder is looked for in the wrong place"
    assert {str(path): n for path, n in lengths.items() if n > LONGEST} == {}


def test_rooms_are_flat_and_all_packaged():
    """A package in a room would import in an editable install and be absent from the wheel."""
    assert sorted(CONFIG["tool"]["setuptools"]["packages"]) == sorted(f"headrace.{room}" for room in ROOMS + INNER)
    assert CONFIG["tool"]["setuptools"]["package-dir"] == {f"headrace.{room}": room for room in ROOMS}
    nested = {path.parent.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*/*.py")}
    assert nested == {room.replace(".", "/") for room in INNER}


def test_every_room_is_known_to_the_tools():
    assert CONFIG["tool"]["mypy"]["packages"] == [f"headrace.{room}" for room in ROOMS]
    assert CONFIG["tool"]["importlinter"]["root_packages"] == [f"headrace.{room}" for room in ROOMS]
    assert set(CONFIG["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]) == set(ROOMS)


@pytest.mark.parametrize("role", ["ingest", "catalogue", "worker"])
def test_a_serving_role_loads_no_torch(role):
    """import-linter sees what is written; this sees what a process really loads."""
    program = f"import sys, headrace.streams.{role}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_command_line_starts_light():
    """`headrace --help` must not wait for a library that only one command needs."""
    program = (
        "import sys, headrace.streams.cli;"
        "print([m for m in ('torch', 'faust', 'confluent_kafka', 'numpy', 'pydantic_settings') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
