"""The way in, however a request comes: decode, keep, hand to the pipeline."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import zstandard

from otel_letta.delivery.stats import Throttle
from otel_letta.otlp import json_request, proto
from otel_letta.otlp.batch import Batch, UndecodableError
from otel_letta.otlp.json import read_request
from otel_letta.otlp.sieve import Gate
from otel_letta.report import ProgressReport
from otel_letta.runtime.deadline import Deadline
from otel_letta.serve import instructions
from otel_letta.serve.answers import Refusal
from otel_letta.serve.feed import PLACES, Feed
from otel_letta.serve.instructions import Instructions
from otel_letta.serve.metrics import Metrics
from otel_letta.serve.over import KIND as OVER
from otel_letta.serve.over import Over
from otel_letta.serve.spool import MemorySpool
from otel_letta.serve.tasks import TaskList
from otel_letta.serve.told import KEPT_FOR, KIND, Told
from otel_letta.store.model import Spool, SpoolItem, StoreError, StoreFullError

if TYPE_CHECKING:
    from otel_letta.pipeline.sharing import Handle

_logger = logging.getLogger(__name__)

_MOST_DIGESTS = 20_000
_OUTBOX_PATIENCE = 10.0
"""Seconds that what was not settled waits for the outbox."""
_SKEW = timedelta(minutes=1)
"""By which the clock of a program that sends may be ahead of this one's."""
_TROUBLED_FOR = 10.0
"""Seconds. A balancer that hears of trouble sends nothing more, so nothing but time can end it."""
_READERS: dict[tuple[str, bool], Callable[[bytes, Gate | None], Batch]] = {
    ("traces", True): json_request.read_traces,
    ("logs", True): lambda body, gate: read_request(body, "resourceLogs"),
    ("traces", False): proto.read_traces,
    ("logs", False): lambda body, gate: proto.read_logs(body),
}


Route = Callable[[str, bool, bytes], "Callable[[], Batch | None] | None"]
"""Given signal, form and body, returns what hands it over, None if it is for this process; see `routes.Router`."""
_PACKED = "/zstd"
"""Behind the kind of a body that is kept so. The disk gets an eighth of it (recorded agents, in protobuf), and the
processor has less to do: to pack 270 kB, write and remove them takes 1.1 ms, and 2.0 ms unpacked."""
_LEVEL = -3


class _Packer(threading.local):
    """zstd's compressor, one for each thread."""

    def __init__(self) -> None:
        self.pack = zstandard.ZstdCompressor(level=_LEVEL).compress


