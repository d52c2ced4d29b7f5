"""The network against the protocol's table and against plain NumPy and XLA convolutions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import linen as nn
from jax.test_util import check_grads
from numpy_model import autoencoder, conv, mlp, randomised

from retrieval_jax.models import (
    MLP,
    Decoder,
    Encoder,
    Head,
    Network,
    Prototypes,
    conv_from_narrow,
    conv_mean,
    conv_to_narrow,
    conv_wide,
    resnet9,
    resnet18,
    small_resnet,
    upsample_conv,
)
from retrieval_jax.models.encoders import max_pool_2x2
from retrieval_jax.runtime.devices import quick_jit


def sizes(tree):
    return {
        "/".join(part.key for part in path): leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def total(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def initial(model, shape=(1, 32, 32, 3)):
    return quick_jit(model.init)(jax.random.key(0), jnp.zeros(shape))


@pytest.mark.fast
def test_parameter_counts_are_the_protocols():
    variables = jax.eval_shape(lambda: initial(Network(Encoder(), Decoder(), Head(10))))
    counts = {}
    for name, size in sizes(variables).items():
        _, part, layer, _ = name.split("/")
        counts[part, layer] = counts.get((part, layer), 0) + size
    assert counts == {
        ("encoder", "conv1"): 896,
        ("encoder", "norm1"): 128,
        ("encoder", "conv2"): 18_496,
        ("encoder", "norm2"): 256,
        ("encoder", "bottleneck"): 73_856,
        ("decoder", "norm0"): 512,
        ("decoder", "conv1"): 147_584,
        ("decoder", "norm1"): 512,
        ("decoder", "conv2"): 73_792,
        ("decoder", "norm2"): 256,
        ("decoder", "output"): 1_731,
        ("head", "dense"): 1_290,
    }
    assert total(variables) == 318_019 + 1_290
    assert total(variables["params"]) == 317_187 + 1_290


def test_initial_kernels_are_glorot_uniform_and_biases_zero():
    params = initial(Network(Encoder(), Decoder(), Head(10)))["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        kind = path[-1].key
        if kind == "bias":
            assert not np.any(leaf)
        if kind == "kernel":
            area = np.prod(leaf.shape[:-2])
            limit = np.sqrt(6 / (area * (leaf.shape[-2] + leaf.shape[-1])))
            assert np.abs(leaf).max() <= limit
            assert np.std(leaf) == pytest.approx(limit / np.sqrt(3), rel=0.05)


def test_other_depths_and_channels():
    shape = (1, 16, 8, 4)
    model = Network(Encoder((3, 5, 7), 9), Decoder((4, 3, 2), 4))
    images = jax.random.uniform(jax.random.key(1), shape)
    outputs = jax.jit(model.apply)(initial(model, shape), images)
    assert outputs.reconstruction.shape == shape and outputs.embedding.shape == (1, 9)
    assert outputs.logits is None
    assert outputs.reconstruction.min() > 0 and outputs.reconstruction.max() < 1


@pytest.mark.fast
def test_sides_that_the_stride_does_not_divide_are_refused():
    with pytest.raises(ValueError, match="divisible by 4; the images are 10×8: resize"):
        initial(Network(Encoder(), Decoder()), (1, 10, 8, 3))


def test_the_whole_model_equals_plain_numpy():
    model = Network(Encoder((3, 4), 5), Decoder((4, 3), 2), Head(6))
    images = np.random.default_rng(0).random((2, 8, 12, 2), np.float32)
    variables = randomised(*jax.tree.flatten(initial(model, images.shape)), seed=1)
    outputs = jax.jit(model.apply)(variables, images)
    embedding, reconstruction, logits, _ = autoencoder(
        variables["params"], variables["batch_stats"], images
    )
    np.testing.assert_allclose(outputs.embedding, embedding, rtol=2e-5)
    np.testing.assert_allclose(outputs.logits, logits, rtol=2e-5)
    np.testing.assert_allclose(outputs.reconstruction, reconstruction, rtol=2e-4, atol=1e-6)

    @jax.jit
    def methods(variables, images):
        return [model.apply(variables, images, method=name) for name in ("embed", "reconstruct")]

    embedded, reconstructed = methods(variables, images)
    np.testing.assert_allclose(embedded, embedding, rtol=2e-5)
    np.testing.assert_allclose(reconstructed, reconstruction, rtol=2e-4, atol=1e-6)


class Flat(nn.Module):
    """An encoder of another kind: it returns the embedding."""

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(4, name="dense")(images.reshape(len(images), -1))


@pytest.mark.fast
def test_residual_encoders_have_the_papers_parameters_and_sizes():
    """Of ResNet-18 as torchvision counts them, 11,689,512, less its classifier's 513,000."""
    given = {"axis_name": None, "dtype": jnp.bfloat16}
    for encoder, side, count, shape in (
        (resnet18(**given), 32, 11_168_832, (2, 4, 4, 512)),
        (resnet18(**given, stem="photo"), 96, 11_176_512, (2, 3, 3, 512)),
        (resnet9(**given), 32, 6_568_000, (2, 4, 4, 512)),
        (small_resnet(**given), 24, 388_896, (2, 6, 6, 128)),
    ):
        images = jnp.zeros((2, side, side, 3))
        variables = jax.eval_shape(encoder.init, jax.random.key(0), images)
        assert total(variables["params"]) == count
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
        found = jax.eval_shape(encoder.apply, variables, images)
        assert (found.shape, found.dtype) == (shape, jnp.bfloat16)
    with pytest.raises(ValueError, match="divisible by 8"):
        resnet9(**given).init(jax.random.key(0), jnp.zeros((1, 12, 12, 3)))


