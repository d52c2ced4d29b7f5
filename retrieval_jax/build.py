"""The one place where a configuration becomes plain objects; nothing below sees a ConfigDict."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from retrieval_jax import config
from retrieval_jax.data.folder import from_folder
from retrieval_jax.data.huggingface import from_huggingface
from retrieval_jax.data.images import ImageSet, digits
from retrieval_jax.data.npz import from_npz
from retrieval_jax.data.tfds import from_tfds
from retrieval_jax.experiment import Clustering, Experiment
from retrieval_jax.models import Head, Network
from retrieval_jax.objectives import Objective
from retrieval_jax.runtime import devices
from retrieval_jax.runtime.errors import UserError
from retrieval_jax.runtime.files import is_remote
from retrieval_jax.training import monitor, views
from retrieval_jax.training.epoch import Recipe
from retrieval_jax.training.labels import Budget
from retrieval_jax.training.optimizers import learning_rate
from retrieval_jax.training.trackers import MLflow, Opener, TensorBoard, WandB, require


class Sizes(NamedTuple):
    """What the data says and a configuration can't."""

    image_shape: tuple[int, int, int]  # h, w, c
    classes: int  # 0 without labels
    fit: int  # images that train


def experiment(c: ConfigDict) -> Experiment:
    """A configuration as plain objects.

    Raises:
      UserError: names the key, its value and what it accepts.
    """
    config.check(c)
    if c.training.batch_size % devices.count():
        raise UserError(
            f"training.batch_size {c.training.batch_size} must be a multiple of the "
            f"{devices.count()} devices"
        )
    # What is out of range whatever the data is, is refused before that is read.
    any_data = Sizes((1, 1, 1), classes=2, fit=c.training.batch_size * c.training.accumulation)
    network = _network(c, any_data)
    _objective(c, any_data), _optimizer(c, any_data), _views(c)
    encoder = c.model.encoder.name
    return Experiment(
        name=c.name,
        seed=c.seed,
        record=config.record(c),
        load_images=partial(load_images, c),
        queries=lambda count: round(c.data.query_fraction * count) or c.data.queries,
        validation_fraction=c.data.validation_fraction,
        streaming=c.data.streaming,
        recipe=lambda *sizes: recipe(c, Sizes(*sizes)),
        encoder={
            "name": encoder,
            "dtype": str(_dtype(c)),
            **config.record(c.model.encoder[encoder]),
        },
        initial=getattr(network.encoder, "initial", dict)(),
        budget=_budget(c),
        init_from=c.training.init_from,
        extends=c.optimizer.decay == "none"
        and c.optimizer.warmup_fraction == 0
        and c.training.ema_schedule == "constant",
        checkpoint_seconds=c.training.checkpoint_seconds,
        profile_steps=c.training.profile_steps,
        average=c.embedding.average,
        precise_batchnorm=c.embedding.precise_batchnorm,
        normalize=c.embedding.normalize,
        layer=c.embedding.layer,
        projector=config.record(c.model.projector),
        crops=c.embedding.crops,
        embedding_batch_size=c.embedding.batch_size,
        clustering=Clustering(**c.clustering),
        neighbours=c.retrieval.neighbours,
        probes=c.retrieval.probes,
        examples=c.report.examples,
        tsne_points=c.report.tsne_points,
        trackers=_trackers(c),
    )


def _budget(c: ConfigDict) -> Budget | None:
    if c.data.labels_per_class == 0 and c.data.label_fraction == 1:
        return None
    typical = c.data.label_choice == "typical"
    return Budget(c.data.labels_per_class, c.data.label_fraction, typical)


def _trackers(c: ConfigDict) -> dict[str, Opener]:
    """What opens each tracker that the configuration names, by its name in messages."""
    t, found = c.tracking, dict[str, Opener]()
    about = {"name": c.name, "config": config.record(c)}
    if t.tensorboard:
        found["TensorBoard"] = TensorBoard
    if t.wandb:
        require("tracking.wandb", "wandb")
        found["Weights & Biases"] = partial(WandB, project=t.wandb, **about)
    if t.mlflow:
        require("tracking.mlflow", "mlflow")
        found["MLflow"] = partial(MLflow, experiment=t.mlflow, **about)
    return found


def load_images(c: ConfigDict) -> ImageSet:
    """The images that `c.data` names."""
    if c.data.source == "digits":
        return digits()
    if c.data.source == "tfds":
        return from_tfds(
            c.data.name, c.data.directory or _tfds_directory(), streaming=c.data.streaming
        )
    if c.data.source == "folder":
        return from_folder(
            c.data.directory,
            tuple(c.data.image_size),
            channels=c.data.channels,
            max_skipped=c.data.max_skipped,
            streaming=c.data.streaming,
            class_depth=c.data.class_depth,
            labels=c.data.labels,
        )
    if c.data.source == "huggingface":
        return from_huggingface(
            c.data.name, tuple(c.data.image_size), c.data.channels, c.data.max_skipped
        )
    return from_npz(c.data.file)


