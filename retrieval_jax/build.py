"""The one place where a checked configuration becomes objects."""

from __future__ import annotations

import os
from pathlib import Path

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from retrieval_jax.data.folder import from_folder
from retrieval_jax.data.images import ImageSet, digits
from retrieval_jax.data.npz import from_npz
from retrieval_jax.data.tfds import from_tfds
from retrieval_jax.models import AutoEncoder, Decoder, Encoder, Head
from retrieval_jax.objectives.objective import (
    Objective,
    Term,
    classification_term,
    reconstruction_term,
)
from retrieval_jax.runtime import devices
from retrieval_jax.runtime.errors import UserError
from retrieval_jax.runtime.files import is_remote
from retrieval_jax.training.epochs import Recipe
from retrieval_jax.training.optimizers import build_optimizer, learning_rate
from retrieval_jax.training.views import augmentation


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
        )
    return from_npz(c.data.file)


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


def build_recipe(c: ConfigDict, channels: int, classes: int, fit: int) -> Recipe:
    """What `training.loop.train` needs, for images of `channels` and `fit` images to fit."""
    batches = c.training.epochs * (fit // c.training.batch_size)
    return Recipe(
        model=_build_model(c, channels, classes),
        objective=_build_objective(c),
        optimizer=_build_optimizer(c, batches),
        augment=augmentation(**c.augmentation),
        ema_decay=c.training.ema_decay,
        epochs=c.training.epochs,
        batch_size=c.training.batch_size,
        validation_batch_size=c.embedding.batch_size,
        steps_per_call=_steps_per_call(c),
        streaming=c.data.streaming,
        seed=c.seed,
    )


def _steps_per_call(c: ConfigDict) -> int:
    if c.data.streaming:
        return 1
    most = devices.steps_per_call()
    # So that what is traced is what was asked for.
    return min(most, c.training.profile_steps or most)


def _build_model(c: ConfigDict, channels: int, classes: int) -> AutoEncoder:
    common = {
        "momentum": c.model.norm_momentum,
        "axis_name": devices.AXIS,
        "dtype": jnp.dtype(c.training.precision),
    }
    head = Head(classes) if c.objective.classification_weight > 0 else None
    return AutoEncoder(
        encoder=Encoder(tuple(c.model.encoder_widths), c.model.bottleneck, **common),
        decoder=Decoder(tuple(c.model.decoder_widths), channels, **common),
        head=head,
    )


def _build_objective(c: ConfigDict) -> Objective:
    terms: dict[str, Term] = {}
    if c.objective.reconstruction_weight > 0:
        terms["reconstruction"] = reconstruction_term(c.objective.reconstruction_weight)
    if c.objective.classification_weight > 0:
        terms["classification"] = classification_term(
            c.objective.classification_weight, c.objective.label_smoothing
        )
    return terms


def _build_optimizer(c: ConfigDict, batches: int) -> optax.GradientTransformation:
    o = c.optimizer
    every = c.training.accumulation
    rate = learning_rate(o.learning_rate, batches // every, o.warmup_fraction, o.decay)
    built = build_optimizer(
        o.name,
        rate,
        b1=o.b1,
        b2=o.b2,
        epsilon=o.epsilon,
        momentum=o.momentum,
        weight_decay=o.weight_decay,
    )
    return optax.MultiSteps(built, every).gradient_transformation() if every > 1 else built
