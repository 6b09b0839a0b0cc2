"""What a policy starts from: a folder that `headrace train` wrote, which learner and workers read by `policy.start`.

    FOLDER/manifest.json           policy, layout, where it comes from; every file with its SHA-256
    FOLDER/linucb.safetensors      a part each: the policy, and behaviour models where a log brought them

The learner begins from it and publishes it with its first version; workers serve it from their first slate. Versions
that are already in `policy-versions` win: they began from it, or from elsewhere, and have learned since.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from headrace.export import artifact
from headrace.export.defaults import ensure_user
from headrace.policy.base import Arrays, Meta, Policy
from headrace.policy.behaviour import CoOccurrence, Popularity
from headrace.policy.names import TRAINED
from headrace.policy.snapshot import SnapshotError, pack, unpack
from headrace.streams.errors import ArtifactMismatch, HeadraceError, SettingsError
from headrace.streams.settings import Settings
from headrace.streams.versions import make_policy

SCHEMA = 1
BEHAVIOUR = ("popularity", "co_occurrence")
Parts = dict[str, tuple[Arrays, Meta]]  # by part, as in `policy-versions`: a policy's name, `popularity/3`


class _File(msgspec.Struct, frozen=True):
    file: str
    sha256: str


class _Manifest(msgspec.Struct, frozen=True):
    schema: int
    policy: str
    layout: str
    parts: dict[str, _File]
    made: dict[str, Any]


@dataclass(frozen=True)
class Start:
    """A folder, read and checked. `made`: where it comes from, in the words of who wrote it."""

    path: Path
    policy: str
    layout: str
    parts: Parts
    made: dict[str, Any]

    @property
    def behaviour(self) -> Parts:
        return {part: content for part, content in self.parts.items() if part.partition("/")[0] in BEHAVIOUR}


def write(
    destination: Path | str,
    policy: Policy,
    *,
    behaviour: Parts | None = None,
    made: dict[str, Any] | None = None,
    besides: dict[str, bytes] | None = None,
) -> Path:
    """Writes the folder whole or not at all; an older one is replaced.

    `behaviour`: shards of popularity and co-occurrence, by part; `besides`: other files, by name.

    Raises HeadraceError where something else lies at `destination`.
    """
    arrays, meta = policy.snapshot()
    parts: Parts = {policy.name: (arrays, meta), **(behaviour or {})}
    files: dict[str, _File] = {}
    try:
        with artifact.writing(destination) as folder:
            for part, content in parts.items():
                data, sha256 = pack(*content)
                file = f"{part.replace('/', '-')}.safetensors"
                (folder / file).write_bytes(data)
                files[part] = _File(file, sha256)
            for file, data in (besides or {}).items():
                (folder / file).write_bytes(data)
            manifest = _Manifest(SCHEMA, policy.name, str(meta["layout"]), files, made or {})
            (folder / artifact.MANIFEST).write_bytes(
                msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
            )
    except artifact.ArtifactError as error:
        raise HeadraceError(str(error)) from None
    return Path(destination)


def read(path: Path | str) -> Start:
    """Raises SettingsError, one line, where the folder is none of ours, is of another schema, or is damaged."""
    path = Path(path)
    again = "write it again with `headrace train`"
    try:
        raw = (path / artifact.MANIFEST).read_bytes()
        manifest = msgspec.json.decode(raw, type=_Manifest)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise SettingsError(f"policy.start = {str(path)!r}: {why}; name a folder that `headrace train` wrote") from None
    except msgspec.DecodeError as error:
        raise SettingsError(f"policy.start = {str(path)!r}: {artifact.MANIFEST}: {error}; {again}") from None
    if manifest.schema != SCHEMA:
        raise SettingsError(
            f"policy.start = {str(path)!r}: schema {manifest.schema}, this headrace reads {SCHEMA}; {again}"
        )
    parts: Parts = {}
    for part, known in manifest.parts.items():
        if Path(known.file).name != known.file:
            raise SettingsError(f"policy.start = {str(path)!r}: {known.file!r} is no file of this folder; {again}")
        try:
            parts[part] = unpack((path / known.file).read_bytes(), known.sha256)
        except OSError:
            raise SettingsError(f"policy.start = {str(path)!r}: {known.file} is missing; {again}") from None
        except SnapshotError as error:
            raise SettingsError(f"policy.start = {str(path)!r}: {known.file}: {error}; {again}") from None
    if manifest.policy not in parts:
        raise SettingsError(f"policy.start = {str(path)!r}: holds no part {manifest.policy!r}; {again}")
    return Start(path, manifest.policy, manifest.layout, parts, manifest.made)


def begin(settings: Settings, policy: Policy) -> Start | None:
    """Makes `policy`, a new one of `policy.name`, what `policy.start` holds; None where the setting is empty.

    Raises SettingsError, one line, where the folder's policy is another, or was made for other widths.
    """
    where = settings.policy.start
    if not where:
        if policy.name in TRAINED:
            raise SettingsError(
                f"policy.name = {policy.name!r} learns nothing from traffic: name in policy.start the folder of a"
                " trained one (docs/training.md)"
            )
        return None
    start = read(where)
    if start.policy != policy.name:
        raise SettingsError(
            f"policy.start = {where!r} holds a {start.policy}, and policy.name is {policy.name!r}:"
            f" set policy.name = {start.policy!r}, or train a {policy.name}"
        )
    try:
        policy.restore(*start.parts[start.policy])
        for part, (arrays, meta) in start.behaviour.items():
            model = Popularity() if part.startswith("popularity") else CoOccurrence()
            model.restore(int(part.partition("/")[2] or 0), arrays, meta)
    except (ValueError, KeyError) as error:
        raise SettingsError(
            f"policy.start = {where!r} does not fit these settings and encoder: {error}; train it again with them"
        ) from None
    return start


def check(settings: Settings) -> str:
    """Says what the roles would start from. Raises what `begin` raises, and ArtifactMismatch."""
    try:
        folder = ensure_user(settings.encoder.artifact, text=settings.catalogue.text_model)
        dim = artifact.load(folder, "user").manifest.dims["state"]
    except artifact.ArtifactError as error:
        raise ArtifactMismatch(str(error)) from None
    start = begin(settings, make_policy(settings, settings.policy.name, dim=dim))
    return "nothing learned" if start is None else f"{start.policy} from {start.path}"
