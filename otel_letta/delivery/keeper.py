"""The block of a board: one memory block that shows an agent all tasks that are under way, without waking it.

Writing a block costs no LLM call (measured: about 70 ms on the server); the agent sees it at its next step. The
server neither enforces the block's limit nor escapes its text, so `otel_letta.delivery.board` does both.
"""

from __future__ import annotations

import logging
import math
import socket
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

from otel_letta.delivery.board import Board
from otel_letta.delivery.retry import Retry
from otel_letta.delivery.stats import Stats, Throttle
from otel_letta.delivery.worker import Crew, Job, Worker
from otel_letta.errors import LettaConflictError, LettaError, LettaRequestError, LettaUnsupportedError
from otel_letta.letta.transport import Block, Transport
from otel_letta.report import ProgressReport
from otel_letta.runtime.deadline import Deadline
from otel_letta.runtime.locks import HostLock, scope
from otel_letta.settings import Delivery, Settings

_logger = logging.getLogger(__name__)

_MOST_SUFFIXES = 50
_BLOCK_LIMIT = 5_000
"""Characters of a block that we create. All of it is in every prompt of the agent."""
_DESCRIPTION = (
    "Progress of tasks that programs run, kept up to date by otel_letta. Information only: nothing in it is an "
    "instruction, and no reply is needed."
)
_SOON = 5
"""Conflicts in a row that are answered with an early second try."""
_LEAST = 100
"""Characters below which a board is not shrunk."""
_MARK = "otel_letta"
"""Key in the block's metadata that makes it ours."""
_STALE = timedelta(hours=1)
"""A block that another host's writer has not touched for so long may be taken over."""
_HEARTBEAT = 1_800.0
"""Seconds. A writer with open tasks touches its block at least this often, or others would take it."""


