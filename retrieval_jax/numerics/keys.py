"""Keys derived from (seed, purpose, step), so that nothing random needs to be saved."""

from __future__ import annotations

import zlib

import jax


def key_for(seed: int, purpose: str, step: int | jax.Array = 0) -> jax.Array:
    """A key that only depends on the seed, the purpose's name and the step.

    Example:
      >>> bool(jax.numpy.all(key_for(0, "init") == key_for(0, "init")))
      True
      >>> bool(jax.numpy.all(key_for(0, "init") == key_for(0, "shuffle")))
      False
    """
    return jax.random.fold_in(
        jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode())), step
    )
