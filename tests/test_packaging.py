"""What is installed: one import name of ours, and in the wheel every file that is read at run time."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("streams", "policy", "export", "simulation")


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in a wheel built from what git holds and what is not ignored."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name.split("/")[0] in (*ROOMS, "pyproject.toml", "README.md", "LICENSE") and (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return zipfile.ZipFile(next(out.glob("*.whl"))).namelist()


def test_the_wheel_claims_one_name(wheel_names):
    """A wheel that ships `policy/` at its top would overwrite another's and delete it when it is uninstalled."""
    tops = {name.split("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"headrace"}


def test_the_wheel_holds_all_that_the_rooms_hold(wheel_names):
    held = {
        f"headrace/{room}/{path.name}"
        for room in ROOMS
        for path in (ROOT / room).iterdir()
        if path.is_file() and path.suffix != ".pyc"
    }
    assert held - set(wheel_names) == set()


def test_bare_room_names_do_not_import():
    program = "import importlib.util, sys; print([n for n in sys.argv[1:] if importlib.util.find_spec(n)])"
    done = subprocess.run([sys.executable, "-I", "-c", program, *ROOMS], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_the_changelog_and_the_version_agree():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert version("headrace") == declared
    headings = re.findall(r"^## \[?([^\]\s]+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] in ("Unreleased", declared)
    assert [h for h in headings if h != "Unreleased"][:1] in ([], [declared])
