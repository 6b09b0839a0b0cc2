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


Out = Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the artifact goes.")]
Files = Annotated[list[Path], typer.Option("--log", metavar="FILE", help="Events; may be given again. Default: Kafka.")]
Items = Annotated[Path | None, typer.Option("--items", metavar="FILE", help="The catalogue of that log.")]
Listed = Annotated[
    list[Path], typer.Option("--erased", metavar="FILE", help="User ids, one a line, or erasures as .jsonl: not read.")
]
Erasures = Annotated[bool, typer.Option("--erasures", help="With --log: also leave out whom the topic erasures names.")]
Until = Annotated[
    str | None, typer.Option("--until", metavar="TIME", help="Only what came before: ISO 8601 (UTC) or Unix ms.")
]
Seed = Annotated[int, typer.Option("--seed", min=0)]


def train(
    out: Out,
    log: Files = [],  # noqa: B006  typer reads it and never writes
    items: Items = None,
    mapping: Mapping = None,
    erased: Listed = [],  # noqa: B006
    erasures: Erasures = False,
    until: Until = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="At most; it stops when it gains no more.")
    ] = None,
    validate: Annotated[
        Validate, typer.Option("--validate", help="By each user's last item, or by the last tenth of the time.")
    ] = Validate.last,
    seed: Seed = 17,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="FOLDER", help="Where it stands after each epoch; default: FOLDER.training."),
    ] = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Train the user encoder on your users' log, from files or from the topics. Goes on where it was stopped."""
    settings = _settings(config, debug=debug)
    training = resume or out.parent / f"{out.name}.training"
    _together(log, items, mapping)
    until_ms = _moment(until) if until else None if log else _begun(training)
    read = _read(settings, log, items, mapping, _erased(settings, erased, erasures), until_ms)
    chosen: dict[str, Any] = {} if epochs is None else {"epochs": epochs}
    chosen |= {"window": settings.worker.history, "validation": "time" if validate is Validate.time else "last item"}
    text = settings.catalogue.text_model
    manifest = _trained(read, out, chosen, text=text, seed=seed, device=device, training=training)
    _summary(manifest, out)
    _clear(training)


def tune(
    out: Out,
    log: Files = [],  # noqa: B006
    items: Items = None,
    mapping: Mapping = None,
    erased: Listed = [],  # noqa: B006
    erasures: Erasures = False,
    until: Until = None,
    model: Annotated[
        str | None, typer.Option("--model", help="A hub name or a folder; default: catalogue.text_model.")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Matrix products in 8 bits; the loss is measured.")] = False,
    seed: Seed = 17,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Fine-tune the text encoder on your users' log. Refuses to write one that is no better on items it never met."""
    settings = _settings(config, debug=debug)
    _together(log, items, mapping)
    read = _read(settings, log, items, mapping, _erased(settings, erased, erasures), _moment(until) if until else None)
    from headrace.export.tuning import export_tuned

    _quiet()
    with _progress() as tell:
        export_tuned(
            model or settings.catalogue.text_model, read.log, read.titles, out, seed=seed, int8=int8,
            progress=lambda p: tell(p.step, p.steps, f"step {p.step} of {p.steps}, loss {p.loss:.3f}, NDCG@10 "
                                    f"{p.best:.4f} (frozen {p.frozen:.4f})", p.seconds_left),
        )  # fmt: skip
    print(
        f'to serve it: [catalogue] text_model = "{out}", then train the user encoder over it: `headrace export train`'
    )


def _settings(config: Path | None, *, debug: bool) -> Settings:
    from headrace.streams import logs
    from headrace.streams.configuration import load

    logs.configure(debug=debug)
    return load(config)


def _together(log: list[Path], items: Path | None, mapping: Path | None) -> None:
    if bool(log) != (items is not None):
        raise SettingsError("--log and --items belong together: the events, and the catalogue they are about")
    if mapping is not None and not log:
        raise SettingsError("--mapping is for files: give --log and --items, or leave it out to read the topics")


def _moment(text: str) -> int:
    """Unix ms."""
    try:
        if text.isdigit():
            return int(text)
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"--until {text}: write it as 2026-11-24, 2026-11-24T18:00 or Unix ms") from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1e3)


def _begun(training: Path) -> int:
    """Unix ms at which this training began: topics grow, and one that goes on reads what it began with."""
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
    """Says what was read. Raises HeadraceError where it is too little."""
    from headrace.streams.training_log import from_files, from_topics

    if items is None:
        read, source = from_topics(settings, erased=erased, until_ms=until_ms), "the topics"
    else:
        read = from_files(settings, log, items, mapping, erased=erased, until_ms=until_ms)
        source = " and ".join(path.name for path in log)
    print(
        f"{source}: {len(read.log.items):,} events of {len(read.log.users):,} users, {len(read.log.keys):,} items",
        *read.notes, sep="\n", flush=True,
    )  # fmt: skip
    several = int((read.log.offsets[1:] - read.log.offsets[:-1] > 2).sum())
    if several < _FEW:
        raise HeadraceError(
            f"{source}: {several} users did more than two things, {_FEW} are the least from whom anything can be "
            "learned: give a longer log, or stay with the default encoder"
        )
    return read


def _trained(
    read: TrainingLog, out: Path, recipe: dict[str, Any], *, text: str, seed: int, device: str, training: Path
) -> Manifest:
    """Loads torch. `text` names the text encoder: the untrained encoder that serves over it stands beside."""
    from headrace.export import to_onnx
    from headrace.export.beside import beside
    from headrace.export.defaults import ensure_user
    from headrace.export.train import Recipe, train

    _quiet()
    log, made = read.log, Recipe(**recipe)
    known = beside(log, recipe=made, seed=seed, untrained=ensure_user(text=text))
    with _progress() as tell:
        trained = train(
            log, recipe=made, seed=seed, device=device, checkpoint_dir=training,
            progress=lambda p: tell(p.step, p.steps, _words(p), p.seconds_left),
        )  # fmt: skip
    source = f"{len(log.items)} events of {len(log.users)} users"
    return to_onnx.export(
        trained.model, trained.items, out, source=source, text_version=read.text_version,
        trained_on=log.fingerprint(), metrics=trained.metrics | known,
    )  # fmt: skip


def _quiet() -> None:
    """No bar of another library's for loading and writing a file."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _words(p: Progress) -> str:
    best = f", NDCG@10 {p.best:.4f}" if p.best else ""
    return f"epoch {p.epoch} of {p.epochs}, loss {p.loss:.3f}{best}"


Tell = Callable[[int, int, str, float], None]  # step, steps, words, seconds left


@contextmanager
def _progress() -> Iterator[Tell]:
    """A bar with the time left on a terminal; a line every ten seconds elsewhere."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("training"), BarColumn(), TextColumn("{task.fields[words]}"))
        with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("training", total=None, words="")
            yield lambda step, steps, words, left: bar.update(
                task, completed=step, total=steps, words=f"{words}, {_time(left)} left at most"
            )
        return
    last = time.monotonic()

    def line(step: int, steps: int, words: str, left: float) -> None:
        nonlocal last
        if time.monotonic() - last >= _EVERY_S:
            last = time.monotonic()
            print(f"training: {words}, {_time(left)} left at most", file=sys.stderr, flush=True)

    yield line


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


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