def numpy_residual(params, stats, images):
    """`small_resnet` with a block behind its second and last stage, by the running statistics."""

    def conv_norm(x, name):
        layer, of = params[name], stats[name]["norm"]
        x = conv(x, {"kernel": layer["kernel"], "bias": 0.0})
        scaled = (x - of["mean"]) / np.sqrt(of["var"] + 1e-5)
        return scaled * layer["norm"]["scale"] + layer["norm"]["bias"]

    def relu(x):
        return np.maximum(x, 0)

    x = relu(conv_norm(images.astype(np.float64), "stage1"))
    x = np.stack([x[:, i::2, j::2] for i in range(2) for j in range(2)]).max(0)
    x = relu(conv_norm(x, "stage2"))
    inner = relu(conv_norm(x, "stage2_block1_conv1"))
    return x + relu(conv_norm(inner, "stage2_block1_conv2"))


def test_a_residual_encoder_equals_plain_numpy():
    encoder = small_resnet(axis_name=None, dtype=jnp.float32, widths=(3, 4), blocks=(0, 1))
    images = np.random.default_rng(0).random((3, 6, 4, 2), np.float32)
    variables = randomised(*jax.tree.flatten(initial(encoder, images.shape)), seed=1)
    expected = numpy_residual(variables["params"], variables["batch_stats"], images)
    assert (expected > 0).mean() > 0.1
    np.testing.assert_allclose(quick_jit(encoder.apply)(variables, images), expected, rtol=1e-4)


def test_prototypes_score_by_cosine_and_a_projection_may_embed():
    model = Network(Flat(), projector=MLP((6, 3)), prototypes=Prototypes(5), embeds="projection")
    images = np.random.default_rng(0).random((7, 2, 3, 1), np.float32)
    variables = randomised(*jax.tree.flatten(initial(model, images.shape)), seed=1)
    outputs = quick_jit(model.apply)(variables, images)
    rows = np.asarray(outputs.projection, np.float64)
    kernel = variables["params"]["prototypes"]["kernel"].astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(kernel, axis=0)
    np.testing.assert_allclose(outputs.scores, rows @ kernel / lengths, rtol=1e-4)
    embedded = quick_jit(lambda v, x: model.apply(v, x, method="embed"))(variables, images)
    np.testing.assert_array_equal(embedded, outputs.projection)


