"""Flax modules: encoders, the decoder, heads, and the network that joins them."""

from retrieval_jax.models.convs import (
    Conv3x3,
    conv,
    conv_from_narrow,
    conv_mean,
    conv_to_narrow,
    upsample_conv,
)
from retrieval_jax.models.decoder import Decoder
from retrieval_jax.models.encoders import Encoder
from retrieval_jax.models.heads import MLP, Head
from retrieval_jax.models.network import Network, Outputs

__all__ = [
    "MLP",
    "Conv3x3",
    "Decoder",
    "Encoder",
    "Head",
    "Network",
    "Outputs",
    "conv",
    "conv_from_narrow",
    "conv_mean",
    "conv_to_narrow",
    "upsample_conv",
]
