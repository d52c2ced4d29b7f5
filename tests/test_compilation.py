"""Programs are kept where the config says, unless the environment says it first."""

import os
import subprocess
import sys

import pytest

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
CLEAN["JAX_PLATFORMS"] = "cpu"
CODE = """
import sys
import jax
from retrieval_jax.runtime.program_cache import keep_programs
keep_programs(sys.argv[1])
jax.jit(lambda x: x + 1)(1.0)
"""


@pytest.mark.parametrize("way", ["config", "environment", "off"])
def test_programs_are_kept_where_asked(tmp_path, way):
    asked, other = tmp_path / "asked", tmp_path / "other"
    environment = CLEAN.copy()
    if way == "environment":
        environment["JAX_COMPILATION_CACHE_DIR"] = str(other)
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    argument = "" if way == "off" else str(asked)
    subprocess.run([sys.executable, "-c", CODE, argument], env=environment, check=True)
    kept = {path.name for path in tmp_path.iterdir() if any(path.iterdir())}
    assert kept == {"config": {"asked"}, "environment": {"other"}, "off": set()}[way]


def test_a_directory_that_cannot_be_made_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-c", CODE, str(tmp_path / "file" / "cache")]
    subprocess.run(command, env=CLEAN, check=True)
