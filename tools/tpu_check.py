"""Compiles the project's programs for TPU slices, without a TPU, and says what they need.

    python -m tools.tpu_check [--topologies v5e:2x2 …] [--programs "embedding, 4096 images" …]

libtpu compiles for chips that aren't there; the executables can't run. For each program and slice:
the compiler's time, a chip's memory, operations, bytes, and the collectives with their bytes. What
is asserted: a program fits in the chip's memory; a training step's collectives are the reductions
of gradients, BatchNorm's statistics and metrics, to the byte, or reductions at least where a term
has its own; embedding has none; k-means and the search reduce and gather, and nothing else. Rows go
to experiments/tpu/tpu.json and replace those of the same program and slice; tools/tpu_plan.py makes
the pages' tables from it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

# Read when JAX is imported: no TPU here, and no metadata server that knows of one.
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from configs import cifar10_free_gpu, cifar10_hint, cifar10_vanilla  # noqa: E402
from retrieval_jax import build  # noqa: E402
from retrieval_jax.embedder import as_float  # noqa: E402
from retrieval_jax.kmeans import kmeans  # noqa: E402
from retrieval_jax.kmeans._passes import dense_statistics, move  # noqa: E402
from retrieval_jax.kmeans._points import Points  # noqa: E402
from retrieval_jax.kmeans.assignment import chunk_rows  # noqa: E402
from retrieval_jax.objectives import Batch  # noqa: E402
from retrieval_jax.ranking import nearest  # noqa: E402
from retrieval_jax.runtime import devices  # noqa: E402
from retrieval_jax.training.epoch import Recipe  # noqa: E402
from retrieval_jax.training.step import TrainState, create_state, train_step  # noqa: E402
from tools.tpu_plan import CHIPS, RESULTS, compiled_table  # noqa: E402

TOPOLOGIES = ("v5e:2x2", "v5e:4x4", "v5e:16x16", "v5p:4x4x4")
IMAGE = (32, 32, 3)
CLASSES, FIT_IMAGES = 10, 45_600  # of CIFAR-10 under the protocol
ROWS, D = 1 << 22, 128  # of the gallery on a chip
QUERIES, NEIGHBOURS = 1024, 100

Devices = Sequence[jax.Device]
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
    "reduce-scatter",
)


class Program(NamedTuple):
    """What is compiled: how, and which collectives it may have."""

    lower: Callable[[Devices], Any]
    allowed: frozenset[str]
    exact_bytes: int | None = None  # of all collectives together


def collectives(hlo: str) -> dict[str, list[int]]:
    """Kind of collective → how many a program's text has, and the bytes of their results."""
    found: dict[str, list[int]] = {}
    for line in hlo.splitlines():
        for kind in COLLECTIVES:
            # Of an asynchronous pair the second half has the result alone.
            shapes, call, _ = line.partition(f" {kind}(")
            if not call:
                shapes, call, _ = line.partition(f" {kind}-done(")
            if call and " = " in shapes:
                size = sum(map(_bytes, re.findall(r"([a-z]+[0-9]*)\[([0-9,]*)\]", shapes)))
                count, total = found.get(kind, [0, 0])
                found[kind] = [count + 1, total + size]
    return found


def _bytes(shape: tuple[str, str]) -> int:
    dtype, sides = shape
    bits = 8 if dtype == "pred" else int(dtype.lstrip("abcdefghijklmnopqrstuvwxyz"))
    return bits // 8 * int(np.prod([int(side) for side in sides.split(",") if side]))


def recipe_and_state(config: Any) -> tuple[Recipe, TrainState]:
    """The config's recipe, and its initial state."""
    recipe = build.recipe(config, build.Sizes(IMAGE, CLASSES, FIT_IMAGES))
    parts = recipe.model, recipe.objective, recipe.optimizer
    return recipe, create_state(*parts, jax.random.key(0), IMAGE, averaged=recipe.averaged)


