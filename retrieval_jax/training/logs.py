"""The record of training: `metrics.jsonl`, a line per epoch, and TensorBoard event files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator

from etils import epath
from tensorboardX import SummaryWriter

from retrieval_jax.runtime import hosts
from retrieval_jax.runtime.files import copy_files, is_remote, replacing


class MetricLog:
    """Writes each epoch's row to `metrics.jsonl` and to event files under `tensorboard/`.

    A row is {"epoch", "step", "seconds", "fit": {name: mean}, "validation": {name: mean}}. With
    several processes the first alone writes.
    """

    def __init__(self, workdir: epath.Path) -> None:
        """A log in `workdir`, which `begin` opens."""
        self._workdir, self._events = workdir, None

    def begin(self, history: list[dict]) -> None:
        """Starts at `history`: the rows that a resumed run has, [] for a new one."""
        if not hosts.is_first():
            return
        self._lines = [json.dumps(row) + "\n" for row in history]
        self._write_lines()
        # tensorboardX writes on this machine; from there each epoch is copied to an object store.
        self._copied = tempfile.TemporaryDirectory() if is_remote(self._workdir) else None
        # purge_step hides what an interrupted run wrote from its last whole epoch on, which it may
        # not have come to write.
        start = history[-1]["step"] if history else 0
        to = self._copied.name if self._copied else str(self._workdir / "tensorboard")
        self._events = SummaryWriter(to, purge_step=start)
        if history:
            self._add_events(history[-1])

    def write(self, row: dict) -> None:
        """Appends one epoch's row to both files."""
        if self._events is None:
            return
        self._lines.append(json.dumps(row) + "\n")
        self._write_lines()
        self._add_events(row)

    def close(self) -> None:
        """Closes the event file."""
        if self._events is not None:
            self._events.close()
            if self._copied:
                self._copied.cleanup()

    def _add_events(self, row: dict) -> None:
        assert self._events is not None
        for name, value in _scalars(row):
            self._events.add_scalar(name, value, row["step"])
        self._events.flush()
        if self._copied:
            copy_files(epath.Path(self._copied.name), self._workdir / "tensorboard")

    def _write_lines(self) -> None:
        with replacing(self._workdir / "metrics.jsonl") as file:
            file.write("".join(self._lines).encode())


def _scalars(row: dict) -> Iterator[tuple[str, float]]:
    for part in ("fit", "validation"):
        for name, value in row[part].items():
            yield f"{part}/{name}", value
    yield "seconds per epoch", row["seconds"]
