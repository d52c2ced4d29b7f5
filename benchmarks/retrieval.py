"""k-means, ranking, index and metrics beside scikit-learn, scikit-learn-intelex and faiss (CPU).

    make bench EMBEDDINGS=runs/cifar10_hint/embeddings.npz

Prints a Markdown table. Ratios are ours / theirs: below 1 is faster than they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

from benchmarks.interleaved import best_blas_kernels, row, table_row, times

KERNELS = best_blas_kernels()

import faiss  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import sklearn.cluster  # noqa: E402
import sklearnex.cluster  # noqa: E402
from sklearn import metrics as sklearn_metrics  # noqa: E402

from retrieval_jax import metrics  # noqa: E402
from retrieval_jax.kmeans import kmeans  # noqa: E402
from retrieval_jax.ranking import cells as cluster_index  # noqa: E402
from retrieval_jax.ranking import nearest, share_kept  # noqa: E402
from retrieval_jax.runtime import provenance  # noqa: E402

KEY = jax.random.key(0)


def embeddings(path: Path | None) -> tuple[np.ndarray, np.ndarray, str]:
    """Gallery, queries and what they are; without a file, a stand-in of the same shape."""
    if path is not None:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["gallery"], arrays["queries"], str(path)
    rng = np.random.default_rng(0)
    # The variance falls as in embeddings of CIFAR-10: 98 % of it is in 16 components.
    rows = rng.normal(size=(60_000, 128)) * np.geomspace(6, 0.01, 128) ** 1.5
    rows = (rows @ np.linalg.qr(rng.normal(size=(128, 128)))[0] + 1).astype(np.float32)
    return rows[:57_000], rows[57_000:], "random stand-in: no EMBEDDINGS given"


def made_up(n: int = 57_000, d: int = 128) -> dict[str, np.ndarray]:
    """Points that k-means finds hard in other ways than embeddings."""
    rng = np.random.default_rng(1)
    share, width = rng.lognormal(size=500), rng.uniform(0.1, 0.8, (500, 1))
    labels = rng.choice(500, n, p=share / share.sum())
    noise = rng.normal(size=(n, d)).astype(np.float32)
    clusters = rng.normal(size=(500, d))[labels] + width[labels] * noise
    return {"isotropic": noise, "500 unequal clusters": clusters.astype(np.float32)}


def whole_fit(points: np.ndarray, name: str, k: int, restarts: int, repeats: int) -> str:
    """k-means from the points on, seeding included, every turn from another key."""
    rows = jnp.asarray(points)
    inertia: dict[str, list[float]] = {"ours": [], "intelex": []}
    most = 25 if restarts == 1 else 300  # faiss does 25, whatever the tolerance

    def ours() -> jax.Array:
        key = jax.random.key(len(inertia["ours"]))
        found = kmeans(key, rows, k, restarts=restarts, max_iterations=most)
        inertia["ours"].append(float(found.inertia))
        return found.labels

    def by_intelex() -> None:
        seed = len(inertia["intelex"])
        fit = sklearnex.cluster.KMeans(k, n_init=restarts, max_iter=most, random_state=seed)
        inertia["intelex"].append(fit.fit(points).inertia_)

    def by_faiss() -> None:
        faiss.Kmeans(points.shape[1], k, max_points_per_centroid=len(points)).train(points)

    fits = {"ours": ours, "scikit-learn-intelex": by_intelex}
    if restarts == 1:
        fits["faiss, random seeds"] = by_faiss
    seeds = "" if restarts == 1 else f", {restarts} restarts"
    work = f"k-means, k = {k}{seeds}, whole fit with seeding: {name}"
    seconds = times(fits, repeats)
    ratio = np.mean(inertia["ours"]) / np.mean(inertia["intelex"])
    return table_row(work, seconds, f"inertia {ratio:.5f} × scikit-learn-intelex's")


def iterations(gallery: np.ndarray, k: int, repeats: int, count: int = 26) -> Iterator[str]:
    """Lloyd iterations from the same centroids: whole fits, and the time of an iteration alone."""
    points = jnp.asarray(gallery)
    start = gallery[np.random.default_rng(0).choice(len(gallery), k, replace=False)]
    inertia = {}

    def ours(count: int) -> jax.Array:
        found = kmeans(KEY, points, k, initial_centroids=start, max_iterations=count, tolerance=0.0)
        inertia["ours"] = float(found.inertia)
        return found.labels

    def by_sklearn(count: int) -> None:
        found = sklearn.cluster.KMeans(k, init=start, n_init=1, max_iter=count, tol=0).fit(gallery)
        inertia["theirs"] = found.inertia_

    def by_faiss(count: int) -> None:
        clustering = faiss.Clustering(gallery.shape[1], k)
        clustering.niter = count
        clustering.max_points_per_centroid, clustering.min_points_per_centroid = len(gallery), 1
        faiss.copy_array_to_vector(start.ravel(), clustering.centroids)
        clustering.train(gallery, faiss.IndexFlatL2(gallery.shape[1]))

    fits = {"ours": ours, "scikit-learn": by_sklearn, "faiss": by_faiss}
    few, many = (
        times({name: partial(fit, n) for name, fit in fits.items()}, repeats) for n in (1, count)
    )
    same = inertia["ours"] / inertia["theirs"]
    note = f"inertia {same:.6f} × scikit-learn's"
    yield table_row(f"k-means, k = {k}, {count} iterations, whole fit", many, note)
    alone = {
        name: [
            (b - a) / (count - 1)
            for a, b in zip(sorted(few[name]), sorted(many[name]), strict=True)
        ]
        for name in fits
    }
    yield table_row(f"k-means, k = {k}, an iteration", alone, f"of {count}, the first left out")
    matmul = jax.jit(_in_chunks)
    name = f"matmul {len(gallery)} × {gallery.shape[1]} × {k}"
    floor = times({name: lambda: matmul(points, start)}, repeats)
    share = {name: floor[name], "our iteration": alone["ours"]}
    yield table_row(f"{name} as a share of our iteration", share)


def search(gallery: np.ndarray, queries: np.ndarray, k: int, repeats: int) -> Iterator[str]:
    """Exact nearest neighbours of all queries in the whole gallery."""
    index = faiss.IndexFlatL2(gallery.shape[1])
    index.add(gallery)
    rows, asked = jnp.asarray(gallery), jnp.asarray(queries)
    found, theirs = nearest(asked, rows, k), index.search(queries, k)[1]
    same = float(share_kept(found, found._replace(indices=jnp.asarray(theirs)), k))
    contenders = {
        "ours": lambda: nearest(asked, rows, k),
        "faiss IndexFlatL2": lambda: index.search(queries, k),
    }
    work = f"exact top-{k} of {len(queries)} queries"
    yield row(work, contenders, repeats, f"{same:.4%} of neighbours the same")
    matmul = jax.jit(_in_chunks)
    name = f"matmul {len(queries)} × {gallery.shape[1]} × {len(gallery)}"
    share = {name: lambda: matmul(rows, asked), f"our top-{k}": contenders["ours"]}
    yield row(f"{name} as a share of our top-{k}", share, repeats)


def probing(
    gallery: np.ndarray, queries: np.ndarray, repeats: int, cells: int = 256
) -> Iterator[str]:
    """The nearest cells of an inverted file; both indexes have the same cells."""
    d = gallery.shape[1]
    quantizer = faiss.IndexFlatL2(d)
    theirs = faiss.IndexIVFFlat(quantizer, d, cells)
    theirs.train(gallery)
    theirs.add(gallery)
    centroids = quantizer.reconstruct_n(0, cells)
    index = cluster_index.group(gallery, quantizer.search(gallery, 1)[1][:, 0], centroids)
    asked = jnp.asarray(queries)
    for k in (5, 100):
        truth = nearest(asked, gallery, k)
        for probes in (1, 8, 32):
            theirs.nprobe = probes
            ours = partial(cluster_index.search, index, asked, k, probes=probes)
            found = [ours(), truth._replace(indices=jnp.asarray(theirs.search(queries, k)[1]))]
            recalls = " and ".join(f"{float(share_kept(truth, each, k)):.4f}" for each in found)
            contenders = {"ours": ours, "faiss IndexIVFFlat": partial(theirs.search, queries, k)}
            yield row(
                f"top-{k} in {probes} of {cells} cells", contenders, repeats, f"recalls {recalls}"
            )


def scores(repeats: int, n: int = 1_000_000) -> str:
    """NMI, Rand index and adjusted Rand index of two labelings, from the labels on."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 10, n)
    clusters = np.where(rng.uniform(size=n) < 0.5, classes, rng.integers(0, 10, n))

    def ours() -> list[float]:
        table = metrics.contingency_table(classes, clusters)
        of = (
            metrics.normalized_mutual_information,
            metrics.rand_index,
            metrics.adjusted_rand_index,
        )
        return [score(table) for score in of]

    def theirs() -> list[float]:
        of = (
            sklearn_metrics.normalized_mutual_info_score,
            sklearn_metrics.rand_score,
            sklearn_metrics.adjusted_rand_score,
        )
        return [score(classes, clusters) for score in of]

    apart = max(abs(a - b) for a, b in zip(ours(), theirs(), strict=True))
    contenders = {"ours": ours, "scikit-learn": theirs}
    return row(f"NMI + RI + ARI of {n:,} labels", contenders, repeats, f"differ by {apart:.0e}")


