"""`items.csv`: what became of every image of a run, for a spreadsheet or a script."""

from __future__ import annotations

import numpy as np
from etils import epath

from retrieval_jax.data.images import ImageSet, names_of
from retrieval_jax.data.split import Split
from retrieval_jax.runtime.files import replacing, separated


def write_items(
    path: epath.Path, data: ImageSet, parts: Split, gallery: np.ndarray, queries: np.ndarray
) -> None:
    """Writes image, split, label and cluster of every image, the gallery first.

    Args:
      path: of the file.
      data: the images; those without names are called by their number in the set.
      parts: which of them are gallery and queries.
      gallery: int [n], the clusters of the gallery.
      queries: int [q], those of the queries.
    """
    table: list[tuple[object, ...]] = [("image", "split", "label", "cluster")]
    for split, rows, clusters in (
        ("gallery", parts.gallery, gallery),
        ("query", parts.queries, queries),
    ):
        labels = [""] * len(rows)
        if data.labels is not None:
            labels = [data.class_names[label] for label in data.labels[rows]]
        for name, label, cluster in zip(names_of(data.names, rows), labels, clusters, strict=True):
            table.append((name, split, label, cluster))
    with replacing(path) as file:
        file.write(separated(table))
