"""What training minimises: a weighted sum of terms, each a pure function of all that it may see.

A new loss is one function that returns a `Term`: its parameters with defaults are the config's
keys, `objective.<name>.<key>`. The term is written for one device's share of the batch; what it has
to know of the others it gathers over `Seen.axis_name`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from retrieval_jax.models import Outputs

TOTAL = "loss"


class Mixed(NamedTuple):
    """What a batch's images are mixed with: image = share · own + (1 - share) · other."""

    labels: jax.Array  # int32 [n], of the others, -1 where training may not use the label
    share: jax.Array  # float32 scalar


class Batch(NamedTuple):
    """One device's share of a batch: n examples, each in several views."""

    images: tuple[jax.Array, ...]  # float32 [v, n, h, w, c] in [0, 1]; several where sizes differ
    labels: jax.Array  # int32 [n], -1 where training may not use the label
    rows: jax.Array  # int32 [n], rows of the fit set; -1 pads the last batch of a validation
    mixed: Mixed | None = None


class Seen(NamedTuple):
    """All that a term may look at.

    Attributes:
      outputs: `Outputs` [v, n, …] of all views, in the order of `batch.images`; reconstructions are
        a tuple [v, n, h, w, c], as the images are.
      target: the same of the averaged network, for the same views, without gradient; None unless
        a term asks for it.
      batch: the images, labels and rows.
      memory: the term's own.
      key: of the term and the step, the same on every device.
      step: int32 scalar, steps done.
      axis_name: the mapped axis of devices.
    """

    outputs: Outputs
    target: Outputs | None
    batch: Batch
    memory: Any
    key: jax.Array
    step: jax.Array
    axis_name: str


class Loss(NamedTuple):
    """A term's value as a fraction, which is divided once both are summed over the devices."""

    sum: jax.Array  # float32 scalar, over this device's share
    count: jax.Array  # type: ignore[assignment]  # float32 scalar, what divides it
    memory: Any = None  # the term's own, after this step, the same on every device; None: as before


class Term(NamedTuple):
    """One loss of the objective.

    Attributes:
      loss: `Seen` → `Loss`.
      weight: or a schedule of the step.
      needs: the fields of `Outputs` that it reads: the network gets a head for each. And "labels",
        if it is nothing without.
      needs_target: whether it reads `Seen.target`.
      views: how many of each image it compares at least.
      memory: the shapes of `Outputs` (one view, one example) → what the term remembers at step 0.
      refresh: before each epoch: (memory, key, embeddings float32 [m, d] and rows int32 [m] of this
        device's share of the fit set, axis name) → memory. Row -1 pads; a share is whole blocks of
        128 rows.
    """

    loss: Callable[[Seen], Loss]
    weight: float | optax.Schedule = 1.0
    needs: tuple[str, ...] = ()
    needs_target: bool = False
    views: int = 1
    memory: Callable[[Outputs], Any] | None = None
    refresh: Callable[[Any, jax.Array, jax.Array, jax.Array, str], Any] | None = None


Objective = Mapping[str, Term]


def mean_of(values: jax.Array, batch: Batch, mask: jax.Array | None = None) -> Loss:
    """The mean of a value per view and example, over those that are real and not masked.

    Args:
      values: float [..., n].
      batch: whose rows say which examples pad.
      mask: bool, broadcast to the values; all True by default.

    Returns:
      A `Loss`; of no value at all, sum and count are 0.

    Example:
      >>> batch = Batch((), jnp.array([3, 1]), jnp.array([7, -1]))
      >>> loss = mean_of(jnp.array([[2.0, jnp.nan], [4.0, jnp.inf]]), batch)
      >>> float(loss.sum), float(loss.count)
      (6.0, 2.0)
    """
    counted = jnp.broadcast_to(batch.rows >= 0, values.shape)
    if mask is not None:
        counted &= mask
    return Loss(jnp.where(counted, values, 0).sum(), counted.sum(dtype=jnp.float32))


def shared_value(value: jax.Array, batch: Batch) -> Loss:
    """The `Loss` of a value of the whole batch, the same on every device.

    In a validation, batches count by their real examples.

    Example:
      >>> loss = shared_value(jnp.float32(3), Batch((), jnp.array([3, 1]), jnp.array([7, -1])))
      >>> float(loss.sum), float(loss.count)
      (3.0, 1.0)
    """
    return mean_of(jnp.broadcast_to(value, batch.rows.shape), batch)


def of_projections(value: Callable[..., jax.Array], weight: float, **options: Any) -> Term:
    """The `Term` of one number for the whole batch that compares projections of two views or more.

    Args:
      value: of projections [v, n, d], the options, `real` bool [n] and `axis_name`: a scalar, the
        same on every device.
      weight: of the term.
      **options: keyword arguments of the function.
    """

    def loss(seen: Seen) -> Loss:
        assert seen.outputs.projection is not None
        found = value(
            seen.outputs.projection,
            **options,
            real=seen.batch.rows >= 0,
            axis_name=seen.axis_name,
        )
        return shared_value(found, seen.batch)

    return Term(loss, weight, needs=("projection",), views=2)


def check_range(
    name: str, value: float, low: float, high: float = math.inf, *, open_low: bool = False
) -> None:
    """Raises a ValueError that starts with the name unless low ≤ value ≤ high, and it is finite.

    Example:
      >>> check_range("temperature", -1.0, 0, open_low=True)
      Traceback (most recent call last):
      ...
      ValueError: temperature must be above 0, got -1.0
    """
    if (low < value if open_low else low <= value) and value <= high and math.isfinite(value):
        return
    bounds = f"{'above' if open_low else 'at least'} {low}"
    bounds += f" and at most {high}" if high < math.inf else ""
    raise ValueError(f"{name} must be {bounds}, got {value}")


def evaluate(
    objective: Objective, seen: Seen, memory: Mapping[str, Any]
) -> tuple[dict[str, Loss], dict[str, Any]]:
    """Every term's loss by name, and the new memory.

    Each term sees its own memory and a key of its own.
    """
    losses, after = {}, {}
    for name, term in objective.items():
        key = jax.random.fold_in(seen.key, zlib.crc32(name.encode()))
        losses[name] = loss = term.loss(seen._replace(memory=memory[name], key=key))
        after[name] = memory[name] if loss.memory is None else loss.memory
    return losses, after


def totalled(objective: Objective, means: Mapping[str, Any], step: Any) -> dict[str, Any]:
    """The terms' means by name, behind their weighted sum, "loss".

    Example:
      >>> terms = {"a": Term(None, 2.0), "b": Term(None, lambda step: 0.5 * step)}
      >>> totalled(terms, {"a": 3.0, "b": 4.0}, step=1)
      {'loss': 8.0, 'a': 3.0, 'b': 4.0}
    """
    weighted = (
        (term.weight(step) if callable(term.weight) else term.weight) * means[name]
        for name, term in objective.items()
    )
    return {TOTAL: sum(weighted), **means}


def means_over_devices(losses: Mapping[str, Loss], axis_name: str) -> dict[str, jax.Array]:
    """Each term's share of its mean over the whole batch: their mean over the devices is that."""
    return {
        name: loss.sum / jnp.maximum(lax.pmean(loss.count, axis_name), 1e-12)
        for name, loss in losses.items()
    }
