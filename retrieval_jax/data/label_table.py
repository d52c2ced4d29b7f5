"""A table of images and their labels: CSV or Parquet."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.memory import require

_COLUMNS = ["path", "label"]


def read_table(path: Path, root: Path) -> dict[str, str]:
    """File, relative to the folder → its label.

    Args:
      path: CSV in UTF-8, or .parquet, with the columns path and label; the labels of the latter are
        strings or integers.
      root: the folder.

    Raises:
      UserError: it can't be read, or says anything else of an image than one label; or the image
        isn't there.
    """
    shown = printable(str(path))
    if not path.is_file():
        raise UserError(
            f"data.labels names {shown}, which is not a file: give a CSV or Parquet file"
        )
    table: dict[str, str] = {}
    for at, name, label in (_parquet if path.suffix == ".parquet" else _csv)(path, shown):
        if not name or not label:
            raise UserError(f"{at} has no path or no label: complete it or remove it")
        name = os.path.normpath(name).replace(os.sep, "/")
        if name.startswith(("/", "../")) or "\0" in name:
            raise UserError(
                f"{at} names {printable(name)[:80]!r}: paths are relative to data.directory"
            )
        if name in table:
            raise UserError(f"{at} repeats {printable(name)}: an image has one label")
        if not os.path.lexists(root / name):
            raise UserError(
                f"{at} names {printable(name)[:80]!r}, which isn't in {printable(str(root))}: "
                "correct the path or remove the line"
            )
        table[name] = label
    if not table:
        raise UserError(f"{shown} lists no image: give a line for each")
    return table


def _csv(path: Path, shown: str) -> Iterator[tuple[str, str | None, str | None]]:
    """Where, path and label of each line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if not set(_COLUMNS) <= set(rows.fieldnames or ()):
                raise UserError(
                    f"the first line of {shown} must name the columns path and label, it is "
                    f"{printable(','.join(rows.fieldnames or ()))[:80]!r}"
                )
            for row in rows:
                yield f"line {rows.line_num} of {shown}", row["path"], row["label"]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"{shown} can't be read as CSV in UTF-8 ({reason(error)}): save it as that"
        ) from error


def _parquet(path: Path, shown: str) -> Iterator[tuple[str, str | None, str | None]]:
    from pyarrow import ArrowException, parquet, types

    try:
        with parquet.ParquetFile(str(path)) as file:
            groups = range(file.metadata.num_row_groups)
            size = sum(file.metadata.row_group(i).total_byte_size for i in groups)
            require(2 * size, shown, "split it")
            columns = file.read(_COLUMNS)
        names, labels = (columns[name] for name in _COLUMNS)
        if not types.is_string(names.type) or not (
            types.is_string(labels.type) or types.is_integer(labels.type)
        ):
            raise ValueError("path must be strings, and label strings or integers")
        rows = list(zip(names.to_pylist(), labels.to_pylist(), strict=True))
    except (ArrowException, OSError, LookupError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"{shown} can't be read as Parquet with the columns path and label ({reason(error)})"
        ) from error
    for number, (name, label) in enumerate(rows, 1):
        yield f"row {number} of {shown}", name, None if label is None else str(label)