def training(config: Any, batch: int) -> Program:
    """The training step with `batch` images a chip."""
    recipe, state = recipe_and_state(config)

    def lower(chips: Devices) -> Any:
        step = partial(
            train_step,
            model=recipe.model,
            objective=recipe.objective,
            optimizer=recipe.optimizer,
            key=jax.random.key(0),
            axis_name=devices.AXIS,
            decay=recipe.ema_decay,
        )
        mapped = jax.pmap(step, axis_name=devices.AXIS, devices=chips, donate_argnums=0)
        images = jax.ShapeDtypeStruct((recipe.views_per_image, batch, *IMAGE), jnp.float32)
        numbers = jax.ShapeDtypeStruct((batch,), jnp.int32)
        return mapped.lower(*_on_every((state, Batch((images,), numbers, numbers)), len(chips)))

    def size(tree: Any) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    # Statistics are reduced on the way forward and their gradients on the way back, and the running
    # ones once more; the metrics are the terms and their weighted sum, which XLA sees is the same
    # where there is one of 1. A count divides each term.
    terms = len(recipe.objective)
    metrics = 4 * (terms + 1 if terms > 1 else 1) + 4 * terms
    total = size(state.params) + 3 * size(state.collections) + metrics
    own = state.target is not None  # ProPos reduces its prototypes, too
    return Program(lower, frozenset({"all-reduce"}), None if own else total)


def embedding(batch: int) -> Program:
    """The encoder on `batch` images a chip."""
    recipe, state = recipe_and_state(cifar10_hint.get_config())

    def lower(chips: Devices) -> Any:
        def embed(variables: Any, images: jax.Array) -> Any:
            return recipe.model.apply(variables, as_float(images), method="embed")

        images = jax.ShapeDtypeStruct((batch, *IMAGE), jnp.uint8)
        arguments = _on_every((state.variables, images), len(chips))
        return jax.pmap(embed, axis_name=devices.AXIS, devices=chips).lower(*arguments)

    return Program(lower, frozenset(), 0)


def clustering(k: int, iteration: bool = False) -> Program:
    """A whole fit, seeding included, or one iteration of it, with `ROWS` points a chip."""

    def fit(key, points, weights, centroids):
        found = kmeans(key, points, k, weights=weights, restarts=1, axis_name=devices.AXIS)
        return found.centroids, found.labels, found.inertia

    def iterate(key, points, weights, centroids):
        chunk = chunk_rows(None, ROWS, k)
        data = Points(points, weights, jnp.zeros(D), chunk, False, devices.AXIS)
        statistics = dense_statistics(data, centroids)
        return move(data, centroids, statistics), statistics.inertia

    def lower(chips: Devices) -> Any:
        rows = ROWS * len(chips)
        return _over_rows(
            iterate if iteration else fit,
            chips,
            (jax.random.key(0), (rows, D), (rows,), (k, D)),
            (P(), P(devices.AXIS), P(devices.AXIS), P()),
            (P(), P()) if iteration else (P(), P(devices.AXIS), P()),
        )

    return Program(lower, frozenset({"all-reduce", "all-gather"}))


def search() -> Program:
    """The exact top-`NEIGHBOURS` of `QUERIES` queries in `ROWS` gallery rows a chip."""

    def find(queries, gallery):
        return nearest(queries, gallery, NEIGHBOURS, axis_name=devices.AXIS)

    def lower(chips: Devices) -> Any:
        shapes = ((QUERIES, D), (ROWS * len(chips), D))
        return _over_rows(find, chips, shapes, (P(), P(devices.AXIS)), P())

    # XLA gathers by adding up, where it finds that faster.
    return Program(lower, frozenset({"all-gather", "all-reduce"}))


