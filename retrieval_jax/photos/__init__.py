"""Folders of photographs as an index on disk that answers with the photos nearest to another."""

from retrieval_jax.photos.duplicates import Duplicates
from retrieval_jax.photos.index import Changes, Found, PhotoIndex

__all__ = ["Changes", "Duplicates", "Found", "PhotoIndex"]
