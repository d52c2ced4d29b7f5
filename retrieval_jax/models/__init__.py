"""Flax modules: the convolutional autoencoder with an optional classification head."""

from retrieval_jax.models.convs import (
    Conv3x3,
    conv,
    conv_from_narrow,
    conv_mean,
    conv_to_narrow,
)
from retrieval_jax.models.network import (
    AutoEncoder,
    Decoder,
    Encoder,
    Head,
    Outputs,
)
from retrieval_jax.models.upsample_conv import upsample_conv

__all__ = [
    "AutoEncoder",
    "Conv3x3",
    "Decoder",
    "Encoder",
    "Head",
    "Outputs",
    "conv",
    "conv_from_narrow",
    "conv_mean",
    "conv_to_narrow",
    "upsample_conv",
]