class Intake:
    """Takes in the bodies of export requests. Safe to use from several threads.

    Args:
        handle: a share in the pipeline.
        spool: keeps what is not settled; open.
        metrics: counts.
    """

    def __init__(self, handle: Handle, spool: Spool, metrics: Metrics) -> None:
        self._handle = handle
        self._metrics = metrics
        self._errors = Throttle(_logger)
        self._seen: OrderedDict[int, None] = OrderedDict()
        """Hashes of bodies as they are kept, keyed with a secret of the process, as Python's are."""
        self._seen_lock = threading.Lock()
        self._settler = ThreadPoolExecutor(1, thread_name_prefix="otel_letta-settle")
        self._ends: deque[tuple[int, float]] = deque()
        """Ids of the ends in the spool, and when they were noted, the oldest first; the settler's."""
        self._unsettled: list[int] = []
        """What is to be forgotten, and was not yet; the settler's."""
        self._packer = _Packer()
        self.spool = spool
        self.durable = not isinstance(spool, MemorySpool)
        """What was answered with 200 outlives the process."""
        self.told = Told(self._note_ends if self.durable else None)
        self.tasks = TaskList(handle.pipeline.settings.agent_id)
        """What is known of them, for people."""
        self.instructions = Instructions(functools.partial(self._keep, instructions.KIND), self._settle)
        """What agents have asked these tasks to do."""
        handle.pipeline.gate = self._pass_on
        handle.pipeline.desk.elsewhere = True
        self.feed = handle.add_source(Feed(handle.pipeline, self._settle, keep=spool.append if self.durable else None))
        self._noting = False
        self.route: Route | None = None
        """Says which bodies are for another process."""
        self.draining = False
        """Nothing is taken in any more: the program stops."""
        self._troubled_at = -math.inf

    @property
    def troubled(self) -> bool:
        """True if something could not be kept a moment ago."""
        return time.monotonic() - self._troubled_at < _TROUBLED_FOR

    def rest_only_if(self, busy: Callable[[], bool]) -> None:
        """Leave the processor to requests as long as there are some; what came with them can wait a moment."""
        self._handle.pipeline.rest_only_if(busy)

    def take(self, signal: str, is_json: bool, body: bytes) -> Batch:
        """Take in a body. May block for the disk, or another process.

        Returns:
            What was read; ``broken`` names what can never be accepted.

        Raises:
            Refusal: nothing was taken in.
        """
        hand_over = None if self.route is None else self.route(signal, is_json, body)
        batch = None if hand_over is None else hand_over()
        return self.take_here(signal, is_json, body) if batch is None else batch

    def take_here(self, signal: str, is_json: bool, body: bytes) -> Batch:
        """Do the same in this process, whoever the body is for."""
        steps = self._steps(signal, is_json, body)
        try:
            while True:
                if (future := next(steps)) is not None:
                    future.exception()  # waits for it
        except StopIteration as over:
            batch: Batch = over.value
            return batch

    async def take_soon(self, signal: str, is_json: bool, body: bytes, threads: Executor) -> Batch:
        """Do the same as `take` on an event loop, which is blocked no longer than it takes to decode the body.

        Args:
            threads: those that may block.
        """
        hand_over = None if self.route is None else self.route(signal, is_json, body)
        if hand_over is not None:
            handed = await asyncio.get_running_loop().run_in_executor(threads, hand_over)
            if handed is not None:
                return handed
        steps = self._steps(signal, is_json, body)
        try:
            while True:
                future = next(steps)
                await (asyncio.sleep(0) if future is None else _done(future))
        except StopIteration as over:
            batch: Batch = over.value
            return batch

    def _steps(self, signal: str, is_json: bool, body: bytes) -> Generator[Future[int] | None, None, Batch]:
        """Take in a body, and yield what has to be done before the next step, None if others may go first: on a thread
        or a loop alike."""
        if self.draining:
            raise Refusal(503, "this receiver is shutting down")
        kind = f"{signal}/{'json' if is_json else 'protobuf'}"
        while True:
            try:
                batch = _READERS[signal, is_json](body, self.feed.gate)
            except UndecodableError as error:
                raise Refusal(400, f"The body cannot be decoded: {error}") from None
            if not batch.size:
                return batch
            if batch.is_plain:
                if self._feed(batch):
                    break
                continue
            kind_of_kept, kept = self._packed(kind, body if batch.without_plain is None else batch.without_plain())
            digest = hash(kept)
            if self._was_seen(digest):
                self._metrics.repeated(signal)
                return batch
            if self.feed.is_full:
                raise Refusal(503, "this receiver has too much to do at the moment")
            if self.durable:
                yield None  # whoever has come as far meanwhile is written at once: that spares a third of the writing
            future = self.spool.append(kind_of_kept, kept)
            yield future
            number = self._number_of(future)
            if self._feed(batch, number, len(body)):
                self._note(digest)
                break
            self._settle([number])  # what is to be kept of it has become more
        self._metrics.taken(signal, batch.size, len(batch.broken))
        return batch

    def _feed(self, batch: Batch, number: int = 0, size: int = 0) -> bool:
        """Hand a batch to the pipeline. False if it has to be read again."""
        try:
            return self.feed.take(batch, number, size)
        except Exception:
            if number:
                self._settle([number])  # it comes again
            raise

    def replay(self, only: Collection[int] | None = None) -> int:
        """Take in again what was not settled when a process ended. Returns how many bodies that are.

        Args:
            only: ids of those that came from another process; None for all that are there, when this one starts.
        """
        if self.durable:
            self._expect_ends()
        bodies: list[int] = []
        places: list[int] = []
        over = Over()
        after = 0 if only is None else min(only, default=0) - 1
        while items := self.spool.unsettled(after):
            after = items[-1].id
            for item in items:
                if only is not None and item.id not in only:
                    continue
                try:
                    if item.kind == PLACES:
                        self.feed.restore_places(item.body)
                        places.append(item.id)
                    elif item.kind == OVER:
                        over.restore(item.body, item.id)
                    elif not self._restore(item):
                        bodies.append(item.id)
                except (ValueError, TypeError):
                    self._leave_out(item)
        if bodies:
            # Whichever process has taken over the outbox of the one that died may have delivered an end since, which
            # is then neither there nor noted here.
            self._handle.pipeline.desk.reported_until = datetime.now(timezone.utc) + _SKEW
        # Twice, since an end may stand behind the bodies that it is of.
        for number in bodies:
            (item, *_) = self.spool.unsettled(number - 1, 1)
            try:
                body = _unpacked(item)
                signal, _, form = item.kind.removesuffix(_PACKED).partition("/")
                read = functools.partial(_READERS[signal, form == "json"], body)
                batch = read(self.feed.gate)
            except (UndecodableError, KeyError, zstandard.ZstdError):
                self._leave_out(item)
                continue
            self._note(hash(item.body))
            while not self.feed.take(batch, item.id, len(body), over.of(item.id)):
                batch = read(self.feed.gate)  # a trace has come to matter meanwhile
            self.feed.work_off()
        over.hand_over(self.feed.settle_with)
        self._settle(places)  # they are in the spool again, if anything below them was
        return len(bodies)

    def _restore(self, item: SpoolItem) -> bool:
        """Take over what was kept of ends and instructions. False for a body; ValueError, TypeError for neither."""
        if item.kind == KIND:
            self.told.restore(item.body)
            self._ends.append((item.id, item.created))
        elif item.kind == instructions.KIND:
            self.instructions.restore(item.body, item.id)
        else:
            return False
        return True

    def _leave_out(self, item: SpoolItem) -> None:
        """Forget what another version wrote into the spool."""
        _logger.warning("something in the spool cannot be read, and is left out")
        self.spool.settle([item.id])

    def _expect_ends(self) -> None:
        """Report no end that a process had put into the outbox when it died, before it could note that here."""
        outbox, settings = self._handle.pipeline.desk.outbox, self._handle.pipeline.settings
        if outbox is None or not outbox.wait_ready(Deadline.after(_OUTBOX_PATIENCE)):
            return
        try:
            for report in outbox.waiting():
                if report.status.is_terminal:
                    self.told.expect(report, settings.agent_id)
        except StoreError as error:
            self._errors.log(logging.WARNING, "outbox", "the outbox cannot be read at the moment: %s", error)

    def close(self, timeout: float) -> bool:
        """Deliver what is known, and stop; True if everything was delivered.

        Args:
            timeout: seconds.
        """
        self.draining = True
        delivered = self._handle.close(timeout, end_tasks=False)
        self._settler.submit(self._settle_now, ())
        self._settler.shutdown()
        self.spool.close()
        return delivered

    def _pass_on(self, report: ProgressReport, put: Callable[[ProgressReport], None]) -> None:
        if report.trace_id is not None:
            self.feed.begin(int(report.trace_id, 16))

        def put_and_show(report: ProgressReport) -> None:
            put(report)
            self.tasks.take(report)

        self.told.pass_on(report, put_and_show)

    def _packed(self, kind: str, body: bytes) -> tuple[str, bytes]:
        """Return a body and its kind as they are kept."""
        return (kind + _PACKED, self._packer.pack(body)) if self.durable else (kind, body)

    def _keep(self, kind: str, body: bytes) -> int:
        return self._number_of(self.spool.append(kind, body))

    def _number_of(self, future: Future[int]) -> int:
        """Return the number of what was kept. Waits for it. Raises a Refusal if it could not be kept."""
        try:
            number = future.result()
        except StoreFullError as error:
            self._complain("full", error)
            raise Refusal(503, "the spool of this receiver is full") from None
        except StoreError as error:
            self._complain("disk", error)
            raise Refusal(503, "this receiver cannot keep anything at the moment") from None
        self._troubled_at = -math.inf
        return number

    def _complain(self, kind: str, why: Exception) -> None:
        self._troubled_at = time.monotonic()
        self._errors.log(logging.ERROR, kind, "nothing is taken in, senders are asked to come back: %s", why)

    # -- settling ------------------------------------------------------------------------------------------------------

    def _settle(self, ids: Sequence[int]) -> None:
        with contextlib.suppress(RuntimeError):  # it stops; the next start settles them
            self._settler.submit(self._settle_now, ids)

    def _note_ends(self) -> None:
        if not self._noting:  # one job takes all that have come until it begins
            self._noting = True
            self._settler.submit(self._settle_now, ())

    def _settle_now(self, ids: Sequence[int]) -> None:
        """Forget bodies, after what came of them is safe: first the reports, then that they were made."""
        self._unsettled += ids
        try:
            if self.durable:
                self._noting = False
                outbox, now = self._handle.pipeline.desk.outbox, time.time()
                with self.told.fresh() as fresh:  # before the outbox is saved: an end that comes meanwhile is not in it
                    if outbox is not None:
                        outbox.save()
                    if fresh:
                        self._ends.append((self.spool.append(KIND, fresh).result(), now))
                while self._ends and self._ends[0][1] < now - KEPT_FOR:
                    self._unsettled.append(self._ends.popleft()[0])
            if self._unsettled:
                self.spool.settle(self._unsettled)
                self._unsettled = []
        except StoreError as error:  # the next time is another chance
            self._errors.log(logging.WARNING, "settle", "the spool cannot be cleaned at the moment: %s", error)

    # -- what came before ----------------------------------------------------------------------------------------------

    def _was_seen(self, digest: int) -> bool:
        with self._seen_lock:
            return digest in self._seen

    def _note(self, digest: int) -> None:
        with self._seen_lock:
            self._seen[digest] = None
            if len(self._seen) > _MOST_DIGESTS:
                self._seen.popitem(last=False)


async def _done(future: Future[int]) -> None:
    """Wait until a future is done. Unlike `asyncio.wrap_future` it cancels nothing, and takes a third of the time."""
    if future.done():
        return
    loop = asyncio.get_running_loop()
    woken = asyncio.Event()

    def wake(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
            loop.call_soon_threadsafe(woken.set)

    future.add_done_callback(wake)
    await woken.wait()


def _unpacked(item: SpoolItem) -> bytes:
    return zstandard.decompress(item.body) if item.kind.endswith(_PACKED) else item.body
