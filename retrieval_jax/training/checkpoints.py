"""The one module that writes checkpoints: Orbax, one an epoch, the newest two kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from retrieval_jax.training.step import TrainState


class Checkpoints:
    """Train states and the rows of history up to them, saved asynchronously under `directory`."""

    def __init__(self, directory: Path) -> None:
        """Opens the directory, or makes it."""
        options = ocp.CheckpointManagerOptions(max_to_keep=2)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def restore(self, like: TrainState) -> tuple[TrainState, list[dict]]:
        """The newest checkpoint's state and history; `like` and [] where there is none.

        Args:
          like: a state of the same structure, shapes and dtypes.
        """
        epoch = self._manager.latest_step()
        if epoch is None:
            return like, []
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, _fields(like))
        restored = self._manager.restore(
            epoch,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(shapes), history=ocp.args.JsonRestore()
            ),
        )
        return like._replace(**restored.state), restored.history

    def save(self, state: TrainState, history: list[dict]) -> None:
        """Saves the state after `len(history)` epochs; returns before it is on disk."""
        self._manager.save(
            len(history),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_fields(state)), history=ocp.args.JsonSave(history)
            ),
        )

    def close(self) -> None:
        """Waits for the last save."""
        self._manager.wait_until_finished()
        self._manager.close()


def _fields(state: TrainState) -> dict[str, Any]:
    """What the state has: Orbax would look for a field that is None."""
    return {name: value for name, value in state._asdict().items() if value is not None}
