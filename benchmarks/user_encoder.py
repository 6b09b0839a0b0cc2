"""User updates: the step form with its cache, the whole window anew, and softmax attention with a key/value cache.

python benchmarks/user_encoder.py [--artifact FOLDER] [--text MODEL]

One core, CPU time, medians over rounds. Every user has between 60 and 110 events at first and gains one a round. The
whole window is the artifact's own window graph over windows of 50 events, and of 38, the mean length of what the step
form encodes. Softmax attention has the artifact's sizes (keys, values, layers, feed-forward), ALiBi's slopes for order,
and takes its cache as it lies: only its new key and value leave the graph. Its quality is benchmarks/user_forms.py's.
"""
# ruff: noqa: E402

from __future__ import annotations

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy is loaded

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from system import machine, write
from torch import Tensor, nn

from headrace.export.defaults import ensure_user
from headrace.export.names import DEFAULT_TEXT
from headrace.export.onnx_graph import write_graph
from headrace.export.user_model import UserModel
from headrace.streams.encoder import History, UserEncoder
from headrace.streams.graph import open_graph
from headrace.streams.state import UserState, short_hash

Figures = dict[str, Any]
USERS, EVENTS, ITEMS, WINDOW, MEAN_WINDOW = 2_048, 400, 20_000, 50, 38
BATCHES = (64, 128, 256)
ROUNDS, SINGLES = 9, 3_000


