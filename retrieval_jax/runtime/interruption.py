"""SIGTERM, which announces preemption and the end of a job's time: save, then exit."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 75  # exit code, EX_TEMPFAIL of sysexits.h
MESSAGE = "interrupted; run the same command again to resume"


class Interruption:
    """Whether the run was told to stop, on any of its hosts; a context manager around the run.

    SIGTERM ends a single process at once with the exit code `INTERRUPTED`, since whatever it writes
    is written whole or not at all; inside `deferred` it only makes `asked` True. With several
    processes `jax.distributed` receives it, and `asked` turns True in the same place on all.
    """

    def __init__(self) -> None:
        self._told = self._deferred = self._told_deferred = False
        self._calls = 0

    def __enter__(self) -> Interruption:
        # Python runs handlers in the main thread only, between its own instructions: a thread that
        # reads the wakeup pipe ends the run while the main thread is in a long call of JAX.
        self._hears = threading.current_thread() is threading.main_thread()
        if self._hears:
            heard, told = os.pipe()
            os.set_blocking(told, False)
            self._before = (
                signal.signal(signal.SIGTERM, self._tell),
                signal.set_wakeup_fd(told, warn_on_full_buffer=False),
            )
            threading.Thread(target=self._hear, args=(heard,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._hears:
            handler, wakeup = self._before
            signal.signal(signal.SIGTERM, handler)
            os.close(signal.set_wakeup_fd(wakeup))  # which ends the thread

    @contextmanager
    def deferred(self) -> Iterator[Callable[[], bool]]:
        """Yields `asked` to work that saves before it stops."""
        self._deferred = True
        try:
            yield self.asked
        finally:
            self._deferred = False

    def asked(self) -> bool:
        """Whether to stop here; every process must ask in the same places."""
        from jax.experimental import multihost_utils  # SIGTERM may come before JAX is imported

        self._calls += 1
        self._told = self._told or multihost_utils.reached_preemption_sync_point(self._calls)
        return self._told

    def _tell(self, *_: Any) -> None:
        self._told, self._told_deferred = True, self._deferred

    def _hear(self, heard: int) -> None:
        while numbers := os.read(heard, 16):
            # A signal during `deferred` may be read here after it has ended: `asked` handled it.
            if signal.SIGTERM in numbers and not (self._deferred or self._told_deferred):
                os.write(2, f"{MESSAGE}\n".encode())
                os._exit(INTERRUPTED)
        os.close(heard)
