"""Images become embeddings by a run's files, a state or any function; bad files are refused."""

import json
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from flax import linen as nn

from retrieval_jax.data.images import LazyImages, view
from retrieval_jax.embedder import Embedder, map_rows, on_rows
from retrieval_jax.models import Encoder, Head, Network
from retrieval_jax.runtime import devices
from retrieval_jax.runtime.errors import UserError
from retrieval_jax.runtime.model_file import save_model, started_from

IMAGES = np.random.default_rng(0).integers(0, 256, (23, 4, 4, 1), np.uint8)
KEYS = {
    "name": "convolutional",
    "make": "convolutional",
    "dtype": "float32",
    "widths": [3],
    "bottleneck": 5,
    "momentum": 0.9,
}
DESCRIPTION = {"encoder": KEYS, "normalize": False, "image_shape": [4, 4, 1]}


@pytest.fixture(scope="module")
def network():
    """A network and its variables."""
    model = Network(Encoder((3,), 5))
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    return model, jax.device_get(variables)


@pytest.fixture
def run(network, tmp_path):
    """What a finished run leaves."""
    save_model(epath.Path(tmp_path), network[1], DESCRIPTION)
    return tmp_path


@pytest.mark.parametrize(("rows", "batch"), [(0, 8), (5, 100), (23, 1), (16, 8)])
def test_map_rows_equals_plain_numpy(rows, batch):
    data = np.random.default_rng(0).integers(0, 256, (rows, 3, 2), np.uint8)
    factor = np.float32(1.5)
    scaled = on_rows(lambda factor, part: factor * part.sum(1))
    result = map_rows(scaled, devices.on_every_device(factor), data, batch)
    np.testing.assert_array_equal(result, factor * data.sum(1))


def test_map_rows_names_results_larger_than_memory():
    def wide(_, images):
        return jnp.zeros((len(images), 1 << 20))

    rows = view(np.zeros((1, 1, 1, 1), np.uint8), np.zeros(1 << 24, int))
    with pytest.raises(UserError, match="outputs of 16,777,216 images take 140,737.5 GB of memory"):
        map_rows(on_rows(wide), devices.on_every_device(np.float32(0)), rows, 8)


def test_map_rows_reads_a_few_batches_at_a_time():
    shape, read = (4, 4, 1), []

    def images(rows):
        read.extend(rows)
        assert len(read) <= 32 * (len(done) // devices.count() + 5)
        return np.broadcast_to((rows % 256)[:, None, None, None], (len(rows), *shape)).astype("u1")

    done = []

    def mean(_, part):
        jax.debug.callback(lambda: done.append(1), ordered=False)
        return part.astype("f4").mean((1, 2, 3))

    lazy = LazyImages(images, np.arange(1000), shape)
    result = map_rows(on_rows(mean), devices.on_every_device(np.float32(0)), lazy, 32)
    np.testing.assert_array_equal(result, np.arange(1000) % 256)


def test_a_state_embeds_any_number_of_images(network):
    model, variables = network
    expected = jax.jit(model.apply)(variables, IMAGES / np.float32(255)).embedding
    embed = Embedder.from_state(model, variables, batch=16)
    found = embed(IMAGES)
    assert found.shape == (23, 5) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(embed(IMAGES[:3]), found[:3])
    np.testing.assert_array_equal(embed(view(IMAGES, np.arange(22, 2, -3))), found[22:2:-3])
    assert embed(IMAGES[:0]).shape == (0, 5)
    for wrong in (IMAGES / 255, IMAGES[0], IMAGES.astype(np.int32)):
        with pytest.raises(ValueError, match=r"images must be uint8 \[n, h, w, c\], got .*; scale"):
            embed(wrong)
    with pytest.raises(ValueError, match=r"can't take images \(2, 4, 4, 3\)"):
        embed(np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="the images are 5×4"):
        embed(np.zeros((2, 5, 4, 1), np.uint8))
    unit = Embedder.from_state(model, variables, normalize=True, batch=16)(IMAGES)
    lengths = np.linalg.norm(found.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(unit, found / lengths, rtol=1e-5, atol=1e-6)


def test_any_function_embeds_in_batches_of_one_shape():
    shapes = []

    def numpy(images):
        assert isinstance(images, np.ndarray)
        shapes.append(images.shape)
        return images.reshape(len(images), -1).mean(1, keepdims=True)  # float64

    compiled = jax.jit(lambda images: images.astype(jnp.float32).mean((1, 2)))
    expected = IMAGES.reshape(23, -1).mean(1, keepdims=True)
    for function in (numpy, compiled):
        embed = Embedder.from_function(function, batch=10)
        for images in (IMAGES, view(IMAGES, np.arange(23))):
            found = embed(images)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert embed(IMAGES[:0]).shape == (0, 1)
    assert set(shapes) == {(10, 4, 4, 1)}
    assert compiled._cache_size() == 1


def test_a_run_embeds_as_its_network(run, network):
    model, variables = network
    expected = Embedder.from_state(model, variables)(IMAGES)
    np.testing.assert_array_equal(Embedder.from_run(run)(IMAGES), expected)
    rounded = {**DESCRIPTION, "normalize": True, "encoder": {**KEYS, "dtype": "bfloat16"}}
    save_model(epath.Path(run), variables, rounded)
    coarse = Network(Encoder((3,), 5, dtype=jnp.bfloat16))
    expected = Embedder.from_state(coarse, variables, normalize=True)(IMAGES)
    np.testing.assert_array_equal(Embedder.from_run(run)(IMAGES), expected)


def test_a_run_embeds_by_its_classifiers_probabilities(tmp_path):
    model = Network(Encoder((3,), 5), head=Head(4), embeds="probabilities")
    variables = jax.device_get(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 1))))
    save_model(epath.Path(tmp_path), variables, {**DESCRIPTION, "projector": None, "classes": 4})
    found = Embedder.from_run(tmp_path)(IMAGES)
    logits = jax.jit(model.apply)(variables, IMAGES / np.float32(255)).logits
    np.testing.assert_allclose(found**2, jax.nn.softmax(logits), rtol=1e-4)
    np.testing.assert_array_equal(found, Embedder.from_state(model, variables)(IMAGES))


