"""The trained network as files that are data alone: `model.safetensors` and `model.json`."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import safetensors.numpy
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from retrieval_jax.runtime import hosts
from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.files import as_path, read_bytes, read_json, replacing, write_json
from retrieval_jax.runtime.origins import sealed, unsealed
from retrieval_jax.runtime.progress import say

TENSORS, DESCRIPTION = "model.safetensors", "model.json"


def save_model(
    directory: epath.Path, variables: dict[str, Any], description: dict[str, Any]
) -> None:
    """Writes a network as `model.safetensors` and `model.json`, for `Embedder.from_run`.

    Args:
      directory: a run's workdir.
      variables: all collections of a `Network`, on the host.
      description: "encoder" (its "name", "dtype" and keys), "normalize", "image_shape", "crops",
        and "projector" (its keys) or "classes" (how many), if projections or probabilities embed.
    """
    tensors = {
        name: np.asarray(value, order="C")
        for name, value in flatten_dict(variables, sep="/").items()
    }
    content = safetensors.numpy.save(tensors)
    with replacing(directory / TENSORS) as file:
        file.write(content)
    described = {"format": 1, "tensors": zlib.crc32(content), **description}
    write_json(directory / DESCRIPTION, sealed(described))


def read_tensors(directory: epath.Path) -> dict[str, np.ndarray]:
    """Collection/…/name → array, as `save_model` wrote them.

    Raises:
      UserError: it isn't there, is damaged, or is not the one that `model.json` describes.
    """
    path = directory / TENSORS
    try:
        content = read_bytes(path)
        tensors = safetensors.numpy.load(content)
    except FileNotFoundError:
        raise UserError(
            f"{printable(str(path))} is missing; name the workdir of a finished run"
        ) from None
    except (OSError, safetensors.SafetensorError, ValueError, KeyError) as error:
        raise UserError(
            f"{printable(str(path))} can't be read ({reason(error)}); finish the run again"
        ) from error
    # What earlier versions wrote has no checksum.
    if read_description(directory).get("tensors", zlib.crc32(content)) != zlib.crc32(content):
        raise UserError(
            f"{printable(str(path))} is not the network that {DESCRIPTION} describes; finish the "
            "run again"
        )
    return tensors


def started_from(run: str, params: Any) -> Any:
    """Initial parameters, replaced by a finished run's wherever name and shape agree.

    Args:
      run: a run's workdir; "" leaves the parameters as they are.
      params: of a network, on the host.

    Raises:
      UserError: the run has none of these parameters.
    """
    if not run:
        return params
    there = hosts.arrays_from_first(read_tensors(as_path(run)) if hosts.is_first() else None)
    assert there is not None
    flat = flatten_dict(params, sep="/")
    taken = {
        name: there[f"params/{name}"]
        for name, value in flat.items()
        if f"params/{name}" in there and there[f"params/{name}"].shape == value.shape
    }
    if not taken:
        raise UserError(
            f"training.init_from is {printable(run)!r}, whose network has no parameter of this "
            "one's; give the workdir of a run with the same encoder"
        )
    say(f"  {len(taken)} of {len(flat)} parameters are those of {printable(run)}")
    return unflatten_dict(flat | taken, sep="/")


def read_description(directory: epath.Path) -> dict[str, Any]:
    """The description that `save_model` wrote; its encoder's keys are not checked.

    Raises:
      UserError: it isn't there, or is damaged.
    """
    path = directory / DESCRIPTION
    try:
        found = read_json(path)
        if "crc32" in found:  # not in those of earlier versions
            found = unsealed(found)
        shape, encoder = found["image_shape"], found["encoder"]
        sound = (
            found["format"] == 1
            and len(shape) == 3
            and all(type(side) is int and 0 < side < 2**16 for side in shape)
            and isinstance(encoder["name"], str)
            and isinstance(found["normalize"], bool)
            and type(found.get("crops", 0)) is int
        )
    except FileNotFoundError:
        raise UserError(
            f"{printable(str(path))} is missing; name the workdir of a finished run"
        ) from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{printable(str(path))} can't be read ({reason(error)}); finish the run again"
        ) from error
    if not sound:
        raise UserError(f"{printable(str(path))} describes no network; finish the run again")
    return found