def test_probabilities_may_embed():
    model = Network(Flat(), head=Head(3), embeds="probabilities")
    images = np.random.default_rng(0).random((7, 2, 3, 1), np.float32)
    variables = randomised(*jax.tree.flatten(initial(model, images.shape)), seed=1)
    logits = quick_jit(model.apply)(variables, images).logits
    embedded = quick_jit(lambda v, x: model.apply(v, x, method="embed"))(variables, images)
    np.testing.assert_allclose(embedded, np.sqrt(scipy.special.softmax(logits, 1)), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("train", [False, True])
def test_projector_and_predictor_equal_plain_numpy_on_an_encoder_without_a_map(train):
    model = Network(Flat(), projector=MLP((6, 3)), predictor=MLP((5, 2)))
    images = np.random.default_rng(0).random((7, 2, 3, 1), np.float32)
    variables = randomised(*jax.tree.flatten(initial(model, images.shape)), seed=1)
    assert set(variables["params"]) == {"encoder", "projector", "predictor"}
    outputs, after = jax.jit(model.apply, static_argnames=("train", "mutable"))(
        variables, images, train=train, mutable=("batch_stats",)
    )
    params, stats = variables["params"], variables["batch_stats"]
    dense = params["encoder"]["dense"]
    embedding = images.reshape(7, -1).astype(np.float64) @ dense["kernel"] + dense["bias"]
    projection, one = mlp(params["projector"], stats["projector"], embedding, train)
    prediction, two = mlp(params["predictor"], stats["predictor"], projection, train)
    np.testing.assert_allclose(outputs.embedding, embedding, rtol=1e-5)
    np.testing.assert_allclose(outputs.projection, projection, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(outputs.prediction, prediction, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(model.apply(variables, images, method="embed"), outputs.embedding)
    assert outputs.reconstruction is outputs.logits is None
    if train:
        expected = {"projector": one, "predictor": two}
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            dict(after["batch_stats"]),
            expected,
        )


@pytest.mark.fast
def test_a_decoder_needs_a_map():
    with pytest.raises(ValueError, match=r"needs an encoder that returns a feature map .*\(1, 4\)"):
        initial(Network(Flat(), Decoder()), (1, 8, 8, 1))


def test_bfloat16_computes_within_its_rounding_and_keeps_the_rest_in_float32():
    """bfloat16 has 8 bits: 0.4 % a rounding; a few layers of it stay within 3 % of the largest."""

    def results(dtype):
        model = Network(Encoder((8,), 12, dtype=dtype), Decoder((8,), 3, dtype=dtype))

        @jax.jit
        def all_of(variables, images):
            def loss(params):
                outputs, updates = model.apply(
                    variables | {"params": params}, images, True, mutable=["batch_stats"]
                )
                return jnp.mean((outputs.reconstruction - images) ** 2), (outputs, updates)

            gradients, (outputs, updates) = jax.grad(loss, has_aux=True)(variables["params"])
            if dtype == jnp.float32:
                return gradients, outputs, updates
            # The average over positions is the whole network's, or the encoder's own.
            embedded = model.apply(variables, images, method="embed")
            return gradients, outputs, updates, embedded, model.apply(variables, images).embedding

        return all_of(variables, images)

    images = jax.random.uniform(jax.random.key(1), (4, 4, 4, 3))
    variables = initial(Network(Encoder((8,), 12), Decoder((8,), 3)), (1, 4, 4, 3))
    gradients, outputs, updates = results(jnp.float32)
    rounded_gradients, rounded_outputs, rounded_updates, embedding, averaged = rounded = results(
        jnp.bfloat16
    )
    assert 0 < np.abs(embedding - averaged).max() < 0.03 * np.abs(averaged).max()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(rounded))
    for name in ("embedding", "reconstruction"):
        value, other = getattr(outputs, name), getattr(rounded_outputs, name)
        assert 0 < np.abs(value - other).max() < 0.03 * np.abs(value).max()
    for a, b in zip(jax.tree.leaves(updates), jax.tree.leaves(rounded_updates), strict=True):
        np.testing.assert_allclose(a, b, atol=0.03 * np.abs(a).max())
    # Of a gradient, what matters is its direction.
    a, b = (
        np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)]).astype(np.float64)
        for tree in (gradients, rounded_gradients)
    )
    assert a @ b > 0.99 * np.linalg.norm(a) * np.linalg.norm(b)


