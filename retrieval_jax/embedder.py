"""Images to embeddings: of a finished run, of a state, or by any function of images."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn
from flax.errors import FlaxError
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from retrieval_jax.data.images import LazyImages
from retrieval_jax.data.stream import batches
from retrieval_jax.models import ENCODERS, Network
from retrieval_jax.models.heads import Head, mlp
from retrieval_jax.numerics.distances import unit
from retrieval_jax.runtime import devices
from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.files import as_path
from retrieval_jax.runtime.memory import require
from retrieval_jax.runtime.model_file import (
    DESCRIPTION,
    TENSORS,
    read_description,
    read_tensors,
)
from retrieval_jax.runtime.progress import Progress


class Embedder:
    """A function images uint8 [n, h, w, c] → embeddings float32 [n, d], for any n.

    It runs on all devices in batches of one static shape, with a progress bar where there are many.

    Example:
      >>> import numpy as np
      >>> mean = Embedder.from_function(lambda images: images.mean((1, 2)) / 255)
      >>> mean(np.full((3, 8, 8, 1), 51, np.uint8)).ravel().tolist()
      [0.20000000298023224, 0.20000000298023224, 0.20000000298023224]
    """

    def __init__(
        self,
        function: Callable[[Any], np.ndarray],
        program: Callable[[jax.Array], jax.Array] | None = None,
    ) -> None:
        """Wraps (images, all of them) → embeddings; see the constructors below.

        Args:
          function: of all images.
          program: the same of a batch on one device, in JAX, if it is.
        """
        self._function, self._program = function, program

    def __call__(self, images: np.ndarray | LazyImages) -> np.ndarray:
        """Embeds images.

        Args:
          images: uint8 [n, h, w, c], n ≥ 0.

        Returns:
          float32 [n, d].

        Raises:
          ValueError: another type or number of dimensions, or what the network has against them.
        """
        if not isinstance(images, LazyImages):
            images = np.asarray(images)
        if images.dtype != np.uint8 or len(images.shape) != 4:
            raise ValueError(
                f"images must be uint8 [n, h, w, c], got {images.dtype} {tuple(images.shape)}; "
                "scale floats to 0 … 255, and give one image as images[None]"
            )
        try:
            return self._function(images)
        except FlaxError as error:  # of another number of channels, for one
            raise ValueError(
                f"the network can't take images {tuple(images.shape)}: {error}"
            ) from error

    def exported(self, shape: tuple[int, int, int]) -> bytes:
        """The embedder with its parameters, as one program for CPU, CUDA and TPU.

        `jax.export.deserialize(bytearray(…)).call` is a function uint8 [n, h, w, c] → float32
        [n, d] for any n, without this package.

        Args:
          shape: (h, w, c) of its images.

        Raises:
          ValueError: it was made of a function, or of a network that needs to know n.
        """
        if self._program is None:
            raise ValueError("only networks of JAX can be exported")
        (count,) = export.symbolic_shape("n")
        images = jax.ShapeDtypeStruct((count, *shape), np.uint8)
        platforms = ["cpu", "cuda", "tpu"]
        try:
            return bytes(
                export.export(jax.jit(self._program), platforms=platforms)(images).serialize()
            )
        except Exception as error:  # an encoder is anyone's code
            raise ValueError(f"the network can't be exported ({reason(error)})") from error

    @classmethod
    def from_run(
        cls,
        workdir: epath.PathLike,
        *,
        encoder: Callable[..., nn.Module] | None = None,
        batch: int = 128,
    ) -> Embedder:
        """By the encoder of a finished run, without its data, optimizer or config file.

        Args:
          workdir: of the run, here or on gs://.
          encoder: the function that made the encoder, where it is not one of this package: what a
            file names is never imported.
          batch: images per call, over all devices.

        Raises:
          UserError: the run has not finished, or its files are damaged.

        Example:
            embed = Embedder.from_run("runs/hint")
            embeddings = embed(images)
        """
        directory = as_path(str(workdir))
        description = read_description(directory)
        model, expected = _described_network(directory, description, encoder)
        there = read_tensors(directory)
        flat = flatten_dict(expected, sep="/")
        if not all(n in there and _holds(there[n], of) for n, of in flat.items()):
            raise UserError(
                f"{printable(str(directory / TENSORS))} does not hold the network that "
                f"{DESCRIPTION} describes; finish the run again"
            )
        variables = unflatten_dict({name: there[name] for name in flat}, sep="/")
        return cls.from_state(
            model,
            variables,
            normalize=bool(description["normalize"]),
            crops=description.get("crops", 0),
            batch=batch,
        )

    @classmethod
    def from_state(
        cls,
        model: nn.Module,
        variables: dict[str, Any],
        *,
        normalize: bool = False,
        crops: int = 0,
        batch: int = 128,
    ) -> Embedder:
        """By a network's `embed` method.

        Args:
          model: a `Network`, or any module with a method `embed`: float images → [n, d].
          variables: its collections, on the host.
          normalize: scale each embedding to length 1.
          crops: side in pixels of nine crops whose unit embeddings are averaged; 0 for none.
          batch: images per call, over all devices.
        """
        placed = devices.on_every_device(variables)
        function = embedding(model, normalize=normalize, crops=crops)
        mapped = on_rows(function)
        return cls(
            lambda images: map_rows(mapped, placed, images, batch), partial(function, variables)
        )

    @classmethod
    def from_function(cls, function: Callable[[Any], Any], *, batch: int = 128) -> Embedder:
        """By any function uint8 [b, h, w, c] → [b, d], of JAX, NumPy or another library.

        It is called with NumPy arrays of `batch` images, the last one filled up by zeros, so that a
        jitted function is compiled once.
        """

        def all_of(images: np.ndarray | LazyImages) -> np.ndarray:
            found = []
            with Progress("images", len(images)) as progress:
                for part in batches(images, np.arange(len(images)), batch):
                    filled = np.zeros((batch, *part.shape[1:]), np.uint8)
                    filled[: len(part)] = part
                    found.append(np.asarray(function(filled), np.float32)[: len(part)])
                    progress.update(len(part))
            if not found:  # for the width of nothing
                shape = (batch, *images.shape[1:])
                found.append(np.asarray(function(np.zeros(shape, np.uint8)), np.float32)[:0])
            return np.concatenate(found)

        return cls(all_of)


def as_float(images: jax.Array) -> jax.Array:
    """uint8 0 … 255 → float32 0 … 1."""
    return images.astype(jnp.float32) / 255


def embedding(
    model: nn.Module, *, normalize: bool = False, crops: int = 0
) -> Callable[[dict[str, Any], jax.Array], jax.Array]:
    """(variables, images uint8 [b, h, w, c]) → float32 [b, d] on one device, for `on_rows`."""

    def embed(variables: dict[str, Any], images: jax.Array) -> jax.Array:
        if crops:
            parts = nine_crops(as_float(images), crops)
            found = of(variables, parts.reshape(-1, *parts.shape[2:]))
            found = unit(found).reshape(9, images.shape[0], -1).mean(0)
        else:
            found = of(variables, as_float(images))
        return unit(found) if normalize else found

    def of(variables: dict[str, Any], scaled: jax.Array) -> Any:
        if hasattr(model, "embed"):
            return model.apply(variables, scaled, method="embed")
        return model.apply(variables, scaled).embedding  # type: ignore[union-attr]

    return embed


def nine_crops(images: jax.Array, side: int) -> jax.Array:
    """Three by three square crops, evenly spread: images [n, h, w, c] → [9, n, side, side, c].

    Raises:
      ValueError: they don't fit.

    Example:
      >>> nine_crops(jnp.arange(9.0).reshape(1, 3, 3, 1), 1).ravel().tolist()
      [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    """
    height, width = images.shape[1:3]
    if not 0 < side <= min(height, width):
        raise ValueError(f"crops of {side} pixels don't fit images of {height}×{width}")
    tops, lefts = ([0, (size - side) // 2, size - side] for size in (height, width))
    return jnp.stack(
        [images[:, top : top + side, left : left + side] for top in tops for left in lefts]
    )


def on_rows(function: Callable[[Any, jax.Array], jax.Array]) -> Callable:
    """Maps (parameters, [b, …]) → [b, …], each row on its own, for `map_rows`; compiled once.

    Every process gets the results of all devices.
    """
    several = jax.process_count() > 1

    def on_all(parameters: Any, part: jax.Array) -> jax.Array:
        result = function(parameters, part)
        return jax.lax.all_gather(result, devices.AXIS) if several else result

    return devices.mapped(on_all)


def map_rows(
    function: Callable[[Any, np.ndarray], jax.Array],
    parameters: Any,
    rows: np.ndarray | LazyImages,
    batch: int,
) -> np.ndarray:
    """Applies `function(parameters, batch of rows)` to any number of rows, on all devices.

    The last batch is padded to the static shape and only real rows are returned. Rows are read two
    batches ahead and two batches are in flight, so memory doesn't grow with the rows. Each process
    reads the rows of its own devices and gets the results of all.

    Args:
      function: of `on_rows`.
      parameters: on every device.
      rows: [n, …] on the host, n ≥ 0, or images that are read when they are needed.
      batch: rows of one call over all devices; rounded up to a multiple of the devices.

    Returns:
      [n, …] on the host.
    """
    batch = devices.round_up(batch)
    several = jax.process_count() > 1
    results: list[np.ndarray] = []
    pending: list[tuple[jax.Array, int]] = []

    def fetch() -> None:
        value, real = pending.pop(0)
        whole = devices.from_first_device(value) if several else np.asarray(value)
        if not results:
            size = 2 * whole.nbytes // batch * len(rows)  # in parts, and as a whole
            require(size, f"the outputs of {len(rows):,} images", "make the embedding smaller")
        results.append(whole.reshape(batch, *whole.shape[2:])[:real])
        progress.update(real)

    steps = max(-(-len(rows) // batch), 1)  # without rows one batch of nothing, for its shape
    mine = devices.local_share(np.arange(steps * batch).reshape(steps, batch))
    parts = batches(rows, mine[mine < len(rows)], mine.shape[1])
    with Progress("images", len(rows)) as progress:
        for step, numbers in enumerate(mine):
            part = np.zeros((len(numbers), *rows.shape[1:]), rows.dtype)
            real = numbers < len(rows)
            if real.any():
                part[real] = next(parts)
            shared = part.reshape(devices.local_count(), -1, *part.shape[1:])
            pending.append((function(parameters, shared), min(batch, len(rows) - step * batch)))
            if len(pending) > 1:
                fetch()
        fetch()
    return np.concatenate(results)


def applied(
    function: Callable[[Any, jax.Array], jax.Array],
    variables: dict[str, Any],
    images: np.ndarray | LazyImages,
    batch: int,
) -> np.ndarray:
    """`function(variables, images)` of any number of images, on all devices, once."""
    return map_rows(on_rows(function), devices.on_every_device(variables), images, batch)


def _described_network(
    directory: epath.Path, description: dict[str, Any], factory: Callable[..., nn.Module] | None
) -> tuple[Network, Any]:
    """A network of the encoder that is described, and the shapes of its variables."""
    described, shape = description["encoder"], description["image_shape"]
    name = described["name"]
    known = {function.__name__: function for function in ENCODERS}
    factory = factory or known.get(name)
    if factory is None:
        raise UserError(
            f"the encoder {printable(name)!r} of {printable(str(directory))} is not one of this "
            "package; give the function that makes it: Embedder.from_run(workdir, encoder=…)"
        )
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    try:
        # As `build.make` does: what has no default is given.
        given: dict[str, Any] = {
            "axis_name": None,
            "dtype": {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[described["dtype"]],
            "channels": shape[2],
        }
        keys: dict[str, Any] = {}
        for key, parameter in inspect.signature(factory).parameters.items():
            values = given if parameter.default is parameter.empty else described
            if key in values:
                keys[key] = tuple(values[key]) if isinstance(values[key], list) else values[key]
        model = Network(factory(**keys))
        if (projector := description.get("projector")) is not None:
            widths = tuple(projector["widths"])
            model = model.clone(
                projector=mlp(axis_name=None, dtype=given["dtype"], widths=widths),
                embeds="projection",
            )
        if (classes := description.get("classes")) is not None:
            model = model.clone(head=Head(classes), embeds="probabilities")
        expected = dict(jax.eval_shape(model.init, jax.random.key(0), image))
    except Exception as error:  # anything can come of keys that a file holds
        raise UserError(
            f"the encoder of {printable(str(directory))} can't be built ({reason(error)})"
        ) from error
    expected.pop("intermediates", None)  # what a module sows is not saved
    return model, expected


def _holds(tensor: np.ndarray, expected: Any) -> bool:
    same = (tensor.shape, tensor.dtype) == (expected.shape, expected.dtype)
    return same and bool(np.isfinite(tensor).all())
