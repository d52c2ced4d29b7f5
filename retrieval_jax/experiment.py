"""An experiment as plain objects, and what of it a workdir is bound to."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from retrieval_jax.data.images import ImageSet, LazyImages
from retrieval_jax.report.results import Results
from retrieval_jax.runtime import hosts
from retrieval_jax.runtime.errors import UserError
from retrieval_jax.runtime.origins import origin_of
from retrieval_jax.runtime.workdir import check, claim, differences
from retrieval_jax.training.epoch import Recipe
from retrieval_jax.training.labels import Budget
from retrieval_jax.training.trackers import Opener

# What a finished run may change, whose stages are then done again; the rest decides the training.
_LATER = ("name", "embedding", "clustering", "retrieval", "report")
# What makes no difference to a result.
_NEVER = ("compilation_cache", "distributed", "tracking")
_OF_TRAINING = ("epochs", "checkpoint_seconds", "profile_steps")


class Clustering(NamedTuple):
    """How k-means groups the gallery."""

    k: int
    restarts: int
    max_iterations: int
    tolerance: float


class Experiment(NamedTuple):
    """A configuration as plain objects, see `retrieval_jax.build`."""

    name: str
    seed: int
    record: dict[str, Any]  # the configuration as JSON holds it
    load_images: Callable[[], ImageSet]
    queries: Callable[[int], int]  # of the number of images
    validation_fraction: float
    streaming: bool
    recipe: Callable[[tuple[int, int, int], int, int], Recipe]  # of (image shape, classes, fit)
    encoder: dict[str, Any]  # its name and keys, to build it again
    initial: dict[str, Any]  # parameters of the encoder to start from; {}: random ones
    budget: Budget | None  # of labels in training; None: all
    init_from: str  # workdir whose parameters to start from, or ""
    extends: bool  # whether more epochs go on where fewer ended: no rate depends on their number
    checkpoint_seconds: float
    profile_steps: int
    average: bool
    precise_batchnorm: bool  # re-estimate BatchNorm's statistics after training
    normalize: bool
    layer: str  # that embeds: "backbone", "projection" or "probabilities"
    projector: dict[str, Any]  # its keys, to build it again
    crops: int  # side of nine crops whose embeddings are averaged; 0: the whole image
    embedding_batch_size: int
    clustering: Clustering
    neighbours: int
    probes: bool  # whether a weighted kNN and a linear probe are scored too
    examples: int
    tsne_points: int
    trackers: Mapping[str, Opener]  # of the training, by the names that messages give them


def same(there: dict[str, Any], here: dict[str, Any]) -> bool:
    """Whether two configurations have the same results."""
    there, here = (
        {key: value for key, value in of.items() if key not in _NEVER} for of in (there, here)
    )
    return json.loads(json.dumps(here)) == there


def same_baselines(previous: Results, experiment: Experiment) -> bool:
    """Whether what nobody trained was judged in the same way before, on the same images."""
    there, here = previous.provenance.config, json.loads(json.dumps(experiment.record))
    return all(there.get(key) == here[key] for key in ("embedding", "clustering", "retrieval"))


def _decisive(record: dict[str, Any]) -> dict[str, Any]:
    """What of a configuration decides the training: a workdir has one such."""
    kept_keys = {k: v for k, v in record.items() if k not in (*_LATER, *_NEVER)}
    data, training = dict(record["data"]), dict(record["training"])
    for key in ("directory", "file", "labels"):  # the images are claimed by their checksum
        data.pop(key)
    for key in _OF_TRAINING:
        training.pop(key)
    return kept_keys | {"data": data, "training": training}


def check_config(experiment: Experiment) -> None:
    """Raises if this process has another config than process 0."""
    own = json.loads(
        json.dumps(
            _decisive(experiment.record) | {"later": [experiment.record[key] for key in _LATER]}
        )
    )
    theirs = hosts.from_first(own)
    if found := differences(theirs, own):
        raise UserError(
            f"this process has another config than process 0: {found}; start all by one command"
        )


def check_workdir(workdir: epath.Path, experiment: Experiment) -> None:
    """Raises if the workdir is of another training, before anything is loaded."""
    if hosts.is_first():
        check(workdir, "config.json", _claim(experiment))


def claimed(workdir: epath.Path, experiment: Experiment, data: ImageSet) -> str:
    """Binds the workdir to the training and the images; returns the origin of its files.

    Raises:
      UserError: it is bound to others, or the images differ between the processes.
    """
    config, fingerprint = _claim(experiment), _fingerprint(data)
    if hosts.from_first(fingerprint) != fingerprint:
        raise UserError("the data is not what process 0 has; give every host the same")
    origin = origin_of(config, fingerprint)
    if hosts.is_first():
        claim(workdir, {"config.json": config, "data.json": fingerprint}, origin)
    return origin


def _claim(experiment: Experiment) -> dict[str, Any]:
    decisive = _decisive(experiment.record)
    if not experiment.extends:  # the rate at every step depends on the number of epochs
        decisive["training"]["epochs"] = experiment.record["training"]["epochs"]
    return decisive


def _fingerprint(data: ImageSet) -> dict[str, Any]:
    """Tells whether a resumed run sees the data that it began with.

    The checksum is of all pixels and labels; for images that are read later, it is of the names and
    sizes of their files and the labels.
    """
    images, labels = data.images, b"" if data.labels is None else data.labels.tobytes()
    content = (
        images.identity.encode()
        if isinstance(images, LazyImages)
        else np.ascontiguousarray(images).data
    )
    return {"images": len(images), "checksum": zlib.crc32(labels, zlib.crc32(content))}
