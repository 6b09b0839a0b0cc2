"""An artifact that does not match is refused in one line that says why."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from headrace.export import artifact
from headrace.export.artifact import Artifact, Manifest, file_digests, write_manifest
from headrace.export.defaults import ensure_text, ensure_user
from headrace.export.item_tower import FILE, ItemTower
from headrace.streams.errors import ArtifactMismatch
from headrace.streams.user_artifact import load

Change = Callable[[Path, dict[str, Any]], None]


@pytest.fixture(scope="module")
def text() -> Artifact:
    return artifact.load(ensure_text(), "text")


def spoiled(folder: Path, change: Change) -> Path:
    """The default user encoder's artifact with `change` made to it; digests as they then are."""
    shutil.copytree(ensure_user(), folder)
    manifest = msgspec.to_builtins(artifact.load(folder, "user").manifest)
    change(folder, manifest)
    write_manifest(folder, msgspec.convert(manifest | {"files": file_digests(folder)}, Manifest))
    return folder


def test_the_default_encoders_match(text: Artifact) -> None:
    found = load(ensure_user(), text=text)
    assert (found.dim, found.text_dim, found.text_version) == (64, 384, text.version)
    assert found.version == artifact.load(ensure_user(), "user").version


def other_text(folder: Path, manifest: dict[str, Any]) -> None:
    manifest["text_version"] = "sha256:another"


def no_text(folder: Path, manifest: dict[str, Any]) -> None:
    manifest["text_version"] = ""


def other_text_dim(folder: Path, manifest: dict[str, Any]) -> None:
    manifest["dims"]["text"] = 768


def no_batches(folder: Path, manifest: dict[str, Any]) -> None:
    del manifest["options"]["batches"]


def other_codes(folder: Path, manifest: dict[str, Any]) -> None:
    manifest["options"]["type_codes"] = 32


def other_items(folder: Path, manifest: dict[str, Any]) -> None:
    ItemTower(np.zeros((32, 384), np.float32)).save(folder / FILE)


def other_vocabulary(folder: Path, manifest: dict[str, Any]) -> None:
    tower = ItemTower.load(folder / FILE)
    keys, vectors = np.arange(3, dtype=np.uint64), np.zeros((3, 64), np.float32)
    ItemTower(tower.projection, keys, vectors).save(folder / FILE)


def no_items(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / FILE).write_bytes(b"nothing")


def other_graph(folder: Path, manifest: dict[str, Any]) -> None:
    shutil.copy(folder / "step-64.onnx", folder / "step-8.onnx")


def no_graph(folder: Path, manifest: dict[str, Any]) -> None:
    (folder / "step-8.onnx").write_bytes(b"nothing")


def the_window_graph(folder: Path, manifest: dict[str, Any]) -> None:
    shutil.copy(folder / "window.onnx", folder / "step-8.onnx")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (other_text, "trained over the text encoder sha256:another, and .* is sha256:.*; name the text encoder"),
        (no_text, "trained over the text encoder of no name"),
        (other_text_dim, "takes text vectors of 768, .* makes 384; name the text encoder"),
        (no_batches, "the manifest names no dims or no batches"),
        (other_codes, "knows 32 event types and 64 time gaps, this headrace has 64 and 64; export it again"),
        (other_items, "items of 384 → 32 where the manifest says 384 → 64"),
        (other_vocabulary, "other items have an embedding than the manifest says"),
        (no_items, "items.safetensors cannot be read"),
        (other_graph, r"step-8.onnx takes or gives cache \[64, "),
        (no_graph, "step-8.onnx is no graph"),
        (the_window_graph, "step-8.onnx takes or gives vectors"),
    ],
)
def test_what_does_not_match_is_refused_in_a_line(change: Change, says: str, text: Artifact, tmp_path: Path) -> None:
    folder = spoiled(tmp_path / "user", change)
    with pytest.raises(ArtifactMismatch, match=says) as refused:
        load(folder, text=text)
    assert "\n" not in str(refused.value) and str(folder) in str(refused.value)


def test_a_damaged_file_another_kind_and_another_schema_are_refused(text: Artifact, tmp_path: Path) -> None:
    folder = tmp_path / "user"
    shutil.copytree(ensure_user(), folder)
    with (folder / "step-8.onnx").open("ab") as graph:
        graph.write(b"more")
    with pytest.raises(ArtifactMismatch, match=r"step-8\.onnx is corrupt, its sha256 differs from the manifest"):
        load(folder, text=text)
    with pytest.raises(ArtifactMismatch, match="a text encoder stands where a user encoder is needed"):
        load(ensure_text())
    folder = spoiled(tmp_path / "older", lambda _, manifest: manifest.update(schema=1))
    with pytest.raises(ArtifactMismatch, match="artifact schema 1, this headrace reads"):
        load(folder)
