"""What a run leaves in its workdir, of few random images, without training."""

import json
from pathlib import Path

import numpy as np
from etils import epath
from scipy.spatial.distance import cdist
from test_report import results, unlabelled

from retrieval_jax.report import explore
from retrieval_jax.report.examples import choose_examples, thumbnails
from retrieval_jax.report.explore import Space
from retrieval_jax.report.map import lay_out
from retrieval_jax.report.results import write

GALLERY, QUERIES, CLUSTERS, CLASSES = 150, 20, 6, 4


def ranked(distances, k):
    """Indices and distances of the k smallest of each row; -1 where they are infinite."""
    order = distances.argsort(1, kind="stable")[:, :k]
    far = np.take_along_axis(distances, order, 1)
    return np.where(np.isfinite(far), order, -1), far


def small_space(labelled=True, k=25, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(GALLERY + QUERIES) % CLASSES
    points = rng.normal(size=(len(labels), 5)) + 1.2 * np.eye(5)[labels]
    gallery, queries = points[:GALLERY], points[GALLERY:]
    centroids = gallery[:CLUSTERS].copy()
    own, asked = (cdist(part, centroids).argmin(1) for part in (gallery, queries))
    whole = cdist(queries, gallery)
    inside = np.where(own[None] == asked[:, None], whole, np.inf)
    return Space(
        *(gallery, queries, own, asked, centroids),
        *(*ranked(inside, k), *ranked(whole, k)),
        *((labels[:GALLERY], labels[GALLERY:]) if labelled else (None, None)),
    )


def leave_run(directory, space, *, class_names=("zero", "one", "two"), names=None, points=60):
    """Writes all that a report is made from; returns the images."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (GALLERY + QUERIES, 12, 9, 3), dtype=np.uint8)
    gallery, queries = np.arange(GALLERY), GALLERY + np.arange(QUERIES)
    labels = None
    if space.gallery_labels is not None:
        labels = np.concatenate([space.gallery_labels, space.query_labels])
    placed = lay_out(space.gallery, space.queries, points, seed=0) if points else None
    mapped = np.zeros(0, int) if placed is None else placed.rows
    examples = choose_examples(
        images, labels, gallery, queries, space.cluster_indices, 4,
        reconstructions=images[queries] / np.float32(300), mapped=mapped if points else None,
    )  # fmt: skip
    shown = explore.explore(space, mapped, points)
    examples |= thumbnails(images, np.concatenate([shown.gallery, GALLERY + shown.queries]))
    examples |= {"shown_gallery": shown.gallery, "shown_queries": shown.queries}
    np.savez(directory / "examples.npz", **examples, shown_points=points)
    np.savez(directory / "embeddings.npz", gallery=space.gallery, queries=space.queries)
    found = {"gallery": space.gallery_clusters, "queries": space.query_clusters}
    np.savez(directory / "clusters.npz", **found, centroids=space.centroids)
    lists = {name: getattr(space, name) for name in Space._fields[5:9]}
    np.savez(directory / "neighbours.npz", **lists, gallery=gallery, queries=queries)
    if placed is not None:
        np.savez(directory / "map.npz", **placed._asdict())
    names = names or [f"{i}.png" for i in range(GALLERY + QUERIES)]
    (directory / "images.json").write_text(
        json.dumps({"gallery": names[:GALLERY], "queries": names[GALLERY:]})
    )
    content = results() if labels is not None else unlabelled()
    data = content.provenance.data._replace(gallery=GALLERY, queries=QUERIES)
    if labels is not None:
        data = data._replace(class_names=tuple(class_names))
    content = content._replace(provenance=content.provenance._replace(data=data))
    write(epath.Path(directory), content)
    return images