def recipe(c: ConfigDict, sizes: Sizes) -> Recipe:
    """What `training.loop.train` needs, for that data.

    Raises:
      UserError: names the key that the data can't satisfy.
    """
    _check_against_data(c, sizes)
    built = Recipe(
        model=_network(c, sizes),
        objective=_objective(c, sizes),
        optimizer=_optimizer(c, sizes),
        views=_views(c),
        epochs=c.training.epochs,
        batch_size=c.training.batch_size,
        validation_batch_size=c.embedding.batch_size,
        steps_per_call=_steps_per_call(c),
        seed=c.seed,
        mixup=c.training.mixup,
        labelled_per_batch=c.training.labelled_per_batch,
        ema_decay=_ema_decay(c, sizes),
        average=c.embedding.average,
        monitor=_monitor(c),
        precision="tf32" if c.training.precision == "tf32" else "float32",
        streaming=c.data.streaming,
    )
    _check_shapes(c, built, sizes.image_shape)
    return built


def make(path: str, part: ConfigDict, **given: Any) -> Any:
    """Calls a part's function with its keys, and with what it asks for of `given`.

    Raises:
      UserError: what the function says of a key, behind the key's whole path.
    """
    function = part[config.MAKE]
    keys = {key: value for key, value in part.items() if key != config.MAKE}
    parameters = inspect.signature(function).parameters
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in given:
            raise UserError(
                f"{path}: the parameter {name!r} of {function.__name__} has no default, and is "
                f"none of those that are given ({', '.join(given) or 'none'}); give it a default"
            )
    with _named(path, keys):
        wanted = parameters.keys() - keys.keys()
        return function(**keys, **{key: of for key, of in given.items() if key in wanted})


@contextmanager
def _named(path: str, keys: Any) -> Iterator[None]:
    """Puts the path in front of what a function says of its parameters."""
    try:
        yield
    except ValueError as error:
        # By convention the message begins with the parameter.
        between = "." if str(error).partition(" ")[0] in keys else ": "
        raise UserError(f"{path}{between}{error}") from error


def _network(c: ConfigDict, sizes: Sizes) -> Network:
    """The encoder, and what the terms of the objective read."""
    needs = {head for term in _objective(c, sizes).values() for head in term.needs}
    if needs & {"prediction", "scores"} or c.embedding.layer == "projection":
        needs.add("projection")
    name = c.model.encoder.name
    given = {
        "axis_name": devices.AXIS,
        "dtype": _dtype(c),
        "channels": sizes.image_shape[2],
    }
    return Network(
        encoder=make(f"model.encoder.{name}", c.model.encoder[name], **given),
        **{
            part: make(f"model.{part}", c.model[part], **given) if head in needs else None
            for part, head in (
                ("decoder", "reconstruction"),
                ("projector", "projection"),
                ("predictor", "prediction"),
                ("prototypes", "scores"),
            )
        },
        head=Head(sizes.classes) if "logits" in needs else None,
        embeds=c.embedding.layer,
    )


def _dtype(c: ConfigDict) -> Any:
    return jnp.dtype("bfloat16" if c.training.precision == "bfloat16" else "float32")


def _objective(c: ConfigDict, sizes: Sizes) -> Objective:
    given = {"rows": sizes.fit, "classes": sizes.classes}
    return {
        name: make(f"objective.{name}", part, **given)
        for name, part in c.objective.items()
        if part.weight > 0
    }