def plain_conv(images, kernel):
    return jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def plain_upsample_conv(images, kernel):
    return plain_conv(images.repeat(2, 1).repeat(2, 2), kernel)


def plain_conv_mean(images, kernel):
    return plain_conv(images, kernel).mean((1, 2))


FORMS = [
    (upsample_conv, plain_upsample_conv),
    (conv_from_narrow, plain_conv),
    (conv_to_narrow, plain_conv),
    (conv_wide, plain_conv),
    (conv_mean, plain_conv_mean),
]


SHAPES = [(3, 5, 7, 4, 6), (1, 1, 1, 1, 1), (1, 2, 9, 1, 5)]
IN_CHUNKS = [
    (10, 32, 32, 8, 16),  # two chunks of five images
    (11, 32, 32, 8, 16),  # a prime number of them, filled up with zeros
    (31, 32, 32, 3, 5),  # from an image's channels
    (23, 8, 8, 128, 128),
]


@pytest.mark.parametrize(
    ("fast", "plain", "shape"),
    [(*form, shape) for form in FORMS for shape in SHAPES]
    + [(conv_wide, plain_conv, shape) for shape in IN_CHUNKS],
)
def test_a_convolution_equals_the_plain_layer_with_its_gradients(fast, plain, shape):
    n, height, width, ci, co = shape
    rng = np.random.default_rng(0)
    images, kernel = rng.normal(size=(n, height, width, ci)), rng.normal(size=(3, 3, ci, co))
    cotangent = rng.normal(size=jax.eval_shape(plain, images, kernel).shape)

    @partial(jax.jit, static_argnums=0)
    def output_and_gradients(function, images, kernel):
        output, pullback = jax.vjp(function, images, kernel)
        return output, *pullback(jnp.asarray(cotangent, output.dtype))

    with jax.enable_x64(True):
        expected = output_and_gradients(plain, images, kernel)
    results = output_and_gradients(fast, np.float32(images), np.float32(kernel))
    for result, exact in zip(results, expected, strict=True):
        assert result.dtype == jnp.float32 and exact.dtype == jnp.float64
        np.testing.assert_allclose(result, exact, atol=2e-6 * np.abs(exact).max())


@pytest.mark.parametrize("fast", [fast for fast, _ in FORMS])
def test_gradients_of_convolutions_equal_finite_differences(fast):
    keys = jax.random.split(jax.random.key(3))
    arguments = jax.random.normal(keys[0], (1, 2, 3, 2)), jax.random.normal(keys[1], (3, 3, 2, 2))
    check_grads(jax.jit(fast), arguments, order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


def test_upsample_conv_refuses_another_kernel():
    with pytest.raises(ValueError, match=r"kernel \[3, 3, 4, features\]"):
        upsample_conv(jnp.zeros((1, 2, 2, 4)), jnp.zeros((3, 3, 3, 2)))


def test_pooling_is_the_librarys():
    x = jax.random.normal(jax.random.key(0), (2, 6, 4, 3))
    expected, pullback = jax.vjp(lambda x: nn.max_pool(x, (2, 2), (2, 2)), x)
    result, own_pullback = jax.vjp(max_pool_2x2, x)
    np.testing.assert_array_equal(result, expected)
    cotangent = jax.random.normal(jax.random.key(1), result.shape)
    np.testing.assert_array_equal(own_pullback(cotangent)[0], pullback(cotangent)[0])