def _in_chunks(rows: jax.Array, columns: jax.Array, chunk: int = 2048) -> jax.Array:
    """A matmul as fast as XLA does it: in chunks that stay in cache, next to nothing kept."""

    def step(i: jax.Array, total: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(rows, i * chunk, chunk)
        return total + jnp.dot(columns, part.T, precision=jax.lax.Precision.HIGHEST)[0, 0]

    return jax.lax.fori_loop(0, len(rows) // chunk, step, jnp.float32(0))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--embeddings", type=Path, help="embeddings.npz of a run")
    parser.add_argument("--repeats", type=int, default=5, help="turns that are timed")
    parser.add_argument("--million", action="store_true", help="k = 10,000 of 10⁶ rows too: hours")
    options = parser.parse_args()
    gallery, queries, source = embeddings(options.embeddings)
    names = ("scikit-learn", "scikit-learn-intelex", "faiss-cpu")
    peers = ", ".join(f"{name} {version(name)}" for name in names)
    print(f"{provenance.device()}; {provenance.versions()}; {peers}; OpenBLAS kernels: {KERNELS}")
    print(f"gallery {gallery.shape}, queries {queries.shape}, float32, from {source}")
    print(f"medians of {options.repeats} interleaved turns\n")
    print("| work | ours | ours / theirs (theirs) | results |\n|---|---|---|---|")
    for name, points in {source: gallery, **made_up()}.items():
        for k, restarts in ((10, 10), (256, 1), (1000, 1)):
            print(whole_fit(points, name, k, restarts, options.repeats), flush=True)
    if options.million:
        points = made_up(1_000_000, 32)["500 unequal clusters"]
        print(whole_fit(points, "10⁶ × 32, 500 unequal clusters", 10_000, 1, 1), flush=True)
    for k in (256, 1000):
        for line in iterations(gallery, k, options.repeats):
            print(line, flush=True)
    for k in (5, 100):
        for line in search(gallery, queries, k, options.repeats):
            print(line, flush=True)
    for line in probing(gallery, queries, options.repeats):
        print(line, flush=True)
    print(scores(options.repeats), flush=True)


if __name__ == "__main__":
    main()
