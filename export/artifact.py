"""The artifact: one folder that holds an exported model and a manifest of all that is in it.

    manifest.json     what the model is, and the sha256 of every other file
    *.onnx            the graphs
    tokenizer.json    text encoders
    items.safetensors, model.safetensors, config.json          user encoders

Read without torch: the catalogue and the worker load artifacts through here.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

SCHEMA = 2
MANIFEST = "manifest.json"
Kind = Literal["text", "user"]


class ArtifactError(ValueError):
    """A model artifact cannot be used. One line that names the folder and the cure."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What `manifest.json` says. Sizes are numbers of floats unless the name says otherwise."""

    kind: Kind
    schema: int
    source: str  # the model's name: a hub name, a package or a recipe
    dims: dict[str, int]
    pooling: str
    opset: int
    options: dict[str, str | int | float | bool | list[int]] = {}
    files: dict[str, str]  # file name → sha256, hexadecimal
    parity: dict[str, float]  # largest absolute differences that were measured before writing
    metrics: dict[str, float] = {}
    created_by: str = ""
    text_version: str = ""  # user encoders: the version of the text encoder over whose vectors they were trained
    vocabulary: str = ""  # user encoders: sha256 of the keys of the items that have an embedding, empty for none
    trained_on: str = ""  # what it was trained on: a fingerprint of the data

    @property
    def version(self) -> str:
        """`sha256:…` of the content: the same model gives the same version, whoever exported it and when."""
        content = (self.kind, self.schema, self.source, self.dims, self.pooling, self.opset, self.options, self.files,
                   self.text_version)  # fmt: skip
        encoded = msgspec.json.encode(content, order="sorted")
        return "sha256:" + hashlib.sha256(encoded).hexdigest()[:32]


@dataclass(frozen=True)
class Artifact:
    path: Path
    manifest: Manifest

    @property
    def version(self) -> str:
        return self.manifest.version

    def file(self, name: str) -> Path:
        """Raises ArtifactError if the manifest does not list `name`."""
        if name not in self.manifest.files:
            raise ArtifactError(f"{self.path}: the manifest lists no {name}; {_CURE}")
        return self.path / name


_CURE = "export it again with `headrace export`, or delete the folder if it lies in the cache"


def load(path: Path | str, kind: Kind | None = None) -> Artifact:
    """Reads the manifest of the folder `path` and checks the digest of every file.

    Raises ArtifactError, one line with the cure, if the folder is no artifact, is corrupt, has another schema version
    or is not of `kind`.
    """
    path = Path(path)
    manifest = read_manifest(path, kind)
    for name, expected in manifest.files.items():
        if Path(name).name != name:
            raise ArtifactError(f"{path}: {MANIFEST} names {name!r}, which is no file of this folder; {_CURE}")
        if not (path / name).is_file():
            raise ArtifactError(f"{path}: {name} is missing; {_CURE}")
        if file_digest(path / name) != expected:
            raise ArtifactError(f"{path}: {name} is corrupt, its sha256 differs from the manifest; {_CURE}")
    return Artifact(path, manifest)


def read_manifest(path: Path, kind: Kind | None = None) -> Manifest:
    """The manifest alone: what the artifact says it is, its files unread. Raises ArtifactError as `load` does."""
    try:
        content = (path / MANIFEST).read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: no readable {MANIFEST} ({error.strerror}); name the folder of an artifact made "
                            "by `headrace export`") from None  # fmt: skip
    try:
        head = msgspec.json.decode(content, type=_Head)
        if head.schema != SCHEMA:
            raise ArtifactError(f"{path}: artifact schema {head.schema}, this headrace reads {SCHEMA}; {_CURE}")
        manifest = msgspec.json.decode(content, type=Manifest)
    except msgspec.DecodeError as error:
        raise ArtifactError(f"{path}: {MANIFEST} is corrupt ({error}); {_CURE}") from None
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(f"{path}: a {manifest.kind} encoder stands where a {kind} encoder is needed; "
                            f"name an artifact made by `headrace export {kind}`")  # fmt: skip
    return manifest


class _Head(msgspec.Struct):
    schema: int


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(folder: Path) -> dict[str, str]:
    """The digests a manifest of `folder` must hold."""
    return {file.name: file_digest(file) for file in sorted(folder.iterdir()) if file.name != MANIFEST}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    for file in folder.iterdir():
        file.chmod(0o644)  # some writers keep their files to themselves; a service's own user must read them
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")


@contextmanager
def writing(destination: Path | str) -> Iterator[Path]:
    """A folder to write an artifact into, which becomes `destination` at the end, whole or not at all.

    An older artifact at `destination` is replaced. Raises ArtifactError if something else lies there.
    """
    destination = Path(destination).absolute()
    if destination.exists() and not (destination / MANIFEST).exists() and any(destination.iterdir()):
        raise ArtifactError(f"{destination}: holds other files; name a new or empty folder")
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}-") as scratch:
        folder = Path(scratch) / "artifact"
        folder.mkdir()
        yield folder
        if destination.exists():
            destination.rename(Path(scratch) / "replaced")
        try:
            folder.rename(destination)
        except OSError:
            if not destination.exists():
                raise
            shutil.rmtree(folder)  # another process wrote it in between
