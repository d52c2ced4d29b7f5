"""EfficientNet-lite0, a network for photographs that needs no training: it comes with its weights.

References:
  M. Tan and Q. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
    ICML 2019, https://arxiv.org/abs/1905.11946. The lite variant, by Google in 2020, drops
    squeeze-and-excitation and has ReLU6 for swish; 75.1 % top-1 on ImageNet.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import unflatten_dict
from jax import lax

# Kernel, stride, expansion, channels and number of blocks of each stage.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


class EfficientNetLite0(nn.Module):
    """RGB images of 0 … 1, [n, h, w, 3] of any size from 32 → features float32 [n, 1280].

    BatchNorm is folded into the convolutions (`lite0_weights`), so that there is nothing to update
    and no statistics of a batch: what an image gives doesn't depend on its neighbours.

    Example:
      >>> model = EfficientNetLite0()
      >>> params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))  # with the classifier
      4631000
    """

    dtype: jax.typing.DTypeLike = jnp.float32  # what convolutions are computed in

    def setup(self) -> None:
        self.stem = _Convolution(32, 3, self.dtype)
        self.blocks = [_Block(*block, self.dtype) for block in _blocks()]
        self.head = _Convolution(1280, dtype=self.dtype)
        self.classifier = nn.Dense(1000)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits [n, 1000] of ImageNet's classes."""
        return self.classifier(self.features(images))

    def embed(self, images: jax.Array) -> jax.Array:
        """The features [n, 1280], to embed by: on a CPU two images at a time.

        Their activations fit into its caches, for 0.6 × the time of 32 at once.
        """
        count = images.shape[0]
        if not isinstance(count, int) or count <= 2:  # a symbol in an exported program
            return self.features(images)
        at_once = 2 if count % 2 == 0 else 1
        # Flax's modules can't be called inside of JAX's transformations, functions of them can.
        module, variables = self.unbind()

        def whole(images: jax.Array) -> jax.Array:
            return module.apply(variables, images, method="features")  # type: ignore[return-value]

        def parts(images: jax.Array) -> jax.Array:
            found = lax.map(whole, images.reshape(-1, at_once, *images.shape[1:]))
            return found.reshape(count, -1)

        return lax.platform_dependent(images, cpu=parts, default=whole)

    def features(self, images: jax.Array) -> jax.Array:
        """The features [n, 1280], of which the classifier is a linear function."""
        x = (images * 255 - 127) / 128  # as the lite variant was trained; the others differ
        x = nn.relu6(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return nn.relu6(self.head(x)).mean((1, 2), jnp.float32)


class Resized(nn.Module):
    """The network on images of any size, grey ones too, as an encoder of configs.

    Call with images float [n, h, w, 1 or 3] in [0, 1]; returns float32 [n, 1280].

    Attributes:
      size: side of the squares to which images are resized.
      pretrained: whether training starts from ImageNet's weights.
      dtype: what convolutions are computed in.
    """

    size: int
    pretrained: bool
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, method: str = "features"
    ) -> jax.Array:
        shape = (images.shape[0], self.size, self.size, images.shape[-1])
        resized = jax.image.resize(images, shape, "linear")
        network = EfficientNetLite0(self.dtype, name="network")
        return getattr(network, method)(jnp.broadcast_to(resized, (*shape[:3], 3)))

    def embed(self, images: jax.Array) -> jax.Array:
        """Embeddings float32 [n, 1280], as fast as the network gives them."""
        return self(images, method="embed")

    def initial(self) -> dict[str, Any]:
        """Parameters to start from; none if they are drawn at random.

        Raises:
          UserError: the weights aren't installed.
        """
        if not self.pretrained:
            return {}
        from retrieval_jax.data.lite0_weights import lite0_params  # it reads files

        params = nested(lite0_params())["params"]
        del params["classifier"]
        return {"network": params}


