"""The one module that knows how many devices there are and what lies on each.

A value "on every device" is stacked along a leading axis of this process's devices, as `jax.pmap`
takes it. All processes call the mapped functions together, each for its own devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache, wraps
from typing import Any

import jax
import numpy as np
from flax import jax_utils
from jax.experimental import multihost_utils
from jax.sharding import Mesh

AXIS = "devices"


def count() -> int:
    """Number of devices that mapped functions run on, over all processes."""
    return jax.device_count()


def local_count() -> int:
    """Number of this process's devices."""
    return jax.local_device_count()


def steps_per_call() -> int:
    """The most training steps per compiled call.

    XLA's CPU backend runs convolutions in the body of a loop 5.3 × slower than outside (624 against
    118 ms per step of `configs/cifar10_hint.py` on 2 cores of a virtual Intel Xeon, JAX 0.10.2), so
    there a call is one step. Elsewhere 128 steps take far longer than their dispatch, and are still
    short enough for a progress bar.
    """
    return 1 if jax.default_backend() == "cpu" else 128


def mesh() -> Mesh:
    """The devices of all processes as a mesh of one axis, `AXIS`, for `jax.shard_map`."""
    return Mesh(np.array(jax.devices()), (AXIS,))


def on_every_device(tree: Any) -> Any:
    """Copies a tree of arrays to every device."""
    # Under the axis name that mapped functions give their results, or a function that takes both
    # would be compiled twice.
    return jax_utils.replicate(tree, axis_name=AXIS)


def from_first_device(tree: Any) -> Any:
    """Fetches the first device's copy of a tree to the host, as NumPy arrays."""
    shards = jax.tree.map(lambda x: x.addressable_shards[0].data, tree)
    return jax.tree.map(lambda x: x[0], jax.device_get(shards))


def local_share(rows: np.ndarray) -> np.ndarray:
    """[…, batch] → […, this process's share of the batch], on the host."""
    *others, batch = rows.shape
    shares = rows.reshape(*others, count(), batch // count())
    return shares[..., _positions(), :].reshape(*others, batch // count() * local_count())


def share_batches(rows: np.ndarray) -> jax.Array:
    """[steps, batch] → [devices, steps, batch / devices], each device's share of every batch."""
    steps, batch = rows.shape
    shares = local_share(rows).reshape(steps, local_count(), batch // count()).swapaxes(0, 1)
    return jax.pmap(lambda share: share)(shares)


def share_rows(rows: np.ndarray, block: int, fill: float) -> np.ndarray:
    """[n, …] → [this process's devices, m, …], m a multiple of `block`, padded with `fill`."""
    share = -(-len(rows) // (count() * block)) * block
    padding = ((0, count() * share - len(rows)), *((0, 0) for _ in rows.shape[1:]))
    padded = np.pad(rows, padding, constant_values=fill)
    return padded.reshape(count(), share, *rows.shape[1:])[_positions()]


def whole_batches(shares: jax.Array) -> np.ndarray:
    """Fetches the local part of [devices, steps, batch / devices] to the host as [steps, batch]."""
    fetched = np.stack([shard.data[0] for shard in shares.addressable_shards])
    return fetched.swapaxes(0, 1).reshape(fetched.shape[1], -1)


def prefetched(trees: Iterable[Any]) -> Iterator[Any]:
    """Yields trees of this process's arrays [b, …] as [devices, b / devices, …], on the devices.

    The next one is transferred while one is in use.
    """

    def share(x: np.ndarray) -> np.ndarray:
        return x.reshape(local_count(), -1, *x.shape[1:])

    return jax_utils.prefetch_to_device((jax.tree.map(share, tree) for tree in trees), 2)


def mapped(
    function: Callable, *, donate: tuple[int, ...] = (), precision: str = "float32"
) -> Callable:
    """Maps a per-device function over all devices, with `AXIS` as the name for its reductions.

    Its float32 products are float32 on every backend unless the precision is "tf32": a GPU or TPU
    would otherwise round their inputs to TF32 or bfloat16. It is set here, not in the modules, so
    that it holds for gradients too, including those written by hand.
    """
    products = {"float32": "highest", "tf32": "tensorfloat32"}[precision]

    @wraps(function)
    def exact(*arguments: Any) -> Any:
        with jax.default_matmul_precision(products):
            return function(*arguments)

    return jax.pmap(exact, axis_name=AXIS, donate_argnums=donate)


def quick_jit(function: Callable) -> Callable:
    """`jax.jit` for what runs once and little: on CPUs compiled in a seventh of the time.

    Initial parameters are the same bits; LLVM's optimisation of their random draws takes seconds.
    """
    cpu = jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": 0} if cpu else None
    compiled = jax.jit(function, compiler_options=options)

    @wraps(function)
    def call(*arguments: Any) -> Any:
        # JAX takes compiler options of the outermost jit alone.
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments))
        return function(*arguments) if traced else compiled(*arguments)

    return call


def round_up(batch: int) -> int:
    """The next batch size that all devices share evenly."""
    return -(-batch // count()) * count()


def on_host(tree: Any) -> Any:
    """Fetches a tree of arrays sharded over all devices, whole, to every process."""
    return multihost_utils.process_allgather(tree, tiled=True)


@cache
def _positions() -> np.ndarray:
    """Positions of this process's devices along `AXIS`; they need not be contiguous."""
    axis = jax.pmap(lambda _: jax.lax.axis_index(AXIS), axis_name=AXIS)(np.zeros(local_count()))
    return np.array([shard.data[0] for shard in axis.addressable_shards])
