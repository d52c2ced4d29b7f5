"""ONNX files as encoders of photos: small networks made here, against NumPy."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from test_photos import picture

from retrieval_jax.main import main
from retrieval_jax.photos import PhotoIndex, encoders, store
from retrieval_jax.photos.onnx_encoder import Network, Preparation, prepared
from retrieval_jax.runtime.errors import UserError

MEAN, DEVIATION = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


def network(path, shape=("n", 3, 32, 32), outputs=("other", "pooler_output"), rank=2, kind="FLOAT"):
    """Means over the positions of an image; of two outputs the first is twice the second."""
    last = shape[3] == 3
    element = getattr(TensorProto, kind)
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2] if last else [2, 3])
    two = helper.make_tensor("two", element, [], [2.0])
    keep = int(rank == 4)
    nodes = [helper.make_node("ReduceMean", ["pixels", "axes"], [outputs[-1]], keepdims=keep)]
    if len(outputs) == 2:
        nodes.append(helper.make_node("Mul", [outputs[1], "two"], [outputs[0]]))
    width = ["n", *([3] if rank == 2 else [3, 1, 1])]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("pixels", element, shape)],
        [helper.make_tensor_value_info(name, element, width) for name in outputs],
        [axes, two],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))
    return path


GIVEN = Preparation((32, 32), MEAN, DEVIATION)


def expected(images):
    return ((images.astype(np.float64) / 255 - MEAN) / DEVIATION).mean((1, 2))


@pytest.mark.fast
@pytest.mark.parametrize(
    "made",
    [
        {},
        {"shape": (4, 3, 32, 32)},
        {"shape": ("n", 32, 32, 3)},
        {"shape": ("n", "c", "h", "w"), "outputs": ("pooler_output",)},
        {"kind": "FLOAT16"},
    ],
)
def test_a_network_is_applied_to_prepared_images(tmp_path, made):
    file = network(tmp_path / "means.onnx", **made)
    encoder = encoders.of_onnx(str(file), *GIVEN)
    images = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), np.uint8)
    tolerance = 1e-5 if made.get("kind") is None else 5e-3
    np.testing.assert_allclose(encoder.embedder(6)(images), expected(images), atol=tolerance)


@pytest.mark.fast
def test_preparation_is_read_beside_the_file_and_what_is_given_goes_first(tmp_path):
    file = network(tmp_path / "means.onnx", shape=("n", 3, "h", "w"))
    with pytest.raises(UserError, match="give --size"):
        prepared(Network(file))
    config = {"image_mean": MEAN, "image_std": DEVIATION, "crop_size": {"height": 48, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    assert prepared(Network(file)) == Preparation((48, 32), MEAN, DEVIATION)
    half = (0.5, 0.5, 0.5)
    assert prepared(Network(file), (16, 16), half) == Preparation((16, 16), half, DEVIATION)
    fixed = network(tmp_path / "fixed.onnx")
    assert prepared(Network(fixed)).size == (32, 32)
    with pytest.raises(UserError, match="takes 32 × 32"):
        prepared(Network(fixed), (16, 16))
    for wrong in ("[1]", "{", '{"image_mean": [1, 2]}', '{"size": {"height": "x", "width": 2}}'):
        (tmp_path / "preprocessor_config.json").write_text(wrong)
        with pytest.raises(UserError, match="preprocessor_config.json"):
            prepared(Network(file))


def test_an_index_by_the_command(tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(9):
        picture(i).save(folder / f"{i}.png")
    file = network(tmp_path / "means.onnx")
    flags = ["--mean", "0.5,0.4,0.3", "--deviation", "0.2,0.25,0.5", "--clusters", "2"]
    index = str(tmp_path / "index")
    assert main(["index", str(folder), "--output", index, "--encoder", str(file), *flags]) == 0
    assert main(["query", index, str(folder / "3.png"), "--paths", "--neighbours", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(folder / "3.png")
    picture(20).save(folder / "20.png")
    assert main(["refresh", index]) == 0
    assert len(PhotoIndex.open(index)) == 10
    rows = PhotoIndex.open(index).content.rows.astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3)
    network(file, outputs=("pooler_output",))
    assert main(["query", index, str(folder / "3.png")]) == 2
    assert "another encoder" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "index" / "index.json").read_text())
    for broken in ({"file": 7}, {"size": [True, 3]}, {"mean": ["x", 1, 2]}, {"file": "/nowhere"}):
        described = manifest | {"encoder": manifest["encoder"] | broken}
        (tmp_path / "index" / "index.json").write_text(json.dumps(described))
        store.read(tmp_path / "index")
        assert main(["query", index, str(folder / "3.png")]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: ")


def flawed(tmp_path, name):
    file = tmp_path / f"{name}.onnx"
    match name:
        case "tokens":
            network(file, shape=("n", 77, 2, 2))
        case "positions":
            network(file, rank=4)
        case "text":
            file.write_text("no network")
        case "empty":
            file.write_bytes(b"")
    return str(file)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("tokens", "77 channels"),
        ("positions", "no embedding of each image"),
        ("text", "can't be read as ONNX"),
        ("empty", "can't be read as ONNX"),
        ("absent", "is no file"),
    ],
)
def test_what_is_no_encoder_of_images_gets_a_sentence(tmp_path, capsys, name, sentence):
    picture(0).save(tmp_path / "0.png")
    arguments = ["index", str(tmp_path), "--output", str(tmp_path / "index")]
    flags = ["--mean", "0,0,0", "--deviation", "1,1,1", "--size", "32"]
    assert main([*arguments, "--encoder", flawed(tmp_path, name), *flags]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert sentence in line
    assert not (tmp_path / "index" / "index.json").exists()


@pytest.mark.fast
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--mean", "1,2"], "--mean"),
        (["--mean", "a,b,c"], "--mean"),
        (["--size", "32"], "belong to --encoder FILE.onnx"),
    ],
)
def test_flags_that_make_no_sense(tmp_path, capsys, flags, sentence):
    picture(0).save(tmp_path / "0.png")
    assert main(["index", str(tmp_path), "--output", str(tmp_path / "index"), *flags]) == 2
    assert sentence in capsys.readouterr().err
