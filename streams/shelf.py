"""A shelf: one partition of `items`, what the catalogue knows of it, and the only writer of what it leads to.

    read      the shop's messages become changes; what is not an item becomes a dead letter
    publish   changes, removals, dead letters and the position, in one transaction on `item-vectors` and `dead-letters`;
              a content that is replaced goes there too, under a key of its own (contents.py)

An item whose text has no vector yet is published at once, `pending`, and again with its vector when the text has been
encoded. So nothing waits for the transformer, and the position may pass an item that is pending: what stands in
`item-vectors` says so, and the message is still in `items`, which is compacted, when a restart looks for it.

After a change of the text encoder every item is behind: its vector is replaced when it has been encoded anew, without
becoming pending, and a mark says when none is behind any more.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.streams import contents, kafka, records, topics
from headrace.streams.attributes import carried, since
from headrace.streams.contents import Contents, Encoded, Old, VectorFile
from headrace.streams.errors import TopicsError
from headrace.streams.kafka import Message
from headrace.streams.known import Known, digest
from headrace.streams.messages import Decoder, Rejection
from headrace.streams.metrics import Metrics
from headrace.streams.records import Item
from headrace.streams.settings import Settings
from headrace.streams.text_vectors import TextVectors
from headrace.streams.vectors import content_hash, fused, projected, text_of

F32 = NDArray[np.float32]

PARTITION = 0  # of `item-vectors`, which has one: its order is every worker's order
_OWN = b"\0"  # first byte of the keys of `item-vectors` that are no items: an item id has no control characters
_TITLE, _CATEGORY = 512, 256  # characters that travel on: titles of a megabyte are left in `items`

_OVERHEAD = 4_096  # bytes of a record beside its key and value

_log = logging.getLogger("headrace.catalogue")


@dataclass(frozen=True)
class Change:
    """What one message of `items` says: everything but the words, which are known by `text_key` from here on."""

    offset: int
    sent_ms: int
    text_key: bytes  # empty where the item has no words
    own: F32 | None  # the shop's vector, in the text's space
    item: Item  # without vector; `removed` for a null value

    def as_of(self, offset: int) -> Change:
        return replace(self, offset=offset, item=msgspec.structs.replace(self.item, offset=offset))


class Shelf:
    def __init__(self, partition: int, *, settings: Settings, metrics: Metrics, texts: TextVectors) -> None:
        self.partition = partition
        self.next_offset = 0
        self._settings, self._metrics, self._texts = settings, metrics, texts
        self._unknown: Counter[str] = Counter()
        self._decoder = Decoder(settings, unknown=lambda topic, n: self._unknown.update({topic: n}))
        self._known: dict[str, Known] = {}
        self._vectors = VectorFile()
        self._changes: dict[str, Change] = {}  # read, not yet published; of one item the latest
        self._dead: list[tuple[Message, Rejection]] = []
        self._read_to = -1
        self._found: dict[bytes, F32] = {}  # vectors of the changes' texts
        self._waiting: dict[bytes, list[Change]] = {}  # published as pending, or behind, by the key of the text
        self._behind: set[str] = set()  # items whose vector is another text encoder's
        self._marked = ""  # the version that the last mark names

    def __len__(self) -> int:
        return sum(not known.removed for known in self._known.values())

    @property
    def available(self) -> int:
        return sum(known.available for known in self._known.values())

    def complete(self, encoded: dict[bytes, F32]) -> bool:
        """Every change that has been read has its vector, with those of `encoded`."""
        keys = {change.text_key for change in self._changes.values()} - {b""}
        return keys <= self._found.keys() | encoded.keys()

    # -- taking over ----------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Fences, learns what was committed, takes up what is pending and removes what is gone from `items`."""
        started = time.perf_counter()
        self._take_over()
        applied = -1
        old: defaultdict[str, dict[int, bytes]] = defaultdict(dict)

        def on_record(key: bytes | None, value: bytes | None) -> None:
            nonlocal applied
            if key == self._position_key and value is not None:
                applied = int(value)
            found = contents.decode_record(key or b"", value)
            if isinstance(found, Encoded):
                self._marked = found.text_version if found.partition == self.partition else self._marked
            elif isinstance(found, Old):
                old[found.item_id].pop(found.number, None)
                if found.content is not None:
                    old[found.item_id][found.number] = contents.content_of(found.content)
            elif found is not None and found.source == self.partition:
                self._keep(found, Contents(found.generation, contents.content_of(found)))
            elif found is not None and found.item_id in self._known:  # its key has moved to another partition
                self._vectors.free(self._known.pop(found.item_id).vector)

        kafka.fence_and_read(
            self._settings,
            self._producer,
            self._settings.topic("item-vectors"),
            PARTITION,
            on_record,
            fence_key=b"%sfence %d" % (_OWN, self.partition),
        )
        for item_id, numbered in old.items():
            if known := self._known.get(item_id):
                had = known.contents._replace(old=tuple(numbered.items()))
                self._known[item_id] = known._replace(contents=had)
        self.next_offset = applied + 1
        self._reconcile()
        self._metrics.recoveries.inc()
        self._metrics.recovery.observe(time.perf_counter() - started)
        pending = sum(map(len, self._waiting.values()))
        _log.info("items[%d]: %d items, %d without their vector yet", self.partition, len(self), pending)

    def _take_over(self) -> None:
        name = f"{self._settings.topics.prefix}catalogue.items.{self.partition}"
        self._producer = kafka.transactional_producer(self._settings, name)

    @property
    def _position_key(self) -> bytes:
        return b"%sapplied %d" % (_OWN, self.partition)

    def _reconcile(self) -> None:
        """Reads the partition whole: which items are pending or behind, and which are gone.

        Kafka drops the null values of a compacted topic after a day. Who was down for longer never reads that an item
        was removed: it is known here and `items` does not hold its key.
        """
        topic = self._settings.topic("items")
        seen: set[str] = set()
        latest: dict[str, Change] = {}
        self._behind = {i for i, k in self._known.items() if not k.removed and k.text_version != self._texts.version}

        def on_message(message: Message) -> None:
            key = (message.key() or b"").decode("utf-8", "replace")
            seen.add(key)
            known = self._known.get(key)
            if known is None or not (known.pending or key in self._behind):
                return
            # What was sent again unchanged is not in `item-vectors` under its own offset: what is there came before.
            if not known.offset <= message.offset() < self.next_offset:
                return
            change = self._change_of(message, texts)
            if isinstance(change, Change) and not change.item.removed:
                latest[key] = change.as_of(known.offset)

        texts: dict[str, bytes] = {}
        end = kafka.read_to_end(self._settings, topic, on_message, partition=self.partition)[self.partition]
        if self.next_offset > end:
            raise TopicsError(
                f"{topic}[{self.partition}] ends at {end} and was read up to {self.next_offset}: it was created anew; "
                f"delete {self._settings.topic('item-vectors')} too and run `headrace topics create`"
            )
        self._found = self._texts.find(texts)
        self._behind &= latest.keys()  # what can be encoded at all
        for item_id, change in latest.items():
            if self._known[item_id].pending or not change.text_key or change.text_key in self._found:
                self._changes[item_id] = change
            else:
                self._waiting.setdefault(change.text_key, []).append(change)
        if topics.compacted(self._settings, "items"):
            for item_id, known in self._known.items():
                if not known.removed and item_id not in seen:
                    self._changes[item_id] = self._removal(item_id, end - 1, sent_ms=0)
        self._read_to = self.next_offset - 1
        self.publish({})

    def encode_anew(self, texts: TextVectors) -> None:
        """Another text encoder: every item is behind until its words have been encoded by it."""
        self._texts = texts
        self._changes, self._found, self._waiting = {}, {}, {}
        self._reconcile()

    # -- the way of a message -------------------------------------------------------------------------------------

    def read(self, messages: list[Message]) -> None:
        """Takes messages in their order; what they come to waits for `publish`."""
        started = time.perf_counter()
        outcomes: Counter[str] = Counter()
        texts: dict[str, bytes] = {}
        for message in messages:
            change = self._change_of(message, texts)
            if isinstance(change, Rejection):
                self._dead.append((message, change))
                outcomes["dead"] += 1
                self._metrics.dead_letters.labels("items", change.reason).inc()
                continue
            outcomes["accepted"] += 1
            self._changes[change.item.item_id] = change
        self._read_to = messages[-1].offset()
        self._found.update(self._texts.find(texts))
        for outcome, n_messages in outcomes.items():
            self._metrics.messages.labels("items", outcome).inc(n_messages)
        if self._unknown:
            self._metrics.unknown_fields.labels("items").inc(self._unknown.total())
            self._unknown.clear()
        self._metrics.stage.labels("decode").observe(time.perf_counter() - started)

    def _change_of(self, message: Message, texts: dict[str, bytes]) -> Change | Rejection:
        """What the message changes; its words are added to `texts`, with their key."""
        raw, key = message.value(), message.key() or b""
        kind, sent_ms = message.timestamp()
        sent_ms = sent_ms if kind else 0
        if raw is None:
            name = key.decode("utf-8", "replace")
            return self._removal(name, message.offset(), sent_ms=sent_ms)
        read = self._decoder.item(raw)
        if isinstance(read, Rejection):
            return read
        if key != read.item_id.encode():
            shown = key[:60].decode("utf-8", "replace")
            return Rejection("id", f"the key is {shown!r} and must be the item_id, as a null value removes by the key")
        text, text_key = text_of(read, self._settings.catalogue.attributes), b""
        if text:
            text_key = self._texts.key(text)
            texts.pop(text, None)
            texts[text] = text_key
        item = Item(
            read.item_id,
            self.partition,
            message.offset(),
            b"",
            "",
            price=read.price,
            category=read.category and read.category[:_CATEGORY],
            available=read.available is not False,
            title=read.title and read.title[:_TITLE],
            attributes=carried(read, self._settings.rules.attributes),
        )
        own = projected(read.vector, self._texts.dim) if read.vector else None
        return Change(message.offset(), sent_ms, text_key, own, item)

    def _removal(self, item_id: str, offset: int, *, sent_ms: int) -> Change:
        item = Item(item_id, self.partition, offset, b"", "", available=False, removed=True)
        return Change(offset, sent_ms, b"", None, item)

    def publish(self, encoded: dict[bytes, F32]) -> None:
        """Commits what was read and what `encoded`, vectors by text key, completes; where that is nothing, nothing."""
        self._found.update(encoded)
        new: dict[str, Item] = {}
        kinds: Counter[str] = Counter()
        for change in self._changes.values():
            self._place(change, new, kinds)
        for key in encoded:
            for change in self._waiting.pop(key, ()):
                known = self._known[change.item.item_id]
                wanted = known.pending or change.item.item_id in self._behind
                if wanted and known.offset == change.offset and change.item.item_id not in new:
                    new[change.item.item_id] = self._record(change, known)
        if new or self._dead or self._read_to >= self.next_offset or self._unmarked(new):
            self._commit(new)
        self._changes, self._dead, self._found = {}, [], {}
        for kind, n_items in kinds.items():
            self._metrics.item_changes.labels(kind).inc(n_items)

    def _unmarked(self, new: dict[str, Item]) -> bool:
        """Whether with these no item is behind any more, and no mark says so yet."""
        return self._marked != self._texts.version and self._behind <= new.keys()

    def _place(self, change: Change, new: dict[str, Item], kinds: Counter[str]) -> None:
        """Adds the record that this change makes, if it says anything new."""
        item_id = change.item.item_id
        known = self._known.get(item_id)
        record = self._record(change, known)
        if record.pending:
            self._waiting.setdefault(change.text_key, []).append(change)
        there = known is not None and not known.removed
        if record.removed:
            kind = "removed" if there else "unchanged"
        elif known is None or not there:
            kind = "new"
        elif known.digest == digest(record) and (not record.pending or known.offset == change.offset):
            kind = "unchanged"
        else:
            kind = "changed"
        if kind != "unchanged":
            new[item_id] = record
        kinds[kind] += 1

    def _record(self, change: Change, known: Known | None) -> Item:
        """With its vector, or pending. The shop's time goes with the first record of a message alone."""
        sent_ms = 0 if known is not None and known.offset == change.offset else change.sent_ms
        had = Contents() if known is None else known.contents
        since_ms = since(change.item.attributes, change.sent_ms if known is None else known.since_ms)
        version = self._texts.version
        empty = msgspec.structs.replace(change.item, sent_ms=sent_ms, since_ms=since_ms, text_version=version)
        if change.text_key and change.text_key not in self._found:
            return msgspec.structs.replace(empty, pending=True, generation=had.number)
        vector = b"" if change.item.removed else fused(self._found.get(change.text_key), change.own)
        item = msgspec.structs.replace(empty, vector=vector, vector_hash=content_hash(vector))
        same = known is None or known.text_version == item.text_version  # else it is the content of before, told anew
        return msgspec.structs.replace(
            item, generation=had.number_of(contents.content_of(item)) if same else had.number
        )

    def _commit(self, new: dict[str, Item]) -> None:
        """One transaction: items with the contents they replace, dead letters, position."""
        started = time.perf_counter()
        item_vectors = self._settings.topic("item-vectors")
        self._producer.begin_transaction()
        had: dict[str, Contents] = {}
        for item_id, item in new.items():
            had[item_id] = self._replace(item_id, item)  # first, so that no reader is ever without it
            value = records.encode(item)
            kafka.produce(self._producer, item_vectors, key=item_id.encode(), value=value, partition=PARTITION)
        for message, rejection in self._dead:
            headers = rejection.headers(topic=message.topic(), partition=self.partition, offset=message.offset())
            size = len(message.key() or b"") + len(message.value() or b"")
            fits = size <= self._settings.topics.large_message_bytes - _OVERHEAD  # else `source` says where it lies
            kafka.produce(
                self._producer,
                self._settings.topic("dead-letters"),
                key=message.key() if fits else None,
                value=message.value() if fits else None,
                headers=headers,
            )
        if unmarked := self._unmarked(new):
            version = self._texts.version.encode()
            kafka.produce(
                self._producer,
                item_vectors,
                key=contents.encoded_key(self.partition),
                value=version,
                partition=PARTITION,
            )
        position = str(self._read_to).encode()
        kafka.produce(self._producer, item_vectors, key=self._position_key, value=position, partition=PARTITION)
        if kafka.commit(self._producer):
            self._take_over()  # the end of that transaction may still come, and end the next: a new epoch shuts it out
            self._metrics.commits.labels("retried").inc()
        self._metrics.commits.labels("committed").inc()
        self._metrics.stage.labels("commit").observe(time.perf_counter() - started)
        self.next_offset = self._read_to + 1
        for item_id, item in new.items():
            self._keep(item, had[item_id])
        self._behind -= new.keys()
        if unmarked:
            self._marked = self._texts.version

    def _replace(self, item_id: str, item: Item) -> Contents:
        """Writes what `item` replaces under a key of its own, and takes back the oldest beyond those that are kept."""
        known = self._known.get(item_id)
        if known is None:
            return Contents().then(contents.content_of(item))[0]
        if known.text_version != item.text_version and not (item.pending or item.removed):
            for number, _ in known.contents.old:  # in another space: of no use to anybody who reads on
                self._write_old(item_id, number, None)
            return Contents(item.generation, contents.content_of(item))
        after, store, drop = known.contents.then(contents.content_of(item))
        if store is not None:
            vector = self._vectors.get(known.vector)
            old = Item(
                item_id, self.partition, known.offset, vector, content_hash(vector), known.price, known.category,
                available=False, generation=store, text_version=known.text_version,
            )  # fmt: skip
            self._write_old(item_id, store, records.encode(old))
        if drop is not None:
            self._write_old(item_id, drop, None)
        return after

    def _write_old(self, item_id: str, number: int, value: bytes | None) -> None:
        topic = self._settings.topic("item-vectors")
        kafka.produce(self._producer, topic, key=contents.old_key(item_id, number), value=value, partition=PARTITION)

    def _keep(self, item: Item, had: Contents) -> None:
        """What stands in `item-vectors` now."""
        before = self._known.get(item.item_id)
        if before is not None:
            self._vectors.free(before.vector)
        self._known[item.item_id] = Known(
            item.offset, digest(item), item.available, item.removed, item.pending,
            had, self._vectors.put(item.vector), item.category, item.price, item.text_version, item.since_ms,
        )  # fmt: skip
