"""Hooks that run on a pool's thread, while the thread that ends the span waits for them.

`ConcurrentMultiSpanProcessor` of the SDK calls its processors so (1.45, measured). What is being handled on the thread
of the hook says nothing then; the one that waits is found by its stack.
"""

from __future__ import annotations

import sys
import threading
from types import FrameType

_DEPTH = 12
"""Frames from the top of a waiting thread to the SDK's: it waits in a future, and that in a condition."""
_POOL = "concurrent/futures/thread.py"
_OURS = __name__.partition(".")[0]


def handled_elsewhere(span: object) -> BaseException | None:
    """Return the exception that the thread handles which ends the span, if that waits for a pool to run this hook."""
    if not _is_on_pool():
        return None
    here = threading.get_ident()
    for thread, frame in sys._current_frames().items():
        if thread != here and _waits_for(frame, span):
            found = sys._current_exceptions().get(thread)
            # Python 3.10 and 3.11 give what `sys.exc_info()` does.
            return found[1] if isinstance(found, tuple) else found
    return None


def _is_on_pool() -> bool:
    """Return True if a pool called the hook itself, not somebody's code that runs in a pool."""
    # First what is cheap: every end of a task passes here, and the look at the stack is most of what a hook costs.
    if "concurrent.futures.thread" not in sys.modules or threading.main_thread().ident == threading.get_ident():
        return False
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == _OURS:
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
