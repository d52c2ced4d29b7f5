"""The command `retrieval-jax`: see `_USAGE`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etils import epath

from retrieval_jax.runtime.errors import Interrupted, UserError, printable
from retrieval_jax.runtime.files import as_path
from retrieval_jax.runtime.interruption import MESSAGE, Interruption
from retrieval_jax.runtime.progress import complain, prepare_streams, say, show, silence

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# Not the docstring, which `python -OO` leaves out.
_USAGE = """The command `retrieval-jax`, also `python -m retrieval_jax`.

    retrieval-jax run --config=CONFIG --workdir=DIR [--config.key=value …]
    retrieval-jax report DIR
    retrieval-jax compare DIR DIR … [--curve KEY] [--output DIR]
    retrieval-jax sweep FILE --workdir=DIR
    retrieval-jax index PHOTOS --output INDEX        query INDEX IMAGE …     duplicates INDEX
    retrieval-jax add INDEX PHOTOS                   remove INDEX PATH …     refresh INDEX
    retrieval-jax clusters INDEX [--html PAGE]       export INDEX --to FORM --output DIR
    retrieval-jax browse INDEX

run      does an experiment and leaves everything in DIR, a directory or gs://BUCKET/DIRECTORY. The
         same command resumes it after an interruption; SIGTERM saves and exits with code 75,
         Ctrl-C saves and exits with code 130, a second Ctrl-C exits at once.
         CONFIG is a Python file with `get_config()`, or the name of one that comes along, such as
         quickstart:hint. `retrieval-jax run --help` lists every key.
report   makes the figures and the page of a finished run again.
compare  sets finished runs side by side; runs that differ in their seed share a column.
sweep    runs the configs of FILE with all its overrides and seeds.
index    embeds a folder of photos, with a pretrained network or a run's; query finds those nearest
         to another picture, duplicates groups copies; add, remove and refresh keep it up to date;
         clusters shows its clusters, browse serves them as a page to this machine, export writes
         embeddings for other programs.

Bad input ends with one sentence on standard error and exit code 2.
"""
_HELP = "see retrieval-jax run --help for every key"
_PHOTOS = (
    "index",
    "query",
    "add",
    "remove",
    "refresh",
    "duplicates",
    "clusters",
    "export",
    "browse",
)
_EMBEDDING = {"index", "add", "refresh"}
# They compute too little for huge pages to pay.
_QUICK = {"report", "compare", "sweep", *_PHOTOS} - _EMBEDDING


def parse(arguments: list[str]) -> tuple[ConfigDict, epath.Path]:
    """The config, its overrides applied and type-checked, and the workdir.

    Raises:
      UserError: a sentence on what is wrong with the command line or the config file.
    """
    from absl import flags  # these two not for a query, which should answer at once
    from ml_collections import ConfigDict, config_flags

    for argument in arguments:
        if any(c < " " or "\ud800" <= c < "\ue000" for c in argument):  # surrogates: no UTF-8
            raise UserError(
                f"the argument {printable(argument)!r} holds control characters or is no UTF-8; "
                "rename what it names"
            )
    values = flags.FlagValues()
    line = ["main", *map(_with_shipped_config, arguments)]
    config_flags.DEFINE_config_file(
        "config", None, "The config file.", flag_values=values, sys_argv=line
    )
    flags.DEFINE_string("workdir", None, "Where the run leaves everything.", flag_values=values)
    flags.DEFINE_string(
        "init_from", None, "Short for --config.training.init_from.", flag_values=values
    )
    try:
        stray = values(line)[1:]
        config, workdir = values["config"].value, values["workdir"].value
    except flags.Error as error:
        raise UserError(f"{_sentence(error)}; {_HELP}") from error
    except (KeyError, AttributeError) as error:  # how ml_collections refuses an undeclared key
        raise UserError(
            f"the config names what isn't there: {_sentence(error)} ({_HELP})"
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
    named = [argument for argument in line if argument.startswith("--config=")]
    if not named or workdir is None:
        missing = "workdir=DIR" if named else "config=CONFIG"
        raise UserError(f"--{missing} is missing; {_HELP}")
    path = named[-1].removeprefix("--config=").partition(":")[0]
    if not Path(path).is_file():
        shipped = ", ".join(sorted(path.stem for path in _configs().glob("*.py")))
        raise UserError(
            f"the config {printable(path)!r} isn't there; give an existing file or one of {shipped}"
        )
    from retrieval_jax.config import default

    if not isinstance(config, ConfigDict) or not set(default()) <= set(config):
        raise UserError(
            f"get_config() of {printable(path)!r} must return retrieval_jax.config.default(), with "
            "what the experiment changes"
        )
    if values["init_from"].value is not None:
        config.training.init_from = values["init_from"].value
    return config, as_path(workdir)


def with_huge_pages() -> None:
    """Starts Python again, once, with glibc's allocator asking for huge pages.

    XLA's CPU backend maps its buffers again in every call; in pages of 4 kB that takes a quarter of
    a training step. glibc reads the setting when a program starts, hence the second start. What the
    user has set is left alone; elsewhere than on Linux nothing happens.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def with_a_device_per_core() -> None:
    """Has JAX see each core of the CPU as a device, unless the user has said how many there are.

    Devices share the images out and need not wait for each other in every product: on two cores
    the pretrained network then embeds 1.2 times as many. It must be called before JAX is imported.
    """
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(os.cpu_count() or 1))


