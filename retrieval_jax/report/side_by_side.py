"""The same queries answered by several runs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from retrieval_jax.report.comparison import Group, Run
from retrieval_jax.report.examples import cell_of
from retrieval_jax.report.payload import arrays_of, class_names
from retrieval_jax.report.results import check_files
from retrieval_jax.runtime.errors import UserError

_NEIGHBOURS, _QUERIES = 5, 12


class Picture(NamedTuple):
    """An image: its WebP in base64 and a line on it; `right` is None without labels."""

    webp: str
    note: str
    right: bool | None = None


class Answers(NamedTuple):
    """A query, and by the head of each group the nearest gallery images that its run finds."""

    query: Picture
    found: dict[str, list[Picture]]


class _Shown(NamedTuple):
    """What a run has for this: its neighbours by rows of the data, and thumbnails of some rows."""

    run: Run
    queries: np.ndarray
    rows: np.ndarray  # [q, k], rows of the data
    distances: np.ndarray
    labels: dict[int, int]  # by row of the data
    sheets: list[Image.Image]
    size: tuple[int, int]
    thumbnails: dict[int, int]  # by row of the data


def side_by_side(groups: Sequence[Group]) -> list[Answers]:
    """Up to twelve queries on which the groups' first runs differ most; of few runs none.

    Runs take part whose split is that of the first, and whose files are as they left them.
    """
    shown: dict[str, _Shown] = {}
    for group in groups:
        found = _shown(group.runs[0])
        first = next(iter(shown.values()), found)
        if found and first and np.array_equal(found.queries, first.queries):
            shown[group.head] = found
    if len(shown) < 2:
        return []
    first = next(iter(shown.values()))
    common = [
        i
        for i, row in enumerate(first.queries.tolist())
        if all(row in one.thumbnails for one in shown.values())
    ]
    right = np.array([[_right(one, i) for i in common] for one in shown.values()])
    order = np.argsort(-np.ptp(right, axis=0), kind="stable")[:_QUERIES]
    answers = []
    for i in (common[at] for at in order):
        row = int(first.queries[i])
        answers.append(
            Answers(
                Picture(_webp(first, row), _class(first, row) or "query"),
                {head: _found(one, i) for head, one in shown.items()},
            )
        )
    return answers


def _shown(run: Run) -> _Shown | None:
    """None where a file is missing, was changed, or is of an earlier version."""
    try:
        check_files(run.directory, run.results, ("neighbours.npz", "examples.npz"))
        neighbours = arrays_of(run.directory / "neighbours.npz")
        examples = arrays_of(run.directory / "examples.npz")
        gallery, queries = neighbours["gallery"], neighbours["queries"]
        rows = gallery[examples["shown_gallery"]], queries[examples["shown_queries"]]
        labels: dict[int, int] = {}
        if "gallery_classes" in examples:
            labels |= zip(gallery.tolist(), examples["gallery_classes"].tolist(), strict=True)
            labels |= zip(queries.tolist(), examples["query_classes"].tolist(), strict=True)
        count = sum(name.startswith("sheet_") for name in examples)
        width, height = examples["thumbnail_size"].tolist()
        indices = neighbours["exhaustive_indices"][:, :_NEIGHBOURS]
        return _Shown(
            run,
            queries,
            np.where(indices >= 0, gallery[indices], -1),
            neighbours["exhaustive_distances"],
            labels,
            [Image.open(io.BytesIO(examples[f"sheet_{i}"].tobytes())) for i in range(count)],
            (width, height),
            {row: i for i, row in enumerate(np.concatenate(rows).tolist())},
        )
    except (UserError, OSError, ValueError, KeyError, IndexError):
        return None


def _right(one: _Shown, query: int) -> float:
    """The share of the neighbours with the query's class; without labels the nearest's distance."""
    if not one.labels:
        return float(one.distances[query, 0])
    mine = one.labels[int(one.queries[query])]
    return float(np.mean([one.labels.get(row) == mine for row in one.rows[query].tolist()]))


def _found(one: _Shown, query: int) -> list[Picture]:
    mine = one.labels.get(int(one.queries[query]))
    pictures = []
    for row, distance in zip(one.rows[query].tolist(), one.distances[query].tolist(), strict=False):
        if row >= 0:
            note = f"{distance:.4g} {_class(one, row)}".strip()
            right = None if mine is None else one.labels[row] == mine
            pictures.append(Picture(_webp(one, row), note, right))
    return pictures


def _class(one: _Shown, row: int) -> str:
    label = one.labels.get(row)
    return "" if label is None else class_names(one.run.results, label + 1)[label]


def _webp(one: _Shown, row: int) -> str:
    """The thumbnail in base64, empty where there is none."""
    if row not in one.thumbnails:
        return ""
    sheet, place = cell_of(one.thumbnails[row], one.size)
    file = io.BytesIO()
    one.sheets[sheet].crop(place).save(file, "WEBP", lossless=True)
    return base64.b64encode(file.getvalue()).decode()
