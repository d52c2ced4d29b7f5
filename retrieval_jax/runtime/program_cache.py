"""Compiled programs kept on disk, so that a second run doesn't compile them again."""

from __future__ import annotations

import os

import jax


def keep_programs(directory: str) -> None:
    """Makes JAX keep every program that it compiles from now on in the directory.

    If JAX_COMPILATION_CACHE_DIR is set, JAX uses that and its own settings; with "" nothing is
    kept. A directory that can't be written does no harm: JAX warns and compiles.
    """
    if not directory or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    directory = os.path.expanduser(directory)
    if directory.startswith("~"):  # there is no home
        return
    jax.config.update("jax_compilation_cache_dir", directory)
    # By default JAX skips what compiles in under a second, of which a run has a hundred programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
