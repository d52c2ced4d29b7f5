"""Times contenders turn by turn, so that a noisy machine is noisy for all of them."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


def best_blas_kernels() -> str:
    """Has OpenBLAS use the machine's vector units, where a peer's copy would not see them.

    Call it before NumPy or a peer is imported.

    Returns:
      The kernels asked for, or those that the environment named before.
    """
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    kernels = "SkylakeX" if "avx512f" in flags else "Haswell" if "avx2" in flags else ""
    return (
        os.environ.setdefault("OPENBLAS_CORETYPE", kernels) if kernels else "OpenBLAS' own choice"
    )


def times(contenders: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each contender's `repeats` calls, in turn, after one that is not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, call in contenders.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def iteration_seconds(
    fit: Callable[[int], Any], repeats: int, few: int = 2, many: int = 12
) -> list[float]:
    """Seconds of one iteration of `fit(iterations)`: what many take more than few, turn by turn."""
    seconds = times({"few": lambda: fit(few), "many": lambda: fit(many)}, repeats)
    pairs = zip(seconds["few"], seconds["many"], strict=True)
    return [(b - a) / (many - few) for a, b in pairs]


def row(work: str, contenders: dict[str, Callable[[], Any]], repeats: int, note: str = "") -> str:
    """A row of the table of what the contenders take."""
    return table_row(work, times(contenders, repeats), note)


def table_row(work: str, seconds: dict[str, list[float]], note: str = "") -> str:
    """A row of the table: ours is the first contender, each ratio the median over the turns."""
    ours, *theirs = seconds
    ratios = [
        f"{statistics.median(a / b for a, b in zip(seconds[ours], seconds[peer], strict=True)):.2f}"
        f" × {peer} ({1000 * statistics.median(seconds[peer]):,.1f} ms)"
        for peer in theirs
    ]
    mine = f"{1000 * statistics.median(seconds[ours]):,.1f} ms"
    return f"| {work} | {mine} | {'; '.join(ratios)} | {note} |"
