"""Tests run on eight virtual CPU devices, so that nothing is right by having one device only."""

import os
import tempfile
from pathlib import Path

# Virtual devices share XLA's thread pool; with as few threads as cores, their collectives can hang.
os.environ.setdefault("NPROC", "16")
# Programs that several tests, their subprocesses and both workers run are compiled once, and not
# again by the next `pytest`. With a limit JAX locks the directory: nobody reads half a program.
_programs = Path(__file__).parents[1] / ".pytest_cache" / "programs"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_programs)
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2 * 10**9)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
_cache = tempfile.TemporaryDirectory(prefix="retrieval_jax-tests-")
os.environ["XDG_CACHE_HOME"] = _cache.name

import jax  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
import pytest  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def free_executables():
    """Each compiled program holds memory maps, of which a process may have some 65,000."""
    yield
    jax.clear_caches()
