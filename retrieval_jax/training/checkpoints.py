"""The one module that writes checkpoints: Orbax, asynchronous, the newest two and the best kept."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from retrieval_jax.runtime import hosts
from retrieval_jax.runtime.errors import UserError, reason
from retrieval_jax.runtime.files import checksum, copy_files, is_remote, make_directory
from retrieval_jax.runtime.progress import say
from retrieval_jax.training.step import TrainState


class Record(NamedTuple):
    """What was measured up to a state; training goes on from these two."""

    history: list[dict]  # a row for each whole epoch, see `MetricLog`
    sums: dict[str, float]  # each term, added up over the steps of the epoch that is not whole
    seconds: float  # that epoch has taken


class Checkpoints:
    """Train states and their records under `directory`, a step each.

    With several processes the first alone writes and reads; the others get what it read.
    """

    def __init__(self, directory: epath.Path, seconds: float = float("inf")) -> None:
        """Opens the directory, or makes it; `seconds` is the time from a save until one is due."""
        self._directory = directory if is_remote(directory) else directory.absolute()
        self._seconds = seconds
        self._damaged = self._directory.with_name("damaged")
        self._last = time.monotonic()
        self._manager: Any = self._open() if hosts.is_first() else None

    def restore(self, like: TrainState) -> tuple[TrainState, Record]:
        """The newest state that can be read, and its record; `like` and no record without any.

        One that is truncated or damaged is set aside with a warning, and the one before is taken.

        Args:
          like: a state of the same structure, shapes and dtypes.

        Raises:
          UserError: there are some, and none can be read.
        """
        found = self._newest_readable(like) if hosts.is_first() else None
        record = hosts.from_first(found and found[1])
        if record is None:
            return like, Record([], {}, 0.0)
        fields = found[0] if found else _fields(like)
        leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(fields))}
        read = hosts.arrays_from_first(leaves)
        assert read is not None
        fields = jax.tree.unflatten(jax.tree.structure(fields), read.values())
        return like._replace(**fields), Record(**record)

    def save(self, state: TrainState, record: Record, loss: float | None = None) -> None:
        """Saves a state on the host; returns before it is on disk.

        Args:
          state: NumPy arrays.
          record: what belongs to it.
          loss: by which the best is kept; None for a state inside an epoch.

        Raises:
          UserError: this save or the one before can't be written.
        """
        self._last = time.monotonic()
        if self._manager is None:
            return
        fields = _fields(state)
        content = record._asdict() | {"checksum": _checksum(fields, record)}
        with self._writing():
            self._manager.save(
                int(state.step),
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(fields),
                    record=ocp.args.JsonSave(content),
                ),
                metrics=None if loss is None else {"loss": loss},
            )

    def due(self) -> bool:
        """Whether the last save, or the start, is long enough ago for the process that saves."""
        return self._manager is not None and time.monotonic() - self._last >= self._seconds

    def close(self) -> None:
        """Waits for the last save.

        Raises:
          UserError: it can't be written.
        """
        if self._manager is not None:
            with self._writing():
                self._manager.wait_until_finished()
                self._manager.close()

    def _open(self) -> ocp.CheckpointManager:
        policies = checkpoint_managers
        with self._writing():
            make_directory(self._directory)
            return ocp.CheckpointManager(
                self._directory,
                options=ocp.CheckpointManagerOptions(
                    create=False,
                    preservation_policy=policies.AnyPreservationPolicy(
                        [
                            policies.LatestN(2),
                            # The last of ascending order is the best.
                            policies.BestN(
                                n=1,
                                get_metric_fn=lambda metrics: -metrics["loss"],
                                keep_checkpoints_without_metrics=False,
                            ),
                        ]
                    ),
                    cleanup_tmp_directories=True,  # of a save that was killed
                    multiprocessing_options=ocp.options.MultiprocessingOptions(
                        primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
                    )
                    if jax.process_count() > 1
                    else ocp.options.MultiprocessingOptions(),
                ),
            )

    def _newest_readable(self, like: TrainState) -> tuple[dict[str, Any], dict[str, Any]] | None:
        shapes = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), _fields(like))
        asked = ocp.args.Composite(
            state=ocp.args.StandardRestore(shapes), record=ocp.args.JsonRestore()
        )
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                restored = self._manager.restore(step, args=asked)
                record = dict(restored.record)
                if record.pop("checksum") != _checksum(restored.state, Record(**record)):
                    raise ValueError("its checksum is another")
                return restored.state, record
            except MemoryError:
                raise
            except Exception as error:  # Orbax and TensorStore have many for what is damaged
                self._set_aside(step, error)
        if steps:
            raise UserError(
                f"none of the checkpoints can be read; they are in {str(self._damaged)!r} now, and "
                "the same command begins anew"
            )
        return None

    def _set_aside(self, step: int, error: Exception) -> None:
        aside = self._damaged / f"{step}-{time.time_ns()}"
        say(f"  checkpoint {step} can't be read ({reason(error)}); it is set aside as {aside}")
        damaged = self._directory / str(step)
        with self._writing():
            if is_remote(damaged):
                copy_files(damaged, aside)
                damaged.rmtree()
            else:
                aside.parent.mkdir(exist_ok=True)
                damaged.rename(aside)
            self._manager.reload()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax, TensorStore and the system each have their own
            raise UserError(
                f"{str(self._directory)!r} can't be written ({reason(error)}); make room or mend "
                "it, and the same command goes on from the last checkpoint"
            ) from error


def _fields(state: TrainState) -> dict[str, Any]:
    """What the state has: Orbax would look for a field that is None."""
    return {name: value for name, value in state._asdict().items() if value is not None}


def _checksum(fields: dict[str, Any], record: Record) -> int:
    text = json.dumps(record, sort_keys=True).encode()
    return checksum([np.frombuffer(text, np.uint8), fields])
