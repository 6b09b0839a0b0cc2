"""The shop's side of a file that comes in: an idempotent producer that loses nothing without saying so."""

from __future__ import annotations

import time
from types import TracebackType

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient

from headrace.streams.errors import BrokerError, HeadraceError, TopicsError
from headrace.streams.kafka import client_config
from headrace.streams.settings import Settings

_REACH_S = 10.0
_ACKNOWLEDGED_S = 60.0  # without a single acknowledgement for so long, the broker is taken to be gone


class Sender:
    """Sends to one topic of ours, keyed; leaving the block, every message is acknowledged or HeadraceError raised.

    Raises BrokerError where Kafka is not reached within 10 s, TopicsError where the topic does not exist.
    """

    def __init__(self, settings: Settings, topic: str) -> None:
        self.topic = settings.topic(topic)
        self.acknowledged = 0
        self._failed: KafkaError | None = None
        _check_topic(settings, self.topic)
        self._producer = Producer(
            client_config(
                settings,
                enable_idempotence=True,  # an outage neither doubles nor reorders
                partitioner="murmur2_random",  # as Kafka's Java clients do
                message_max_bytes=settings.topics.max_message_bytes,
                linger_ms=20,
                compression_type="lz4",
            )
        )

    def send(self, key: str, value: bytes) -> bool:
        """Queues one message; False where it is larger than the topic takes."""
        while True:
            try:
                self._producer.produce(self.topic, value, key.encode(), on_delivery=self._delivered)
                self._producer.poll(0)
                return True
            except BufferError:
                self._progress()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                    raise HeadraceError(f"cannot send to {self.topic}: {error.args[0].str()}") from error
                return False

    def poll(self, seconds: float) -> None:
        """Waits, and takes what was acknowledged meanwhile."""
        self._producer.poll(seconds)

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.acknowledged += 1
        else:
            self._failed = self._failed or error

    def _progress(self) -> None:
        """Waits until at least one message is acknowledged."""
        before, until = self.acknowledged, time.monotonic() + _ACKNOWLEDGED_S
        while self.acknowledged == before and len(self._producer):
            self._producer.poll(0.1)
            if self._failed is not None:
                raise HeadraceError(f"{self.topic} refused a message: {self._failed.str()}; {self._so_far()}")
            if time.monotonic() > until:
                raise BrokerError(f"Kafka acknowledged nothing for {_ACKNOWLEDGED_S:.0f} s; {self._so_far()}")

    def _so_far(self) -> str:
        return f"{self.acknowledged:,} messages were sent; mend it and start again, what is sent twice is harmless"

    def __enter__(self) -> Sender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._producer.purge()
        else:
            while len(self._producer):
                self._progress()
        self._producer.flush(10)
        if kind is None and self._failed is not None:
            raise HeadraceError(f"{self.topic} refused a message: {self._failed.str()}; {self._so_far()}")


def _check_topic(settings: Settings, topic: str) -> None:
    try:
        # All topics are listed, as asking for one by name may create it.
        known = AdminClient(client_config(settings)).list_topics(timeout=_REACH_S).topics
    except KafkaException as error:
        raise BrokerError(
            f"Kafka at {settings.bootstrap} cannot be reached within {_REACH_S:.0f} s ({error.args[0].str()}); "
            "start it, or give its address in [kafka] bootstrap.servers"
        ) from error
    if topic not in known:
        raise TopicsError(f"topic {topic} does not exist; create it with `headrace topics create`")
