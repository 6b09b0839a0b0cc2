"""`headrace export train`: the shop's own log becomes the encoder that serves it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.streams.cli_options import Config, Debug, Mapping
from headrace.streams.errors import HeadraceError, SettingsError

if TYPE_CHECKING:
    from headrace.export.artifact import Manifest
    from headrace.export.train import Progress
    from headrace.streams.erased import Erased
    from headrace.streams.settings import Settings
    from headrace.streams.training_log import TrainingLog

_FEW = 20  # users with a history: below, a validation figure says nothing
_EVERY_S = 10.0  # a line of progress where there is no terminal


class Validate(StrEnum):
    """The part of the log that training does not see and is judged by."""

    last = "leave-one-out"
    time = "temporal"


Files = Annotated[list[Path], typer.Option("--log", metavar="FILE", help="Events; may be given again. Default: Kafka.")]


def train(
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the artifact goes.")],
    log: Files = [],  # noqa: B006  typer reads it and never writes
    items: Annotated[Path | None, typer.Option("--items", metavar="FILE", help="The catalogue of that log.")] = None,
    mapping: Mapping = None,
    erased: Annotated[
        list[Path],
        typer.Option("--erased", metavar="FILE", help="User ids, one a line, or erasures as .jsonl: not read."),
    ] = [],  # noqa: B006
    erasures: Annotated[
        bool, typer.Option("--erasures", help="With --log: also leave out whom the topic erasures names.")
    ] = False,
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="Only what came before: ISO 8601 (UTC) or Unix ms.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="At most; it stops when it gains no more.")
    ] = None,
    validate: Annotated[
        Validate, typer.Option("--validate", help="By each user's last item, or by the last tenth of the time.")
    ] = Validate.last,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 17,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="FOLDER", help="Where it stands after each epoch; default: FOLDER.training."),
    ] = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Train the user encoder on your users' log, from files or from the topics. Goes on where it was stopped."""
    from headrace.streams import logs
    from headrace.streams.configuration import load

    logs.configure(debug=debug)
    settings = load(config)
    if bool(log) != (items is not None):
        raise SettingsError("--log and --items belong together: the events, and the catalogue they are about")
    if mapping is not None and not log:
        raise SettingsError("--mapping is for files: give --log and --items, or leave it out to read the topics")
    training = resume or out.parent / f"{out.name}.training"
    until_ms = _until(until, training, live=not log)
    read = _read(settings, log, items, mapping, _erased(settings, erased, erasures), until_ms)
    _tell(read, "the topics" if not log else " and ".join(path.name for path in log))
    chosen: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
    chosen |= {"window": settings.worker.history, "validation": "time" if validate is Validate.time else "last item"}
    manifest = _trained(read, out, chosen, seed=seed, device=device, training=training)
    _summary(manifest, out)
    _clear(training)