class Crowd:
    """Users with long histories, of which more and more has happened."""

    def __init__(self, dim: int) -> None:
        random = np.random.default_rng(11)
        shape = (USERS, EVENTS)
        self._keys = random.integers(0, ITEMS, shape).astype(np.uint64)
        self._types = random.integers(1, 16, shape).astype(np.uint8)
        self._seconds = (1_700_000_000 + random.integers(1, 20_000, shape).cumsum(axis=1)).astype(np.uint32)
        self._counts = random.integers(60, 110, USERS)
        vectors = random.standard_normal((ITEMS, dim)).astype(np.float32)
        self._vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def lookup(self, keys: NDArray[np.uint64], _generations: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._vectors[keys.astype(np.int64)]

    def histories(self, users: NDArray[np.int64], *, more: int) -> list[History]:
        self._counts[users] += more
        found = []
        for user in users.tolist():
            held = slice(int(self._counts[user]) - WINDOW, int(self._counts[user]))
            columns = self._keys[user, held], self._types[user, held], self._seconds[user, held]
            found.append(History(f"u{user}", held.stop, *columns, np.zeros(WINDOW, np.uint8)))
        return found


def updates(encoder: UserEncoder, crowd: Crowd, batch: int) -> float:
    """Users a second that gained one event each, in batches, the cache warm."""
    random, rates = np.random.default_rng(batch), []
    for _ in range(ROUNDS):
        order, spent = random.permutation(USERS), 0.0
        for start in range(0, USERS, batch):
            histories = crowd.histories(order[start : start + batch], more=1)
            begun = time.process_time()
            encoder.encode(histories, crowd.lookup)
            spent += time.process_time() - begun
        rates.append(USERS / spent)
    return float(np.median(rates))


def single(encoder: UserEncoder, crowd: Crowd) -> dict[str, float]:
    """Milliseconds of CPU time that one user's update takes, alone."""
    random, taken = np.random.default_rng(1), []
    for user in random.integers(0, USERS, SINGLES):
        histories = crowd.histories(np.array([user]), more=1)
        begun = time.process_time()
        encoder.encode(histories, crowd.lookup)
        taken.append(1_000 * (time.process_time() - begun))
    return {"p50": round(float(np.median(taken)), 3), "p99": round(float(np.quantile(taken, 0.99)), 3)}


def rebuilds(encoder: UserEncoder, crowd: Crowd, batch: int) -> float:
    """Users a second, none of them in the cache."""
    rates = []
    for _ in range(3):
        encoder.flush()
        spent = 0.0
        for start in range(0, USERS, batch):
            histories = crowd.histories(np.arange(start, start + batch), more=0)
            begun = time.process_time()
            encoder.encode(histories, crowd.lookup)
            spent += time.process_time() - begun
        rates.append(USERS / spent)
    return float(np.median(rates))


def rate(run: Callable[[], object], users: int, *, repeats: int = 30) -> float:
    """Users a second of a call that encodes `users`."""
    run()
    taken = []
    for _ in range(repeats):
        begun = time.process_time()
        run()
        taken.append(time.process_time() - begun)
    return users / float(np.median(taken))


def graph_rate(path: Path, feeds: dict[str, NDArray[Any]], users: int) -> float:
    graph = open_graph(path, threads=1)
    return rate(lambda: graph.run(None, feeds), users)


class KeyValueStep(nn.Module):
    """One event a user by softmax attention over the keys and values of the events before: softmax(q Kᵀ / √q + slope ·
    distance) V (Vaswani et al. 2017, eq. 1; Press, Smith & Lewis 2022), with the model's own projections."""

    def __init__(self, model: UserModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, keys: Tensor, values: Tensor, sums: Tensor, used: Tensor, vectors: Tensor, types: Tensor, gaps: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """keys (B, layers, W, h, q), values (B, layers, W, h, v), sums (B, j, d), events before (B,), the event →
        its keys (B, layers, h, q) and values, sums', state (B, d)."""
        model, c = self.model, self.model.config
        x, added = model._embed(vectors, types, gaps)
        sums = sums * model.sum_decay.sigmoid().unsqueeze(-1) + added
        back = (used.unsqueeze(1) - torch.arange(keys.shape[2])).unsqueeze(1)  # (B, 1, W)
        kept_keys, kept_values = [], []
        for n, layer in enumerate(model.layers):
            attention: Any = layer.retention
            q, k, v, gate = attention._split(layer.norm_retention(x))
            before = torch.einsum("bhq,bmhq->bhm", q, keys[:, n]) * c.key_dim**-0.5
            before = before + attention.decays.log().view(1, -1, 1) * back
            own = (q * k).sum(-1, keepdim=True) * c.key_dim**-0.5
            weights = torch.cat([before.masked_fill(back <= 0, -torch.inf), own], dim=-1).softmax(dim=-1)
            mixed = torch.einsum("bhm,bmhv->bhv", weights[..., :-1], values[:, n]) + weights[..., -1:] * v
            x = x + attention._merge(mixed, gate)
            x = x + layer.feed_forward(layer.norm_feed_forward(x))
            kept_keys.append(k)
            kept_values.append(v)
        return torch.stack(kept_keys, 1), torch.stack(kept_values, 1), sums, model._state(x, sums)


def key_value(model: UserModel, folder: Path, batch: int) -> Figures:
    c = model.config
    shape = (batch, c.layers, WINDOW, c.heads)
    example = (
        torch.randn(*shape, c.key_dim), torch.randn(*shape, c.dim // c.heads),
        torch.randn(batch, len(c.sum_decays), c.dim), torch.full((batch,), WINDOW - 1), torch.randn(batch, c.dim),
        torch.ones(batch, dtype=torch.long), torch.ones(batch, dtype=torch.long),
    )  # fmt: skip
    names = ["keys", "values", "sums", "used", "vectors", "types", "gaps"]
    outputs = ["key", "value", "new_sums", "state"]
    write_graph(KeyValueStep(model), example, folder / "kv.onnx", inputs=names, outputs=outputs)
    floats = c.layers * WINDOW * (c.heads * c.key_dim + c.dim) + len(c.sum_decays) * c.dim
    feeds = {name: tensor.numpy() for name, tensor in zip(names, example, strict=True)}
    alone = graph_rate(folder / "kv.onnx", feeds, batch)
    return {"graph_per_s": round(alone), "with_cache_per_s": round(fetched(folder, feeds, batch)),
            "window_bytes": 4 * floats}  # fmt: skip


def fetched(folder: Path, feeds: dict[str, NDArray[Any]], batch: int) -> float:
    """With the caches of the batch's users fetched from those of all, and the new keys and values put there."""
    graph = open_graph(folder / "kv.onnx", threads=1)
    names, random = ("keys", "values", "sums"), np.random.default_rng(2)
    held = {name: np.zeros((USERS, *feeds[name].shape[1:]), np.float32) for name in names}

    def run() -> None:
        users = random.permutation(USERS)[:batch]
        for name in names:
            np.take(held[name], users, axis=0, out=feeds[name], mode="clip")
        key, value, sums, _ = graph.run(None, feeds)
        held["keys"][users, :, -1], held["values"][users, :, -1], held["sums"][users] = key, value, sums

    return rate(run, batch)


def state_bytes(text_dim: int) -> Figures:
    """A packed user state: 50 events and 32 seen ids, without and with 20 open decisions; a query in the history."""
    state = UserState()
    for n in range(WINDOW):
        state.append(short_hash(str(n)), type_code=1, ts=1_790_000_000_000 + n, window=WINDOW, generation=n % 3)
        state.see(short_hash("e", str(n)), horizon=32)
    figures = {"history_bytes": len(state.keys + state.types + state.seconds + state.generations)}
    figures["packed_bytes"] = len(state.pack())
    state.note().texts[short_hash("text", "q")] = bytes(4 + text_dim)
    figures["query_bytes"] = len(state.pack()) - figures["packed_bytes"]
    state.notes = None
    for n in range(20):
        state.open(bytes([n]) * 12, ts=n, arm=0, keys=bytes(80))
    return figures | {"packed_with_20_open_decisions_bytes": len(state.pack())}


def measure(artifact: Path) -> Figures:
    torch.set_num_threads(1)
    encoder, model = UserEncoder(artifact, cache_bytes=1 << 28, window=WINDOW), UserModel.from_pretrained(artifact)
    crowd = Crowd(encoder.dim)
    figures: Figures = {"rebuilds_per_s": {b: round(rebuilds(encoder, crowd, b)) for b in (64, 256)}}
    figures["updates_per_s"] = {b: round(updates(encoder, crowd, b)) for b in BATCHES}
    figures["single_ms"] = single(encoder, crowd)
    cache = model.config.cache_floats
    tokens = {"types": np.ones(64, np.int64), "gaps": np.ones(64, np.int64)}
    vectors = crowd.lookup(np.arange(64 * WINDOW, dtype=np.uint64), np.zeros(0, np.uint8)).reshape(64, WINDOW, -1)
    feeds = {"cache": np.zeros((64, cache), np.float32), "vectors": np.ascontiguousarray(vectors[:, 0]), **tokens}
    figures["step_graph_per_s"] = round(graph_rate(artifact / "step-64.onnx", feeds, 64))
    figures["window_bytes"] = 4 * (cache + encoder.dim)
    for length in (WINDOW, MEAN_WINDOW):
        codes = np.ones((64, length), np.int64)
        feeds = {"vectors": np.ascontiguousarray(vectors[:, :length]), "types": codes, "gaps": codes}
        figures[f"window_{length}_per_s"] = round(graph_rate(artifact / "window.onnx", feeds, 64))
    with tempfile.TemporaryDirectory() as folder:
        figures["key_value"] = key_value(model.eval(), Path(folder), 64)
    figures["state"] = state_bytes(encoder.text_dim)
    figures["times_the_window"] = round(figures["updates_per_s"][64] / figures[f"window_{WINDOW}_per_s"], 1)
    return {"encoder": encoder.version, "dim": encoder.dim, "layers": model.config.layers, **figures}


def section(f: Figures) -> str:
    rates, kv, state = f["updates_per_s"], f["key_value"], f["state"]
    rows = [(f"users updated a second, {batch} at a time", f"{per_s:,}", "≥ 40,000") for batch, per_s in rates.items()]
    rows += [
        ("a single update, p50, p99", f"{f['single_ms']['p50']} ms, {f['single_ms']['p99']} ms", "p99 ≤ 1 ms"),
        (f"the whole window of {WINDOW} anew, 64 at a time", f"{f[f'window_{WINDOW}_per_s']:,}", ""),
        (f"the whole window of {MEAN_WINDOW}", f"{f[f'window_{MEAN_WINDOW}_per_s']:,}", ""),
        (f"updates, times the whole window of {WINDOW}", f"{f['times_the_window']}", "≥ 10"),
        ("users rebuilt a second, none cached, 64 at a time", f"{f['rebuilds_per_s']['64']:,}", ""),
        ("the step graph alone, steps a second", f"{f['step_graph_per_s']:,}", ""),
        ("softmax attention's step graph alone", f"{kv['graph_per_s']:,}", ""),
        ("softmax attention's steps with its cache fetched", f"{kv['with_cache_per_s']:,}", ""),
        ("bytes cached a window: retention, softmax attention", f"{f['window_bytes']:,}, {kv['window_bytes']:,}", ""),
        (
            "bytes at rest: the history of 50, a query beside",
            f"{state['history_bytes']:,}, {state['query_bytes']:,}",
            "",
        ),
    ]
    return "\n".join(
        [
            "## User updates\n",
            f"One core, CPU time; d = {f['dim']}, {f['layers']} layers, history {WINDOW}. An update steps two windows"
            " of a user (docs/encoder.md).\n",
            "| user updates | | to reach |",
            "|---|---|---|",
            *(f"| {name} | {value} | {goal} |" for name, value, goal in rows),
            "",
            f"{f['machine']['cores']} cores ({f['machine']['cpu']}), Python {f['machine']['python']}, commit"
            f" {f['machine']['commit']}, load average before the run {f['machine']['load_before']}.\n",
        ]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, help="the folder of a user encoder; the default one without it")
    parser.add_argument("--text", default=DEFAULT_TEXT, help="the text model of the default one")
    said = parser.parse_args()
    before = machine()
    found = measure(said.artifact or ensure_user(text=said.text))
    write("user_encoder", {"benchmark": "user_encoder", "machine": before, **found})
