"""The one module that writes checkpoints: Orbax, asynchronous, the newest two and the best kept."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers
from orbax.checkpoint._src.multihost import multihost

from retrieval_jax.runtime import hosts
from retrieval_jax.runtime.errors import UserError, reason
from retrieval_jax.runtime.files import (
    checksum,
    copy_files,
    is_remote,
    make_directory,
    read_bytes,
)
from retrieval_jax.runtime.progress import say

# Orbax measures its time-outs by the clock, which a suspended machine sets forward by hours.
_YEAR = 365 * 24 * 3600  # seconds
multihost._DEFAULT_BARRIER_TIMEOUT = _YEAR  # no option sets this one


class Checkpoints:
    """Trees of arrays under `directory`, a step each, with a record of what JSON can hold.

    Of any tree: a train state, an optax state, a dictionary. With several processes the first alone
    writes and reads; the others get what it read.

    Example:
      >>> import tempfile
      >>> checkpoints = Checkpoints(epath.Path(tempfile.mkdtemp()) / "checkpoints")
      >>> checkpoints.save(1, {"w": np.ones(2)}, {"note": "first"}, score=0.5)
      >>> tree, record = checkpoints.restore({"w": np.zeros(2)})
      >>> tree["w"].tolist(), record
      ([1.0, 1.0], {'note': 'first'})
      >>> checkpoints.close()
    """

    def __init__(
        self, directory: epath.Path, seconds: float = float("inf"), origin: str = ""
    ) -> None:
        """Opens the directory, or makes it.

        Args:
          directory: of these checkpoints alone.
          seconds: from a save until one is due.
          origin: what they are made from; those of another are refused.
        """
        self._directory = directory if is_remote(directory) else directory.absolute()
        self._seconds, self._origin = seconds, origin
        self._damaged = self._directory.with_name("damaged")
        self._last = time.monotonic()
        self._saved: int | None = None
        self._manager: Any = self._open() if hosts.is_first() else None

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest tree that can be read, and its record; None without any.

        One that is truncated or damaged is set aside with a warning, and the one before is taken.

        Args:
          like: a tree of the same structure, shapes and dtypes.

        Raises:
          UserError: there are some, and none can be read; or they are of another tree or origin.
        """
        found = self._newest_readable(like) if hosts.is_first() else None
        record = hosts.from_first(found and found[1])
        if record is None:
            return None
        read = hosts.arrays_from_first(found[0] if found else None)
        assert read is not None
        return jax.tree.unflatten(jax.tree.structure(like), read.values()), record

    def save(
        self, step: int, tree: Any, record: dict[str, Any], score: float | None = None
    ) -> None:
        """Saves a tree on the host; returns before it is on disk.

        Args:
          step: above those saved before.
          tree: of NumPy arrays and numbers.
          record: what belongs to it, of what JSON can hold.
          score: by which the best is kept, the higher the better; None for one that can't be it.

        Raises:
          UserError: this save or the one before can't be written.
        """
        self._last = time.monotonic()
        if self._manager is None:
            return
        leaves = _leaves(tree)
        content = {
            "record": record,
            "tree": _described(tree),
            "origin": self._origin,
            "checksum": _checksum(leaves, record),
        }
        with self._writing():
            self._read_back()  # before Orbax removes the one before it
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(leaves),
                    record=ocp.args.JsonSave(content),
                ),
                metrics=None if score is None else {"score": score},
            )
            self._saved = step

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
                self._read_back()
                self._manager.close()

    def _read_back(self) -> None:
        """Waits for the last save and looks whether its record and its list of arrays are there."""
        saved, self._saved = self._saved, None  # once: `close` is not to hide what failed before
        self._manager.wait_until_finished()
        if saved is not None:
            directory = self._directory / str(saved)
            json.loads(read_bytes(directory / "record" / "metadata"))
            read_bytes(directory / "state" / "manifest.ocdbt")

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
                                get_metric_fn=lambda metrics: metrics["score"],
                                keep_checkpoints_without_metrics=False,
                            ),
                        ]
                    ),
                    cleanup_tmp_directories=True,  # of a save that was killed
                    async_options=ocp.options.AsyncOptions(timeout_secs=_YEAR),
                    multiprocessing_options=ocp.options.MultiprocessingOptions(
                        primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
                    )
                    if jax.process_count() > 1
                    else ocp.options.MultiprocessingOptions(),
                ),
            )

    def _newest_readable(self, like: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        shapes = {key: np.empty(leaf.shape, leaf.dtype) for key, leaf in _leaves(like).items()}
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                asked = ocp.args.Composite(record=ocp.args.JsonRestore())
                content = dict(self._manager.restore(step, args=asked).record)
                if content.get("origin", "") != self._origin:
                    raise UserError(
                        f"the checkpoints in {str(self._directory)!r} are of another run; give "
                        "another --workdir or remove them"
                    )
                if content["tree"] != _described(like):
                    raise UserError(_difference(self._directory, content["tree"], _described(like)))
                asked = ocp.args.Composite(state=ocp.args.StandardRestore(shapes))
                leaves = self._manager.restore(step, args=asked).state
                leaves = {key: leaves[key] for key in shapes}  # Orbax sorts them as text
                if content["checksum"] != _checksum(leaves, content["record"]):
                    raise ValueError("its checksum is another")
                return leaves, content["record"]
            except (MemoryError, UserError):
                raise
            except Exception as error:  # Orbax and TensorStore have many for what is damaged
                self._set_aside(step, error)
        if steps:
            raise UserError(
                f"none of the checkpoints can be read; they are in {str(self._damaged)!r} now, and "
                "the same command starts again from scratch"
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


def _leaves(tree: Any) -> dict[str, np.ndarray]:
    """The leaves in their order: whatever the tree is made of, Orbax sees one dictionary."""
    return {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}


def _described(tree: Any) -> list[str]:
    """Where each leaf is, its type and its shape."""
    return [
        f"{jax.tree_util.keystr(path)} {np.asarray(leaf).dtype.name} {list(np.shape(leaf))}"
        for path, leaf in jax.tree.leaves_with_path(tree)
    ]


def _difference(directory: epath.Path, there: list[str], here: list[str]) -> str:
    only = [leaf for leaf in (*there, *here) if (leaf in there) != (leaf in here)]
    return (
        f"the checkpoints in {str(directory)!r} are of another network or optimizer (one of them "
        f"has {only[0] if only else 'another order'}); give another directory"
    )


def _checksum(leaves: dict[str, np.ndarray], record: dict[str, Any]) -> int:
    text = json.dumps(record, sort_keys=True).encode()
    return checksum([np.frombuffer(text, np.uint8), *leaves.values()])
