"""Flax modules: the convolutional autoencoder with an optional classification head."""

from retrieval_jax.models.autoencoder import (
    AutoEncoder,
    Decoder,
    Encoder,
    Head,
    Outputs,
    unit_norm,
)
from retrieval_jax.models.upsample_conv import UpsampleConv, upsample_conv

__all__ = [
    "AutoEncoder",
    "Decoder",
    "Encoder",
    "Head",
    "Outputs",
    "UpsampleConv",
    "unit_norm",
    "upsample_conv",
]
