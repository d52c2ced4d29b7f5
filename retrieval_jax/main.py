"""Runs one experiment from its config file.

    python -m retrieval_jax.main --config=FILE --workdir=DIR [--config.key=value …]

FILE is a Python file with `get_config()`; `retrieval_jax/config.py` declares every key. The run
leaves everything in DIR, a directory or gs://BUCKET/DIRECTORY, and the same command goes on after
an interruption; SIGTERM saves and ends with exit code 75. Bad input ends with one sentence on
standard error and exit code 2.
"""

from __future__ import annotations

import os
import sys
import time

from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict, config_flags

from retrieval_jax.runtime.errors import Interrupted, UserError
from retrieval_jax.runtime.files import as_path
from retrieval_jax.runtime.interruption import INTERRUPTED, MESSAGE, Interruption


def parse(arguments: list[str]) -> tuple[ConfigDict, epath.Path]:
    """The config, its overrides applied and type-checked, and the workdir.

    Raises:
      UserError: a sentence on what is wrong with the command line or the config file.
    """
    values = flags.FlagValues()
    line = ["main", *arguments]
    config_flags.DEFINE_config_file(
        "config", None, "The config file.", flag_values=values, sys_argv=line
    )
    flags.DEFINE_string("workdir", None, "Where the run leaves everything.", flag_values=values)
    try:
        stray = values(line)[1:]
        config, workdir = values["config"].value, values["workdir"].value
    except flags.Error as error:
        raise UserError(
            f"{_sentence(error)}; retrieval_jax/config.py declares every key"
        ) from error
    except (KeyError, AttributeError) as error:  # how ml_collections refuses an undeclared key
        raise UserError(
            f"the config names what isn't there: {_sentence(error)} "
            "(retrieval_jax/config.py declares every key)"
        ) from error
    except UserError:
        raise
    except Exception as error:  # the config file is the user's own code: anything can come of it
        kind = type(error).__name__
        raise UserError(f"the config file can't be read: {kind}: {_sentence(error)}") from error
    if stray:
        raise UserError(
            f"stray argument {stray[0]!r}; write --config.key=value with the equals sign"
        )
    if config is None or workdir is None:
        missing = "config=FILE" if config is None else "workdir=DIR"
        raise UserError(f"--{missing} is missing; see python -m retrieval_jax.main --help")
    if not isinstance(config, ConfigDict):  # config_flags' stand-in for a file that isn't there
        raise UserError("the config file can't be read; give --config=FILE with an existing file")
    return config, as_path(workdir)


def with_huge_pages() -> None:
    """Starts Python again, once, with glibc's allocator asking for huge pages.

    XLA's CPU backend maps its buffers anew in every call; in pages of 4 kB that takes a quarter of
    a training step. glibc reads the setting when a program starts, hence the second start. What the
    user has set is left alone; elsewhere than on Linux nothing happens.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def main(arguments: list[str]) -> int:
    """Runs the experiment; returns the exit code."""
    started = time.perf_counter()
    if "--help" in arguments:
        print(__doc__)
        return 0
    # Orbax logs a traceback of what it raises as well.
    logging.set_verbosity(logging.FATAL)
    try:
        with Interruption() as interruption:
            config, workdir = parse(arguments)
            from retrieval_jax import build, pipeline
            from retrieval_jax.config import check_hosts
            from retrieval_jax.runtime.hosts import meeting
            from retrieval_jax.runtime.program_cache import keep_programs

            check_hosts(config)
            with meeting(**config.distributed):
                keep_programs(config.compilation_cache)
                experiment = build.experiment(config)
                pipeline.run(
                    experiment, workdir, arguments, started=started, interruption=interruption
                )
                print(f"report: {workdir / 'report.html'}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted:
        print(MESSAGE, file=sys.stderr)
        return INTERRUPTED
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from its last save", file=sys.stderr)
        return 130
    return 0


def _sentence(error: Exception) -> str:
    message = str(error.args[0] if len(error.args) == 1 else error)
    # ml_collections quotes what was quoted before.
    return " ".join(message.replace("\\n", " ").replace("\\'", "'").split())


if __name__ == "__main__":
    with_huge_pages()
    code = main(sys.argv[1:])
    if code == 2:
        # Threads of Orbax would wait for minutes for what a failed save no longer brings.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
