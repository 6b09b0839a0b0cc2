"""torch → one ONNX file, the same bytes each time, and a session to check it with."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

OPSET = 20


class ParityError(ValueError):
    """The ONNX graph and torch disagree: nothing was written."""


def write_graph(
    module: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    path: Path,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic: dict[str, dict[int, str]] | None = None,
) -> None:
    """Exports `module` as it runs on `example`. `dynamic` names the axes that may vary: input → axis → name."""
    names = {name for axes in (dynamic or {}).values() for name in axes.values()}
    dims = {name: torch.export.Dim(name, min=1, max=4_096) for name in sorted(names)}
    shapes = {name: {axis: dims[label] for axis, label in axes.items()} for name, axes in (dynamic or {}).items()}
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision, which nothing here needs
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module.eval(),
                example,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=shapes or None,
                verbose=False,
            )
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
    assert program is not None
    model = program.model_proto
    # Where the code lay and how it was called is no part of the model: without it, equal models are equal bytes.
    del model.metadata_props[:]
    model.graph.doc_string = ""
    del model.graph.metadata_props[:]
    for part in (
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.initializer,
        *model.graph.input,
        *model.graph.output,
    ):
        part.doc_string = ""
        del part.metadata_props[:]
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def run_graph(path: Path, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    return [np.asarray(output) for output in open_graph(path).run(None, feeds)]


def open_graph(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # threads that spin are the slower the busier the machine is
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def check_parity(name: str, reference: NDArray[Any], got: NDArray[Any], *, tolerance: float) -> float:
    """The largest absolute difference; raises ParityError if it is above `tolerance` (or not a number)."""
    if reference.shape != got.shape:
        raise ParityError(f"{name}: shapes {reference.shape} and {got.shape} differ; nothing was written")
    error = float(np.max(np.abs(reference.astype(np.float64) - got)))
    if not error <= tolerance:
        raise ParityError(f"{name}: largest difference {error:.2e} is above {tolerance:.0e}; nothing was written")
    return error
