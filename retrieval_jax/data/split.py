"""The protocol's split of an image set into fit, validation and queries."""

from typing import NamedTuple

import numpy as np

from retrieval_jax.runtime.errors import UserError

_PURPOSE = int.from_bytes(b"split")  # sets these random numbers apart from others of the same seed


class Split(NamedTuple):
    """Indices of images, int64, shuffled: every image in exactly one part.

    Attributes:
      fit: the gallery images that train the model.
      validation: the rest of the gallery, for the loss curves.
      queries: the images that are searched for.
    """

    fit: np.ndarray
    validation: np.ndarray
    queries: np.ndarray

    @property
    def gallery(self) -> np.ndarray:
        """All images that are searched: fit, then validation."""
        return np.concatenate([self.fit, self.validation])


def split(
    labels: np.ndarray | None,
    count: int,
    queries: int,
    seed: int,
    validation_fraction: float = 0.2,
) -> Split:
    """Splits `count` images at random: queries stratified by class, the rest fit and validation.

    Queries have the class proportions of the data, as closely as whole images allow (largest
    remainder, ties to the lower class), with at least one image per class; so has the gallery. A
    class of one image is in the gallery only, and where there are fewer queries than classes the
    rarer ones have none. The gallery is shuffled as a whole, and its last `validation_fraction`,
    rounded, is for validation. The order comes from raw PCG64 output, which NumPy keeps the same
    across platforms and versions, so a seed gives the same split everywhere.

    Args:
      labels: integers [count], any values; None ignores classes.
      count: number of images.
      queries: number of queries, exactly.
      seed: a non-negative integer.
      validation_fraction: share of the gallery for validation, in [0, 1).

    Returns:
      The split.

    Raises:
      UserError: no query or no gallery would be left, or no gallery image of some class; a seed or
        fraction out of range.

    Example:
      >>> parts = split(np.array([0] * 60 + [1] * 40), count=100, queries=10, seed=0)
      >>> len(parts.fit), len(parts.validation), int(np.sum(parts.queries >= 60))
      (72, 18, 4)
    """
    if not 0 < queries < count:
        raise UserError(
            f"{queries} queries out of {count} images leave no query or no gallery: "
            f"ask for 1 to {count - 1}"
        )
    if not 0 <= validation_fraction < 1:
        raise UserError(f"validation fraction is {validation_fraction}: it must be in [0, 1)")
    if seed < 0:
        raise UserError(f"seed is {seed}: it must not be negative")
    order = np.argsort(np.random.PCG64((seed, _PURPOSE)).random_raw(count), kind="stable")
    order = order.astype(np.int64)
    if labels is None:
        is_query = np.arange(count) < queries
    else:
        if np.shape(labels) != (count,):
            raise ValueError(f"labels have shape {np.shape(labels)}, expected ({count},)")
        _, classes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        quotas = _quotas(sizes, queries)
        # The first images of each class in the shuffled order are its queries.
        rank_in_class = np.arange(count) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        is_query = np.empty(count, bool)
        by_class = np.argsort(classes[order], kind="stable")
        is_query[by_class] = rank_in_class < np.repeat(quotas, sizes)
    gallery = order[~is_query]
    fit = len(gallery) - round(validation_fraction * len(gallery))
    if fit == 0:
        raise UserError(
            f"a validation fraction of {validation_fraction} leaves none of {len(gallery)} gallery "
            f"images to fit: lower it"
        )
    return Split(fit=gallery[:fit], validation=gallery[fit:], queries=order[is_query])


def _quotas(sizes: np.ndarray, queries: int) -> np.ndarray:
    """Queries per class, in exact integers, `queries` in all.

    Each class keeps a gallery image, and has a query if it can have one and there are enough.
    """
    classes, count = len(sizes), int(sizes.sum())
    most = sizes - 1
    if queries > most.sum():
        raise UserError(
            f"{queries} queries leave {count - queries} gallery images for {classes} classes: "
            f"ask for {count - classes} or fewer"
        )
    least = np.minimum(most, 1)
    if queries < least.sum():
        least = np.zeros_like(most)
    share = sizes.astype(np.int64) * queries  # in units of 1 / count
    quotas = np.clip(share // count, least, most)
    # About one step per class at most; the bounds of the smallest classes can take a few more.
    while (missing := queries - quotas.sum()) != 0:
        step = int(np.sign(missing))
        free = quotas < most if step > 0 else quotas > least
        gap = np.where(free, step * (share - quotas * count), np.iinfo(np.int64).min)
        quotas[np.argmax(gap)] += step
    return quotas