def nested(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters by name, as the variables of the module."""
    return {"params": unflatten_dict(params, sep="/")}


def efficientnet_lite0(
    *,
    dtype: jax.typing.DTypeLike,
    channels: int,
    size: int = 96,
    pretrained: bool = True,
) -> Resized:
    """EfficientNet-lite0, 1,280 features: to fine-tune, to train, or as it is.

    Args:
      dtype: what it computes in.
      channels: of the images, 1 or 3.
      size: side of the squares to which images are resized, 32 or more.
      pretrained: start from ImageNet's weights, of the extra `photos`; else at random.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels of the images must be 1 or 3, got {channels}")
    if size < 32:
        raise ValueError(f"size must be at least 32, got {size}")
    return Resized(size, pretrained, dtype)


class _Convolution(nn.Module):
    features: int
    size: int = 1  # or 3, of stride 2
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        convolve = pointwise if self.size == 1 else halving
        return convolve(x.astype(self.dtype), kernel) + bias


class _Depthwise(nn.Module):
    size: int
    stride: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, 1, x.shape[-1])
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return depthwise(x, kernel.astype(self.dtype), self.stride) + bias.astype(self.dtype)


class _Block(nn.Module):
    """Inverted residual: expand, filter each channel, project."""

    size: int
    stride: int
    expansion: int
    features: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wide, convolution = x, partial(_Convolution, dtype=self.dtype)
        if self.expansion > 1:
            wide = nn.relu6(convolution(x.shape[-1] * self.expansion, name="expand")(x))
        depthwise = _Depthwise(self.size, self.stride, self.dtype, name="depthwise")
        wide = nn.relu6(depthwise(wide))
        narrow = convolution(self.features, name="project")(wide)
        return x + narrow if narrow.shape == x.shape else narrow


def pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution of one position, as one matrix product: [n, h, w, c] and [1, 1, c, d]."""
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)


def halving(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution of stride 2, with TensorFlow's SAME padding, on images of few channels.

    XLA's CPU backend is slow at these: a matrix product of gathered taps takes half the time there.

    Args:
      x: [n, h, w, c].
      kernel: [k, k, c, d].

    Returns:
      [n, ⌈h / 2⌉, ⌈w / 2⌉, d].
    """

    def gathered(x: jax.Array, kernel: jax.Array) -> jax.Array:
        taps = jnp.concatenate(list(_taps(x, len(kernel), 2)), -1)
        return pointwise(taps, kernel.reshape(1, 1, -1, kernel.shape[-1]))

    return lax.platform_dependent(x, kernel, cpu=gathered, default=partial(_convolved, stride=2))


def depthwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Filters each channel by itself, with TensorFlow's SAME padding.

    XLA's CPU backend has no fast convolution of groups: a sum over the kernel's taps of shifted
    images, one fused loop, takes its place there.

    Args:
      x: [n, h, w, c].
      kernel: [k, k, 1, c].
      stride: of both axes.

    Returns:
      [n, ⌈h / stride⌉, ⌈w / stride⌉, c].
    """

    def shifted(x: jax.Array, kernel: jax.Array) -> jax.Array:
        weights = kernel.reshape(-1, x.shape[-1])
        taps = _taps(x, len(kernel), stride)
        return sum((tap * weights[i] for i, tap in enumerate(taps)), jnp.zeros((), x.dtype))

    default = partial(_convolved, stride=stride, groups=x.shape[-1])
    return lax.platform_dependent(x, kernel, cpu=shifted, default=default)


def _convolved(x: jax.Array, kernel: jax.Array, stride: int, groups: int = 1) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _taps(x: jax.Array, size: int, stride: int) -> Iterator[jax.Array]:
    """What each position of a kernel, row by row, is multiplied with: size² of [n, h', w', c]."""
    outs = [-(-side // stride) for side in x.shape[1:3]]
    totals = [max((o - 1) * stride + size - s, 0) for o, s in zip(outs, x.shape[1:3], strict=True)]
    pads = [(total // 2, total - total // 2) for total in totals]
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    height, width = ((out - 1) * stride + 1 for out in outs)
    for i in range(size):
        for j in range(size):
            yield padded[:, i : i + height : stride, j : j + width : stride]


def _blocks() -> Iterator[tuple[int, int, int, int]]:
    for size, stride, expansion, features, repeats in _STAGES:
        for i in range(repeats):
            yield size, stride if i == 0 else 1, expansion, features
