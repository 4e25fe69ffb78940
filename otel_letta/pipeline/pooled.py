"""Hooks that run on a pool's thread, while the thread that ends the span waits for them.

`ConcurrentMultiSpanProcessor` of the SDK calls its processors so (1.45, measured). What is being handled on the thread
of the hook says nothing then; the one that waits is found by its stack.
"""

from __future__ import annotations

import sys
import threading
from threading import get_ident
from types import FrameType

from otel_letta.runtime import fork

_DEPTH = 12
"""Frames from the top of a waiting thread to the SDK's: it waits in a future, and that in a condition."""
_POOL = "concurrent/futures/thread.py"
_OURS = __name__.partition(".")[0] + "."

main = threading.main_thread().ident
"""The main thread, which is no pool's: a hook compares that before it calls `is_on_pool`."""


def handled_elsewhere(span: object) -> BaseException | None:
    """Return the exception that the thread handles which ends the span, if that waits for a pool to run this hook."""
    here = get_ident()
    if here == main or not is_on_pool():
        return None
    for thread, frame in sys._current_frames().items():
        if thread != here and _waits_for(frame, span):
            found = sys._current_exceptions().get(thread)
            # Python 3.10 and 3.11 give what `sys.exc_info()` does.
            return found[1] if isinstance(found, tuple) else found
    return None


def is_on_pool() -> bool:
    """Return True if a pool called the hook itself, not somebody's code that runs in a pool."""
    if "concurrent.futures.thread" not in sys.modules:
        return False
    frame: FrameType | None = sys._getframe(2)  # the caller of a hook that calls this itself, as the fast ones do
    while frame is not None and str(frame.f_globals.get("__name__")).startswith(_OURS):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.replace("\\", "/").endswith(_POOL)


def _waits_for(frame: FrameType | None, span: object) -> bool:
    for _ in range(_DEPTH):
        if frame is None:
            return False
        if frame.f_code.co_name == "_submit_and_await":
            arguments = frame.f_locals.get("args")
            return isinstance(arguments, tuple) and any(one is span for one in arguments)
        frame = frame.f_back
    return False


def _after_fork_in_child() -> None:
    global main
    main = threading.main_thread().ident


fork.in_child(_after_fork_in_child)
