"""The sentences of which `reason` is made, by language: words.toml, and what a shop says otherwise."""

from __future__ import annotations

import string
import tomllib
from collections.abc import Mapping
from importlib.resources import files

_RULES, _BARE = ("boost", "pin", "quota"), ("search", "comment", "post", "unknown", "popular", "new")


def catalogue() -> dict[str, dict[str, str]]:
    """Language → key → sentence."""
    text = files("headrace.streams.reasons").joinpath("words.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def sentences(language: str, own: Mapping[str, str] | None = None) -> dict[str, str]:
    """Key → sentence with {item} or {rule} where ids go; `own` sentences stand before those of the language.

    Raises ValueError, one line, where the language or a key is not known, or a sentence has another hole than it may.
    """
    known = catalogue()
    if language not in known:
        raise ValueError(f"there are no words in {language!r}: choose one of {', '.join(sorted(known))}")
    for key, sentence in (own or {}).items():
        if key not in known[language]:
            raise ValueError(f"there is no sentence {key!r}: the keys are {', '.join(known[language])}")
        allowed = set() if key in _BARE else {"rule"} if key in _RULES else {"item"}
        try:
            parts = list(string.Formatter().parse(sentence))
            holes = {f"{name}{how or form or ''}" for _, name, form, how in parts if name is not None}
        except ValueError as error:
            raise ValueError(f"the sentence {key!r} cannot be read ({error}): write {{{{ for a brace") from None
        if not holes <= allowed:
            named = " and ".join(f"{{{name}}}" for name in sorted(allowed)) or "nothing"
            raise ValueError(f"the sentence {key!r} may name {named} in braces")
    return known[language] | dict(own or {})


def of_items(said: Mapping[str, str]) -> dict[str, str]:
    """Of those, the ones that name an item."""
    return {key: sentence for key, sentence in said.items() if key not in (*_RULES, *_BARE)}
