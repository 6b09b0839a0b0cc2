"""Which text encoder the catalogue is to use: the newest announced that can be read here, else the settings'."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor

from confluent_kafka import TopicPartition

from headrace.streams import encoders, kafka
from headrace.streams.records import Announcement
from headrace.streams.settings import Settings
from headrace.streams.texts import TextEncoder

_log = logging.getLogger("headrace.catalogue")


class Follow:
    """Loads in a thread. Every method is called by one other thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._version = ""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="text-encoder")
        self._coming: Future[TextEncoder] | None = None
        self._waiting: Announcement | None = None
        self._reader = kafka.consumer(settings, "headrace-catalogue-encoders", fetch_wait_max_ms=100)

    def start(self) -> TextEncoder:
        """Raises ArtifactMismatch where not even the settings' text encoder can be read."""
        said = encoders.history(self._settings)
        at = said[-1][0] if said else 0  # the serial is the next record's offset
        self._reader.assign([TopicPartition(self._settings.topic(encoders.TOPIC), 0, at)])
        for serial, announced in reversed(said):
            try:
                return self._took(self._load(announced))
            except Exception as error:
                _log.warning("text encoder of announcement %s is refused: %s", serial, error)
        return self._took(self._load(None))

    def next(self) -> TextEncoder | None:
        """Another text encoder than so far, when one was announced and is loaded. Never waits."""
        for message in kafka.consume(self._reader, 100, 0):
            if error := message.error():
                kafka.check(error)
            elif (found := encoders.decode(message)) is not None:
                self._waiting = found[1]
        if self._coming is not None and self._coming.done():
            coming, self._coming = self._coming, None
            try:
                encoder = coming.result()
            except Exception as error:
                _log.warning("an announced text encoder is refused, the one before goes on: %s", error)
            else:
                if encoder.version != self._version:
                    return self._took(encoder)
        if self._coming is None and self._waiting is not None:
            said, self._waiting = self._waiting, None
            if said.text_version != self._version:
                self._coming = self._thread.submit(self._load, said)
        return None

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._reader.close()

    def _took(self, encoder: TextEncoder) -> TextEncoder:
        self._version = encoder.version
        return encoder

    def _load(self, said: Announcement | None) -> TextEncoder:
        """Of an announcement both artifacts are looked at: where workers must refuse, items stay as they are."""
        path = encoders.text_of(self._settings) if said is None else encoders.resolve(0, said).text
        return TextEncoder(path, threads=self._settings.catalogue.threads)
