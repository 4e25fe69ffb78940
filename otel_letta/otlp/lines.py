"""Lines of an input that nobody vouches for: each has a bound, and so has all of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

LONGEST_LINE = 16 * 2**20
"""Bytes of a line that is read: a Collector's batches are a few megabytes, and Python's objects for hostile JSON take
twenty times the room of its text."""
LONGEST_INPUT = 16 * 2**30
"""Bytes of a file, unpacked."""
MOST_SKIPPED = 256 * 2**20
"""Bytes without a line break, after which there is none to be expected."""

TOO_LONG = bytes(bytearray(b"a line that is too long"))
"""What stands for one; an object of its own, told apart by identity."""


class InputTooLongError(Exception):
    """The rest of an input is not read: a line, or all of it, is beyond what recordings have."""


def bounded_lines(stream: IO[bytes], most: int = LONGEST_INPUT) -> Iterator[bytes]:
    """Yield the lines of a stream, and `TOO_LONG` for each that is longer than `LONGEST_LINE`.

    Raises:
        InputTooLongError: what is left has no line break, or no end.
    """
    total = 0
    while line := stream.readline(LONGEST_LINE):
        size = len(line)
        if size == LONGEST_LINE and not line.endswith(b"\n"):
            line = TOO_LONG
            while (more := stream.readline(2**20)) and not more.endswith(b"\n"):
                size += len(more)
                if size > MOST_SKIPPED:
                    raise InputTooLongError(f"no line break in {MOST_SKIPPED / 2**20:.0f} MB")
        total += size
        if total > most:
            raise InputTooLongError(f"more than {most / 2**30:.0f} GB")
        yield line
