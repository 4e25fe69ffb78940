"""The way in, however a request comes: decode, keep, hand to the pipeline."""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from otel_letta.delivery.stats import Throttle
from otel_letta.otlp.batch import Batch, UndecodableError
from otel_letta.otlp.json import read_request
from otel_letta.otlp.proto import read_logs, read_traces
from otel_letta.serve.answers import Refusal
from otel_letta.serve.feed import Feed
from otel_letta.serve.metrics import Metrics
from otel_letta.serve.spool import Spool, SpoolFullError

if TYPE_CHECKING:
    from otel_letta.pipeline.sharing import Handle

_logger = logging.getLogger(__name__)

_MOST_DIGESTS = 20_000
_TROUBLED_FOR = 10.0
"""Seconds. A balancer that hears of trouble sends nothing more, so nothing but time can end it."""
_READERS: dict[tuple[str, bool], Callable[[bytes], Batch]] = {
    ("traces", True): lambda body: read_request(body, "resourceSpans"),
    ("logs", True): lambda body: read_request(body, "resourceLogs"),
    ("traces", False): read_traces,
    ("logs", False): read_logs,
}


class Intake:
    """Takes in the bodies of export requests. Safe to use from several threads.

    Args:
        handle: a share in the pipeline.
        spool: keeps what is not settled.
        metrics: counts.
    """

    def __init__(self, handle: Handle, spool: Spool, metrics: Metrics) -> None:
        self._handle = handle
        self._metrics = metrics
        self._errors = Throttle(_logger)
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._seen_lock = threading.Lock()
        self._settler = ThreadPoolExecutor(1, thread_name_prefix="otel_letta-settle")
        self.spool = spool
        self.feed = handle.add_source(Feed(handle.pipeline, self._settle))
        self.draining = False
        """Nothing is taken in any more: the program stops."""
        self._troubled_at = -math.inf

    @property
    def troubled(self) -> bool:
        """True if something could not be kept a moment ago."""
        return time.monotonic() - self._troubled_at < _TROUBLED_FOR

    def take(self, signal: str, is_json: bool, body: bytes) -> Batch:
        """Take in a body. May block for the disk.

        Returns:
            What was read; ``broken`` names what can never be accepted.

        Raises:
            Refusal: nothing was taken in.
        """
        if self.draining:
            raise Refusal(503, "this receiver is shutting down")
        try:
            batch = _READERS[signal, is_json](body)
        except UndecodableError as error:
            raise Refusal(400, f"The body cannot be decoded: {error}") from None
        if not batch.spans and not batch.records:
            return batch
        digest = hashlib.blake2b(body, digest_size=16).digest()
        if self._was_seen(digest):
            self._metrics.repeated(signal)
            return batch
        number = self._keep(f"{signal}/{'json' if is_json else 'protobuf'}", body)
        self._note(digest)
        self.feed.take(batch, number)
        self._metrics.taken(signal, len(batch.spans) + len(batch.records), len(batch.broken))
        return batch

    def replay(self) -> int:
        """Take in again what was not settled when the process ended. Returns how many bodies that are."""
        after = count = 0
        while items := self.spool.unsettled(after):
            for item in items:
                after = item.id
                signal, _, form = item.kind.partition("/")
                try:
                    batch = _READERS[signal, form == "json"](item.body)
                except (UndecodableError, KeyError):  # another version wrote it
                    _logger.warning("a body in the spool cannot be read, and is left out")
                    self.spool.settle([item.id])
                    continue
                self._note(hashlib.blake2b(item.body, digest_size=16).digest())
                self.feed.take(batch, item.id)
                count += 1
        return count

    def close(self, timeout: float) -> bool:
        """Deliver what is known, and stop; True if everything was delivered.

        Args:
            timeout: seconds.
        """
        self.draining = True
        delivered = self._handle.close(timeout, end_tasks=False)
        self._settler.shutdown()
        self.spool.close()
        return delivered

    def _keep(self, kind: str, body: bytes) -> int:
        try:
            number = self.spool.append(kind, body)
        except SpoolFullError as error:
            self._complain("full", str(error))
            raise Refusal(503, "the spool of this receiver is full") from None
        except OSError as error:
            self._complain("disk", error.strerror or str(error))
            raise Refusal(503, "this receiver cannot keep anything at the moment") from None
        self._troubled_at = -math.inf
        return number

    def _complain(self, kind: str, why: str) -> None:
        self._troubled_at = time.monotonic()
        self._errors.log(logging.ERROR, kind, "nothing is taken in, senders are asked to come back: %s", why)

    def _settle(self, ids: Sequence[int]) -> None:
        self._settler.submit(self._settle_now, ids)

    def _settle_now(self, ids: Sequence[int]) -> None:
        try:
            self.spool.settle(ids)
        except (OSError, SpoolFullError) as error:
            self._errors.log(logging.WARNING, "settle", "the spool cannot be cleaned at the moment: %s", error)

    def _was_seen(self, digest: bytes) -> bool:
        with self._seen_lock:
            return digest in self._seen

    def _note(self, digest: bytes) -> None:
        with self._seen_lock:
            self._seen[digest] = None
            if len(self._seen) > _MOST_DIGESTS:
                self._seen.popitem(last=False)
