"""The pretrained network as a kept program: a query need neither trace it nor import Flax."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax import export

import retrieval_jax
from retrieval_jax.data.cache import cached, stamp
from retrieval_jax.data.lite0_weights import SIZE


def single(params: dict[str, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """A function uint8 [1, 224, 224, 3] → unit features float32 [1, 1280], on one device.

    Its program lies in the user's cache, beside the compiled programs that JAX keeps there, and is
    traced again for another version of JAX or of the network, or if it is damaged.

    Args:
      params: of `lite0_params`.
    """
    source = Path(retrieval_jax.__file__).parent / "models" / "lite0.py"
    state = f"{jax.__version__} {jax.default_backend()} {stamp([source])}"
    kept = cached("program of efficientnet_lite0", state, lambda: {"program": _traced(params)})
    call = jax.jit(export.deserialize(bytearray(kept["program"])).call)
    placed = jax.device_put(params)
    return lambda images: np.asarray(call(placed, images))


def _traced(params: dict[str, np.ndarray]) -> np.ndarray:
    from retrieval_jax.embedder import embedding
    from retrieval_jax.models.lite0 import EfficientNetLite0, nested

    embed = embedding(EfficientNetLite0(), normalize=True)
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), np.uint8)
    program = export.export(jax.jit(lambda params, images: embed(nested(params), images)))
    return np.frombuffer(program(params, image).serialize(), np.uint8)
