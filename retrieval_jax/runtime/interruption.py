"""SIGTERM, which announces preemption and the end of a job's time, and Ctrl-C: save, then exit."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

INTERRUPTED = 75  # exit code, EX_TEMPFAIL of sysexits.h
BY_KEYBOARD = 130  # exit code that shells give for SIGINT
MESSAGE = "interrupted; run the same command again to resume"


class Interruption:
    """Whether the run was told to stop, on any of its hosts; a context manager around the run.

    SIGTERM ends a single process at once with the exit code `INTERRUPTED`, since whatever it writes
    is written whole or not at all; inside `deferred` it only makes `asked` True. With several
    processes `jax.distributed` receives it, and `asked` turns True in the same place on all.
    Ctrl-C does the same with the code `BY_KEYBOARD`, and a second one ends the process at once:
    never by an exception, which jaxlib doesn't survive while it compiles.

    Attributes:
      code: the exit code of a run that was stopped.
    """

    def __init__(self) -> None:
        self._told = self._deferred = self._told_deferred = False
        self._calls = self._presses = 0
        self.code = INTERRUPTED

    def __enter__(self) -> Interruption:
        # Python runs handlers in the main thread only, between its own instructions: a thread that
        # reads the wakeup pipe ends the run while the main thread is in a long call of JAX.
        self._hears = threading.current_thread() is threading.main_thread()
        if self._hears:
            heard, told = os.pipe()
            os.set_blocking(told, False)
            heard_of = [signal.SIGTERM]
            if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as in the background of a shell
                heard_of.append(signal.SIGINT)
            self._before = (
                {number: signal.signal(number, self._tell) for number in heard_of},
                signal.set_wakeup_fd(told, warn_on_full_buffer=False),
            )
            threading.Thread(target=self._hear, args=(heard,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._hears:
            handlers, wakeup = self._before
            for number, handler in handlers.items():
                signal.signal(number, handler)
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

    def _tell(self, number: int, _: Any) -> None:
        if number == signal.SIGINT:
            self.code = BY_KEYBOARD
        if not _is_one_of_several():  # or `asked` would be True on this process alone
            self._told, self._told_deferred = True, self._deferred

    def _hear(self, heard: int) -> None:
        while numbers := os.read(heard, 16):
            if pressed := numbers.count(signal.SIGINT):
                self.code, self._presses = BY_KEYBOARD, self._presses + pressed
                if self._presses > 1:
                    self._leave("interrupted; the same command resumes from the last save")
                if _is_one_of_several():
                    os.kill(os.getpid(), signal.SIGTERM)  # which tells the others too
                    continue
            # A signal during `deferred` may be read here after it has ended: `asked` handled it.
            heard_of = pressed or signal.SIGTERM in numbers
            if heard_of and not (self._deferred or self._told_deferred):
                self._leave(MESSAGE)
        os.close(heard)

    def _leave(self, sentence: str) -> None:
        with suppress(OSError):  # nobody may be reading
            os.write(2, f"{sentence}\n".encode())
        os._exit(self.code)


def _is_one_of_several() -> bool:
    jax = sys.modules.get("jax")  # a signal may come before, or while, JAX is imported
    is_initialized = getattr(getattr(jax, "distributed", None), "is_initialized", bool)
    return bool(is_initialized())
