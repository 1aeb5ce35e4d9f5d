"""The receiving side of a node: C-ECHO and C-STORE (PS3.4 annexes A and B), from known peers only."""

from __future__ import annotations

import logging
import threading
from typing import cast
from weakref import WeakKeyDictionary

from pydicom.pixels import get_decoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE

from suite.node.queue import Queue, QueueFull, token
from suite.node.rules import NodeConfig

log = logging.getLogger("diffsuite.node")

VERIFICATION = "1.2.840.10008.1.1"
SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000

_PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)


class Receiver:
    """Listens until it is closed; every acknowledged object is in `queue`, on the disk."""

    def __init__(self, aet: str, config: NodeConfig, queue: Queue) -> None:
        self._config, self._queue = config, queue
        self._series: WeakKeyDictionary[Association, set[str]] = WeakKeyDictionary()
        self._bytes: WeakKeyDictionary[Association, int] = WeakKeyDictionary()
        self._ae = AE(ae_title=aet)
        self._ae.require_called_aet = True
        self._ae.require_calling_aet = list(config.allow)
        self._ae.maximum_associations = config.max_associations
        self._ae.network_timeout = max(60.0, config.idle_seconds)
        self._ae.add_supported_context(VERIFICATION)
        syntaxes = readable_syntaxes()
        for context in AllStoragePresentationContexts:
            self._ae.add_supported_context(str(context.abstract_syntax), syntaxes)

    def listen(self, host: str, port: int) -> None:
        """Start to listen, in threads of its own.

        Raises:
            OSError: the address cannot be had.
        """
        handlers: list[evt.EventHandlerType] = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_RELEASED, self._released),
            (evt.EVT_ABORTED, self._aborted),
            (evt.EVT_REJECTED, self._rejected),
            (evt.EVT_DATA_RECV, self._limit),
        ]
        self._ae.start_server((host, port), block=False, evt_handlers=handlers)

    def close(self) -> None:
        """Abort what is open; a sender learns that what was not acknowledged is not here."""
        self._ae.shutdown()

    # --- what peers do ---

    def _store(self, event: evt.Event) -> int:
        self._bytes[event.assoc] = 0
        request = cast(C_STORE, event.request)
        try:
            dataset = event.dataset
            series, instance = str(dataset.SeriesInstanceUID), str(dataset.SOPInstanceUID)
        except Exception as error:  # a decoder meets foreign bytes
            log.warning("an object was refused: it cannot be decoded (%s)", type(error).__name__)
            return CANNOT_UNDERSTAND
        if instance != str(request.AffectedSOPInstanceUID) or not series:
            log.warning("an object was refused: it is not the one that was announced")
            return DOES_NOT_MATCH
        try:
            kept = self._queue.put(series, instance, event.encoded_dataset())
        except (QueueFull, OSError) as error:
            reason = str(error) if isinstance(error, QueueFull) else error.strerror
            log.error("series %s: an object was refused: %s", token(series), reason)
            return OUT_OF_RESOURCES
        self._series.setdefault(event.assoc, set()).add(kept)
        return SUCCESS

    def _released(self, event: evt.Event) -> None:
        touched = self._series.pop(event.assoc, set())
        if self._config.complete != "release":
            return
        under_way = set().union(*(s for assoc, s in list(self._series.items()) if assoc.is_alive()))
        for series in sorted(touched - under_way):
            self._queue.complete(series, "release")

    def _aborted(self, event: evt.Event) -> None:
        touched = self._series.pop(event.assoc, set())
        for series in sorted(touched):
            log.warning("series %s: its association was aborted; what has come is kept", series)

    def _rejected(self, event: evt.Event) -> None:
        log.warning("an association was rejected: calling AE title, called AE title, or too many at a time")

    def _limit(self, event: evt.Event) -> None:
        """Abort an association whose current message is larger than the limit, before it fills the memory."""
        received = self._bytes.get(event.assoc, 0) + len(event.data)
        self._bytes[event.assoc] = received
        if received > self._config.max_object_mb * 2**20:
            log.error("an association was aborted: an object is larger than %g MB", self._config.max_object_mb)
            self._bytes[event.assoc] = 0
            threading.Thread(target=event.assoc.abort, daemon=True).start()  # it waits for the thread that calls us


def readable_syntaxes() -> list[str]:
    """Transfer syntaxes whose pixels can be decoded here: others are not agreed to, so that the sender decompresses.

    Deflated data sets are left out: their size says nothing of the memory they would fill.
    """
    found = [str(uid) for uid in _PLAIN]
    for uid in ALL_TRANSFER_SYNTAXES:
        if uid in found or uid == DeflatedExplicitVRLittleEndian:
            continue
        try:
            available = get_decoder(uid).is_available
        except NotImplementedError:  # video and others that pydicom has no decoder for
            continue
        if available:
            found.append(str(uid))
    return found
