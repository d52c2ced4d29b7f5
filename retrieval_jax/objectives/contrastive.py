"""Images are told apart: SimCLR's NT-Xent, supervised contrast, and MoCo with its queue.

Each function takes projections float32 [v, n, d] of v views of one device's n examples, of any
length, and compares them with those of all devices. Rows that are not `real` are no candidates, and
their own values have no meaning.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from retrieval_jax.models import Outputs
from retrieval_jax.numerics.distances import unit
from retrieval_jax.objectives.batchwide import all_real, everyone, first_row
from retrieval_jax.objectives.objective import Loss, Seen, Term, check_range, mean_of

_OUT = -1e30  # a logit that adds nothing; -inf would make gradients of an empty sum NaN


def nt_xent(
    projections: jax.Array,
    *,
    temperature: float = 0.5,
    real: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """NT-Xent, Chen et al. 2020, arXiv:2002.05709, equation 1; the mean over an anchor's positives.

    A view's positives are the other views of its image; its candidates are all views of all images
    but itself.

    Args:
      projections: float [v, n, d], v ≥ 2.
      temperature: divides the cosines.
      real: bool [n].
      axis_name: the mapped axis of devices.

    Returns:
      float [v, n], in nats.

    Example:
      >>> views = jnp.array([[[1.0, 0.0], [0.0, 1.0]]] * 2)
      >>> nt_xent(views, temperature=1.0)[0].round(4)  # log(1 + 2 / e)
      Array([0.5514, 0.5514], dtype=float32)
    """
    logits, itself, image, candidate = _compared(projections, temperature, real, axis_name)
    everything = jax.nn.logsumexp(jnp.where(candidate & ~itself, logits, _OUT), (2, 3))
    positives = jnp.where(image & ~itself, logits, 0).sum((2, 3))
    return everything - positives / (len(projections) - 1)


def supervised_contrast(
    projections: jax.Array,
    labels: jax.Array,
    *,
    temperature: float = 0.1,
    real: jax.Array | None = None,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """SupCon, Khosla et al. 2020, arXiv:2004.11362, equation 2 (L_out).

    A view's positives are the other views of all images of its class. Images without a label are
    neither anchors nor candidates.

    Args:
      projections: float [v, n, d].
      labels: int [n], negative where there is none.
      temperature: divides the cosines.
      real: bool [n].
      axis_name: the mapped axis of devices.

    Returns:
      float [v, n], in nats; and bool [v, n], which of them have a label and a positive.

    Example:
      >>> views = jnp.array([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
      >>> values, counted = supervised_contrast(views, jnp.array([4, 4, -1]))
      >>> values[counted].tolist()
      [0.0, 0.0]
    """
    known = all_real(len(labels), real) & (labels >= 0)
    logits, itself, _, candidate = _compared(projections, temperature, known, axis_name)
    alike = (labels[:, None] == everyone(labels, axis_name))[None, :, None] & candidate
    positive = alike & ~itself
    everything = jax.nn.logsumexp(jnp.where(candidate & ~itself, logits, _OUT), (2, 3))
    count = positive.sum((2, 3))
    mean = jnp.where(positive, logits, 0).sum((2, 3)) / jnp.maximum(count, 1)
    return everything - mean, known & (count > 0)


def info_nce(
    queries: jax.Array, keys: jax.Array, queue: jax.Array, *, temperature: float = 0.2
) -> jax.Array:
    """MoCo's loss, He et al. 2020, arXiv:1911.05722, equation 1; the mean over positives.

    A query's positives are the keys of its image's other views; the negatives are the queue.

    Args:
      queries: float [v, n, d], v ≥ 2.
      keys: float [v, n, d], of the averaged network.
      queue: float [m, d] of length 1.
      temperature: divides the cosines.

    Returns:
      float [v, n], in nats.

    Example:
      >>> views = jnp.array([[[1.0, 0.0]]] * 2)
      >>> info_nce(views, views, jnp.array([[1.0, 0.0]])).round(4)  # log(2)
      Array([[0.6931],
             [0.6931]], dtype=float32)
    """
    queries, keys = unit(queries), unit(keys)
    positive = jnp.einsum("vnd,wnd->vwn", queries, keys) / temperature
    negative = jax.nn.logsumexp(queries @ queue.T / temperature, 2)
    values = jnp.logaddexp(positive, negative[:, None]) - positive
    return mean_over_others(values)


def mean_over_others(values: jax.Array) -> jax.Array:
    """[v, v, n] of each view and another → [v, n], the mean over the other views.

    Example:
      >>> mean_over_others(jnp.array([[[9.0], [1.0]], [[2.0], [9.0]]])).tolist()
      [[1.0], [2.0]]
    """
    other = ~jnp.eye(len(values), dtype=bool)[:, :, None]
    return jnp.where(other, values, 0).sum(1) / (len(values) - 1)


def simclr(weight: float = 0.0, temperature: float = 0.5) -> Term:
    """SimCLR: each view is told from all others by those of its own image; see `nt_xent`.

    Args:
      weight: of the cross-entropy in nats.
      temperature: divides the cosines.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    check_range("temperature", temperature, 0, open_low=True)

    def loss(seen: Seen) -> Loss:
        assert seen.outputs.projection is not None
        values = nt_xent(
            seen.outputs.projection,
            temperature=temperature,
            real=seen.batch.rows >= 0,
            axis_name=seen.axis_name,
        )
        return mean_of(values, seen.batch)

    return Term(loss, weight, needs=("projection",), views=2)


def supcon(weight: float = 0.0, temperature: float = 0.1) -> Term:
    """Supervised contrast over the examples that have a label; see `supervised_contrast`.

    Args:
      weight: of the cross-entropy in nats.
      temperature: divides the cosines.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    check_range("temperature", temperature, 0, open_low=True)

    def loss(seen: Seen) -> Loss:
        assert seen.outputs.projection is not None
        values, counted = supervised_contrast(
            seen.outputs.projection,
            seen.batch.labels,
            temperature=temperature,
            real=seen.batch.rows >= 0,
            axis_name=seen.axis_name,
        )
        return mean_of(values, seen.batch, counted)

    return Term(loss, weight, needs=("projection", "labels"))


def moco(weight: float = 0.0, temperature: float = 0.2, queue: int = 4096) -> Term:
    """MoCo: views against the averaged network's keys and a queue of earlier ones; see `info_nce`.

    The queue takes the keys of the first view of every batch. Set `training.ema_decay`.

    Args:
      weight: of the cross-entropy in nats.
      temperature: divides the cosines.
      queue: how many keys it holds.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    check_range("temperature", temperature, 0, open_low=True)
    check_range("queue", queue, 1)

    def memory(shapes: Outputs) -> dict[str, Any]:
        assert shapes.projection is not None
        keys = jax.random.normal(jax.random.key(0), (queue, shapes.projection.shape[-1]))
        return {"keys": unit(keys), "next": jnp.int32(0)}

    def loss(seen: Seen) -> Loss:
        assert seen.outputs.projection is not None and seen.target is not None
        assert seen.target.projection is not None
        keys = lax.stop_gradient(seen.target.projection)
        values = info_nce(
            seen.outputs.projection, keys, seen.memory["keys"], temperature=temperature
        )
        new = everyone(unit(keys[0]), seen.axis_name)[-queue:]
        at = (seen.memory["next"] + jnp.arange(len(new))) % queue
        after = {
            "keys": seen.memory["keys"].at[at].set(new),
            "next": (seen.memory["next"] + len(new)) % queue,
        }
        return mean_of(values, seen.batch)._replace(memory=after)

    return Term(loss, weight, needs=("projection",), needs_target=True, views=2, memory=memory)


def _compared(
    projections: jax.Array, temperature: float, real: jax.Array | None, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Logits [v, n, w, m] of this device's views and everyone's, and three masks that broadcast.

    They are: the view itself; a view of its image; a real candidate.
    """
    ours = unit(projections)
    views, n, _ = ours.shape
    theirs = everyone(ours, axis_name, axis=1)
    logits = jnp.einsum("vnd,wmd->vnwm", ours, theirs) / temperature
    image = jnp.arange(theirs.shape[1]) == first_row(n, axis_name) + jnp.arange(n)[:, None]
    image = image[None, :, None]
    itself = jnp.eye(views, dtype=bool)[:, None, :, None] & image
    return logits, itself, image, everyone(all_real(n, real), axis_name)
