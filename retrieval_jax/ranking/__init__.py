"""Exact nearest neighbours: the top k of a gallery on one device, on several, or on the host."""

from retrieval_jax.ranking.exact import nearest
from retrieval_jax.ranking.neighbours import Metric, Neighbours, share_kept, within_radius
from retrieval_jax.ranking.streamed import nearest_streamed

__all__ = [
    "Metric",
    "Neighbours",
    "nearest",
    "nearest_streamed",
    "share_kept",
    "within_radius",
]
