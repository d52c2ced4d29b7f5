"""k-means and exact search at a million rows on an accelerator, beside the floors of the machine.

    python -m benchmarks.accelerator

Both floors are measured where the work is: bytes over the rate of a copy, and operations over the
rate of a float32 matmul. Where flash-kmeans is installed (with torch and Triton), its iteration is
timed beside ours.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics

import jax
import jax.numpy as jnp

from benchmarks.interleaved import iteration_seconds, times
from retrieval_jax.kmeans import kmeans
from retrieval_jax.ranking import nearest
from retrieval_jax.runtime import provenance

KEY = jax.random.key(0)
HIGHEST = jax.lax.Precision.HIGHEST


def rates(points: jax.Array, repeats: int) -> tuple[float, float]:
    """Bytes a second of a copy, and operations a second of a float32 matmul."""
    n, d = points.shape
    square = jax.random.normal(KEY, (8192, 8192))
    copy = jax.jit(lambda x: x + 1)
    matmul = jax.jit(lambda x: jnp.dot(x, x, precision=HIGHEST))
    seconds = times({"copy": lambda: copy(points), "matmul": lambda: matmul(square)}, repeats)
    best = {name: min(found) for name, found in seconds.items()}
    return 2 * 4 * n * d / best["copy"], 2 * 8192**3 / best["matmul"]


def iteration(points: jax.Array, k: int, repeats: int) -> list[float]:
    """Seconds of one iteration of ours."""

    def fit(count: int) -> jax.Array:
        start = points[:k]
        return kmeans(
            KEY, points, k, initial_centroids=start, max_iterations=count, tolerance=0.0
        ).centroids

    return iteration_seconds(fit, repeats)


def flash_iteration(points: jax.Array, k: int, repeats: int) -> list[float]:
    """Seconds of one iteration of flash-kmeans, on the same float32 points."""
    import torch
    from flash_kmeans import batch_kmeans_Euclid

    batch = torch.from_dlpack(points)[None]

    def fit(count: int) -> None:
        batch_kmeans_Euclid(
            batch, k, max_iters=count, tol=-1.0, init_centroids=batch[:, :k].clone()
        )
        torch.cuda.synchronize()

    return iteration_seconds(fit, repeats)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    n, d, k, q = options.rows, 128, 1000, 10_000
    points = jax.random.normal(KEY, (n, d))
    queries = jax.random.normal(jax.random.key(1), (q, d))
    bandwidth, rate = rates(points, options.repeats)
    print(f"{provenance.device()}; {provenance.versions()}; medians of {options.repeats} turns")
    print(f"copy {bandwidth / 1e9:,.0f} GB/s, float32 matmul {rate / 1e12:,.1f} TFLOP/s\n")
    print("| work | ms | × bytes' floor | × operations' floor |\n|---|---|---|---|")

    def show(work: str, seconds: list[float], size: float, operations: float) -> None:
        ms = 1000 * statistics.median(seconds)
        floors = 1000 * size / bandwidth, 1000 * operations / rate
        print(f"| {work} | {ms:,.1f} | {ms / floors[0]:.1f} | {ms / floors[1]:.1f} |", flush=True)

    # An assignment takes n × k products; so do sums, where they are matmuls: that is our choice.
    work = f"k-means iteration, {n:,} × {d}, k = {k}"
    show(work, iteration(points, k, options.repeats), 4 * n * d, 2 * n * d * k)
    if importlib.util.find_spec("flash_kmeans"):
        found = flash_iteration(points, k, options.repeats)
        show(f"flash-kmeans, {work}", found, 4 * n * d, 2 * n * d * k)
    found = times({"search": lambda: nearest(queries, points, 100)}, options.repeats)["search"]
    work = f"top-100 of {q:,} queries in {n:,} × {d}"
    show(work, found, 4 * (n + q) * d, 2 * n * q * d)


if __name__ == "__main__":
    main()
