"""The error that somebody can mend who runs a command."""

from __future__ import annotations


class ExportError(ValueError):
    """What was asked for cannot be done with what was given. One line with the cure; any other ValueError is a bug."""
