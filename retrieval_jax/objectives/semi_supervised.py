"""Few labels: what the network is sure of in a weak view is the label of the strong views.

The first view is the weak one; `views` has a section for each kind, in order. The labels that there
are train by `classification`, whose key `views` = 1 keeps it to the weak view.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from retrieval_jax.models import Outputs
from retrieval_jax.objectives.batchwide import all_real, total
from retrieval_jax.objectives.objective import (
    Loss,
    Seen,
    Term,
    check_range,
    mean_of,
    shared_value,
)


def pseudo_labelled(logits: jax.Array, thresholds: jax.Array | float) -> jax.Array:
    """FixMatch, Sohn et al. 2020, arXiv:2001.07685, equation 4, before the mean.

    Args:
      logits: float [v, n, classes], v ≥ 2; of the first view, without gradient, come the labels.
      thresholds: least probability of a label that counts: a number, or float [classes].

    Returns:
      float [v - 1, n]: the cross-entropy of the other views, 0 where the first is not sure enough.

    Example:
      >>> logits = jnp.array([[[5.0, 0.0], [0.1, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
      >>> pseudo_labelled(logits, 0.95).round(4)
      Array([[0.6931, 0.    ]], dtype=float32)
    """
    sure = jax.nn.softmax(lax.stop_gradient(logits[0]))
    labels = sure.argmax(-1)
    counted = sure.max(-1) >= jnp.broadcast_to(thresholds, sure.shape[-1:])[labels]
    strong = logits[1:]
    values = optax.softmax_cross_entropy_with_integer_labels(
        strong, jnp.broadcast_to(labels, strong.shape[:2])
    )
    return jnp.where(counted, values, 0)


class Confidence(NamedTuple):
    """What FreeMatch remembers of the weak views: exponential averages."""

    level: jax.Array  # float scalar, the mean of the largest probability, τ
    classes: jax.Array  # float [classes], the mean probabilities, p̃
    histogram: jax.Array  # float [classes], the shares of the predicted classes, h̃

    def thresholds(self) -> jax.Array:
        """float [classes]: equation 7."""
        return self.level * self.classes / self.classes.max()


def updated(
    before: Confidence,
    probabilities: jax.Array,
    decay: float,
    *,
    real: jax.Array | None = None,
    axis_name: str | None = None,
) -> Confidence:
    """The averages after a batch: FreeMatch, Wang et al. 2023, arXiv:2205.07246, equations 5, 6, 9.

    Args:
      before: the averages so far.
      probabilities: float [n, classes] of the weak view.
      decay: share of the old.
      real: bool [n].
      axis_name: the mapped axis of devices.

    Returns:
      The new ones, the same on every device.

    Example:
      >>> start = Confidence(jnp.float32(0.5), jnp.full(2, 0.5), jnp.full(2, 0.5))
      >>> updated(start, jnp.array([[1.0, 0.0]]), 0.5).classes.tolist()
      [0.75, 0.25]
    """
    counted = all_real(len(probabilities), real)
    count = jnp.maximum(total(counted.sum(dtype=jnp.float32), axis_name), 1)
    likeliest = jax.nn.one_hot(probabilities.argmax(-1), probabilities.shape[-1])
    now = Confidence(probabilities.max(-1), probabilities, likeliest)

    def average(old: jax.Array, values: jax.Array) -> jax.Array:
        kept = jnp.where(counted.reshape(-1, *(1,) * (values.ndim - 1)), values, 0)
        return decay * old + (1 - decay) * total(kept.sum(0), axis_name) / count

    return jax.tree.map(average, before, now)


def fairness(
    logits: jax.Array,
    confidence: Confidence,
    *,
    real: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """FreeMatch's fairness, Wang et al. 2023, arXiv:2205.07246, equations 10 and 11.

    The negative cross-entropy between the classes' shares so far and those of the strong views,
    each divided by the histogram of predictions, of the images that pass their class' threshold.

    Args:
      logits: float [v, n, classes], the first view weak.
      confidence: after this batch, without gradient.
      real: bool [n].
      axis_name: the mapped axis of devices.

    Returns:
      A scalar; 0 where no image passes.

    Example:
      >>> even = Confidence(jnp.float32(0.5), jnp.full(2, 0.5), jnp.full(2, 0.5))
      >>> logits = jnp.array([[[9.0, 0.0], [0.0, 9.0]]] * 2)
      >>> round(float(fairness(logits, even)), 4)  # -log(2), the least there is
      -0.6931
    """
    classes = logits.shape[-1]
    weak = jax.nn.softmax(lax.stop_gradient(logits[0]))
    passed = weak.max(-1) >= confidence.thresholds()[weak.argmax(-1)]
    passed &= all_real(len(weak), real)
    count = total(passed.sum(dtype=jnp.float32), axis_name) * (len(logits) - 1)
    strong = jnp.where(passed[:, None], jax.nn.softmax(logits[1:]), 0)
    mean = total(strong.sum((0, 1)), axis_name) / jnp.maximum(count, 1)
    likeliest = jnp.where(passed[:, None], jax.nn.one_hot(logits[1:].argmax(-1), classes), 0)
    histogram = total(likeliest.sum((0, 1)), axis_name) / jnp.maximum(count, 1)

    def shares(values: jax.Array, by: jax.Array) -> jax.Array:
        divided = jnp.where(by > 0, values / jnp.where(by > 0, by, 1), 0)
        return divided / jnp.maximum(divided.sum(), 1e-12)

    goal = shares(confidence.classes, confidence.histogram)
    ours = shares(mean, histogram)
    value = (goal * jnp.log(jnp.maximum(ours, 1e-12))).sum()
    return jnp.where(count > 0, value, 0)


def fixmatch(weight: float = 0.0, threshold: float = 0.95) -> Term:
    """FixMatch: the strong views' cross-entropy with what the weak one is sure of.

    Args:
      weight: of the mean over all examples, in nats.
      threshold: least probability of a label that counts.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    check_range("threshold", threshold, 0, 1)

    def loss(seen: Seen) -> Loss:
        assert seen.outputs.logits is not None
        return mean_of(pseudo_labelled(seen.outputs.logits, threshold), seen.batch)

    return Term(loss, weight, needs=("logits",), views=2)


def freematch(
    *, classes: int, weight: float = 0.0, decay: float = 0.999, fair: float = 0.01
) -> Term:
    """FreeMatch, Wang et al. 2023, arXiv:2205.07246: thresholds that follow the network, per class.

    Args:
      classes: of the labels.
      weight: of the mean over all examples, in nats.
      decay: share of the old in what is remembered of the weak views' probabilities.
      fair: weight of `fairness` beside it.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    check_range("decay", decay, 0, 1)
    check_range("fair", fair, 0)

    def memory(shapes: Outputs) -> Confidence:
        even = jnp.full(classes, 1 / classes)
        return Confidence(jnp.float32(1 / classes), even, even)

    def loss(seen: Seen) -> Loss:
        logits = seen.outputs.logits
        assert logits is not None
        where: dict[str, Any] = {"real": seen.batch.rows >= 0, "axis_name": seen.axis_name}
        weak = jax.nn.softmax(lax.stop_gradient(logits[0]))
        after = updated(Confidence(*seen.memory), weak, decay, **where)
        values = mean_of(pseudo_labelled(logits, after.thresholds()), seen.batch)
        even = shared_value(fairness(logits, after, **where), seen.batch)
        # Both are means over examples, but of the strong views there are more.
        strong = len(logits) - 1
        return Loss(values.sum + fair * strong * even.sum, values.count, after)

    return Term(loss, weight, needs=("logits",), views=2, memory=memory)
