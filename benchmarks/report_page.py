"""Size of a report's page, and frames a second of its map in Chromium.

    python -m benchmarks.report_page DIRECTORY [POINTS]

DIRECTORY holds CIFAR-10 as TFDS prepares it; POINTS of the gallery are on the map (57,000). The
embedding is 64 principal components of the pixels, of which the map shows four, and there are no
losses: neither changes what is measured.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from etils import epath
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from retrieval_jax.data.split import split
from retrieval_jax.data.tfds import from_tfds
from retrieval_jax.report import explore, results
from retrieval_jax.report.examples import choose_examples, thumbnails
from retrieval_jax.report.page import make
from retrieval_jax.report.payload import space_of

_FRAMES = """() => new Promise(done => {
    let n = 0; const start = performance.now(), spent = [];
    const step = () => {
        const before = performance.now();
        map.pan(6 * Math.sin(n / 9), 2 * Math.cos(n / 9)); map.draw();
        spent.push(performance.now() - before);
        if (++n < 120) requestAnimationFrame(step);
        else done({points: data.mapped.length, frames: 120000 / (performance.now() - start),
                   ms: spent.sort((a, b) => a - b)[60]});
    };
    requestAnimationFrame(step);
})"""


def main(directory: str, points: int) -> None:
    """Makes the page and pans its map."""
    from playwright.sync_api import sync_playwright

    data = from_tfds("cifar10", directory)
    parts = split(data.labels, len(data.images), 3000, 0, 0.1)
    pixels = np.asarray(data.images).reshape(len(data.images), -1).astype(np.float32) / 255
    rows = PCA(64, svd_solver="covariance_eigh").fit(pixels[::10]).transform(pixels)
    rows = rows.astype(np.float32)
    gallery, queries = rows[parts.gallery], rows[parts.queries]
    found = MiniBatchKMeans(10, random_state=0, n_init=1).fit(gallery)
    clusters = {"gallery": found.labels_, "queries": found.predict(queries)}
    clusters["centroids"] = found.cluster_centers_
    distances, indices = NearestNeighbors(n_neighbors=100).fit(gallery).kneighbors(queries)
    inside = clusters["gallery"][indices] == clusters["queries"][:, None]
    neighbours = {
        "exhaustive_indices": indices,
        "exhaustive_distances": distances,
        "cluster_indices": np.where(inside, indices, -1),
        "cluster_distances": np.where(inside, distances, np.inf),
    }
    mapped = np.sort(np.random.default_rng(0).permutation(len(gallery))[:points])
    asked = explore.asked(len(queries), points)

    def place(some: np.ndarray) -> np.ndarray:
        return some[:, :2] + 0.5 * some[:, 2:4]

    examples = choose_examples(
        data.images, data.labels, parts.gallery, parts.queries, indices, 10, mapped=mapped
    )
    embeddings = {"gallery": gallery, "queries": queries}
    space = space_of(embeddings, clusters, neighbours, examples)
    shown = explore.explore(space, mapped, points)
    both = parts.gallery[shown.gallery], parts.queries[shown.queries]
    examples |= thumbnails(data.images, np.concatenate(both))
    examples |= {"shown_gallery": shown.gallery, "shown_queries": shown.queries}
    described = results.describe_data(data, parts)
    device = results.Device("cpu", "cpu", 1, "")
    provenance = results.Provenance("", {}, {}, device, 0, "", described)
    scores = results.Scores(
        results.Clustering(10, 0.0, 0, True, tuple(np.bincount(found.labels_).tolist())),
        results.Retrieval(),
    )
    training = results.Training(0, 0, 0, ())
    with tempfile.TemporaryDirectory() as workdir:
        run = Path(workdir)
        np.savez(run / "examples.npz", **examples, shown_points=points)
        np.savez(run / "embeddings.npz", **embeddings)
        np.savez(run / "clusters.npz", **clusters)
        np.savez(run / "neighbours.npz", **neighbours)
        laid = {"positions": place(gallery[mapped]), "queries": place(queries[:asked])}
        np.savez(run / "map.npz", rows=mapped, **laid)
        names = {"gallery": parts.gallery.tolist(), "queries": parts.queries.tolist()}
        (run / "images.json").write_text(json.dumps(names))
        content = results.Results("page", {}, training, scores, (), provenance)
        results.write(epath.Path(run), content)
        page = Path(make(run))
        print(f"{page.stat().st_size / 1e6:.1f} MB, thumbnails {examples['thumbnail_size']}")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            tab = browser.new_page(viewport={"width": 1100, "height": 900})
            tab.goto(page.as_uri())
            measured = tab.evaluate(_FRAMES)
            print(
                f"{measured['points']:,} points: {measured['frames']:.0f} frames a second, "
                f"{measured['ms']:.1f} ms each of them to draw, Chromium {browser.version}"
            )
            browser.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 57000)
