"""What training minimises: terms, each a pure loss on arrays in the file of its family."""

from retrieval_jax.objectives.classification import classification, cross_entropy
from retrieval_jax.objectives.objective import (
    TOTAL,
    Batch,
    Loss,
    Objective,
    Seen,
    Term,
    evaluate,
    mean_of,
    means_over_devices,
    totalled,
)
from retrieval_jax.objectives.reconstruction import mean_squared_error, reconstruction

# Of a config: each name is a section of `objective`.
TERMS = (reconstruction, classification)

__all__ = [
    "TERMS",
    "TOTAL",
    "Batch",
    "Loss",
    "Objective",
    "Seen",
    "Term",
    "classification",
    "cross_entropy",
    "evaluate",
    "mean_of",
    "mean_squared_error",
    "means_over_devices",
    "reconstruction",
    "totalled",
]
