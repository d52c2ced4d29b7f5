"""Labels, checked and brought to the host, where their number and sizes can set array shapes."""

import numpy as np
from jax.typing import ArrayLike


def host_labels(labels: ArrayLike, count: int, name: str) -> np.ndarray:
    """The labels as a NumPy array [count]; any integers will do.

    Raises:
      ValueError: labels that are not integers, one for each row.

    Example:
      >>> host_labels([7, -1, 7], 3, "labels").tolist()
      [7, -1, 7]
    """
    array = np.asarray(labels)
    if array.shape != (count,) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"{name} must be {count} integers; they are {array.dtype} of shape {array.shape}."
        )
    return array
