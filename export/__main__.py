"""`python -m headrace.export text|user NAME FOLDER`: how defaults.py builds an artifact in another process."""

from __future__ import annotations

import sys

from headrace.export.commands import export_text, export_user


def main() -> None:
    match sys.argv[1:]:
        case ["text", name, folder]:
            export_text(name, folder)
        case ["user", text_encoder, folder]:
            export_user(folder, text_encoder=text_encoder)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(str(error))