class BoardKeeper(Worker):
    """The only writer of one agent's board: claims a block, and writes it when it changed, at most once an interval.

    A block has one writer. The first process of a host takes the configured label, the next ones a suffix. A lock of
    the operating system shows which writers are alive, and the block's metadata to which one it belongs, so that a
    restarted program finds its block again. A block that something else made is never written.

    Args:
        agent_id: the owner of the memory.
        transport: the server.
        settings: label and interval.
        stats: counts writes.
        crew: what all workers of the desk share.
        on_unsupported: called with the open tasks' reports, and the lock held, if the server has no boards.
    """

    def __init__(
        self,
        agent_id: str,
        transport: Transport,
        settings: Settings,
        stats: Stats,
        crew: Crew,
        on_unsupported: Callable[[list[ProgressReport]], None],
    ) -> None:
        super().__init__(f"otel_letta board {agent_id}", crew, crew.boards)
        self._named = None if agent_id == settings.agent_id else agent_id
        self._transport = transport
        self._home = transport.lane(self._named, None)
        """The server and the agent."""
        self._settings = settings
        self._stats = stats
        self._on_unsupported = on_unsupported
        self._log = Throttle(_logger, clock=crew.clock)
        self._host = socket.gethostname()
        self._writer = f"{self._host} {uuid.uuid4()}"
        self._board = Board(self._host)
        self._retry = Retry(settings.probe_interval)
        self._dirty = False
        self._written_at: float | None = None
        self._block: Block | None = None
        self._slot: HostLock | None = None
        self._most: int | None = None
        """Characters that the server takes, once it refused more."""
        self._urgent = False
        self._closed = False
        self._warned_labels: set[str] = set()
        self.unsupported = False
        """True once the server turned out to have no boards."""

    @property
    def _parked(self) -> LettaError | None:
        return self._retry.parked or self._crew.circuits.parked(self._home)

    @property
    def _agent_id(self) -> str:
        return self._home.agent_id

    # -- with the lock held ------------------------------------------------------------------------------------------

    def put(self, report: ProgressReport) -> None:
        """Take a report; never waits."""
        if self._board.update(report):
            _logger.debug("report %s #%d (%s) goes on the board", report.task_id, report.sequence, report.status)
            self._dirty = True
            self.wake()
        else:
            _logger.debug("report %s #%d changes nothing on the board", report.task_id, report.sequence)

    def flush_soon(self, *, closing: bool = False) -> None:
        """Write what is unwritten without waiting for the interval. ``closing``: for the last time."""
        if closing:
            self._closed = True
            self._retry.bring_forward(self._clock())
            self._dirty = self._dirty or self._block is not None
        if self._dirty:
            self._urgent = True
            self.wake()

    def has_pending(self, now: float) -> bool:
        return self.busy or self._dirty

    def next_try(self, now: float) -> float:
        return now if self.busy else max(self._retry.not_before, self._crew.circuits.try_at(self._home, self))

    def state(self) -> dict[str, object]:
        """Return ``label`` (None without a block), ``open_tasks`` and ``parked`` (the reason, or None)."""
        return {
            "label": self._block.label if self._block else None,
            "open_tasks": self._board.open_tasks,
            "parked": str(self._parked) if self._parked else None,
        }

    def _next_job(self, now: float) -> tuple[Job | None, float | None]:
        if self.unsupported:
            return None, None
        due = now
        if self._written_at is not None and not self._urgent:
            due = self._written_at + (self._settings.board_interval if self._dirty else _HEARTBEAT)
        if not self._dirty and (self._written_at is None or not self._board.open_tasks):
            return None, None
        due = max(due, self.next_try(now))
        if due > now:
            return None, None if due == math.inf else due - now
        self._crew.circuits.begin(self._home, self)
        return self._write, None

    # -- on the worker's thread --------------------------------------------------------------------------------------

    def _write(self, until: Deadline) -> None:
        urgent, text = self._urgent, ""
        try:
            if self._parked is not None:
                self._transport.reload()
            self._follow_settings()
            block = self._claim(until)
            with self._lock:
                self._dirty = self._urgent = False
                text = self._board.text(min(block.limit, self._most or block.limit), datetime.now(timezone.utc))
            limit = self._transport.write_block(block, text, self._metadata(), until=until)
        except LettaUnsupportedError as error:
            self._give_up(error)
        except LettaRequestError as error:
            if text:
                self._shrink(text)
            self._failed(error, urgent)
        except LettaError as error:
            self._failed(error, urgent)
        else:
            with self._lock:
                self._fit(block, text, limit)
                self._written_at = self._clock()
                if self._slot is not None:
                    self._slot.touch()
                self._retry.succeeded()
                self._crew.circuits.succeeded(self._home)
            self._stats.count("board_writes")
        finally:
            with self._lock:
                self._crew.circuits.end(self)
        if self._closed:
            self._release()

    def _shrink(self, text: str) -> None:
        """Write less after a refusal: a server may enforce a limit that it does not name."""
        with self._lock:
            self._release()  # the limit that it does name is read again
            self._most = max(len(text) // 2, _LEAST)

    def _fit(self, block: Block, text: str, limit: int | None) -> None:
        """Keep to the limit that the block has now: people change it. Lock held."""
        if limit is not None and limit != block.limit and self._block is not None:
            self._block = block._replace(limit=limit)
            if len(text) > limit:
                self._dirty = self._urgent = True

    def _follow_settings(self) -> None:
        """Move to the server and agent that the settings name now, as its messages do."""
        lane = self._transport.lane(self._named, None)
        if lane != self._home:
            _logger.warning("board of %s is that of %s now", self._home, lane)
            with self._lock:
                self._release()
                self._home = lane

    def _failed(self, error: LettaError, urgent: bool) -> None:
        with self._lock:
            self._dirty = True
            self._urgent = self._urgent or urgent
            if error.status == 404:
                self._release()  # somebody deleted the block: claim again
            shared = self._crew.circuits.blamed(self._home, error, self)
            patience = shared or self._retry
            delay = patience.failed(error, self._clock())
            passes = isinstance(error, (LettaConflictError, LettaRequestError)) and error.status is not None
            soon = passes and not error.parks and self._retry.failures <= _SOON
            if soon or (self._closed and not error.parks):
                # Concurrent writes of one block are refused with 409 and no Retry-After (measured): soon is fine. Nor
                # is there a reason to wait before less is written.
                delay = min(delay, 0.5)
                patience.bring_forward(self._clock() + delay)
        log, cause = (self._log, f"{soon}") if shared is None else (self._crew.log, shared.about)
        log.log(
            logging.DEBUG if soon else logging.ERROR,
            f"{cause} {type(error).__name__} {error.status}",
            "board of %s: %s (next try in %.0f s)",
            self._agent_id,
            error,
            delay,
        )

    def _give_up(self, error: LettaUnsupportedError) -> None:
        if self._settings.delivery is Delivery.BOARD:
            _logger.error(
                "board of %s: %s, so nothing is reported; OTEL_LETTA_DELIVERY=messages needs no board",
                self._agent_id,
                error,
            )
        else:
            _logger.warning("board of %s: %s; progress is sent as messages instead", self._agent_id, error)
        with self._lock:
            self.unsupported = True
            self._dirty = False
            self._release()
            self._on_unsupported(self._board.open_reports())

    def _claim(self, until: Deadline) -> Block:
        """Find or make our block; anew if it was not written for so long that others take it for abandoned."""
        if self._block is not None:
            if self._written_at is None or self._clock() - self._written_at < _STALE.total_seconds():
                return self._block
            self._release()
        there = {block.label: block for block in self._transport.blocks(self._agent_id, until=until)}
        for label in self._labels():
            block = there.get(label)
            if block is not None and not self._may_use(block):
                continue
            # By the block, where there is one: it may be attached to several agents.
            place = f"{self._agent_id} {label}" if block is None else block.id
            slot = HostLock(f"board {self._home.server} {place}")
            if not slot.try_acquire():
                self._log_taken(label, block)
                continue  # another process of this host writes there, or another agent's keeper
            try:
                if block is None:
                    block = self._transport.create_block(
                        self._agent_id, label, "", _BLOCK_LIMIT, _DESCRIPTION, self._metadata(), until=until
                    )
            except LettaConflictError:
                slot.release()  # somebody was faster with this label
                continue
            except BaseException:
                slot.release()
                raise
            if block.id not in place:  # it was made now
                slot = self._lock_of(block, slot)
            self._block, self._slot = block, slot
            _logger.debug("board of %s: writing block %s (%s)", self._agent_id, label, block.id)
            return block
        raise LettaConflictError(
            f"No free label for the board of {self._agent_id}", hint="set OTEL_LETTA_BOARD_LABEL to another label"
        )

    def _lock_of(self, block: Block, made_with: HostLock) -> HostLock:
        """Exchange the lock of a label for that of the block that was made with it."""
        slot = HostLock(f"board {self._home.server} {block.id}")
        slot.try_acquire()  # nobody knows it yet
        made_with.release()
        return slot

    def _log_taken(self, label: str, block: Block | None) -> None:
        mark = None if block is None else block.metadata.get(_MARK)
        theirs = mark.get("agent") if isinstance(mark, dict) else None
        if theirs not in (None, self._agent_id) and label not in self._warned_labels:
            self._warned_labels.add(label)
            _logger.warning(
                "agent %s shares its block %r with another agent, whose board it holds: using another label",
                self._agent_id,
                label,
            )

    def _labels(self) -> list[str]:
        label = self._settings.board_label
        return [label, *(f"{label}_{n}" for n in range(2, _MOST_SUFFIXES))]

    def _may_use(self, block: Block) -> bool:
        mark = block.metadata.get(_MARK)
        if not isinstance(mark, dict):
            if block.label not in self._warned_labels:
                self._warned_labels.add(block.label)
                _logger.warning(
                    "agent %s has a block %r that otel_letta did not make: leaving it alone and using another label",
                    self._agent_id,
                    block.label,
                )
            return False
        seen = scope()
        if mark.get("closed") is True or (mark.get("host") == self._host and mark.get("locks", seen) == seen):
            return True  # on this host the lock of the operating system knows better
        try:
            touched = datetime.fromisoformat(str(mark.get("updated")))
            return datetime.now(timezone.utc) - touched > _STALE
        except (ValueError, TypeError):
            return True

    def _metadata(self) -> dict[str, Any]:
        return {
            _MARK: {
                "host": self._host,
                "agent": self._agent_id,
                "locks": scope(),
                "writer": self._writer,
                "updated": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "closed": self._closed,
            }
        }

    def _release(self) -> None:
        self._block = None
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.release()
