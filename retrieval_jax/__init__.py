"""Representation learning, clustering and retrieval in JAX.

Each arrow of ``images → embeddings → clusters → ranked neighbours → a report`` is a module of pure
functions on arrays: `models`, `losses`, `objective`, `kmeans`, `ranking`, `cluster_index` and
`metrics` import nothing but JAX, Flax, Optax and NumPy, so that any of them can be taken alone.
"""

__version__ = "0.1.0"
