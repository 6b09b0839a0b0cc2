"""How settings come to be: the built-in defaults, then `headrace.toml`, then the environment; and how they are shown.

Each problem is one line that names the key, its value and the cure.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import EnvSettingsSource
from pydantic_settings.exceptions import SettingsError as UnreadableVariable

from headrace.streams.errors import SettingsError
from headrace.streams.sections import duration_ms
from headrace.streams.settings import Settings, is_secret, masked

DEFAULT_FILE = Path("headrace.toml")
_PREFIX = "HEADRACE_"
Values = dict[str, Any]


def load(path: Path | None = None, overrides: Values | None = None, *, base: Path | None = None) -> Settings:
    """Reads `path` (default: `headrace.toml` in the current folder, if it is there), then the environment.

    `overrides` (nested, as the file) win over both: they are what the command line says; `base` is a file
    below `path`. Raises SettingsError.
    """
    file = path or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    values = _from_file(file) if file else {}
    if base is not None:
        values = _merged(_from_file(base), values)
    environment = _from_environment()
    for layer in (environment, overrides or {}):
        values = _merged(values, layer)
    try:
        return Settings(**values)
    except ValidationError as error:
        told = [_told(detail, file, environment) for detail in error.errors()]
        raise SettingsError("\n".join(dict.fromkeys(told))) from error


def as_environment(settings: Settings) -> dict[str, str]:
    """The variables that make `load` of an empty file give these settings again, secrets too: for child processes."""
    values = settings.model_dump(mode="json")
    return {
        _PREFIX + name.upper(): value if isinstance(value, str) else json.dumps(value) for name, value in values.items()
    }


def effective(settings: Settings) -> dict[str, str]:
    """{key: value as TOML} of everything in force, secrets masked, durations with their unit."""
    shown: dict[str, str] = {}
    for key, value in _leaves(settings, ()):
        shown[".".join(part if part.replace("_", "").isalnum() else json.dumps(part) for part in key)] = value
    return shown


# -- the layers -------------------------------------------------------------------------------------------------------


def _from_file(path: Path) -> Values:
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"there is no settings file {path}: give an existing one with --config") from None
    except OSError as error:
        raise SettingsError(f"the settings file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is no valid TOML: {error}; mend that line (text goes in quotes)") from error
    if isinstance(values.get("kafka"), dict):
        values["kafka"] = dict(_properties(values["kafka"]))
    return values


def _from_environment() -> Values:
    known = Settings.model_fields
    for name in os.environ:
        if name.startswith(_PREFIX) and name.removeprefix(_PREFIX).split("__")[0].lower() not in known:
            closest = _closest(name, [_PREFIX + field.upper() for field in known])
            raise SettingsError(f"the environment sets {name}, which is no setting: unset it{closest}")
    try:
        values: Values = EnvSettingsSource(Settings)()
    except UnreadableVariable as error:
        raise SettingsError(f"{error} of the environment: write a value in JSON there") from error
    if isinstance(values.get("kafka"), dict):
        values["kafka"] = dict(_properties({name.replace("_", "."): v for name, v in values["kafka"].items()}))
    return values


def _properties(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Kafka's property names hold dots, which an unquoted TOML key makes into tables: `sasl.username = "x"`."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _properties(value, f"{prefix}{name}.")
        else:
            yield prefix + name, str(value).lower() if isinstance(value, bool) else str(value)


def _merged(below: Values, above: Values) -> Values:
    """`above` wins; tables are merged key by key."""
    result = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = _merged(result[name], value) if both else value
    return result


# -- problems ---------------------------------------------------------------------------------------------------------


def _told(detail: ErrorDetails, file: Path | None, environment: Values) -> str:
    """One line about one problem: where it was set, the key, the value, the cure."""
    location = tuple(str(part) for part in detail["loc"])
    where = f"{file}: " if file else ""
    message = detail["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if not location:  # settings that do not go together
        return where + message
    key = ".".join(location)
    value = "***" if location[0] == "kafka" and is_secret(key) else json.dumps(detail["input"], default=str)[:80]
    if _within(environment, location):
        key, where = _PREFIX + "__".join(location).upper(), "environment: "
    if detail["type"] == "extra_forbidden":
        return f"{where}{key} = {value}: there is no such setting{_closest_setting(location)}"
    expected = detail.get("ctx", {}).get("expected")
    hint = _closest(str(detail["input"]), str(expected).replace(" or ", ", ").split(", ")) if expected else ""
    return f"{where}{key} = {value}: {message}{hint}"


def _within(values: Any, location: tuple[str, ...]) -> bool:
    for part in location:
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def _closest_setting(location: tuple[str, ...]) -> str:
    """The setting meant: one of that very name elsewhere, else a neighbour, else any."""
    known = [".".join(key) for key in _names(Settings)]
    wanted = ".".join(location)
    section = [name for name in known if name.split(".")[:-1] == list(location[:-1])]
    same_name = [name for name in known if name.split(".")[-1] == location[-1]]
    if len(same_name) == 1:
        return f"; did you mean {same_name[0]}?"
    return _closest(wanted, section) or _closest(wanted, known)


def _closest(word: str, known: list[str]) -> str:
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


def _names(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """All keys, sections too; a table with names of the user's own is passed over."""
    for name, field in model.model_fields.items():
        yield (*prefix, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _names(field.annotation, (*prefix, name))


# -- showing ----------------------------------------------------------------------------------------------------------


def _leaves(value: Any, key: tuple[str, ...], *, duration: bool = False) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            is_duration = any(getattr(m, "func", None) is duration_ms for m in field.metadata)
            inner = getattr(value, name)
            yield from _leaves(masked(inner) if name == "kafka" else inner, (*key, name), duration=is_duration)
    elif isinstance(value, dict) and value:
        for name, inner in value.items():
            if isinstance(inner, BaseModel):  # one line for each of many alike
                table = ", ".join(f"{k[0]} = {v}" for k, v in _leaves(inner, ()))
                yield (*key, name), f"{{{table}}}"
            else:
                yield from _leaves(inner, (*key, name))
    elif duration:
        yield key, f'"{_as_duration(value)}"'
    else:
        yield key, "{}" if value == {} else json.dumps(value, default=str, ensure_ascii=False)


def _as_duration(milliseconds: int) -> str:
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)):
        if milliseconds and milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"
