"""Many steps in one compiled call: what they add up to, and where they first went wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Totals(NamedTuple):
    """What the steps of one call come to."""

    sums: dict[str, jax.Array]  # name → float32, each metric added up over the steps
    bad_step: jax.Array  # int32, the first step, from 0, with a metric that is not finite; or -1
    bad: dict[str, jax.Array]  # that step's metrics; zeros where there is none


def repeat(
    body: Callable[[Any], tuple[Any, dict[str, jax.Array]]],
    carry: Any,
    names: Iterable[str],
    limit: int,
    remaining: jax.Array,
) -> tuple[Any, Totals]:
    """Runs `body` min(limit, remaining) times; one program serves every number of steps.

    A limit of 1 puts the body into the caller's program as it is, in no loop.

    Args:
      body: carry → (carry, name → float32 scalar).
      carry: what goes from step to step.
      names: of the body's metrics.
      limit: the most steps, at least 1.
      remaining: int32 scalar, at least 1.

    Returns:
      The carry after the last step, and the steps' `Totals`.

    Example:
      >>> def double(x):
      ...     return 2 * x, {"x": x}
      >>> last, totals = repeat(double, jnp.float32(1), ["x"], 8, jnp.int32(3))
      >>> float(last), float(totals.sums["x"]), int(totals.bad_step)
      (8.0, 7.0, -1)
    """

    def once(i: jax.Array | int, state: tuple[Any, Totals]) -> tuple[Any, Totals]:
        carry, metrics = body(state[0])
        return carry, _add(state[1], i, metrics)

    zeros = {name: jnp.zeros((), jnp.float32) for name in names}
    start = carry, Totals(zeros, jnp.int32(-1), zeros)
    if limit == 1:
        return once(0, start)
    return jax.lax.fori_loop(0, jnp.minimum(limit, remaining), once, start)


def _add(totals: Totals, i: jax.Array | int, metrics: dict[str, jax.Array]) -> Totals:
    finite = jnp.isfinite(jnp.stack(list(metrics.values()))).all()
    first = (totals.bad_step < 0) & ~finite
    return Totals(
        sums={name: total + metrics[name] for name, total in totals.sums.items()},
        bad_step=jnp.where(first, i, totals.bad_step),
        bad={name: jnp.where(first, metrics[name], old) for name, old in totals.bad.items()},
    )
