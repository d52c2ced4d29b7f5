"""Progress of long work: a bar on a terminal, an occasional line elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from retrieval_jax.runtime.errors import printable

_SECONDS_BETWEEN_LINES = 60


def say(line: str) -> None:
    """Prints a line immediately, above any bar; names in it may hold escapes for a terminal."""
    tqdm.write(printable(line))
    sys.stdout.flush()


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
