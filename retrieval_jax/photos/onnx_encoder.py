"""An ONNX file as the encoder of photos, by onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from etils import epath

from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.files import read_json

if TYPE_CHECKING:
    from retrieval_jax.embedder import Embedder

_PREFERRED = ("image_embeds", "pooler_output")  # what exports of CLIP, SigLIP and DINOv2 call it
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Preparation(NamedTuple):
    """How images become a network's input: (pixel / 255 - mean) / deviation.

    Attributes:
      size: (height, width).
      mean: of each channel.
      deviation: of each channel.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


def prepared(
    network: Network,
    size: tuple[int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    deviation: tuple[float, ...] | None = None,
) -> Preparation:
    """What is given, and for the rest what the files say.

    The size is that of the network's input where it is fixed. The others are read from
    `preprocessor_config.json` beside its file, which exporters of Hugging Face's models write.

    Raises:
      UserError: one isn't known, or differs from the fixed size.
    """
    shown, fixed = network.shown, network.size
    if fixed and size and fixed != size:
        raise UserError(f"--size is {size[0]} and {shown} takes {fixed[0]} × {fixed[1]}")
    said = _preprocessor(network.file.parent / "preprocessor_config.json")
    size, mean, deviation = fixed or size or said[0], mean or said[1], deviation or said[2]
    if size is None or mean is None or deviation is None:
        flags = {"--size": size, "--mean": mean, "--deviation": deviation}
        missing = ", ".join(flag for flag, value in flags.items() if value is None)
        raise UserError(
            f"{shown} doesn't say how images are prepared: give {missing}, or put its "
            "preprocessor_config.json beside it"
        )
    return Preparation(size, mean, deviation)


def embedder(network: Network, preparation: Preparation) -> Callable[[int], Embedder]:
    """Images per call → `Embedder`."""

    def of_batch(batch: int) -> Embedder:
        from retrieval_jax.embedder import Embedder

        mean, deviation = (np.array(value, np.float32) for value in preparation[1:])

        def embed(images: np.ndarray) -> np.ndarray:
            return network((images.astype(np.float32) / 255 - mean) / deviation)

        return Embedder.from_function(embed, batch=network.batch or batch)

    return of_batch


class Network:
    """A session, its input and the output that is the embedding.

    Attributes:
      file: where it comes from.
      shown: the same, to print.
      size: (height, width) of its input; None where any will do.
    """

    def __init__(self, file: Path) -> None:
        """Loads it.

        Raises:
          UserError: onnxruntime isn't installed, or the network isn't one of images.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(
                "an encoder in ONNX needs onnxruntime: pip install 'retrieval-jax[onnx]'"
            ) from error
        self.file, self.shown = file, printable(str(file))
        shown = self.shown
        if not file.is_file():
            raise UserError(f"{shown} is no file: give an ONNX file as --encoder")
        try:
            onnxruntime.set_default_logger_severity(4)  # what is wrong is in the exceptions
            self.session = onnxruntime.InferenceSession(
                str(file), providers=onnxruntime.get_available_providers()
            )
        except Exception as error:  # it has a class for each kind of fault
            raise UserError(
                f"{shown} can't be read as ONNX ({reason(error)}): export it again"
            ) from error
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _TYPES:
            found = ", ".join(f"{entry.name} {entry.type} {entry.shape}" for entry in inputs)
            raise UserError(
                f"{shown} takes {printable(found)}, not one batch of images: export the encoder of "
                "images alone, with an input of floats [batch, 3, height, width]"
            )
        batch, *shape = (n if isinstance(n, int) else None for n in inputs[0].shape)
        self.last = shape[0] != 3 and shape[2] == 3
        channels, height, width = (shape[2], *shape[:2]) if self.last else shape
        if channels not in (3, None):
            raise UserError(f"{shown} takes images of {channels} channels; 3 are needed")
        self.size = (height, width) if height and width else None
        self.batch, self.input = batch, inputs[0]
        vectors = {entry.name for entry in outputs if len(entry.shape) == 2}
        names = [name for name in _PREFERRED if name in vectors]
        names += [entry.name for entry in outputs if entry.name in vectors]
        if not names:
            found = ", ".join(f"{entry.name} {entry.shape}" for entry in outputs)
            raise UserError(
                f"{shown} gives {printable(found)}, and no embedding of each image: export it with "
                "an output [batch, features]"
            )
        self.output = names[0]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Embeddings [n, d] of prepared images [n, h, w, c]."""
        if not self.last:
            images = images.transpose(0, 3, 1, 2)
        images = np.ascontiguousarray(images, _TYPES[self.input.type])
        try:
            return self.session.run([self.output], {self.input.name: images})[0]
        except Exception as error:
            raise UserError(f"{self.shown} fails on images ({reason(error)})") from error


def _preprocessor(
    file: Path,
) -> tuple[tuple[int, int] | None, tuple[float, ...] | None, tuple[float, ...] | None]:
    """Size, mean and deviation, as far as the file says."""
    try:
        config = read_json(epath.Path(file))
    except FileNotFoundError:
        return None, None, None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{printable(str(file))} can't be read ({reason(error)}): repair or remove it"
        ) from error
    try:
        side = config.get("crop_size", config.get("size"))
        if isinstance(side, dict):
            side = (side.get("height"), side.get("width"))
        elif side is not None:
            side = (side, side)
        mean, deviation = config.get("image_mean"), config.get("image_std")
        return (
            None if side is None or None in side else size_of(side),
            None if mean is None else three(mean),
            None if deviation is None else three(deviation),
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{printable(str(file))} holds a size, mean or deviation that is none: repair it"
        ) from error


def size_of(value: Sequence[Any]) -> tuple[int, int]:
    """(height, width) of two integers.

    Raises:
      TypeError, ValueError: they aren't.
    """
    height, width = value
    if not (type(height) is int and type(width) is int and 1 <= min(height, width) <= 4096):
        raise ValueError(value)
    return height, width


def three(value: Sequence[Any]) -> tuple[float, ...]:
    """Three finite numbers, one a channel.

    Raises:
      TypeError, ValueError: they aren't.
    """
    numbers = tuple(float(number) for number in value)
    if len(numbers) != 3 or not np.isfinite(numbers).all():
        raise ValueError(value)
    return numbers
