"""The event loop on which callbacks of the program are awaited."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

_logger = logging.getLogger(__name__)


class Loop:
    """An event loop for awaitables, made for the first one. Belongs to one thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, awaitable: Any) -> None:
        """Await it, and raise what it raises."""
        import asyncio  # was imported when the callback was added

        if self._loop is None:
            self._loop = asyncio.new_event_loop()

        async def wait() -> None:
            await awaitable

        self._loop.run_until_complete(wait())

    def close(self) -> None:
        """Cancel what callbacks have left running, and close the loop."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        import asyncio

        left = asyncio.all_tasks(loop)

        async def end() -> None:
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            await loop.shutdown_asyncgens()

        try:
            loop.run_until_complete(end())
        except Exception as error:  # of what the program left running: nobody waits for it any more
            _logger.debug("the event loop of on_answer did not end well", exc_info=error)
        finally:
            loop.close()