def main(arguments: list[str]) -> int:
    """Does what the command line says; without a subcommand it is `run`. Returns the exit code."""
    name = arguments[0] if arguments and not arguments[0].startswith("-") else "run"
    rest = arguments[1:] if arguments[:1] == [name] else arguments
    if arguments in ([], ["--help"], ["-h"], ["help"]):
        show(_USAGE)
        return 0
    if name == "run":
        return _run(rest)
    if name == "report":
        from retrieval_jax.report.page import main as report

        with Interruption():
            return report(rest)
    if name == "compare":
        from retrieval_jax.report.compare import main as compare

        with Interruption():
            return compare(rest)
    if name == "sweep":
        from retrieval_jax.sweep import main as sweep

        return sweep(rest)
    if name in _PHOTOS:
        from retrieval_jax.photos.command import main as photos

        with Interruption():
            return photos(name, rest)
    complain(
        f"error: there is no command {printable(name)!r}; "
        f"the commands are run, report, compare, sweep, {', '.join(_PHOTOS)}"
    )
    return 2


def command() -> None:
    """The console script."""
    if not _QUICK.intersection(sys.argv[1:2]):
        with_huge_pages()
    if _EMBEDDING.intersection(sys.argv[1:2]):
        with_a_device_per_core()
    prepare_streams()
    sys.unraisablehook = _without_orbax(sys.unraisablehook)
    code = main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            silence(stream)
    if code == 2:
        # Threads of Orbax would wait for minutes for what a failed save no longer brings.
        os._exit(code)
    sys.exit(code)


def _without_orbax(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Leaves out what a failed save or restore of Orbax says of the event loop that it closed."""

    def said(what: Any) -> None:
        if "Event loop is closed" not in str(what.exc_value):
            hook(what)

    return said


def _run(arguments: list[str]) -> int:
    from absl import logging

    started = time.perf_counter()
    interruption = Interruption()
    # Orbax logs a traceback of what it raises as well.
    logging.set_verbosity(logging.FATAL)
    try:
        if "--help" in arguments or "-h" in arguments:
            _print_reference([a for a in arguments if a not in ("--help", "-h")])
            return 0
        with interruption:
            config, workdir = parse(arguments)
            from retrieval_jax import build, pipeline
            from retrieval_jax.config import check_hosts
            from retrieval_jax.runtime.hosts import meeting
            from retrieval_jax.runtime.program_cache import keep_programs

            check_hosts(config)
            with meeting(**config.distributed):
                keep_programs(config.compilation_cache)
                pipeline.run(
                    build.experiment(config),
                    workdir,
                    arguments,
                    started=started,
                    interruption=interruption,
                )
                say(f"report: {workdir / 'report.html'}")
    except UserError as error:
        complain(f"error: {printable(str(error))}")
        return 2
    except Interrupted:
        complain(MESSAGE)
        return interruption.code
    return 0


def _print_reference(arguments: list[str]) -> None:
    """Every key, with its value in the config that the arguments name, or its default."""
    from retrieval_jax.config import default, reference

    named = any(argument.startswith("--config=") for argument in arguments)
    config = parse([*arguments, "--workdir=unused"])[0] if named else default()
    show(_USAGE)
    for key, value, text in reference(config):
        show(f"--config.{key}={value!r}\n    {text}")


def _configs() -> Path:
    """Where the configs are: in the package, where it is installed, or beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def _with_shipped_config(argument: str) -> str:
    """--config=quickstart:hint → --config=…/quickstart.py:hint."""
    flag, equals, value = argument.partition("=")
    name, colon, rest = value.partition(":")
    shipped = _configs() / f"{name}.py"
    if flag != "--config" or not name.isidentifier() or not shipped.is_file():
        return argument
    return f"{flag}{equals}{shipped}{colon}{rest}"


def _sentence(error: Exception) -> str:
    message = str(error.args[0] if len(error.args) == 1 else error)
    # ml_collections quotes what was quoted before.
    return " ".join(message.replace("\\n", " ").replace("\\'", "'").split())


if __name__ == "__main__":
    command()