def _ema_decay(c: ConfigDict, sizes: Sizes) -> float | optax.Schedule:
    """The constant, or BYOL's schedule: Grill et al. 2020, arXiv:2006.07733, section 3.3."""
    base = c.training.ema_decay
    if c.training.ema_schedule == "constant":
        return base
    steps = c.training.epochs * (sizes.fit // c.training.batch_size)
    return lambda step: 1 - (1 - base) * (jnp.cos(jnp.pi * step / steps) + 1) / 2


def _optimizer(c: ConfigDict, sizes: Sizes) -> optax.GradientTransformation:
    o, every = c.optimizer, c.training.accumulation
    updates = c.training.epochs * (sizes.fit // c.training.batch_size) // every
    with _named("optimizer", o):
        rate = learning_rate(o.learning_rate, updates, o.warmup_fraction, o.decay)
    built = make(f"optimizer.{o.name}", o[o.name], rate=rate)
    return optax.MultiSteps(built, every).gradient_transformation() if every > 1 else built


def _views(c: ConfigDict) -> tuple[views.View, ...]:
    return tuple(
        views.view(
            [
                make(f"views.{name}.{key}", part)
                for key, part in keys.items()
                if isinstance(part, ConfigDict)
            ],
            keys.count,
        )
        for name, keys in c.views.items()
    )


def _monitor(c: ConfigDict) -> monitor.Monitor | None:
    if c.training.monitor == "loss":
        return None
    return monitor.knn() if c.training.monitor == "knn" else monitor.nmi(c.clustering.k, c.seed)


def _steps_per_call(c: ConfigDict) -> int:
    if c.data.streaming:
        return 1
    most = devices.steps_per_call()
    # So that what is traced is what was asked for.
    return min(most, c.training.profile_steps or most)


def _check_against_data(c: ConfigDict, sizes: Sizes) -> None:
    t = c.training
    if c.embedding.average and t.ema_decay == 0:
        raise UserError(
            "embedding.average is True but training.ema_decay is 0, so there is no averaged "
            "network; set it above 0"
        )
    objective = _objective(c, sizes)
    classified = any("logits" in term.needs for term in objective.values())
    if c.embedding.layer == "probabilities" and not classified:
        raise UserError(
            "embedding.layer is 'probabilities', but no term of the objective trains a classifier; "
            "set objective.classification.weight above 0"
        )
    asking = [
        f"objective.{name}"
        for name, term in objective.items()
        if {"logits", "labels"} & set(term.needs)
    ]
    if t.labelled_per_batch:
        asking.append("training.labelled_per_batch")
    if t.monitor != "loss":
        asking.append("training.monitor")
    if t.labelled_per_batch >= t.batch_size:
        raise UserError(
            f"training.labelled_per_batch is {t.labelled_per_batch} but training.batch_size is "
            f"{t.batch_size}; lower it"
        )
    views = sum(keys.count for keys in c.views.values())
    for name, term in objective.items():
        if views < term.views:
            raise UserError(
                f"objective.{name} compares {term.views} views of each image or more, but there "
                f"{'is' if views == 1 else 'are'} {views}; raise views.main.count"
            )
        if term.refresh and "embedding" in term.needs and c.embedding.layer != "backbone":
            raise UserError(
                f"objective.{name} compares embeddings of the backbone with their clusters, but "
                f"embedding.layer is {c.embedding.layer!r}; set embedding.layer=backbone"
            )
        if term.needs_target and t.ema_decay == 0:
            raise UserError(
                f"objective.{name} compares with the averaged network, but training.ema_decay is "
                "0; set it above 0"
            )
    if asking and sizes.classes < 2:
        lack = "one class only" if sizes.classes else "no labels"
        raise UserError(
            f"{asking[0]} needs labels of two classes or more, but the data has {lack}; turn it "
            "off or give labels"
        )
    if t.batch_size > sizes.fit:
        raise UserError(
            f"training.batch_size is {t.batch_size} but there are {sizes.fit} images to fit; "
            "lower it"
        )
    steps = sizes.fit // t.batch_size
    if t.profile_steps > steps // 2:
        raise UserError(
            f"training.profile_steps is {t.profile_steps} but an epoch has {steps} steps, "
            f"of which {steps // 2} can be traced; lower it"
        )
    if t.epochs and t.accumulation > t.epochs * steps:
        raise UserError(
            f"training.accumulation is {t.accumulation} but there are {t.epochs * steps} batches "
            "in all; lower it"
        )


def _check_shapes(c: ConfigDict, built: Recipe, image_shape: tuple[int, int, int]) -> None:
    """Refuses views and networks that these images don't fit."""
    image = jax.ShapeDtypeStruct(image_shape, jnp.float32)
    batch = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    key = jax.random.key(0)
    shapes = {"the image itself": batch}
    for (name, keys), view in zip(c.views.items(), built.views, strict=True):
        with _named(f"views.{name}", keys):
            seen = jax.eval_shape(view.augment, key, image)
        shapes[f"views.{name}"] = jax.ShapeDtypeStruct((1, *seen.shape), jnp.float32)
    if side := c.embedding.crops:
        if side > min(image_shape[:2]):
            raise UserError(
                f"embedding.crops is {side} but the images are {_sides(batch)}; lower it"
            )
        shapes["embedding.crops"] = jax.ShapeDtypeStruct((1, side, side, image_shape[2]), "float32")
    encoder = c.model.encoder.name
    for name, shape in shapes.items():
        with _named(f"model.encoder.{encoder}", c.model.encoder[encoder]):
            outputs, _ = jax.eval_shape(built.model.init_with_output, key, shape)
        found = outputs.reconstruction
        if found is not None and found.shape != shape.shape:
            raise UserError(
                f"model.decoder.widths: {name} is {_sides(shape)} but its reconstruction "
                f"{_sides(found)}; give it as many stages as the encoder halves the sides"
            )


def _sides(image: Any) -> str:
    return "×".join(map(str, image.shape[1:]))


def _tfds_directory() -> str | Path:
    """Where TFDS itself would look, made if it isn't there."""
    named = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    if is_remote(named):
        return named
    path = Path(named).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"TFDS' data directory {str(path)!r} can't be made ({error.strerror}); name one with "
            "data.directory"
        ) from error
    return path
