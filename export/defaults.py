"""The default artifacts: built once a machine into the user's cache folder, by a process of its own (torch-free here).

ensure_text()                     all-MiniLM-L6-v2
ensure_text("intfloat/e5-small")  another model by name
ensure_text("/models/mine")       the folder of an artifact is taken as it is
ensure_user()                     the lightly trained user encoder, over the default text encoder
ensure_user(text="/models/mine")  the same over another
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.export.artifact import MANIFEST, SCHEMA, ArtifactError, read_manifest
from headrace.export.names import DEFAULT_TEXT

DEFAULT_USER = "default"
# What an artifact is made by. Editing one of these files is a new recipe, so no cached artifact lags behind.
_TEXT_RECIPE = ("onnx_graph.py", "pooling.py", "text.py")
_USER_RECIPE = (
    "onnx_graph.py", "commands.py", "corpus.py", "item_tower.py", "light.py", "names.py", "projection.py",
    "sequences.py", "text_graph.py", "to_onnx.py", "user_model.py",
)  # fmt: skip


def ensure_text(setting: str | Path = DEFAULT_TEXT, *, cache_dir: Path | None = None) -> Path:
    """The folder of the text encoder that `setting` names, exported first if it is not in the cache (10 s).

    Raises ArtifactError, one line with the cure, if it cannot be built.
    """
    return _taken_as_it_is(setting) or _ensure("text", str(setting), _TEXT_RECIPE, cache_dir)


def ensure_user(
    setting: str | Path = DEFAULT_USER, *, text: str | Path = DEFAULT_TEXT, cache_dir: Path | None = None
) -> Path:
    """The folder of the user encoder that `setting` names: a path, or "default".

    The default one for the text encoder `text` is trained first if it is not in the cache (40 s).

    Raises ArtifactError, one line with the cure, if it cannot be built.
    """
    taken = _taken_as_it_is(setting)
    if taken is None and setting != DEFAULT_USER:
        raise ArtifactError(
            f'{setting}: no artifact lies there; name the folder of a user encoder\'s artifact, or "{DEFAULT_USER}"'
        )
    if taken is not None:
        return taken
    texts = ensure_text(text, cache_dir=cache_dir)
    return _ensure("user", str(texts), _USER_RECIPE, cache_dir, made_over=read_manifest(texts, "text").version)


def models_dir() -> Path:
    """$XDG_CACHE_HOME/headrace/models, ~/.cache/headrace/models by default."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace" / "models"


def _taken_as_it_is(setting: str | Path) -> Path | None:
    path = Path(setting)
    return path if isinstance(setting, Path) or (path / MANIFEST).exists() else None


def _ensure(
    kind: str, name: str, recipe: tuple[str, ...], cache_dir: Path | None, *, made_over: str | None = None
) -> Path:
    """`made_over`: what stands for `name` in the key, where that is a folder: its content."""
    content = hashlib.sha256(f"{kind} {SCHEMA} {made_over or name}".encode())
    for file in recipe:
        content.update(Path(__file__).with_name(file).read_bytes())
    models = cache_dir or models_dir()
    folder = models / f"{kind}-{content.hexdigest()[:16]}"
    if not (folder / MANIFEST).exists():
        models.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock")):
            if not (folder / MANIFEST).exists():
                _build(kind, name, folder)
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock falls with the process that holds it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(kind: str, name: str, folder: Path) -> None:
    command = [sys.executable, "-m", "headrace.export", kind, name, str(folder)]
    # One thread: a sum split among threads has other last bits, and two machines are to build the same default encoder.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = os.environ | threads | {"TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=environment
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ArtifactError(f"the {kind} encoder {name!r} could not be built: {reason}")
