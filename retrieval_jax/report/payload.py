"""What the scripts of a report read: one object of names, typed arrays and thumbnails."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from retrieval_jax.report import explore
from retrieval_jax.report.document import chart, tojson
from retrieval_jax.report.explore import Exploration, Space
from retrieval_jax.report.results import Results
from retrieval_jax.report.text import score
from retrieval_jax.runtime.errors import UserError, printable, reason
from retrieval_jax.runtime.files import read_arrays, read_json

# What the page is made from, beside results.json and images.json.
ARRAYS = ("embeddings", "clusters", "neighbours", "examples", "map")
Arrays = Mapping[str, np.ndarray]


def arrays_of(path: epath.Path) -> dict[str, np.ndarray]:
    """The arrays of a file of a run, none where it isn't there.

    Raises:
      UserError: it is damaged.
    """
    try:
        return read_arrays(path)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(
            f"{printable(str(path))} is damaged ({error}): repeat the run's command."
        ) from error


def class_names(results: Results, count: int) -> list[str]:
    """Names of the first classes, of those without a name their number."""
    names = results.provenance.data.class_names
    return [names[i] if i < len(names) else f"class {i}" for i in range(count)]


def explored(workdir: epath.Path, results: Results) -> dict[str, Any] | None:
    """What explore.html shows of a run's embeddings; None where a file for it is missing.

    Raises:
      UserError: a file is damaged or of another run.
    """
    files = [arrays_of(workdir / f"{name}.npz") for name in ARRAYS]
    embeddings, clusters, neighbours, examples, placed = files
    if not (embeddings and clusters and neighbours) or "shown_gallery" not in examples:
        return None
    try:
        space = space_of(embeddings, clusters, neighbours, examples)
        mapped = placed.get("rows", np.zeros(0, int))
        found = explore.explore(space, mapped, examples["shown_points"].item())
        names = read_json(workdir / "images.json")
        content = payload(
            space, found, placed, examples, names, results.provenance.data.class_names
        )
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(
            f"the arrays or images.json in {printable(str(workdir))} don't belong to this run "
            f"({reason(error)}): repeat the run's command."
        ) from error
    labels = [] if space.query_labels is None else np.unique(space.query_labels).tolist()
    called = class_names(results, 1 + max(labels, default=0))
    k = space.exhaustive_indices.shape[1]
    charts = [
        chart(
            "True neighbours kept", "clusters searched", "share of the ten nearest",
            {"kept": list(enumerate(explore.kept_by_clusters(space)[:255].tolist(), 1))},
            whole=True,
        )
    ]  # fmt: skip
    per_class: list[list[str]] = []
    if space.query_labels is not None:
        searches = {
            "in the query's cluster": space.cluster_indices,
            "whole gallery": space.exhaustive_indices,
        }
        curves = {
            name: [
                (recall, precision)
                for precision, recall in zip(
                    *map(np.ndarray.tolist, explore.precision_recall(space, indices)), strict=True
                )
            ]
            for name, indices in searches.items()
        }
        title = f"Precision and recall after 1 to {k} neighbours"
        charts.append(chart(title, "recall", "precision", curves))
        per_class = [
            [called[row.label], f"{row.queries:,}", f"{row.gallery:,}"]
            + [score(value) for value in (*row.precision, *row.recall)]
            for row in explore.per_class(space)
        ]
    return {
        "payload": tojson(content),
        "map": "positions" in placed
        and {"gallery": len(placed["rows"]), "queries": len(placed.get("queries", ()))},
        "whole": len(space.gallery),
        "all_queries": len(space.queries),
        "labelled": space.query_labels is not None,
        "classes": [(label, called[label]) for label in labels],
        "clusters": found.clusters,
        "per_class": per_class,
        "cuts": (min(5, k), k),
        "charts": charts,
        "usual": float(np.median(space.exhaustive_distances[:, 0])),
        "expected": len(space.queries) * min(explore.SHOWN, k) / len(space.gallery),
    }


def space_of(embeddings: Arrays, clusters: Arrays, neighbours: Arrays, examples: Arrays) -> Space:
    """The space that a run's stages left in its files.

    Raises:
      KeyError: an array is missing, as in the files of earlier versions.
      ValueError: the arrays are not of one run.
    """
    space = Space(
        gallery=embeddings["gallery"],
        queries=embeddings["queries"],
        gallery_clusters=clusters["gallery"],
        query_clusters=clusters["queries"],
        centroids=clusters["centroids"],
        cluster_indices=neighbours["cluster_indices"],
        cluster_distances=neighbours["cluster_distances"],
        exhaustive_indices=neighbours["exhaustive_indices"],
        exhaustive_distances=neighbours["exhaustive_distances"],
        gallery_labels=examples.get("gallery_classes"),
        query_labels=examples.get("query_classes"),
    )
    n, q, k = len(space.gallery), len(space.queries), len(space.centroids)
    for size, *arrays in (
        (n, space.gallery_clusters, space.gallery_labels),
        (q, space.query_clusters, space.query_labels, *space[5:9]),
    ):
        if any(array is not None and len(array) != size for array in arrays):
            raise ValueError("embeddings, clusters, neighbours and labels differ in their numbers")
    for low, high, *arrays in (
        (0, k, space.gallery_clusters, space.query_clusters),
        (-1, n, space.cluster_indices, space.exhaustive_indices),
        (0, 1 << 16, space.gallery_labels, space.query_labels),
    ):
        for array in arrays:
            if array is not None and array.size and not low <= array.min() <= array.max() < high:
                raise ValueError("a cluster, a neighbour or a label is out of range")
    return space


def payload(
    space: Space,
    found: Exploration,
    placed: Arrays,
    examples: Arrays,
    names: Mapping[str, Sequence[Any]],
    class_names: Sequence[str],
) -> dict[str, Any]:
    """What the scripts need, for `json.dumps`.

    Items are the gallery images that are shown, then the queries; all lists name them by number.

    Args:
      space: of the run.
      found: `explore.explore` of it.
      placed: the arrays of map.npz, or {} without a map.
      examples: the arrays of examples.npz.
      names: "gallery" and "queries", of all images.
      class_names: one a class.

    Raises:
      KeyError: an array is missing.
      ValueError: arrays that don't belong together.
      IndexError: the same.
    """
    gallery, queries = found.gallery, found.queries

    def item(rows: Any) -> np.ndarray:
        return np.searchsorted(gallery, np.asarray(rows, int))

    def query(rows: Any) -> np.ndarray:
        return len(gallery) + np.searchsorted(queries, np.asarray(rows, int))

    embedded = np.concatenate([space.gallery[gallery], space.queries[queries]])
    own = np.concatenate([space.gallery_clusters[gallery], space.query_clusters[queries]])
    others, far = explore.nearest_others(space.gallery[gallery])
    ranks = explore.cluster_ranks(embedded[: len(gallery)], own[: len(gallery)], space.centroids)
    of_others = np.take_along_axis(ranks, own[others], 1)
    asked = found.candidates
    made: dict[str, Any] = {
        "gallery": len(gallery),
        "names": _names(names, gallery, queries),
        "classes": list(map(printable, class_names)),
        "cluster": packed(own),
        "centroid": packed(explore.centroid_distances(embedded, own, space.centroids)),
        "starts": packed(
            np.concatenate([np.arange(len(gallery)) * others.shape[1], others.size + asked.starts])
        ),
        "neighbours": packed(np.concatenate([others.ravel(), item(asked.indices)])),
        "distances": packed(np.concatenate([far.ravel(), asked.distances])),
        "ranks": packed(np.minimum(np.concatenate([of_others.ravel(), asked.ranks]), 255)),
        "known": packed(asked.known),
        "goodness": explore.goodness(space)[queries].tolist(),
        "kept": explore.kept_by_clusters(space)[:255].tolist(),
        "clusters": [
            one._replace(typical=item(one.typical).tolist(), odd=item(one.odd).tolist())._asdict()
            for one in found.clusters
        ],
        "hubs": [(int(item(row)), count) for row, count in found.hubs],
        "leaks": [(int(query(q)), int(item(row)), far) for q, row, far in found.leaks],
        "sheets": _sheets(examples),
        "size": examples["thumbnail_size"].tolist(),
        "thumbnails": packed(_thumbnails(examples, gallery, queries)),
    }
    if space.gallery_labels is not None and space.query_labels is not None:
        labels = np.concatenate([space.gallery_labels[gallery], space.query_labels[queries]])
        made["label"] = packed(labels)
        unsure = [(int(query(q)), label, share) for q, label, share in found.doubtful]
        unsure += explore.doubtful(labels[: len(gallery)], labels[others])
        made["doubtful"] = sorted(unsure, key=lambda one: -one[2])
    if "positions" in placed:
        laid = placed.get("queries", np.zeros((0, 2)))
        both = np.concatenate([placed["positions"], laid]).astype(float)
        low, high = both.min(0), both.max(0)
        span = max(float((high - low).max()), 1e-12)
        both = 0.5 + (both - (low + high) / 2) / span
        made["mapped"] = packed(np.concatenate([item(placed["rows"]), query(np.arange(len(laid)))]))
        made["x"], made["y"] = packed(both[:, 0]), packed(both[:, 1])
    return made


def packed(values: np.ndarray) -> dict[str, Any]:
    """Numbers ≥ 0 in base64: integers in as few bytes as they need, others in steps of max / 65535.

    Example:
      >>> packed(np.array([0, 1, 2])), packed(np.array([0.0, 2.0]))["scale"] * 65535
      ({'bytes': 1, 'scale': 1, 'data': 'AAEC'}, 2.0)
    """
    values, scale = np.asarray(values), 1.0
    most = float(values.max(initial=0))
    if not np.issubdtype(values.dtype, np.integer):
        if not np.isfinite(most):
            raise ValueError("a number is not finite")
        scale = most / 65535 or 1.0
        values, most = np.rint(values / scale), 65535
    size = 1 if most < 1 << 8 else 2 if most < 1 << 16 else 4
    data = base64.b64encode(values.astype(f"<u{size}").tobytes()).decode()
    return {"bytes": size, "scale": 1 if scale == 1 else scale, "data": data}


def _names(names: Mapping[str, Sequence[Any]], gallery: np.ndarray, queries: np.ndarray) -> Any:
    found = [names["gallery"][i] for i in gallery] + [names["queries"][i] for i in queries]
    if all(isinstance(name, int) and name >= 0 for name in found):
        return packed(np.array(found, int))
    return [printable(str(name)) for name in found]


def _sheets(examples: Arrays) -> list[str]:
    numbers = range(sum(name.startswith("sheet_") for name in examples))
    return [base64.b64encode(examples[f"sheet_{i}"].tobytes()).decode() for i in numbers]


def _thumbnails(examples: Arrays, gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """int [items]: the number of each item's thumbnail plus one, 0 for none."""
    parts, before = [], 0
    for rows, there in (
        (gallery, examples["shown_gallery"]),
        (queries, examples["shown_queries"]),
    ):
        at = np.searchsorted(there, rows)
        has = np.isin(rows, there)
        parts.append(np.where(has, 1 + before + at, 0))
        before += len(there)
    return np.concatenate(parts)
