"""Residual encoders: a small one for CPUs and ResNet-9, stages with pools; and ResNet-18.

All are called as `encoders` says and return a feature map; BatchNorm's batch statistics are over
the whole batch. Convolutions in front of BatchNorm have no bias, and kernels are He-normal.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from retrieval_jax.models.convs import conv_wide
from retrieval_jax.models.encoders import check_momentum, check_widths, max_pool_2x2

_HE = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ConvNorm(nn.Module):
    """A 3×3 convolution of stride 1 without bias, a 2×2 max-pool where one is asked for, BatchNorm.

    The pool comes first: BatchNorm and all behind it then see a quarter of the values.

    Attributes:
      features: of the result.
      pool: whether the sides are halved.
      momentum: share of the old in BatchNorm's running statistics, per step.
      axis_name: mapped axis over which BatchNorm's batch statistics are averaged in training.
      dtype: what it computes in; parameters and statistics are float32.
    """

    features: int
    momentum: float
    axis_name: str | None
    dtype: jax.typing.DTypeLike
    pool: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        kernel = self.param("kernel", _HE, (3, 3, x.shape[-1], self.features))
        x = conv_wide(x.astype(self.dtype), kernel.astype(self.dtype))
        x = max_pool_2x2(x) if self.pool else x
        return nn.BatchNorm(
            not train,
            momentum=self.momentum,
            axis_name=self.axis_name,
            dtype=self.dtype,
            name="norm",
        )(x)


class PooledResNet(nn.Module):
    """Stages of convolution, 2×2 max-pool, BatchNorm and ReLU, with residual blocks behind some.

    Attributes:
      widths: features of each stage.
      pooled: bool per stage, whether it halves the sides.
      blocks: residual blocks of two convolutions at the end of each stage.
      momentum, axis_name, dtype: as in `ConvNorm`.

    Raises:
      ValueError: a side of the images is not divisible by 2 per pool.
    """

    widths: Sequence[int]
    pooled: Sequence[bool]
    blocks: Sequence[int]
    momentum: float = 0.9
    axis_name: str | None = None
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        stride = 2 ** sum(self.pooled)
        if any(side % stride for side in images.shape[1:3]):
            raise ValueError(
                f"widths has {sum(self.pooled)} pools, which need image sides divisible by "
                f"{stride}; the images are {images.shape[1]}×{images.shape[2]}: resize them or "
                "change the stages"
            )
        make = partial(ConvNorm, momentum=self.momentum, axis_name=self.axis_name, dtype=self.dtype)
        x = images
        for i, (features, pool, blocks) in enumerate(
            zip(self.widths, self.pooled, self.blocks, strict=True), 1
        ):
            x = nn.relu(make(features, pool=pool, name=f"stage{i}")(x, train))
            for j in range(1, blocks + 1):
                inner = nn.relu(make(features, name=f"stage{i}_block{j}_conv1")(x, train))
                x += nn.relu(make(features, name=f"stage{i}_block{j}_conv2")(inner, train))
        return x


def small_resnet(
    *,
    axis_name: str | None,
    dtype: jax.typing.DTypeLike,
    widths: Sequence[int] = (32, 64, 128),
    blocks: Sequence[int] = (0, 0, 1),
    momentum: float = 0.9,
) -> PooledResNet:
    """A small residual network for CPUs: a pool after each stage but the last.

    Args:
      axis_name: mapped axis over which BatchNorm's batch statistics are averaged.
      dtype: what it computes in.
      widths: features of each stage; the last is the embedding's size.
      blocks: residual blocks of each stage; all 0 is a plain convolutional network.
      momentum: share of the old in BatchNorm's running statistics, per step.

    Raises:
      ValueError: names the parameter that is out of range.

    Example:
      >>> encoder = small_resnet(axis_name=None, dtype=jnp.float32, blocks=(0, 0, 0))
      >>> variables = encoder.init(jax.random.key(0), jnp.zeros((1, 24, 24, 3)))
      >>> sum(x.size for x in jax.tree.leaves(variables["params"]))
      93472
    """
    check_widths(widths)
    if len(blocks) != len(widths) or min(blocks) < 0:
        raise ValueError(
            f"blocks must be {len(widths)} numbers from 0, one for each of widths, got "
            f"{tuple(blocks)}"
        )
    check_momentum(momentum)
    pooled = (True,) * (len(widths) - 1) + (False,)
    return PooledResNet(tuple(widths), pooled, tuple(blocks), momentum, axis_name, dtype)


def resnet9(
    *,
    axis_name: str | None,
    dtype: jax.typing.DTypeLike,
    width: int = 64,
    momentum: float = 0.9,
) -> PooledResNet:
    """ResNet-9 of D. Page 2018, "How to train your ResNet", for images of about 32×32.

    Args:
      axis_name: mapped axis over which BatchNorm's batch statistics are averaged.
      dtype: what it computes in.
      width: features of the first stage; the embedding has eight times as many.
      momentum: share of the old in BatchNorm's running statistics, per step.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    check_momentum(momentum)
    widths = (width, 2 * width, 4 * width, 8 * width)
    pooled = (False, True, True, True)
    return PooledResNet(widths, pooled, (0, 1, 0, 1), momentum, axis_name, dtype)


