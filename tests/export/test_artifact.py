"""An artifact is read whole and unharmed, or refused in one line that says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.export import artifact
from headrace.export.artifact import ArtifactError, Manifest


def make_manifest(folder: Path, **changes: Any) -> Manifest:
    manifest = Manifest(
        kind="user",
        schema=artifact.SCHEMA,
        source="a test",
        dims={"state": 4},
        pooling="last",
        opset=20,
        options={"batches": [8, 64], "int8": False},
        files=artifact.file_digests(folder),
        parity={"onnx_vs_torch": 1e-7},
    )
    return msgspec.structs.replace(manifest, **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with artifact.writing(tmp_path / "made") as scratch:
        (scratch / "step-8.onnx").write_bytes(b"graph")
        artifact.write_manifest(scratch, make_manifest(scratch))
    return tmp_path / "made"


def edit(folder: Path, **changes: Any) -> None:
    path = folder / artifact.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_was_written_is_read(folder: Path) -> None:
    loaded = artifact.load(folder, "user")
    assert loaded.manifest == make_manifest(folder)
    assert loaded.file("step-8.onnx").read_bytes() == b"graph"
    with pytest.raises(ArtifactError, match=r"lists no step-9\.onnx"):
        loaded.file("step-9.onnx")


def test_the_version_names_the_content_and_nothing_else(folder: Path) -> None:
    manifest = make_manifest(folder)
    assert manifest.version.startswith("sha256:")
    assert make_manifest(folder, created_by="somebody", metrics={"loss": 1.0}, parity={}).version == manifest.version
    assert make_manifest(folder, source="another").version != manifest.version
    (folder / "step-8.onnx").write_bytes(b"graph, trained on")
    assert make_manifest(folder).version != manifest.version


def harm_file(folder: Path) -> None:
    (folder / "step-8.onnx").write_bytes(b"grapH")


def lose_file(folder: Path) -> None:
    (folder / "step-8.onnx").unlink()


def cut_manifest(folder: Path) -> None:
    path = folder / artifact.MANIFEST
    path.write_bytes(path.read_bytes()[:-40])


def empty_manifest(folder: Path) -> None:
    (folder / artifact.MANIFEST).write_text("{}")


def lose_manifest(folder: Path) -> None:
    (folder / artifact.MANIFEST).unlink()


def later_schema(folder: Path) -> None:
    edit(folder, schema=99, kind="something new")


def escape(folder: Path) -> None:
    edit(folder, files={"../secret": "00"})


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (harm_file, r"step-8\.onnx is corrupt.*export it again"),
        (lose_file, r"step-8\.onnx is missing.*export it again"),
        (cut_manifest, r"manifest\.json is corrupt.*export it again"),
        (empty_manifest, r"manifest\.json is corrupt.*export it again"),
        (lose_manifest, r"no readable manifest\.json.*name the folder"),
        (later_schema, r"schema 99, this headrace reads 2; export it again"),
        (escape, r"no file of this folder"),
    ],
)
def test_harm_is_refused_in_one_line_with_the_cure(folder: Path, harm: Any, says: str) -> None:
    harm(folder)
    with pytest.raises(ArtifactError, match=says) as refused:
        artifact.load(folder)
    assert "\n" not in str(refused.value) and str(folder) in str(refused.value)


def test_another_kind_is_refused(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="a user encoder stands where a text encoder is needed"):
        artifact.load(folder, "text")


def test_an_interrupted_write_leaves_the_old_artifact(folder: Path) -> None:
    before = artifact.load(folder).version
    with pytest.raises(RuntimeError), artifact.writing(folder) as scratch:
        (scratch / "step-8.onnx").write_bytes(b"half")
        raise RuntimeError
    assert artifact.load(folder).version == before
    assert [path.name for path in folder.parent.iterdir()] == ["made"]


def test_a_new_artifact_replaces_the_old(folder: Path) -> None:
    with artifact.writing(folder) as scratch:
        (scratch / "step-8.onnx").write_bytes(b"new")
        artifact.write_manifest(scratch, make_manifest(scratch))
    assert artifact.load(folder).file("step-8.onnx").read_bytes() == b"new"


def test_other_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="holds other files"), artifact.writing(tmp_path):
        pass
    assert (tmp_path / "diary.txt").read_text() == "mine"
