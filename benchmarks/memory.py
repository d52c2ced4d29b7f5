"""Host memory that k-means takes besides a million points, on the CPU.

python -m benchmarks.memory
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from retrieval_jax.kmeans import kmeans
from retrieval_jax.runtime import provenance


def resident_mb() -> float:
    """The memory that this process holds now, in MB (1e6 bytes)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024 / 1e6


def main() -> None:
    """Prints the peak above what is held once the points are there and the code is compiled."""
    n, d, k = 1_000_000, 128, 1000
    points = jax.device_put(np.random.default_rng(0).standard_normal((n, d), np.float32))
    points.block_until_ready()
    options = {"restarts": 2, "max_iterations": 2, "seeding": "random"}
    fit = jax.jit(lambda key, x: kmeans(key, x, k, **options))
    compiled = fit.lower(jax.random.key(0), points).compile()
    planned = compiled.memory_analysis().temp_size_in_bytes / 1e6
    before = resident_mb()
    result = jax.block_until_ready(compiled(jax.random.key(0), points))
    peak = provenance.peak_memory_mb()
    print(f"{provenance.device()}; {provenance.versions()}")
    print(f"k-means of {n:,} × {d} float32 ({4 * n * d / 1e6:,.0f} MB), k = {k}, {options}:")
    print(f"{planned:,.0f} MB planned by XLA, {peak - before:,.0f} MB measured besides the points")
    full = jax.jit(lambda key, x: kmeans(key, x, k)).lower(jax.random.key(0), points).compile()
    planned = full.memory_analysis().temp_size_in_bytes / 1e6
    print(f"with 10 restarts of k-means++: {planned:,.0f} MB planned; inertia {result.inertia:.6g}")


if __name__ == "__main__":
    main()