class Own(nn.Module):
    width: int

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(self.width)(images.reshape(len(images), -1))


def own_encoder(channels, dtype, width: int = 4):
    """An encoder that asks for something."""
    assert dtype == jnp.float32
    return Own(width * channels)


def test_an_encoder_of_elsewhere_is_given_and_never_imported(tmp_path):
    model = Network(own_encoder(1, jnp.float32, 6))
    variables = jax.device_get(model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1))))
    keys = {"name": "os.system", "make": "os.system", "dtype": "float32", "width": 6}
    save_model(epath.Path(tmp_path), variables, DESCRIPTION | {"encoder": keys})
    with pytest.raises(UserError, match=r"os.system.? of .* is not one of this package; give .*=…"):
        Embedder.from_run(tmp_path)
    found = Embedder.from_run(tmp_path, encoder=own_encoder)(IMAGES)
    np.testing.assert_array_equal(found, Embedder.from_state(model, variables)(IMAGES))
    with pytest.raises(UserError, match="does not hold the network"):
        Embedder.from_run(tmp_path, encoder=lambda: Own(7))

    def broken(width: int = 4):
        raise RuntimeError("no such width")

    with pytest.raises(UserError, match="can't be built .*no such width"):
        Embedder.from_run(tmp_path, encoder=broken)


def refused(run, says):
    with pytest.raises(UserError, match=says) as caught:
        Embedder.from_run(run)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


@pytest.mark.fast
def test_hostile_descriptions_are_refused(run):
    for content in (
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"7",
        b"[" * 100_000,
        b'{"format":' * 100_000,
        b"1" * 5000,
        b'{"format": NaN}',
        *(
            json.dumps({"format": 1, **DESCRIPTION, **changes}).encode()
            for changes in (
                {"format": 2},
                {"image_shape": [4, 4]},
                {"image_shape": [4, 4, 0]},
                {"image_shape": [4, 4.0, 1]},
                {"image_shape": [4, 1 << 40, 1]},
                {"image_shape": [65535, 65535, 65535]},  # nothing of that size is ever made
                {"image_shape": [5, 4, 1]},
                {"image_shape": "441"},
                {"image_shape": None},
                {"normalize": "no"},
                {"encoder": "convolutional"},
                {"encoder": ["name"]},
                {"encoder": {"name": None}},
                {"encoder": {"name": ["convolutional"]}},
                {"classes": 10},
                {"classes": -1},
                {"classes": "many"},
            )
        ),
        *(
            json.dumps({"format": 1, **DESCRIPTION, "encoder": KEYS | changes}).encode()
            for changes in (
                {"widths": []},
                {"widths": "3"},
                {"widths": None},
                {"widths": [[3]]},
                {"widths": [float("nan")]},
                {"widths": [1.5]},
                {"widths": [3] * 10_000},
                {"widths": [10**30]},
                {"widths": {"a": 1}},
                {"bottleneck": -1},
                {"bottleneck": 10**12},
                {"bottleneck": "5"},
                {"bottleneck": True},
                {"momentum": float("nan")},
                {"momentum": "most"},
                {"dtype": "complex64"},
                {"dtype": []},
                {"axis_name": "devices", "bottleneck": 7},
            )
        ),
    ):
        (run / "model.json").write_bytes(content)
        refused(run, "model.json|can't be built|does not hold the network")


