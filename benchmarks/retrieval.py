"""The nearest 100 items: how fast, how many of the truly nearest, from 100 to 1,000,000 items; one core.

    python benchmarks/retrieval.py [--most 1000000] [--peers 50000]

Times are of the process's own CPU, one thread, so that what else runs counts little. Vectors have 64 dimensions and are
stored at float16's precision, as the catalogue's are. "clustered": 1,000 Gaussian clusters; queries are further draws.
"titles": a real shop's titles as the default encoder sees them, each many times with some noise; queries are means of
five. Peers get the same vectors and queries; hnswlib and faiss-cpu are in the dependency group `bench`.
"""

from __future__ import annotations

import argparse
import importlib
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from online_retail import DATA
from system import machine, write
from usearch.index import Index

from headrace.streams.index import EXACT_BELOW, ItemIndex, recall

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
DIM, K, FEW = 64, 100, 40
SIZES = (100, 1_000, 2_000, 5_000, 10_000, 20_000)
_QUERIES, _SLICE = 256, 1_000  # items come a thousand at a time
_NEVER = 10**9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=1_000_000, help="items of the large catalogue")
    parser.add_argument("--peers", type=int, default=50_000, help="items that peers are compared on")
    given = parser.parse_args()
    figures: dict[str, Any] = {"benchmark": "retrieval", "machine": machine(), "dim": DIM, "k": K}
    vectors, queries = clustered(given.most, seed=0)
    figures["crossing"] = [crossing(vectors[:size], queries) for size in SIZES]
    figures["exact_below"] = EXACT_BELOW
    figures["large"] = large(vectors, queries)
    some = vectors[: given.peers]
    figures["compared"] = {"items": len(some), "clustered": compared(some, queries)}
    titles = real(given.peers, seed=1)
    if titles is not None:
        figures["compared"]["titles"] = compared(*titles)
    write("retrieval", figures)


# -- vectors ----------------------------------------------------------------------------------------------------------


def clustered(n: int, *, seed: int) -> tuple[F32, F32]:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((1_000, DIM)).astype(np.float32)

    def draw(count: int) -> F32:
        return _unit(centres[rng.integers(len(centres), size=count)] + 0.7 * _noise(rng, count))

    return _stored(draw(n)), draw(_QUERIES)


def real(n: int, *, seed: int) -> tuple[F32, F32] | None:
    """None where the shop's file is not there."""
    if not DATA.exists():
        return None
    import pyarrow.parquet

    from headrace.streams.models import load_models
    from headrace.streams.settings import Settings

    models = load_models(Settings())
    titles = pyarrow.parquet.read_table(DATA, columns=["Description"])["Description"].unique().to_pylist()
    known = [title for title in titles if title]
    texts = np.concatenate([models.recommender.texts.encode(known[at : at + 256]) for at in range(0, len(known), 256)])
    base = models.encoder.project(texts)
    rng = np.random.default_rng(seed)
    copies = base[np.arange(n) % len(base)] + 0.3 / np.sqrt(DIM) * _noise(rng, n)
    means = base[rng.integers(len(base), size=(_QUERIES, 5))].mean(axis=1)
    return _stored(_unit(copies)), _unit(means)


def _noise(rng: np.random.Generator, count: int) -> F32:
    return rng.standard_normal((count, DIM), np.float32)


def _unit(vectors: F32) -> F32:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def _stored(vectors: F32) -> F32:
    return vectors.astype(np.float16).astype(np.float32)


def nearest(vectors: F32, queries: F32, k: int) -> I64:
    """By looking at all."""
    scores = queries @ vectors.T
    return np.asarray(np.argpartition(-scores, k - 1, axis=1)[:, :k], np.int64)


# -- what is measured -------------------------------------------------------------------------------------------------


def crossing(vectors: F32, queries: F32, *, k: int = FEW) -> dict[str, Any]:
    """Microseconds a query of headrace's own index, exact and by the graph, alone and 16 at a time."""
    found: dict[str, Any] = {"items": len(vectors)}
    for name, below in (("exact", _NEVER), ("graph", 1)):
        index = _filled(vectors, exact_below=below)
        for at_once in (1, 16):
            spent, _ = _searched(lambda part, index=index: index.search(part, k), queries, at_once)
            found[f"{name}_us_{at_once}"] = round(spent * 1e6, 1)
    return found


