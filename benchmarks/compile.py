"""What a first run pays before it computes: seconds to compile k-means and ranking.

    python -m benchmarks.compile

Prints a Markdown table. Every program has a process of its own, one device and no cache. Embeddings
are synthetic, of the sizes of CIFAR-10 and of the quick start, so nothing is downloaded. Seconds of
compiling are of XLA alone; CPU seconds are what all of the first call takes more than the second.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

# Gallery and queries of a run, and neighbours.
SIZES = {"CIFAR-10": (57_000, 3_000, 100), "quick start": (1_707, 90, 100)}
CLUSTERS, FEATURES = 10, 128


def embeddings(n: int, seed: int) -> tuple[Any, Any]:
    """Rows [n, d] in clusters, 98 % of their variance in 16 components, and the cluster of each."""
    import numpy as np

    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(FEATURES, FEATURES)))[0]
    spread = np.geomspace(6, 0.01, FEATURES) ** 1.5
    means = np.random.default_rng(1).normal(size=(CLUSTERS, FEATURES)) * spread
    rng = np.random.default_rng(seed)
    clusters = rng.integers(0, CLUSTERS, n)
    rows = (means[clusters] + rng.normal(size=(n, FEATURES)) * spread) @ axes + 1
    return rows.astype(np.float32), clusters


def programs(size: str) -> dict[str, Callable[[], Any]]:
    """The calls that a run makes, by name."""
    import jax
    import numpy as np

    from retrieval_jax import evaluation, sharded
    from retrieval_jax.kmeans import predict

    n, q, k = SIZES[size]
    (gallery, labels), (queries, asked) = embeddings(n, seed=2), embeddings(q, seed=3)
    centroids = np.stack([gallery[labels == i].mean(0) for i in range(CLUSTERS)])
    cells = asked[:, None]
    return {
        "k-means": lambda: sharded.kmeans(jax.random.key(0), gallery, CLUSTERS, restarts=10),
        "predict": lambda: predict(queries, centroids),
        "nearest": lambda: sharded.nearest(queries, gallery, k),
        "nearest in the cluster": lambda: sharded.search_cells(
            queries, cells, gallery, labels, centroids, k
        ),
        "both rankings": lambda: evaluation.rank(queries, asked, gallery, labels, centroids, k),
    }


def measure(name: str, size: str) -> dict[str, float]:
    """Seconds of the first and second call of a program, and of compiling."""
    import jax

    call = programs(size)[name]
    jax.devices()  # the backend starts before the clock
    compiled: list[float] = []

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    wall, cpu = [], []
    for _ in range(2):
        start = time.perf_counter(), time.process_time()
        jax.block_until_ready(call())
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    return {
        "programs": len(compiled),
        "compile": sum(compiled),
        "first": wall[0],
        "second": wall[1],
        "cpu": cpu[0] - cpu[1],
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, help="of this size alone")
    parser.add_argument("--program", help="this program alone")
    parser.add_argument("--json", action="store_true", help="measures in this process")
    options = parser.parse_args()
    if options.json:
        print(json.dumps(measure(options.program, options.size)))
        return
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_PLATFORMS": "cpu"}
    print("| program | size | compiled | compiling | first call | second call | CPU |")
    print("|---|---|---|---|---|---|---|")
    names = ["k-means", "predict", "nearest", "nearest in the cluster", "both rankings"]
    for size in [options.size] if options.size else SIZES:
        for name in [options.program] if options.program else names:
            command = [sys.executable, "-m", "benchmarks.compile", "--json"]
            command += [f"--size={size}", f"--program={name}"]
            run = subprocess.run(
                command, env=environment, check=True, capture_output=True, text=True
            )
            found = json.loads(run.stdout.splitlines()[-1])
            seconds = f"{found['first']:.1f} s | {1000 * found['second']:.0f} ms"
            print(
                f"| {name} | {size} | {found['programs']} | {found['compile']:.1f} s | "
                f"{seconds} | {found['cpu']:.1f} s |",
                flush=True,
            )


if __name__ == "__main__":
    main()
