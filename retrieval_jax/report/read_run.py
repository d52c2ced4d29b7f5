"""What the `results.json` of a finished run says, checked, as a comparison shows it."""

import json
import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epath

from retrieval_jax.report.text import duration, loss, printable, score
from retrieval_jax.runtime.errors import UserError, reason
from retrieval_jax.runtime.files import reaching, read_bytes

GROUPS = ("clusters", "retrieval", "after the last epoch", "time")
MISSING = "-"


class Run(NamedTuple):
    """What the comparison shows of one run."""

    directory: epath.Path
    name: str
    values: dict[tuple[str, str], str]  # (group, row) -> formatted value, in the order to show
    data: str
    seed: str
    device: str
    left_out: tuple[str, ...]


def read_run(directory: epath.PathLike) -> Run:
    """Reads a run's results.json.

    Raises:
      UserError: there is no such directory or file, or it isn't a whole results file of a
        format that this version knows.
    """
    directory = epath.Path(directory)
    file = directory / "results.json"
    shown = printable(str(file))
    try:
        with reaching(directory):
            there = directory.is_dir()
        if not there:
            raise UserError(
                f"{printable(str(directory))} is not a directory: name the workdir of a finished "
                "run."
            )
        results = json.loads(read_bytes(file))
    except FileNotFoundError:
        raise UserError(f"{shown} is missing: the run there has not finished.") from None
    except OSError as error:
        raise UserError(f"{shown} can't be read: {reason(error)}.") from None
    except (ValueError, RecursionError):
        raise UserError(f"{shown} is broken, it is not JSON: repeat the run's report.") from None
    if not isinstance(results, dict) or "format" not in results:
        raise UserError(f"{shown} is not the results file of a run of this project.")
    if results["format"] != 1:
        raise UserError(
            f"{shown} has format {printable(repr(results['format']))[:40]}; this version of the "
            "project reads format 1."
        )
    try:
        return _run(directory, results)
    except _WrongError as error:
        raise UserError(f"{shown} is broken: {printable(str(error))}.") from None


class _WrongError(Exception):
    """A value of a results file has the wrong type."""


def _get(results: dict[str, Any], path: str, kind: type, default: Any = None) -> Any:
    """The value at a path like "clustering/gallery/nmi", the default where a key is missing."""
    value: Any = results
    keys = path.split("/")
    for depth, key in enumerate(keys):
        if not isinstance(value, dict):
            raise _WrongError(f"{'.'.join(keys[:depth])} is not an object")
        if value.get(key) is None:
            return default
        value = value[key]
    return _checked(value, kind, ".".join(keys))


def _checked(value: Any, kind: type, where: str) -> Any:
    if kind is float:
        # A boolean is an int to Python; an int may be too large for a float.
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e300:
            value = float(value)
        if not isinstance(value, float):
            raise _WrongError(f"{where} is not a number")
    elif not isinstance(value, kind):
        names = {"str": "a text", "dict": "an object", "list": "a list"}
        raise _WrongError(f"{where} is not {names[kind.__name__]}")
    return value


def _run(directory: epath.Path, results: dict[str, Any]) -> Run:
    values: dict[tuple[str, str], str] = {}

    def add(group: str, row: str, path: str, form: Callable[[float], str] = score) -> None:
        value = _get(results, path, float)
        values[group, row] = MISSING if value is None else form(value)

    for measure in ("nmi", "ri", "ari"):
        for side in ("gallery", "queries"):
            add("clusters", f"{measure.upper()}, {side}", f"clustering/{side}/{measure}")
    for way, shown in (("cluster", "in cluster"), ("exhaustive", "exhaustive")):
        for measure in _get(results, f"retrieval/{way}", dict, {}):
            name = measure.replace("map@", "mAP@")
            add("retrieval", f"{name}, {shown}", f"retrieval/{way}/{measure}")
    for cut in _get(results, "retrieval/kept", dict, {}):
        add("retrieval", f"true neighbours kept, {cut}", f"retrieval/kept/{cut}")

    epochs = [
        _checked(epoch, dict, "an epoch of training.history")
        for epoch in _get(results, "training/history", list, [])
    ]
    last = epochs[-1] if epochs else {}
    sides = {side: _get(last, side, dict, {}) for side in ("fit", "validation")}
    for term in dict.fromkeys([*sides["fit"], *sides["validation"]]):
        for side, losses in sides.items():
            if losses.get(term) is not None:
                value = _checked(losses[term], float, f"the {side} {term}")
                values["after the last epoch", f"{term}, {side}"] = loss(value)

    times = [_checked(epoch.get("seconds"), float, "an epoch's seconds") for epoch in epochs]
    median = duration(statistics.median(times)) if times else MISSING
    values["time", "an epoch (median)"] = median
    stages = _get(results, "seconds", dict, {})
    total = sum(_checked(span, float, f"seconds.{stage}") for stage, span in stages.items())
    values["time", "all stages"] = duration(total) if stages else MISSING

    data = _get(results, "provenance/data", dict, {})
    shape = " × ".join(str(size) for size in _get(data, "image_shape", list, []))
    counts = [
        f"{int(count):,} {noun}"
        for noun in ("gallery", "queries")
        if (count := _get(data, noun, float)) is not None and math.isfinite(count)
    ]
    device = _get(results, "provenance/device", dict, {})
    seed = _get(results, "provenance/seed", float)
    return Run(
        directory,
        _get(results, "name", str, ""),
        values,
        data=", ".join(filter(None, [_get(data, "description", str, ""), shape, *counts])),
        seed=MISSING if seed is None else f"{seed:.0f}",
        device=" ".join(
            [
                f"{_get(device, 'count', float, 1.0):.0f} ×",
                _get(device, "kind", str, "unknown"),
                f"({_get(device, 'host', str, 'unknown host')})",
            ]
        ),
        left_out=tuple(
            _checked(sentence, str, "a sentence of left_out")
            for sentence in _get(results, "left_out", list, [])
        ),
    )
