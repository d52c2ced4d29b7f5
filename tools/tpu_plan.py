"""The tables of experiments/tpu/ and experiments/scaling/: what was compiled, what is estimated.

    python -m tools.tpu_plan

Seconds are estimated for each resource of a chip on its own, as its share of the work over its
published rate; the slowest is the time, if the others hide behind it. No TPU was timed. Sources:
cloud.google.com/tpu/docs/v5e and /v5p for the chips, experiments/tpu/tpu.json for the programs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parents[1] / "experiments" / "tpu" / "tpu.json"


class Chip(NamedTuple):
    """A chip's published rates, its host, and what an hour of it is taken to cost."""

    operations: float  # a second, bfloat16
    memory: float  # bytes
    bandwidth: float  # bytes a second of that memory
    interconnect: float  # bytes a second, all links of the chip
    cores: int  # of a host's CPU, for each of its four chips
    dollars: float  # an hour, on demand
    copies: int  # of its result that a gather holds, as XLA compiles it


class Plan(NamedTuple):
    """So many images, grouped into k clusters on a slice."""

    images: int
    topology: str
    k: int


CHIPS = {
    "v5e": Chip(197e12, 16e9, 819e9, 1600e9 / 8, 112 // 4, 1.20, 1),
    "v5p": Chip(459e12, 95e9, 2765e9, 4800e9 / 8, 208 // 4, 4.20, 3),
}
PLANS = (
    Plan(10**6, "v5e:2x2", 1000),
    Plan(10**8, "v5e:4x4", 10_000),
    Plan(10**9, "v5e:16x16", 32_768),
    Plan(10**9, "v5p:4x4x4", 32_768),
)
D = 128  # features
ITERATIONS = 20  # of k-means, assumed
PASSES = 6  # products of bfloat16 that one of full float32 takes
DECODED = 14_000  # CIFAR-10's images a second and CPU core, measured as experiments/scaling/ says
NEIGHBOURS, QUERIES = 100, 1024
QUERY_CHUNK = 64  # ranking's default

Times = dict[str, float]  # resource → seconds


def embedding(plan: Plan, rows: Iterable[dict[str, Any]]) -> Times:
    """The encoder's operations and bytes as compiled, and the decoding of the images."""
    chip, chips = _slice(plan.topology)
    (row,) = (
        row
        for row in rows
        if row["topology"] == plan.topology and row["program"].startswith("embedding")
    )
    batches = plan.images / chips / int(row["program"].split()[1])
    return {
        "matmul": PASSES * batches * row["operations"] / chip.operations,
        "memory": batches * row["bytes"] / chip.bandwidth,
        "decoding": plan.images / (chips * chip.cores * DECODED),
    }


def seeding(plan: Plan) -> Times:
    """Greedy k-means++: k passes over the points, with the distances of some candidates each."""
    chip, chips = _slice(plan.topology)
    n, candidates = plan.images / chips, 2 + int(math.log(plan.k))
    return {
        "matmul": plan.k * PASSES * 2 * n * candidates * D / chip.operations,
        # Points; the candidates' distances out and the best one's in; the nearest, twice.
        "memory": plan.k * n * 4 * (D + candidates + 3) / chip.bandwidth,
        # The masses of all blocks of 128 rows.
        "interconnect": plan.k * 4 * plan.images / 128 / chip.interconnect,
    }


def iterations(plan: Plan) -> Times:
    """k-means' iterations: two matmuls of all points and centroids each."""
    chip, chips = _slice(plan.topology)
    n = plan.images / chips
    sums = 4 * plan.k * D
    chunks = n / min((1 << 21) // plan.k, 1 << 14)
    return {
        "matmul": ITERATIONS * PASSES * 4 * n * plan.k * D / chip.operations,
        # Points; the sums, in and out with each chunk.
        "memory": ITERATIONS * (4 * n * D + chunks * 2 * sums) / chip.bandwidth,
        "interconnect": ITERATIONS * 2 * sums / chip.interconnect,
    }


def search(plan: Plan) -> Times:
    """The exact neighbours of `QUERIES` queries, by bounds in all components."""
    chip, chips = _slice(plan.topology)
    n, features = plan.images / chips, D + 3
    turns = QUERIES / QUERY_CHUNK
    return {
        "matmul": PASSES * 2 * n * QUERIES * features / chip.operations,
        # Rows in and features out once; features in, bounds out and in with each chunk of queries.
        "memory": 4 * n * (D + features + turns * (features + 2 * QUERY_CHUNK)) / chip.bandwidth,
        "interconnect": 8 * chips * QUERIES * NEIGHBOURS / chip.interconnect,
    }


def memory(plan: Plan) -> float:
    """Bytes a chip while it clusters.

    Points, and three numbers of each; then either what seeding keeps of each point, or the points
    that all chips offer to empty clusters; copies of centroids and sums; code and buffers.
    """
    chip, chips = _slice(plan.topology)
    n = plan.images / chips
    either = max(n * (2 + int(math.log(plan.k))), chip.copies * chips * plan.k * (D + 1))
    return 4 * (n * (D + 3) + either + 6 * plan.k * D) + 32e6


def _slice(topology: str) -> tuple[Chip, int]:
    name, _, sides = topology.partition(":")
    return CHIPS[name], math.prod(map(int, sides.split("x")))


def compiled_table(rows: Sequence[dict[str, Any]]) -> str:
    """Every compiled program."""
    lines = []
    for row in rows:
        chip, chips = _slice(row["topology"])
        share = f"{row['memory_bytes'] / 1e6:,.0f} of {chip.memory / 1e6:,.0f}"
        kinds = ", ".join(
            f"{count} {kind}, {size / 1e6:,.3f} MB"
            for kind, (count, size) in sorted(row["collectives"].items())
        )
        cost = f"{row['operations'] / 1e9:,.1f} | {row['bytes'] / 1e9:,.2f}"
        lines.append(
            f"| {row['program']} | {row['topology']} | {chips} | {row['compile_seconds']:.0f} "
            f"| {share} | {cost} | {kinds or 'none'} |"
        )
    head = "| program, per chip | slice | chips | compiled in s | MB of memory | 10⁹ operations "
    return "\n".join([head + "| GB | collectives |", "|---|---|---|---|---|---|---|---|", *lines])


def training_table(rows: Sequence[dict[str, Any]]) -> str:
    """The training step of hint, a chip's batch of each size."""
    lines = []
    for row in rows:
        if not row["program"].startswith("train step, hint"):
            continue
        chip, chips = _slice(row["topology"])
        (_, reduced), batch = row["collectives"]["all-reduce"], int(row["program"].split()[-2])
        times = {
            "matmul": PASSES * row["operations"] / chip.operations,
            "memory": row["bytes"] / chip.bandwidth,
            "interconnect": 2 * reduced / chip.interconnect,
        }
        shares = " | ".join(f"{1e6 * seconds:,.0f}" for seconds in times.values())
        rate = batch * chips / max(times.values())
        lines.append(f"| {row['topology']} | {batch} | {shares} | {_short(rate)} |")
    head = "| slice | images per chip | µs: matmul | memory | interconnect | images per second |"
    return "\n".join([head, "|---|---|---|---|---|---|", *lines])


def plan_table(rows: Sequence[dict[str, Any]]) -> str:
    """Embedding, clustering and searching: chips, memory, time, bottleneck, cost."""
    lines = []
    for plan in PLANS:
        chip, chips = _slice(plan.topology)
        needed = memory(plan)
        assert needed < chip.memory, plan
        for name, times in {
            "embed": embedding(plan, rows),
            f"cluster: seeds, k = {plan.k:,}": seeding(plan),
            f"cluster: {ITERATIONS} iterations": iterations(plan),
            f"search: {QUERIES:,} queries": search(plan),
        }.items():
            slowest, seconds = max(times.items(), key=lambda item: item[1])
            others = ", ".join(f"{k} {_time(v)}" for k, v in times.items() if k != slowest)
            items = QUERIES if name.startswith("search") else plan.images
            each = chips * seconds / items
            lines.append(
                f"| {_short(plan.images)} | {plan.topology} | {needed / 1e9:.1f} of "
                f"{chip.memory / 1e9:.0f} | {name} | {_time(seconds)} | {slowest} | {others} "
                f"| {_time(each)} | {1e6 * each / 3600 * chip.dollars:,.2g} |"
            )
    head = (
        "| images | slice | GB per chip | work | time | by | the others | chip time per item "
        "| dollars per million items |\n|---|---|---|---|---|---|---|---|---|"
    )
    return "\n".join([head, *lines])


def _time(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds * 1e6:,.1f} µs"


def _short(value: float) -> str:
    for size, unit in ((1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:,.3g} {unit}"
    return f"{value:,.0f}"


def main() -> None:
    """Prints all tables."""
    rows = json.loads(RESULTS.read_text())
    for table in (compiled_table, training_table, plan_table):
        print(table(rows), end="\n\n")


if __name__ == "__main__":
    main()
