"""The default artifacts: built once, whoever asks first, and never with torch in the asking process."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from headrace.export import artifact, defaults
from headrace.export.artifact import ArtifactError


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = defaults.ensure_user()
    assert defaults.ensure_user(folder, cache_dir=tmp_path) == folder
    assert defaults.ensure_user(str(folder), cache_dir=tmp_path) == folder
    assert defaults.ensure_text(str(folder), cache_dir=tmp_path) == folder  # the wrong kind: said when it is loaded
    assert not any(tmp_path.iterdir())


def test_the_cache_lies_in_the_user_s_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert defaults.models_dir() == Path("/somewhere/headrace/models")


def test_what_cannot_be_built_is_one_line_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"'no/such-model' could not be built: .* name a folder") as error:
        defaults.ensure_text("no/such-model", cache_dir=tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(ArtifactError, match="defualt: no artifact lies there"):
        defaults.ensure_user("defualt")


def test_two_who_ask_at_once_build_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """flock stands between open files, so two threads meet as two processes do."""
    built = []
    both_ask = threading.Barrier(2)

    def build(kind: str, name: str, folder: Path) -> None:
        built.append(kind)
        with artifact.writing(folder) as scratch:
            (scratch / artifact.MANIFEST).write_text("{}")

    def ask() -> None:
        both_ask.wait(10)
        defaults.ensure_user(text=defaults.ensure_text(), cache_dir=tmp_path)

    monkeypatch.setattr(defaults, "_build", build)
    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert built == ["user"]


def test_the_default_user_encoder_is_of_the_text_encoder_that_it_will_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By content: the same text encoder in two folders is one."""
    asked = []

    def build(kind: str, name: str, folder: Path) -> None:
        asked.append((kind, name))
        with artifact.writing(folder) as scratch:
            (scratch / artifact.MANIFEST).write_text("{}")

    monkeypatch.setattr(defaults, "_build", build)
    texts = defaults.ensure_text()
    same, other = tmp_path / "same", tmp_path / "other"
    for folder in (same, other):
        folder.mkdir()
        (folder / artifact.MANIFEST).write_bytes((texts / artifact.MANIFEST).read_bytes())
    manifest = json.loads((other / artifact.MANIFEST).read_text())
    (other / artifact.MANIFEST).write_text(json.dumps(manifest | {"source": "a model of the shop's own"}))
    one = defaults.ensure_user(text=texts, cache_dir=tmp_path / "cache")
    assert defaults.ensure_user(text=same, cache_dir=tmp_path / "cache") == one
    assert defaults.ensure_user(text=str(other), cache_dir=tmp_path / "cache") != one
    assert asked == [("user", str(texts)), ("user", str(other))]


def test_a_default_that_was_built_says_which_text_encoder_it_is_of() -> None:
    users = artifact.load(defaults.ensure_user(), "user").manifest
    assert users.text_version == artifact.load(defaults.ensure_text(), "text").version


def test_the_artifacts_are_read_without_torch() -> None:
    """In a process of its own: this one has torch from other tests."""
    script = (
        "import sys\n"
        "from headrace.export.defaults import ensure_text, ensure_user\n"
        "from headrace.streams.encoder import UserEncoder\n"
        "from headrace.streams.texts import TextEncoder\n"
        "texts, users = TextEncoder(ensure_text()), UserEncoder(ensure_user(), cache_bytes=0)\n"
        "assert users.project(texts.encode(['running shoe'])).shape == (1, users.dim)\n"
        "print(sorted({'torch', 'transformers'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