def large(vectors: F32, queries: F32) -> dict[str, Any]:
    """headrace's index alone, on all of the vectors."""
    n = len(vectors)
    before_all, index, began = _resident(), ItemIndex(lambda: vectors, dim=DIM), time.process_time()
    last = 0.0
    for rows in _slices(n):
        before = time.process_time()
        index.put(rows, vectors[rows])
        if rows[-1] >= n * 9 // 10:
            last += time.process_time() - before
    built, grown = time.process_time() - began, _resident() - before_all
    truth = nearest(vectors, queries, K)
    spent, found = _searched(lambda part: index.search(part, K), queries, 16)
    each = sorted(_searched(lambda part: index.search(part, K), queries[i : i + 1], 1)[0] for i in range(len(queries)))
    fewer, near = _searched(lambda part: index.search(part, FEW), queries, 16)
    figures = {
        "items": n,
        "insertions_per_s": round(n / built),
        "last_tenth_insertions_per_s": round(n // 10 / last),
        "search_us": round(spent * 1e6),
        "single_search_p99_us": round(each[int(0.99 * len(each))] * 1e6),
        "recall": round(recall(found, truth), 4),
        "search_40_us": round(fewer * 1e6),
        "recall_40": round(recall(near, nearest(vectors, queries, FEW)), 4),
        "bytes_an_item": round(grown / n),
    }
    gone = np.random.default_rng(2).choice(n, n // 20, replace=False)
    began = time.process_time()
    index.remove(gone)
    figures["removals_per_s"] = round(len(gone) / (time.process_time() - began))
    found = index.search(queries, K)
    figures["removed_that_came_back"] = int(np.isin(found, gone).sum())
    began = time.process_time()
    index.put(gone, vectors[gone])
    figures["put_back_per_s"] = round(len(gone) / (time.process_time() - began))
    figures["recall_after_a_twentieth_went_and_came"] = round(recall(index.search(queries, K), truth), 4)
    print(figures, flush=True)
    return figures


def compared(vectors: F32, queries: F32) -> list[dict[str, Any]]:
    """Graphs of the same width from three libraries, and one with cells: how fast each takes in and finds."""
    truth, found = nearest(vectors, queries, K), []
    for name, make in _PEERS.items():
        peer = make(vectors)
        if peer is None:
            print(f"{name} is left out: its library is not installed (dependency group bench)", flush=True)
            continue
        add, search = peer
        began = time.process_time()
        for rows in _slices(len(vectors)):
            add(rows)
        built = time.process_time() - began
        spent, rows = _searched(search, queries, 16)
        found.append(
            {
                "name": name,
                "insertions_per_s": round(len(vectors) / built),
                "search_us": round(spent * 1e6),
                "recall": round(recall(rows, truth), 4),
            }
        )
        print(found[-1], flush=True)
    return found


def _searched(search: Callable[[F32], I64], queries: F32, at_once: int) -> tuple[float, I64]:
    """Seconds a query, and what was found."""
    search(queries[:at_once])
    began = time.process_time()
    found = [search(queries[at : at + at_once]) for at in range(0, len(queries), at_once)]
    return (time.process_time() - began) / len(queries), np.concatenate(found)


def _resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()


def _slices(n: int) -> Iterator[I64]:
    for start in range(0, n, _SLICE):
        yield np.arange(start, min(start + _SLICE, n))


def _filled(vectors: F32, *, exact_below: int) -> ItemIndex:
    index = ItemIndex(lambda: vectors, dim=DIM, exact_below=exact_below)
    for rows in _slices(len(vectors)):
        index.put(rows, vectors[rows])
    return index


# -- peers: how items are added and queries are answered --------------------------------------------------------------

Peer = tuple[Callable[[I64], Any], Callable[[F32], I64]]
_SEEN = 3 * K  # items that each search of a graph keeps in view


def _headrace(vectors: F32) -> Peer:
    index = ItemIndex(lambda: vectors, dim=DIM, exact_below=1)
    return lambda rows: index.put(rows, vectors[rows]), lambda q: index.search(q, K)


def _usearch_i8(vectors: F32) -> Peer:
    index: Any = Index(ndim=DIM, metric="ip", dtype="i8", connectivity=16, expansion_add=64, expansion_search=_SEEN)
    return (
        lambda rows: index.add(rows.astype(np.uint64), vectors[rows], threads=1),
        lambda q: np.asarray(index.search(q, K, threads=1).keys, np.int64).reshape(len(q), K),
    )


def _hnswlib(vectors: F32) -> Peer | None:
    library = _library("hnswlib")
    if library is None:
        return None
    index = library.Index(space="ip", dim=DIM)
    index.init_index(max_elements=len(vectors), M=16, ef_construction=64, random_seed=0)
    index.set_ef(_SEEN)
    return (
        lambda rows: index.add_items(vectors[rows], rows, num_threads=1),
        lambda q: index.knn_query(q, K, num_threads=1)[0].astype(np.int64),
    )


def _faiss_hnsw(vectors: F32) -> Peer | None:
    library = _library("faiss")
    if library is None:
        return None
    library.omp_set_num_threads(1)
    index = library.IndexHNSWFlat(DIM, 16, library.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = 64, _SEEN
    return lambda rows: index.add(vectors[rows]), lambda q: index.search(q, K)[1]


def _faiss_ivf(vectors: F32) -> Peer | None:
    library = _library("faiss")
    if library is None:
        return None
    library.omp_set_num_threads(1)
    quantizer = library.IndexFlatIP(DIM)
    index = library.IndexIVFFlat(quantizer, DIM, 512, library.METRIC_INNER_PRODUCT)
    index.train(vectors[:: max(1, len(vectors) // 20_000)])
    index.nprobe = 16
    add = lambda rows, _=quantizer: index.add_with_ids(vectors[rows], rows)  # noqa: E731  # holds the quantizer too
    return add, lambda q: index.search(q, K)[1]


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


_PEERS: dict[str, Callable[[F32], Peer | None]] = {
    "headrace (usearch, float16)": _headrace,
    "usearch, int8": _usearch_i8,
    "hnswlib, float32": _hnswlib,
    "faiss-cpu, HNSW float32": _faiss_hnsw,
    "faiss-cpu, 512 cells of which 16 are searched": _faiss_ivf,
}


# -- docs/benchmarks.md -----------------------------------------------------------------------------------------------


def section(f: dict[str, Any]) -> str:
    large, machine = f["large"], f["machine"]
    lines = [
        f"## Retrieval: the nearest {f['k']} of {large['items']:,} items\n",
        f"| {large['items']:,} clustered vectors of {f['dim']}, one core | | to reach |",
        "|---|---|---|",
        f"| recall@{f['k']} | {large['recall']:.4f} | ≥ 0.97 |",
        f"| a user, 16 together | {large['search_us']:,} µs | ≤ 1,000 |",
        f"| a user alone, p99 | {large['single_search_p99_us']:,} µs | |",
        f"| the nearest 40, twice what a decision asks | {large['search_40_us']:,} µs, {large['recall_40']:.4f} | |",
        f"| insertions a second; in the last tenth | {large['insertions_per_s']:,};"
        f" {large['last_tenth_insertions_per_s']:,} | ≥ 5,000 |",
        f"| removals a second; removed items found | {large['removals_per_s']:,};"
        f" {large['removed_that_came_back']} | 0 |",
        f"| recall after a twentieth went and came | {large['recall_after_a_twentieth_went_and_came']:.4f} | |",
        f"| memory of the index, an item, beside 256 of the catalogue's vectors | {large['bytes_an_item']:,} bytes | |",
        "",
        f"Exact or a graph: microseconds a user for the nearest 40, alone / 16 together. headrace changes over at"
        f" {f['exact_below']:,}.\n",
        "| items | exact | graph |",
        "|---|---|---|",
        *(
            f"| {row['items']:,} | {row['exact_us_1']:,.0f} / {row['exact_us_16']:,.0f}"
            f" | {row['graph_us_1']:,.0f} / {row['graph_us_16']:,.0f} |"
            for row in f["crossing"]
        ),
        "",
    ]
    for name in ("clustered", "titles"):
        if rows := f["compared"].get(name):
            lines += [
                f"| {f['compared']['items']:,} items, {name} | recall@{f['k']} | µs a user | insertions a second |",
                "|---|---|---|---|",
                *(
                    f"| {row['name']} | {row['recall']:.4f} | {row['search_us']:,} | {row['insertions_per_s']:,} |"
                    for row in rows
                ),
                "",
            ]
    return "\n".join(
        [
            *lines,
            f"Times are CPU time. {machine['cores']} cores ({machine['cpu']}), Python {machine['python']}, commit"
            f" {machine['commit']}, load average before the run {machine['load_before']}.\n",
        ]
    )


if __name__ == "__main__":
    main()