def _until(text: str | None, training: Path, *, live: bool) -> int | None:
    """Unix ms, None for no end. Topics grow: a training that goes on reads up to where it read when it began."""
    if text is not None:
        try:
            if text.isdigit():
                return int(text)
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise SettingsError(f"--until {text}: write it as 2026-11-24, 2026-11-24T18:00 or Unix ms") from None
        return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1e3)
    if not live:
        return None
    begun = training / "until"
    if not begun.exists():
        training.mkdir(parents=True, exist_ok=True)
        begun.write_text(str(time.time_ns() // 1_000_000))
    return int(begun.read_text())


def _erased(settings: Settings, files: list[Path], topic: bool) -> Erased:
    from headrace.streams.erased import Erased

    erased = Erased()
    for path in files:
        erased.read_file(path)
    if topic:
        from headrace.streams import topics

        topics.reach(settings)
        erased.read_topics(settings)
    return erased


def _read(
    settings: Settings, log: list[Path], items: Path | None, mapping: Path | None, erased: Erased, until_ms: int | None
) -> TrainingLog:
    from headrace.streams.training_log import from_files, from_topics

    if items is None:
        return from_topics(settings, erased=erased, until_ms=until_ms)
    return from_files(settings, log, items, mapping, erased=erased, until_ms=until_ms)


def _tell(read: TrainingLog, source: str) -> None:
    log = read.log
    print(f"{source}: {len(log.items):,} events of {len(log.users):,} users, {len(log.keys):,} items", flush=True)
    for line in read.notes:
        print(line, flush=True)
    several = int((log.offsets[1:] - log.offsets[:-1] > 2).sum())
    if several < _FEW:
        raise HeadraceError(
            f"{source}: {several} users did more than two things, {_FEW} are the least from whom anything can be "
            "learned: give a longer log, or stay with the default encoder"
        )


def _trained(
    read: TrainingLog, out: Path, recipe: dict[str, Any], *, seed: int, device: str, training: Path
) -> Manifest:
    """Loads torch."""
    from transformers.utils import logging as transformers_logging

    from headrace.export import to_onnx
    from headrace.export.artifact import load
    from headrace.export.beside import beside
    from headrace.export.defaults import ensure_user
    from headrace.export.train import Recipe, train

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of writing a file of 300 kB
    log, made = read.log, Recipe(**recipe)
    default = ensure_user()
    same = load(default, "user").manifest.text_version == read.text_version
    known = beside(log, recipe=made, seed=seed, untrained=default if same else None)
    with _progress() as tell:
        trained = train(log, recipe=made, seed=seed, device=device, checkpoint_dir=training, progress=tell)
    source = f"{len(log.items)} events of {len(log.users)} users"
    return to_onnx.export(
        trained.model, trained.items, out, source=source, text_version=read.text_version,
        trained_on=log.fingerprint(), metrics=trained.metrics | known,
    )  # fmt: skip


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """A bar with the time left on a terminal; a line every ten seconds elsewhere."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        with Bar(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"),
                 console=Console(stderr=True), transient=True) as bar:  # fmt: skip
            task = bar.add_task("training", total=None, words="")
            yield lambda p: bar.update(task, completed=p.step, total=p.steps, words=_words(p))
        return
    last = time.monotonic()

    def line(p: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= _EVERY_S:
            last = time.monotonic()
            print(f"training: {_words(p)}", file=sys.stderr, flush=True)

    yield line


def _words(p: Progress) -> str:
    best = f", NDCG@10 {p.best:.4f}" if p.best else ""
    left = f"{p.seconds_left / 60:.0f} min" if p.seconds_left >= 90 else f"{p.seconds_left:.0f} s"
    return f"epoch {p.epoch} of {p.epochs}, loss {p.loss:.3f}{best}, {left} left at most"


def _summary(manifest: Manifest, out: Path) -> None:
    m = manifest.metrics
    print(f"trained: loss {m['loss']:.3f} after {m['epoch']:.0f} epochs, the best by validation; {m['seconds']:.0f} s")
    print("validation, full ranking        HR@10  NDCG@10")
    for name, words in (("valid", "trained"), ("untrained", "untrained encoder"), ("popular", "popular items")):
        if f"{name}_hit10" in m:
            print(f"  {words:<28} {m[f'{name}_hit10']:7.4f} {m[f'{name}_ndcg10']:8.4f}")
    print(f"parity {max(manifest.parity.values()):.1e}, text encoder {manifest.text_version}")
    print(f"{manifest.version} in {out}")
    if m.get("untrained_ndcg10", 0.0) >= m["valid_ndcg10"]:
        print("it foretells no better than the untrained encoder, which serves by default: stay with that one")
        return
    print(f'to serve it: `headrace encoder announce {out}` while the roles run, or [encoder] artifact = "{out}"')


def _clear(training: Path) -> None:
    """What is left of a finished training holds what users did: it goes."""
    for path in [training / "until", training / "progress.json", *training.glob("epoch-*.safetensors")]:
        path.unlink(missing_ok=True)
    with suppress(OSError):  # absent, or the user's own things lie there too
        training.rmdir()
