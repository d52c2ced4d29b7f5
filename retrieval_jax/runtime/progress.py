"""Progress of long work: a bar on a terminal, an occasional line elsewhere."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from typing import TextIO

from tqdm import tqdm

from retrieval_jax.runtime.errors import printable

_SECONDS_BETWEEN_LINES = 60


def say(line: str) -> None:
    """Prints a line immediately, above any bar; names in it may hold escapes for a terminal."""
    show(printable(line))


def show(text: str) -> None:
    """Prints a text immediately, above any bar; a run goes on where nobody can read it."""
    try:
        tqdm.write(text)
        sys.stdout.flush()
    except OSError:  # a closed pipe, a full disk: from here on nothing is printed
        silence(sys.stdout)


def silence(stream: TextIO) -> None:
    """Lets what is printed from here on go nowhere, or Python's own flush at the end would fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def prepare_streams() -> None:
    """Makes standard output and error take any text, closed or in whatever encoding they are."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
        else:
            stream.reconfigure(errors="backslashreplace")


def complain(sentence: str) -> None:
    """Prints a sentence on standard error, if anyone can read it."""
    with suppress(OSError):
        print(sentence, file=sys.stderr, flush=True)


class Progress:
    """Counts up to `total`; a context manager.

    Args:
      label: what is counted.
      total: the final count.
    """

    def __init__(self, label: str, total: int) -> None:
        self._bar = tqdm(total=total, desc=label, disable=None, leave=False)
        self._label, self._total, self.done = label, total, 0
        self._last_line = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, count: int = 1, note: str = "") -> None:
        """Counts `count` more; the note is shown beside the number."""
        self.done += count
        self._bar.update(count)
        self._bar.set_postfix_str(note, refresh=False)
        if self._bar.disable and time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            say(f"  {self._label} {self.done}/{self._total} {note}".rstrip())
            self._last_line = time.monotonic()
