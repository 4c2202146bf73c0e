"""Ctrl-C, kept out of what it would tear apart."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any


class Interruption:
    """Holds the first Ctrl-C back while a generator runs: an exception from inside would end it for good.

    Everywhere else, and the second time, KeyboardInterrupt is raised as ever. Where the program ignores
    SIGINT (a shell's background job), or this is not its main thread, nothing is changed.

    Attributes:
        torn: KeyboardInterrupt was raised inside `held` after all; the generator is at its end.
    """

    def __init__(self) -> None:
        self.torn = False
        self._held = self._noted = False
        self._before: Any = None

    def __enter__(self) -> Interruption:
        ours = threading.current_thread() is threading.main_thread()
        if ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the first Ctrl-C back until the block is left, in whatever way."""
        self._held = True
        try:
            yield
        except BaseException:
            self.check()
            raise
        finally:
            self._held = False
        self.check()

    def check(self) -> None:
        """Raise what was held back; for places inside the block that may wait long."""
        if self._noted:
            self._raise()

    def _note(self, *_: object) -> None:
        if self._held and not self._noted:
            self._noted = True
        else:
            self._raise()

    def _raise(self) -> None:
        self._noted, self.torn = False, self.torn or self._held
        raise KeyboardInterrupt