class ResNet(nn.Module):
    """ResNet of basic blocks, He et al. 2015, arXiv:1512.03385, table 1.

    Stages halve the sides but for the first one, and double the features.

    Attributes:
      depths: blocks of each stage.
      width: features of the first stage.
      stem: "cifar", a 3×3 convolution of stride 1 (section 4.2), or "photo", 7×7 of stride 2 and a
        3×3 max-pool of stride 2 (section 4.1).
      momentum, axis_name, dtype: as in `ConvNorm`.
    """

    depths: Sequence[int] = (2, 2, 2, 2)
    width: int = 64
    stem: str = "cifar"
    momentum: float = 0.9
    axis_name: str | None = None
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        convolve = partial(nn.Conv, use_bias=False, dtype=self.dtype, kernel_init=_HE)
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=self.momentum,
            axis_name=self.axis_name,
            dtype=self.dtype,
        )
        if self.stem == "photo":
            x = convolve(self.width, (7, 7), 2, name="stem")(images)
            x = nn.relu(norm(name="stem_norm")(x))
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        else:
            x = convolve(self.width, (3, 3), name="stem")(images)
            x = nn.relu(norm(name="stem_norm")(x))
        for i, blocks in enumerate(self.depths):
            features = self.width * 2**i
            for j in range(blocks):
                at, stride = f"stage{i + 1}_block{j + 1}", 2 if i and not j else 1
                y = nn.relu(
                    norm(name=f"{at}_norm1")(
                        convolve(features, (3, 3), stride, name=f"{at}_conv1")(x)
                    )
                )
                y = convolve(features, (3, 3), name=f"{at}_conv2")(y)
                y = norm(name=f"{at}_norm2")(y)
                if stride > 1 or x.shape[-1] != features:
                    x = convolve(features, (1, 1), stride, name=f"{at}_shortcut")(x)
                    x = norm(name=f"{at}_shortcut_norm")(x)
                x = nn.relu(x + y)
        return x


def resnet18(
    *,
    axis_name: str | None,
    dtype: jax.typing.DTypeLike,
    width: int = 64,
    stem: str = "cifar",
    momentum: float = 0.9,
) -> ResNet:
    """ResNet-18, He et al. 2015, arXiv:1512.03385.

    Args:
      axis_name: mapped axis over which BatchNorm's batch statistics are averaged.
      dtype: what it computes in.
      width: features of the first stage; the embedding has eight times as many.
      stem: "cifar" for images of about 32×32, "photo" for larger ones.
      momentum: share of the old in BatchNorm's running statistics, per step.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    if stem not in ("cifar", "photo"):
        raise ValueError(f"stem must be 'cifar' or 'photo', got {stem!r}")
    check_momentum(momentum)
    return ResNet((2, 2, 2, 2), width, stem, momentum, axis_name, dtype)