@pytest.mark.fast
def test_tensors_that_are_damaged_or_another_networks_are_refused(run, network):
    path = run / "model.safetensors"
    good = path.read_bytes()
    tensors = safetensors.numpy.load(good)
    name = "params/encoder/bottleneck/kernel"
    length = struct.unpack("<Q", good[:8])[0]

    def headed(text):
        return struct.pack("<Q", len(text)) + text + good[8 + length :]

    header = good[8 : 8 + length]
    for content in (
        b"",
        good[:4],
        good[:50],
        good[:-1],
        good + b"more",
        struct.pack("<Q", 2**63) + good[8:],
        headed(b"{" * 100_000),
        headed(b'{"a":' * 100_000),
        headed(b"[]"),
        headed(header.replace(b"F32", b"F64")),
        headed(header.replace(b"F32", b"I32")),
        headed(header.replace(b"F32", b"F99")),
        headed(header.replace(b'"data_offsets":[0', b'"data_offsets":[4')),
    ):
        assert content != good
        path.write_bytes(content)
        refused(run, "model.safetensors")
    path.write_bytes(safetensors.numpy.save(tensors | {name: tensors[name] + 1}))
    refused(run, "is not the network that model.json describes")
    # A description of an earlier version has no checksum: the tensors themselves are looked at.
    description = json.loads((run / "model.json").read_text())
    for key in ("tensors", "crc32"):
        del description[key]
    (run / "model.json").write_text(json.dumps(description))
    for changed in (
        {key: value for key, value in tensors.items() if key != name},
        tensors | {name: tensors[name][..., :-1]},
        tensors | {name: tensors[name].reshape(-1)},
        tensors | {name: tensors[name].astype(np.float16)},
        tensors | {name: tensors[name].astype(ml_dtypes.bfloat16)},
        tensors | {name: np.full_like(tensors[name], np.nan)},
        {},
    ):
        path.write_bytes(safetensors.numpy.save(changed))
        refused(run, "model.safetensors.* (does not hold the network|can't be read .'BF16')")
    # What the network has no name for is left alone.
    path.write_bytes(safetensors.numpy.save(tensors | {"../../params": np.ones(3)}))
    assert Embedder.from_run(run)(IMAGES).shape == (23, 5)


@pytest.mark.fast
def test_a_run_that_has_not_finished_is_refused(run, tmp_path):
    (run / "model.safetensors").unlink()
    refused(run, "model.safetensors is missing; name the workdir of a finished run")
    (run / "model.json").unlink()
    refused(run, "model.json is missing")
    refused(tmp_path / "\x1b[31mred", "is missing")
    (run / "model.json").mkdir()
    refused(run, "can't be read")


@pytest.mark.fast
def test_a_start_takes_parameters_of_the_same_name_and_shape(run, network, capsys):
    there = network[1]["params"]
    params = jax.tree.map(np.zeros_like, there) | {"head": {"kernel": np.ones((5, 3))}}
    params["encoder"]["conv1"] = {"kernel": np.zeros((3, 3, 1, 9)), "bias": np.zeros(3)}
    started = started_from(str(run), params)
    expected = there["encoder"]["bottleneck"]["kernel"]
    np.testing.assert_array_equal(started["encoder"]["bottleneck"]["kernel"], expected)
    assert not started["encoder"]["conv1"]["kernel"].any() and started["head"]["kernel"].all()
    assert "of 7 parameters are those of" in capsys.readouterr().out
    assert jax.tree.structure(started) == jax.tree.structure(params)
    assert started_from("", params) is params
    with pytest.raises(UserError, match="training.init_from is .* has no parameter of this one's"):
        started_from(str(run), {"other": {"kernel": np.zeros(3)}})
    with pytest.raises(UserError, match="is missing; name the workdir of a finished run"):
        started_from(str(run / "nowhere"), params)