def programs() -> dict[str, Program]:
    """Everything that is compiled, by name."""
    hint, vanilla = cifar10_hint.get_config(), cifar10_vanilla.get_config()
    batch = hint.training.batch_size
    return {
        f"train step, hint, {batch} images": training(hint, batch),
        "train step, hint, 1024 images": training(hint, 1024),
        f"train step, vanilla, {batch} images": training(vanilla, batch),
        "train step, vanilla, 1024 images": training(vanilla, 1024),
        "train step, ResNet-18 label-free, 256 images": training(
            cifar10_free_gpu.get_config(), 256
        ),
        "embedding, 4096 images": embedding(4096),
        f"k-means iteration, {ROWS:,} × {D}, k = 1000": clustering(1000, iteration=True),
        f"k-means fit, {ROWS:,} × {D}, k = 1000": clustering(1000),
        f"k-means fit, {ROWS:,} × {D}, k = 32768": clustering(32768),
        f"top-{NEIGHBOURS} of {QUERIES} queries, {ROWS:,} × {D}": search(),
    }


def _on_every(tree: Any, chips: int) -> Any:
    """Shapes with the leading axis of chips that pmap takes."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((chips, *x.shape), x.dtype), tree)


def _over_rows(function, chips: Devices, arguments, in_specs, out_specs) -> Any:
    """Lowers a function of shards; arguments are keys or the shapes of whole float32 arrays."""
    mesh = Mesh(np.array(chips), (devices.AXIS,))

    def shape(of, spec):
        of = of if isinstance(of, jax.Array) else jax.ShapeDtypeStruct(of, jnp.float32)
        return jax.ShapeDtypeStruct(of.shape, of.dtype, sharding=NamedSharding(mesh, spec))

    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    return jax.jit(mapped).lower(*map(shape, arguments, in_specs))


def compiled(name: str, program: Program, topology: str) -> dict[str, Any]:
    """Compiles, asserts what the module says, and returns the row."""
    chips = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    with jax.default_matmul_precision("highest"):  # as in `devices.mapped`
        lowered = program.lower(chips)
    start = time.perf_counter()
    executable = lowered.compile()
    seconds = time.perf_counter() - start
    memory, cost = executable.memory_analysis(), executable.cost_analysis()
    found = collectives(executable.as_text())
    row = {
        "program": name,
        "topology": topology,
        "chips": len(chips),
        "compile_seconds": round(seconds, 1),
        # Donated arguments hold their results; the code lies in the chip's memory too.
        "memory_bytes": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes,
        "operations": cost["flops"],
        "bytes": cost["bytes accessed"],
        "collectives": found,
        "versions": {name: version(name) for name in ("jax", "flax", "optax", "libtpu")},
    }
    assert row["memory_bytes"] < CHIPS[topology.split(":")[0]].memory, row
    assert set(found) <= program.allowed, row
    if program.exact_bytes is not None:
        total = sum(size for _, size in found.values())
        assert total == program.exact_bytes, f"{program.exact_bytes} bytes expected: {row}"
    return row


def record(row: dict[str, Any], path: Path = RESULTS) -> list[dict[str, Any]]:
    """Puts a row among those on file, in place of an older one; returns them all."""
    rows = json.loads(path.read_text()) if path.exists() else []
    same = ("program", "topology")
    names = list(programs())
    rows = [old for old in rows if any(old[key] != row[key] for key in same)] + [row]
    rows = [r for r in rows if r["program"] in names and r["topology"] in TOPOLOGIES]
    rows.sort(key=lambda r: (names.index(r["program"]), TOPOLOGIES.index(r["topology"])))
    path.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def main() -> None:
    """Compiles what is asked for and prints the table of all rows on file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = programs()
    parser.add_argument("--topologies", nargs="+", default=TOPOLOGIES, choices=TOPOLOGIES)
    parser.add_argument("--programs", nargs="+", default=list(known), choices=list(known))
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for topology in options.topologies:
        for name in options.programs:
            rows = record(compiled(name, known[name], topology))
            print(f"{topology}: {name}: as it should be", flush=True)
    print(compiled_table(rows))


if __name__ == "__main__":
    main()
