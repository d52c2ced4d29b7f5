"""The record of training: `metrics.jsonl`, one line an epoch, and TensorBoard event files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tensorboardX import SummaryWriter

from retrieval_jax import hosts


class MetricLog:
    """Writes each epoch's row to `metrics.jsonl` and to event files under `tensorboard/`.

    A row is {"epoch", "step", "seconds", "fit": {name: mean}, "validation": {name: mean}}. With
    several processes the first alone writes.
    """

    def __init__(self, workdir: Path, history: list[dict]) -> None:
        """Starts the log at `history`: the rows that a resumed run has, [] for a new one."""
        self._events = None
        if not hosts.is_first():
            return
        self._path = workdir / "metrics.jsonl"
        self._path.write_text("".join(json.dumps(row) + "\n" for row in history))
        # purge_step hides what an interrupted run wrote after its last checkpoint.
        start = history[-1]["step"] + 1 if history else 0
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=start)

    def write(self, row: dict) -> None:
        """Appends one epoch's row to both files."""
        if self._events is None:
            return
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in _scalars(row):
            self._events.add_scalar(name, value, row["step"])
        self._events.flush()

    def close(self) -> None:
        """Closes the event file."""
        if self._events is not None:
            self._events.close()


def _scalars(row: dict) -> Iterator[tuple[str, float]]:
    for part in ("fit", "validation"):
        for name, value in row[part].items():
            yield f"{part}/{name}", value
    yield "seconds an epoch", row["seconds"]
