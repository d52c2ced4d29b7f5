"""The record of training: `metrics.jsonl`, a line per epoch, and the trackers."""

from __future__ import annotations

import json
from collections.abc import Mapping

from etils import epath

from retrieval_jax.runtime import hosts
from retrieval_jax.runtime.errors import reason
from retrieval_jax.runtime.files import replacing
from retrieval_jax.runtime.progress import say
from retrieval_jax.training.trackers import Opener, Tracker

_LOST = (
    "  {name} failed ({reason}); training goes on without it, and metrics.jsonl has every epoch; "
    "when the run is resumed, it gets what it lacks"
)


class MetricLog:
    """Writes each epoch's row to `metrics.jsonl` and to trackers.

    A row is {"epoch", "step", "seconds", "fit": {name: mean}, "validation": {name: mean}}. With
    several processes the first alone writes.
    """

    def __init__(self, workdir: epath.Path, trackers: Mapping[str, Opener]) -> None:
        """A log in `workdir`, which `begin` opens.

        Args:
          workdir: of the run.
          trackers: what opens each, by the name that a message gives it.
        """
        self._workdir, self._openers = workdir, trackers
        self._open: dict[str, Tracker] = {}

    def begin(self, history: list[dict]) -> None:
        """Starts at `history`: the rows that a resumed run has, [] for a new one."""
        if not hosts.is_first():
            return
        self._lines = [json.dumps(row) + "\n" for row in history]
        self._write_lines()
        for name, opener in self._openers.items():
            try:
                self._open[name] = opener(self._workdir)
            except Exception as error:  # of a package and a network that are not ours
                _say_lost(name, error)
        for row in history:
            self._tell(row)

    def write(self, row: dict) -> None:
        """Appends one epoch's row to the file, and tells the trackers."""
        if not hosts.is_first():
            return
        self._lines.append(json.dumps(row) + "\n")
        self._write_lines()
        self._tell(row)

    def close(self) -> None:
        """Closes the trackers."""
        for name, tracker in self._open.items():
            try:
                tracker.close()
            except Exception as error:
                _say_lost(name, error)
        self._open = {}

    def _tell(self, row: dict) -> None:
        for name, tracker in list(self._open.items()):
            try:
                tracker.scalars(row["step"], scalars(row))
            except Exception as error:
                _say_lost(name, error)
                del self._open[name]

    def _write_lines(self) -> None:
        with replacing(self._workdir / "metrics.jsonl") as file:
            file.write("".join(self._lines).encode())


def scalars(row: dict) -> dict[str, float]:
    """An epoch's numbers by the names that trackers show.

    Example:
      >>> scalars({"step": 9, "seconds": 2.0, "fit": {"loss": 0.5}, "validation": {}})
      {'fit/loss': 0.5, 'seconds_per_epoch': 2.0}
    """
    parts = {f"{part}/{n}": v for part in ("fit", "validation") for n, v in row[part].items()}
    return {**parts, "seconds_per_epoch": row["seconds"]}


def _say_lost(name: str, error: Exception) -> None:
    say(_LOST.format(name=name, reason=reason(error)))
