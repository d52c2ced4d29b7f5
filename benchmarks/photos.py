"""EfficientNet-lite0 beside PyTorch (channels-last) and onnxruntime: images/s, on the same weights.

    python -m benchmarks.photos

One process, the same random uint8 images of 224 × 224 in batches of 32, in and out of the host's
memory, BatchNorm folded into the convolutions for all three. Prints a Markdown table, with the CPU
time of all threads too, which other programs on the machine change less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

# Before the peers are imported: threads that wait must not take the cores of whose turn it is.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
from retrieval_jax.main import with_a_device_per_core  # noqa: E402

with_a_device_per_core()  # as `index` does

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402
from onnx import helper  # noqa: E402
from torch.nn import functional  # noqa: E402

from benchmarks.interleaved import times  # noqa: E402
from retrieval_jax.data.lite0_weights import lite0_params  # noqa: E402
from retrieval_jax.embedder import Embedder  # noqa: E402
from retrieval_jax.photos.encoders import pretrained  # noqa: E402
from retrieval_jax.runtime import provenance  # noqa: E402

BATCH, SIZE = 32, 224
STRIDES = {1: 2, 3: 2, 5: 2, 11: 2}  # of blocks; of the others 1


def features(x: Any, convolve: Callable, relu6: Callable, mean: Callable, add: Callable) -> Any:
    """The network in terms of another library's operations.

    Args:
      x: normalized images.
      convolve: (x, name of the weights, stride, whether each channel by itself) → x.
      relu6: of x.
      mean: of x over positions.
      add: of two.
    """
    x = relu6(convolve(x, "stem", 2, False))
    for i in range(16):
        name, before = f"blocks_{i}", x
        if i:
            x = relu6(convolve(x, f"{name}/expand", 1, False))
        x = relu6(convolve(x, f"{name}/depthwise", STRIDES.get(i, 1), True))
        x = convolve(x, f"{name}/project", 1, False)
        if i in (2, 4, 6, 7, 9, 10, 12, 13, 14):
            x = add(x, before)
    return mean(relu6(convolve(x, "head", 1, False)))


def weights() -> dict[str, np.ndarray]:
    """Kernels as [out, in, k, k], and biases."""
    return {
        name: np.ascontiguousarray(value.transpose(3, 2, 0, 1)) if value.ndim == 4 else value
        for name, value in lite0_params().items()
        if not name.startswith("classifier")
    }


def by_torch() -> Callable[[np.ndarray], np.ndarray]:
    """uint8 [b, h, w, 3] → features."""
    tensors = {name: torch.from_numpy(value.copy()) for name, value in weights().items()}
    for name, value in tensors.items():
        if value.ndim == 4:
            tensors[name] = value.contiguous(memory_format=torch.channels_last)

    def convolve(x: Any, name: str, stride: int, each: bool) -> Any:
        kernel, bias = tensors[f"{name}/kernel"], tensors[f"{name}/bias"]
        total = kernel.shape[2] - stride
        before = total // 2
        if total == 2 * before and total >= 0:
            pads = before
        else:  # as TensorFlow pads for a stride of 2
            x, pads = functional.pad(x, (before, total - before) * 2), 0
        return functional.conv2d(x, kernel, bias, stride, pads, 1, x.shape[1] if each else 1)

    def embed(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            # A view of channels-last memory.
            x = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127) / 128
            mean = lambda x: x.mean((2, 3))  # noqa: E731
            return features(x, convolve, functional.relu6, mean, torch.add).numpy()

    return embed


def by_onnxruntime() -> Callable[[np.ndarray], np.ndarray]:
    """uint8 [b, h, w, 3] → features."""
    arrays = weights() | {
        "zero": np.float32(0),
        "six": np.float32(6),
        "axes": np.array([2, 3], np.int64),
    }
    nodes: list[Any] = []

    def node(kind: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"x{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    def convolve(x: str, name: str, stride: int, each: bool) -> str:
        kernel = arrays[f"{name}/kernel"]
        return node(
            "Conv",
            x,
            f"{name}/kernel",
            f"{name}/bias",
            strides=[stride, stride],
            auto_pad="SAME_UPPER",
            group=len(kernel) if each else 1,
        )

    found = features(
        "images",
        convolve,
        lambda x: node("Clip", x, "zero", "six"),
        lambda x: node("ReduceMean", x, "axes", keepdims=0),
        lambda x, y: node("Add", x, y),
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "lite0",
        [value("images", onnx.TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
        [value(found, onnx.TensorProto.FLOAT, ["n", 1280])],
        [onnx.numpy_helper.from_array(np.asarray(of), name) for name, of in arrays.items()],
    )
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # see OMP_WAIT_POLICY
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)

    def embed(images: np.ndarray) -> np.ndarray:
        x = (images.transpose(0, 3, 1, 2).astype(np.float32) - 127) / 128
        return session.run(None, {"images": np.ascontiguousarray(x)})[0]

    return embed


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    shape = (options.images, SIZE, SIZE, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    embed = {
        "ours": pretrained().embedder(BATCH),  # as `index` calls it
        "PyTorch": Embedder.from_function(by_torch(), batch=BATCH),
        "onnxruntime": Embedder.from_function(by_onnxruntime(), batch=BATCH),
    }
    few = images[:BATCH]
    unit = embed["ours"](few)
    apart = {}
    for name in ("PyTorch", "onnxruntime"):
        found = embed[name](few)
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        apart[name] = np.abs(found - unit).max()
    used: dict[str, list[float]] = {name: [] for name in embed}

    def contender(name: str) -> Callable[[], None]:
        def call() -> None:
            start = time.process_time()
            embed[name](images)
            used[name].append(time.process_time() - start)

        return call

    seconds = times({name: contender(name) for name in embed}, options.repeats)
    print(f"{provenance.versions()}, torch {torch.__version__}")
    print(f"onnxruntime {onnxruntime.__version__}, {torch.get_num_threads()} threads of torch\n")
    print("| network | images/s | ours / theirs | CPU ms per image | ours / theirs | apart |")
    print("|---|---|---|---|---|---|")
    cpu = {name: statistics.median(of[1:]) for name, of in used.items()}
    for name, taken in seconds.items():
        ratio = statistics.median(b / a for a, b in zip(seconds["ours"], taken, strict=True))
        rate = options.images / statistics.median(taken)
        print(
            f"| {name} | {rate:.1f} | {ratio:.2f} | {1000 * cpu[name] / options.images:.1f} "
            f"| {cpu['ours'] / cpu[name]:.2f} | {apart.get(name, 0):.1e} |"
        )


if __name__ == "__main__":
    main()
