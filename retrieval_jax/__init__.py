"""Learn a representation, cluster it, retrieve with it: in JAX.

Each arrow of ``images → embeddings → clusters → ranked neighbours → a report`` is a module of pure
functions on arrays. The names below are imported when they are first used, so that this package
itself costs nothing to import:

    from retrieval_jax import Embedder, nearest
    from retrieval_jax.kmeans import kmeans
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# Where each public name is; None for a module.
_PLACES = {
    "Embedder": "embedder",
    "KMeansResult": "kmeans",
    "Network": "models",
    "Neighbours": "ranking",
    "kmeans": None,
    "metrics": None,
    "models": None,
    "nearest": "ranking",
    "objectives": None,
    "predict": "kmeans",
    "ranking": None,
    "sharded": None,
}
__all__ = [
    "Embedder",
    "KMeansResult",
    "Network",
    "Neighbours",
    "kmeans",
    "metrics",
    "models",
    "nearest",
    "objectives",
    "predict",
    "ranking",
    "sharded",
]

if TYPE_CHECKING:
    from retrieval_jax import kmeans, metrics, models, objectives, ranking, sharded
    from retrieval_jax.embedder import Embedder
    from retrieval_jax.kmeans import KMeansResult, predict
    from retrieval_jax.models import Network
    from retrieval_jax.ranking import Neighbours, nearest


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'retrieval_jax' has no attribute {name!r}")
    place = _PLACES[name]
    if place is None:
        return import_module(f"retrieval_jax.{name}")
    return getattr(import_module(f"retrieval_jax.{place}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
