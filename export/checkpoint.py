"""Where a training stands, as arrays and JSON: a run that was killed goes on and ends as if it had never been.

    FOLDER/progress.json            what the run is, how far it is, and which file holds its arrays
    FOLDER/epoch-7.safetensors      weights, the best weights so far, the optimiser's moments, torch's random state

Never pickle: a checkpoint from elsewhere must not be able to run code.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from headrace.export.errors import ExportError

_FILE = "progress.json"


class Standing(msgspec.Struct, kw_only=True):
    """What is no array. `run` says of what run it is: a checkpoint of another one is refused."""

    run: str
    epoch: int = 0
    best_epoch: int = 0
    best: dict[str, float] = {}
    losses: list[float] = []
    random: str = ""  # numpy's generator, as JSON: its numbers have 128 bits
    arrays: str = ""

    def end_epoch(self, loss: float, figures: dict[str, float]) -> None:
        self.epoch += 1
        self.losses.append(loss)
        if figures["ndcg10"] > self.best.get("ndcg10", -1.0):
            self.best_epoch, self.best = self.epoch, figures


@dataclass
class Run:
    """All that changes while training."""

    net: nn.Module
    optimiser: torch.optim.Optimizer
    random: np.random.Generator
    standing: Standing
    best: dict[str, Tensor] = field(default_factory=dict)  # the weights of the best epoch

    def weights(self) -> dict[str, Tensor]:
        return {key: value.detach().clone() for key, value in self.net.state_dict().items()}


def save(run: Run, folder: Path) -> None:
    """Whole or not at all: the small file that names the large one is exchanged last."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {f"now.{key}": value for key, value in run.weights().items()}
    arrays |= {f"best.{key}": value for key, value in run.best.items()}
    for number, moments in run.optimiser.state_dict()["state"].items():
        arrays |= {f"optimiser.{number}.{key}": torch.as_tensor(value) for key, value in moments.items()}
    arrays["torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        arrays["cuda"] = torch.cuda.get_rng_state()
    before = run.standing.arrays
    run.standing.arrays = f"epoch-{run.standing.epoch}.safetensors"
    run.standing.random = _written(run.random)
    save_file({key: value.detach().cpu().contiguous() for key, value in arrays.items()}, folder / run.standing.arrays)
    scratch = folder / f".{_FILE}"
    scratch.write_bytes(msgspec.json.encode(run.standing))
    os.replace(scratch, folder / _FILE)
    if before and before != run.standing.arrays:
        (folder / before).unlink(missing_ok=True)


def restore(run: Run, folder: Path) -> bool:
    """True if `folder` held a checkpoint of this run, from which `run` now goes on.

    Raises ValueError, one line with the cure, for a checkpoint of another run, or one that cannot be read.
    """
    if not (folder / _FILE).exists():
        return False
    try:
        standing = msgspec.json.decode((folder / _FILE).read_bytes(), type=Standing)
        if standing.run != run.standing.run:
            raise ExportError(
                f"{folder}: a checkpoint of another log or recipe; name another folder, or delete it to begin anew"
            )
        arrays = load_file(folder / Path(standing.arrays).name)
        device = next(run.net.parameters()).device
        part = {head: {k.removeprefix(head): v for k, v in arrays.items() if k.startswith(head)} for head in _PARTS}
        run.net.load_state_dict(part["now."])
        run.best = {key: value.to(device) for key, value in part["best."].items()}
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in part["optimiser."].items():
            number, name = key.split(".")
            moments.setdefault(int(number), {})[name] = value
        run.optimiser.load_state_dict({"state": moments, "param_groups": run.optimiser.state_dict()["param_groups"]})
        _read(run.random, standing.random)
        torch.set_rng_state(arrays["torch"])
        if "cuda" in arrays and torch.cuda.is_available():
            torch.cuda.set_rng_state(arrays["cuda"])
    except (OSError, KeyError, RuntimeError, SafetensorError, msgspec.DecodeError) as error:
        raise ExportError(
            f"{folder}: the checkpoint cannot be read ({_line(error)}); delete it to begin anew"
        ) from None
    run.standing = standing
    return True


_PARTS = ("now.", "best.", "optimiser.")


def _written(random: np.random.Generator) -> str:
    def plain(value: Any) -> Any:
        return {key: plain(one) for key, one in value.items()} if isinstance(value, dict) else str(value)

    return msgspec.json.encode(plain(random.bit_generator.state)).decode()


def _read(random: np.random.Generator, written: str) -> None:
    def number(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: number(one) for key, one in value.items()}
        return int(value) if value.isdigit() else value

    random.bit_generator.state = number(msgspec.json.decode(written))


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
