"""Where the curves of training go: TensorBoard, Weights & Biases or MLflow, behind one protocol.

A tracker is told of every row of the history again when a run is resumed, and keeps those that it
lacks: after an interruption, an outage, or when it is switched on later.
"""

from __future__ import annotations

import json
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, Protocol

from etils import epath
from tensorboardX import SummaryWriter

from retrieval_jax.runtime.errors import UserError
from retrieval_jax.runtime.files import copy_files, is_remote, read_json, write_json
from retrieval_jax.runtime.records import leaves

# How long the end of training waits for what Weights & Biases could not yet send.
_FINISH_SECONDS = 300.0
_TAG = "retrieval_jax.run"  # of an MLflow run: `run_id`
_PARAMS_PER_CALL = 100  # MLflow's limit


class Tracker(Protocol):
    """Keeps numbers by step. What it raises is said in one sentence, and training goes on."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Keeps the values of a step, such as {"fit/loss": 0.1}; one that it has changes nothing.

        After this call they must outlive the process, or be added when the run is resumed.
        """

    def close(self) -> None:
        """Ends the record, of a run that is finished or interrupted."""


# Opens a tracker for the run in a workdir, or goes on with the one that it had.
Opener = Callable[[epath.Path], Tracker]


class TensorBoard:
    """Event files under the workdir's `tensorboard/`, the newest of which holds all."""

    def __init__(self, workdir: epath.Path) -> None:
        """Starts a file that hides those of earlier starts, which may lack what was cut off."""
        # tensorboardX writes on this machine; from there each step is copied to an object store.
        self._target = workdir / "tensorboard"
        self._copied = tempfile.TemporaryDirectory() if is_remote(workdir) else None
        to = self._copied.name if self._copied else str(self._target)
        self._events = SummaryWriter(to, purge_step=0)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends the values, on disk when this returns."""
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()
        if self._copied:
            copy_files(epath.Path(self._copied.name), self._target)

    def close(self) -> None:
        """Closes the file."""
        self._events.close()
        if self._copied:
            self._copied.cleanup()


class WandB:
    """A run of Weights & Biases; its own variables, such as WANDB_MODE, say where and how."""

    def __init__(
        self, workdir: epath.Path, *, project: str, name: str, config: Mapping[str, Any]
    ) -> None:
        """Starts the run, or resumes that of this workdir.

        Args:
          workdir: the run's own files are in its `wandb/`; of one on gs://, in a temporary place.
          project: where the run is listed.
          name: of the run.
          config: shown beside it.
        """
        import wandb

        remote = is_remote(workdir)
        self._local = tempfile.TemporaryDirectory() if remote else None
        self._run = wandb.init(
            project=project,
            name=name,
            id=run_id(workdir),
            resume="allow",
            config=dict(config),
            dir=self._local.name if self._local else str(workdir),
            settings=wandb.Settings(
                console="off",
                silent=True,
                save_code=False,
                finish_timeout=_FINISH_SECONDS,
                finish_timeout_raises=True,
            ),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Hands the values to the library's own process, which sends them when it can."""
        if step >= self._run.step:
            self._run.log(dict(values), step=step, commit=True)

    def close(self) -> None:
        """Waits until all is sent, for some minutes at most."""
        self._run.finish()
        if self._local:
            self._local.cleanup()


class MLflow:
    """A run of MLflow, where MLFLOW_TRACKING_URI says."""

    def __init__(
        self, workdir: epath.Path, *, experiment: str, name: str, config: Mapping[str, Any]
    ) -> None:
        """Starts the run, or goes on with that of this workdir.

        Args:
          workdir: says which run it is.
          experiment: of MLflow, made if it isn't there.
          name: of the run.
          config: its parameters, when the run is started.
        """
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric, self._client, key = Metric, MlflowClient(), run_id(workdir)
        found = self._client.get_experiment_by_name(experiment)
        where = found.experiment_id if found else self._client.create_experiment(experiment)
        runs = self._client.search_runs([where], f"tags.`{_TAG}` = '{key}'")
        if runs:
            self._id = runs[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._client.create_run(where, run_name=name, tags={_TAG: key}).info.run_id
            params = [Param(key, json.dumps(value)) for key, value in leaves(dict(config))]
            for at in range(0, len(params), _PARAMS_PER_CALL):
                self._client.log_batch(self._id, params=params[at : at + _PARAMS_PER_CALL])
        names = self._client.get_run(self._id).data.metrics
        self._there = {
            (kept.step, name)
            for name in names
            for kept in self._client.get_metric_history(self._id, name)
        }

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Sends the values, in one call; they are kept when this returns."""
        new = {name: value for name, value in values.items() if (step, name) not in self._there}
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, step) for name, value in new.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        """Marks the run as finished; resuming marks it as running again."""
        self._client.set_terminated(self._id)


def run_id(workdir: epath.Path) -> str:
    """By which other services know the run of a workdir; the same whenever it is resumed."""
    path = workdir / "tracking.json"
    if not path.exists():
        write_json(path, {"run": uuid.uuid4().hex})
    return read_json(path)["run"]


def require(key: str, package: str) -> None:
    """Raises if a tracker's package isn't installed.

    Raises:
      UserError: names the key and the extra, which is called as the package is.
    """
    if find_spec(package) is None:
        raise UserError(
            f"{key} needs the package {package}: pip install 'retrieval-jax[{package}]', or set "
            f"{key}=''"
        )
