"""The network of every method: an encoder, and the heads that the objective's terms ask for."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn


class Outputs(NamedTuple):
    """What a network says of n images; None where it has no such head."""

    embedding: jax.Array  # float32 [n, d]
    reconstruction: Any = None  # float32 [n, h, w, c] in (0, 1)
    logits: jax.Array | None = None  # float32 [n, classes]
    projection: jax.Array | None = None  # float32 [n, p], of the embedding
    prediction: jax.Array | None = None  # float32 [n, p], of the projection
    scores: jax.Array | None = None  # float32 [n, k], the projection's cosines with prototypes


class Network(nn.Module):
    """An encoder with an optional decoder, classifier, projector, predictor and prototypes.

    Call with images float [n, h, w, c] in [0, 1]; returns `Outputs`. In training, BatchNorm uses
    the batch's statistics and the collection "batch_stats" must be mutable.

    Attributes:
      encoder: (images, train) → a feature map [n, h', w', d], whose average over positions is the
        embedding, or the embedding [n, d].
      decoder: (feature map, train) → reconstruction.
      head: embedding → logits.
      projector: (embedding, train) → projection.
      predictor: (projection, train) → prediction; needs a projector.
      prototypes: projection → scores; needs a projector.
      embeds: what `embed` returns: "backbone", the embedding; "projection"; or "probabilities", the
        square roots of the classifier's probabilities, whose Euclidean distance is √2 times
        Hellinger's.

    Raises:
      ValueError: a decoder on an encoder that returns no feature map.

    Example:
      >>> from retrieval_jax.models import Decoder, Encoder, Head
      >>> network = Network(Encoder(), Decoder(), Head(classes=10))
      >>> variables = network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
      >>> outputs = network.apply(variables, jnp.zeros((5, 32, 32, 3)))
      >>> outputs.embedding.shape, outputs.reconstruction.shape, outputs.logits.shape
      ((5, 128), (5, 32, 32, 3), (5, 10))
      >>> network.apply(variables, jnp.zeros((5, 32, 32, 3)), method="embed").shape
      (5, 128)
    """

    encoder: nn.Module
    decoder: nn.Module | None = None
    head: nn.Module | None = None
    projector: nn.Module | None = None
    predictor: nn.Module | None = None
    prototypes: nn.Module | None = None
    embeds: str = "backbone"

    def __call__(self, images: jax.Array, train: bool = False) -> Outputs:
        features = self.encoder(images, train)
        if self.decoder is not None and features.ndim != 4:
            raise ValueError(
                "a reconstruction needs an encoder that returns a feature map [n, h, w, d]; this "
                f"one returns {features.shape}"
            )
        embedding = _averaged(features)
        projection = None if self.projector is None else self.projector(embedding, train)
        return Outputs(
            embedding=embedding,
            reconstruction=None if self.decoder is None else self.decoder(features, train),
            logits=None if self.head is None else self.head(embedding),
            projection=projection,
            prediction=None if self.predictor is None else self.predictor(projection, train),
            scores=None if self.prototypes is None else self.prototypes(projection),
        )

    def embed(self, images: jax.Array) -> jax.Array:
        """What the network is for: float32 [n, d] by `embeds`, with the running statistics."""
        if hasattr(self.encoder, "embed"):
            found = self.encoder.embed(images)
        else:
            found = _averaged(self.encoder(images))
        if self.embeds == "backbone":
            return found
        if self.embeds == "probabilities":
            assert self.head is not None
            return jnp.sqrt(nn.softmax(self.head(found)))
        assert self.projector is not None
        return self.projector(found, False)

    def reconstruct(self, images: jax.Array) -> jax.Array:
        """Reconstructions float32 [n, h, w, c], with the running statistics; needs a decoder."""
        assert self.decoder is not None
        return self.decoder(self.encoder(images))


def _averaged(features: jax.Array) -> jax.Array:
    positions = tuple(range(1, features.ndim - 1))
    return features.mean(positions, jnp.float32) if positions else features.astype(jnp.float32)
