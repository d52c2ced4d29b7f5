"""The figures and the page of one run."""

from __future__ import annotations

from typing import Any

import numpy as np
from etils import epath

from retrieval_jax.data.images import ImageSet
from retrieval_jax.data.split import Split
from retrieval_jax.report.map import tsne
from retrieval_jax.runtime.files import make_directory

_SHOWN = 5  # neighbours in a retrieval row, as in the 2020 report


def write_figures(
    workdir: epath.Path,
    experiment: Any,
    *,
    history: list[dict],
    data: ImageSet,
    parts: Split,
    embeddings: np.ndarray,
    reconstructions: np.ndarray | None,
    neighbours: np.ndarray,
) -> dict[str, epath.Path]:
    """Writes the PNG figures of a run under `workdir/figures`.

    Args:
      workdir: of the run.
      experiment: its seed, examples and t-SNE points are used.
      history: a row an epoch.
      data: the images.
      parts: their split.
      embeddings: float32 [gallery, d].
      reconstructions: float32 [examples, h, w, c] of the first queries.
      neighbours: int [queries, k], positions in the gallery; -1 for none.

    Returns:
      caption → file, in the order to show them.
    """
    from retrieval_jax.report import figures  # matplotlib takes half a second to import

    folder = workdir / "figures"
    make_directory(folder)
    queries = parts.queries[: experiment.examples]
    paths: dict[str, epath.Path] = {}

    path = paths["Loss by epoch, fit and validation."] = folder / "losses.png"
    figures.loss_curves(history, path)

    if reconstructions is not None:
        path = paths["Queries, and below each its reconstruction."] = folder / "reconstructions.png"
        figures.reconstructions(data.images[queries], reconstructions, path)

    shown = neighbours[: len(queries), :_SHOWN]
    rows = parts.gallery[shown]
    path = folder / "retrieval.png"
    paths[f"Queries, and the {_SHOWN} nearest gallery images of their cluster."] = path
    figures.retrieval_rows(
        data.images[queries],
        data.images[rows],
        None if data.labels is None else data.labels[queries],
        None if data.labels is None else data.labels[rows],
        data.class_names,
        path,
        found=shown >= 0,
    )

    if experiment.tsne_points > 0:
        sample = np.random.default_rng(experiment.seed).permutation(len(embeddings))
        sample = np.sort(sample[: experiment.tsne_points])
        caption = f"t-SNE of {len(sample):,} of the {len(embeddings):,} gallery embeddings."
        path = paths[caption] = folder / "tsne.png"
        labels = None if data.labels is None else data.labels[parts.gallery[sample]]
        positions = tsne(embeddings[sample], experiment.seed)
        figures.embedding_map(positions, labels, data.class_names, path)
    return paths
