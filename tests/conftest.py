"""Tests run on four virtual CPU devices, so that nothing is right by having one device only."""

import os

# Virtual devices share XLA's thread pool; with as few threads as cores, their collectives can hang.
os.environ.setdefault("NPROC", "16")

import jax  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
