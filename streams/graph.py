"""An ONNX graph, opened for serving."""

from __future__ import annotations

from pathlib import Path

import onnxruntime


def open_graph(path: Path, *, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores belong to the broker as well
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
