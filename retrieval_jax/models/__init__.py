"""Flax modules: encoders, the decoder, heads, and the network that joins them."""

from retrieval_jax.models.convs import (
    Conv3x3,
    conv,
    conv_from_narrow,
    conv_mean,
    conv_to_narrow,
    conv_wide,
    upsample_conv,
)
from retrieval_jax.models.decoder import Decoder
from retrieval_jax.models.encoders import Encoder, convolutional
from retrieval_jax.models.heads import MLP, Head, Prototypes
from retrieval_jax.models.lite0 import efficientnet_lite0
from retrieval_jax.models.network import Network, Outputs
from retrieval_jax.models.resnets import PooledResNet, ResNet, resnet9, resnet18, small_resnet

# Of a config: each name is a section of `model.encoder`.
ENCODERS = (convolutional, small_resnet, resnet9, resnet18, efficientnet_lite0)

__all__ = [
    "ENCODERS",
    "MLP",
    "Conv3x3",
    "Decoder",
    "Encoder",
    "Head",
    "Network",
    "Outputs",
    "PooledResNet",
    "Prototypes",
    "ResNet",
    "conv",
    "conv_from_narrow",
    "conv_mean",
    "conv_to_narrow",
    "conv_wide",
    "convolutional",
    "efficientnet_lite0",
    "resnet18",
    "resnet9",
    "small_resnet",
    "upsample_conv",
]
