"""Logging of a process: one line a record on stderr, and no flood while the broker is away."""

from __future__ import annotations

import logging
import time

_SAY_AGAIN_S = 5.0
_TALKATIVE = ("aiokafka", "faust", "mode")
_EXPORTERS = ("onnx_ir", "onnxscript")  # tell of every node they fold


class Seldom(logging.Filter):
    """Lets one record of a library through every few seconds: aiokafka logs a hundred an outage's second."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        library = record.name.split(".")[0]
        if library not in _TALKATIVE:
            return True
        now = time.monotonic()
        if now - self._said.get(library, float("-inf")) < _SAY_AGAIN_S:
            return False
        self._said[library] = now
        return True


def configure(*, debug: bool = False) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    if not debug:
        handler.addFilter(Seldom())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # Faust's parts that we override log under the name of our module.
    for library in (*_TALKATIVE, *_EXPORTERS, "headrace.streams.exactly_once"):
        logging.getLogger(library).setLevel(logging.INFO if debug else logging.WARNING)
