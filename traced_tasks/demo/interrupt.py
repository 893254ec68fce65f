"""Ctrl-C, held back to where it does no harm."""

import signal
from types import TracebackType
from typing import Any, Self


class HeldInterrupt:
    """Keep Ctrl-C from a block of the main thread until the block asks for it, or ends.

    Where several threads are at work, a `KeyboardInterrupt` in the middle of an import, or of a thread's start or end,
    can leave a lock locked for good.
    """

    def __enter__(self) -> Self:
        self._held = False
        self._handler = signal.signal(signal.SIGINT, self._hold)
        return self

    def _hold(self, *_: Any) -> None:
        self._held = True

    def check(self) -> None:
        """Let an interrupt through that was held.

        Raises:
            KeyboardInterrupt: There was one.
        """
        if self._held:
            raise KeyboardInterrupt

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._handler)
        if exc is None:
            self.check()
