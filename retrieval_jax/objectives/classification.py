"""The class of each image that has a label: the 2020 report's hint of supervision."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from retrieval_jax.objectives.objective import Loss, Seen, Term, check_range, mean_of


def cross_entropy(
    logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0
) -> jax.Array:
    """Softmax cross-entropy of each example, in nats.

    Args:
      logits: float [..., n, classes].
      labels: int [n] in [0, classes).
      label_smoothing: share s of the target spread evenly over all classes (Szegedy et al. 2016,
        "Rethinking the Inception architecture", section 7, arXiv:1512.00567).

    Returns:
      float [..., n].

    Raises:
      ValueError: the shapes don't match, or the smoothing is not in [0, 1).

    Example:
      >>> print(f"{cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))[0]:.4f}")  # log 4
      1.3863
    """
    if logits.ndim < 2 or labels.shape != logits.shape[-2:-1]:
        raise ValueError(f"logits {logits.shape} don't fit labels {labels.shape}")
    check_smoothing(label_smoothing)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def check_smoothing(label_smoothing: float) -> None:
    """Raises a ValueError unless the smoothing is a share.

    Example:
      >>> check_smoothing(0.1)
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing}")


def classification(weight: float = 0.0, label_smoothing: float = 0.0, views: int = 0) -> Term:
    """Cross-entropy of the classifier's logits, over the examples that have a label.

    Of images that are mixed (`training.mixup`), both labels count by their shares: Zhang et al.
    2018, arXiv:1710.09412, equation 1.

    Args:
      weight: of the cross-entropy in nats.
      label_smoothing: share of the target spread over all classes.
      views: how many of the first views are classified, such as the weak one alone; 0: all.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    check_smoothing(label_smoothing)
    check_range("views", views, 0)

    def loss(seen: Seen) -> Loss:
        assert seen.outputs.logits is not None
        logits = seen.outputs.logits[: views or None]

        def of(labels: jax.Array) -> Loss:
            # A label that is hidden has no row in the one-hot table; its value is masked.
            flat = logits.reshape(-1, logits.shape[-1])
            values = cross_entropy(
                flat, jnp.tile(labels, len(logits)), label_smoothing=label_smoothing
            )
            return mean_of(values.reshape(logits.shape[:2]), seen.batch, labels >= 0)

        own, mixed = of(seen.batch.labels), seen.batch.mixed
        if mixed is None:
            return own
        other, share = of(mixed.labels), mixed.share
        return Loss(
            share * own.sum + (1 - share) * other.sum,
            share * own.count + (1 - share) * other.count,
        )

    return Term(loss, weight, needs=("logits",))
