"""Which ids are anonymous by their looks, where the settings say what those look like."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable

from headrace.streams.settings import Settings


def anonymity(settings: Settings) -> Callable[[str], bool] | None:
    """Whether an id looks anonymous; None where the settings do not say."""
    pattern = settings.identities.anonymous
    if not pattern:
        return None
    found = re.compile(pattern if pattern.startswith("^") else fnmatch.translate(pattern))
    return lambda user: found.match(user) is not None
