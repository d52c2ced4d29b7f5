"""Runs many configs with many seeds.

    retrieval-jax sweep FILE --workdir=DIR [--only N | --list]

FILE is a Python file with `get_sweep()` that returns a `retrieval_jax.sweep.Sweep`. Its runs are
done one after the other, each in a process of its own and in a directory of its own in DIR, with
what it prints in a .log file beside that. The same command goes on after an interruption, and does
failed runs again. --only N does one of them, counted from 0, for a job array:

    sbatch --array=0-8 --wrap 'retrieval-jax sweep FILE --workdir=DIR --only $SLURM_ARRAY_TASK_ID'

--list shows the runs and which have finished. Runs that failed are listed at the end, and the exit
code is 1.
"""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from etils import epath

from retrieval_jax.report.results import finished
from retrieval_jax.report.text import Parser, duration, say
from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.files import as_path, is_remote
from retrieval_jax.runtime.interruption import INTERRUPTED, MESSAGE
from retrieval_jax.runtime.progress import complain

_LONGEST_NAME = 120


class Sweep(NamedTuple):
    """All of the configs with all of the overrides and all of the seeds.

    Attributes:
      configs: as after --config=.
      overrides: dictionaries of keys and values, as in {"training.epochs": 5}; {} for the config as
        it is.
      seeds: of the runs.

    Example:
      >>> sweep = Sweep(["quickstart:hint"], [{"training.epochs": n} for n in (1, 5)], [0, 1])
      >>> [planned.name for planned in plan(sweep)][:2]
      ['quickstart-hint-training.epochs=1-seed0', 'quickstart-hint-training.epochs=1-seed1']
    """

    configs: Sequence[str]
    overrides: Sequence[Mapping[str, Any]] = ({},)
    seeds: Sequence[int] = (0,)


class Planned(NamedTuple):
    """A run: the name of its directory, and its arguments but for that."""

    name: str
    arguments: list[str]


def plan(sweep: Sweep) -> list[Planned]:
    """The runs of a sweep in a fixed order, the seeds varying fastest.

    Raises:
      UserError: two runs are the same.
    """
    runs = [
        _planned(config, overrides, seed)
        for config in sweep.configs
        for overrides in sweep.overrides
        for seed in sweep.seeds
    ]
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"the sweep has the run {name!r} twice; make its overrides differ")
    return runs


def read_sweep(path: Path) -> Sweep:
    """What `get_sweep()` of a Python file returns.

    Raises:
      UserError: there is no such file or function, it raises, or it returns something else.
    """
    shown = printable(str(path))
    if not path.is_file():
        raise UserError(f"the sweep {shown} isn't there; name a Python file with get_sweep()")
    try:
        sweep = runpy.run_path(str(path))["get_sweep"]()
        sweep = Sweep(
            list(sweep.configs), [dict(one) for one in sweep.overrides], list(sweep.seeds)
        )
    except Exception as error:  # the file is the user's own code: anything can come of it
        kind = type(error).__name__
        raise UserError(f"the sweep {shown} can't be read: {kind}: {reason(error)}") from error
    if not (sweep.configs and sweep.overrides and sweep.seeds):
        raise UserError(f"the sweep {shown} has no run: configs, overrides and seeds need one each")
    return sweep


def main(arguments: Sequence[str]) -> int:
    """Does what the command line says; returns the exit code."""
    parser = Parser(prog="retrieval-jax sweep", description="Runs many configs with many seeds.")
    parser.add_argument("file", metavar="FILE", type=Path, help="Python file with get_sweep()")
    parser.add_argument("--workdir", metavar="DIR", required=True, help="where the runs go")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--only", metavar="N", type=int, help="one run, counted from 0")
    which.add_argument("--list", action="store_true", help="show the runs, do none")
    try:
        options = parser.parse_args(arguments)
        runs = plan(read_sweep(options.file))
        workdir = as_path(options.workdir)
        if options.list:
            for number, run in enumerate(runs):
                state = "finished" if finished(workdir / run.name) else "to do"
                say(f"{number:4}  {state:8}  {run.name}", sys.stdout)
            return 0
        if options.only is None:
            return _all(runs, workdir)
        if not 0 <= options.only < len(runs):
            raise UserError(f"there is no run {options.only}; --only takes 0 to {len(runs) - 1}")
        command = _command(runs[options.only], workdir)
        sys.stdout.flush()
        os.execv(command[0], command)  # signals reach the run itself
    except UserError as error:
        complain(f"error: {error}")
        return 2


def _planned(config: str, overrides: Mapping[str, Any], seed: int) -> Planned:
    file, _, argument = config.partition(":")
    words = [Path(file).stem, *([argument] if argument else [])]
    words += [f"{key}={value}" for key, value in overrides.items()] + [f"seed{seed}"]
    name = re.sub(r"[^\w.=+-]+", "_", "-".join(words))  # nothing that a shell or a glob expands
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 9]}-{zlib.crc32(name.encode()):08x}"
    keys = {**overrides, "seed": seed}
    return Planned(
        name, [f"--config={config}", *(f"--config.{key}={value}" for key, value in keys.items())]
    )


def _command(run: Planned, workdir: epath.Path) -> list[str]:
    command = [sys.executable, "-m", "retrieval_jax", "run", *run.arguments]
    return [*command, f"--workdir={workdir / run.name}"]


def _all(runs: Sequence[Planned], workdir: epath.Path) -> int:
    """Runs one after the other; a run that is told to stop ends the sweep with its exit code."""
    logs = Path(".") if is_remote(workdir) else Path(workdir)
    logs.mkdir(parents=True, exist_ok=True)
    failed = []
    for number, run in enumerate(runs):
        log = logs / f"{run.name}.log"
        say(f"{number + 1}/{len(runs)} {run.name}", sys.stdout)
        start = time.monotonic()
        with log.open("ab") as file:
            code = _passing_signals_on(_command(run, workdir), file)
        if code in (INTERRUPTED, 130):
            say(MESSAGE, sys.stderr)
            return code
        ended = "done" if code == 0 else f"failed with exit code {code}"
        say(f"  {ended} after {duration(time.monotonic() - start)}", sys.stdout)
        if code:
            failed.append((run.name, _last_line(log)))
    for name, line in failed:
        say(f"failed: {name}: {line}", sys.stderr)
    return 1 if failed else 0


def _passing_signals_on(command: Sequence[str], output: BinaryIO) -> int:
    """Runs a program; SIGTERM and SIGINT are for it to answer. Returns its exit code."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        start_new_session=True,  # or a terminal's Ctrl-C would reach it twice
    )  # fmt: skip
    before = {
        number: signal.signal(number, lambda number, _: process.send_signal(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(file.tell() - 4096, 0))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return printable(lines[-1]) if lines else "it printed nothing"
