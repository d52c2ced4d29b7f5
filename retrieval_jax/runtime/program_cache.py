"""Compiled programs kept on disk, so that a second run doesn't compile them again."""

from __future__ import annotations

import os

import jax


def keep_programs(directory: str) -> None:
    """Lets JAX keep every program that it compiles from now on in the directory.

    Where JAX_COMPILATION_CACHE_DIR is set, JAX goes by it and by its settings; with "" nothing is
    kept. A directory that can't be written makes no difference to a run: JAX warns and compiles.
    """
    if not directory or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(directory))
    # JAX leaves out what takes less than a second, of which a run compiles a hundred.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
