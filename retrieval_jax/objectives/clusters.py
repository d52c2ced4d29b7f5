"""Clusters of all fit images, found by k-means before each epoch: ProPos, DEC, and their labels.

k-means is the project's own, on all devices, of the embeddings that a run ends with. A term
remembers what the next epoch needs of it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from retrieval_jax.kmeans import KMeansResult, kmeans
from retrieval_jax.models import Outputs
from retrieval_jax.numerics.distances import unit
from retrieval_jax.objectives.batchwide import everyone, first_row, total
from retrieval_jax.objectives.bootstrap import predicted_cosines
from retrieval_jax.objectives.contrastive import mean_over_others
from retrieval_jax.objectives.objective import Loss, Seen, Term, check_range, mean_of


def prototype_scattering(
    projections: jax.Array,
    goals: jax.Array,
    clusters: jax.Array,
    k: int,
    *,
    temperature: float = 0.5,
    axis_name: str | None = None,
) -> jax.Array:
    """ProPos' loss between clusters, Huang et al. 2022, arXiv:2111.11821, equation 3.

    A prototype is the mean of a cluster's unit projections in the batch, of length 1. It is drawn
    to the averaged network's prototype of the same cluster in another view, and away from the other
    clusters' prototypes. Clusters without an image in the batch are left out.

    Args:
      projections: float [v, n, d], v ≥ 2.
      goals: float [v, n, d], of the averaged network; they have no gradient.
      clusters: int [n]; negative: counts nowhere.
      k: how many clusters.
      temperature: divides the cosines.
      axis_name: the mapped axis of devices.

    Returns:
      A scalar, the mean over clusters and pairs of views.

    Example:
      >>> views = jnp.array([[[1.0, 0.0], [0.0, 1.0]]] * 2)
      >>> round(float(prototype_scattering(views, views, jnp.array([0, 1]), 2)), 4)
      0.1269
    """
    members = jax.nn.one_hot(clusters, k)

    def prototypes(rows: jax.Array) -> jax.Array:
        return unit(total(jnp.einsum("nk,vnd->vkd", members, unit(rows)), axis_name))

    there = total(members.sum(0), axis_name) > 0
    ours, theirs = prototypes(projections), lax.stop_gradient(prototypes(goals))
    positive = jnp.einsum("vkd,wkd->vwk", ours, theirs) / temperature
    among = jnp.einsum("vkd,vjd->vkj", ours, ours) / temperature
    negative = jnp.where(there & ~jnp.eye(k, dtype=bool), among, -1e30)
    values = jnp.logaddexp(positive, jax.nn.logsumexp(negative, 2)[:, None]) - positive
    counted = jnp.where(there, mean_over_others(values), 0)
    return counted.mean(0).sum() / jnp.maximum(there.sum(), 1)


def soft_assignments(embeddings: jax.Array, centroids: jax.Array) -> jax.Array:
    """Student's t kernel of one degree of freedom, Xie et al. 2016, arXiv:1511.06335, equation 1.

    Args:
      embeddings: float [..., d].
      centroids: float [k, d].

    Returns:
      float [..., k]; the last axis adds up to 1.

    Example:
      >>> soft_assignments(jnp.array([[1.0], [0.5]]), jnp.array([[0.0], [1.0]])).tolist()[1]
      [0.5, 0.5]
    """
    distances = jnp.square(embeddings[..., None, :] - centroids).sum(-1)
    kernel = 1 / (1 + distances)
    return kernel / kernel.sum(-1, keepdims=True)


def sharpened_divergence(assignments: jax.Array, sizes: jax.Array) -> jax.Array:
    """KL(P‖Q), Xie et al. 2016, arXiv:1511.06335, equations 2 and 3.

    Args:
      assignments: float [..., k], Q.
      sizes: float [k], the sum of the assignments of all images to each cluster, above 0.

    Returns:
      float [...], in nats; P = Q² / sizes, scaled to add up to 1, has no gradient.

    Example:
      >>> sharpened_divergence(jnp.array([[0.5, 0.5], [0.0, 1.0]]), jnp.ones(2)).tolist()
      [0.0, 0.0]
    """
    goal = jnp.square(assignments) / sizes
    goal = lax.stop_gradient(goal / goal.sum(-1, keepdims=True))
    logs = jnp.log(jnp.maximum(assignments, 1e-12))
    return (goal * (jnp.log(jnp.maximum(goal, 1e-12)) - logs)).sum(-1)


def propos(
    *,
    rows: int,
    weight: float = 0.0,
    k: int = 10,
    scattering: float = 0.1,
    temperature: float = 0.5,
    sigma: float = 0.001,
    warmup_steps: int = 0,
) -> Term:
    """ProPos, Huang et al. 2022, arXiv:2111.11821: BYOL by sampled positives, prototypes apart.

    Before each epoch spherical k-means groups the embeddings of all fit images; in the epoch
    `prototype_scattering` keeps these clusters apart. The sampled positive is the projection of the
    averaged network plus noise; the paper adds it in front of the predictor. Set
    `training.ema_decay`.

    Args:
      rows: how many fit images there are.
      weight: of the whole.
      k: clusters.
      scattering: weight of the scattering beside the squared distance of BYOL.
      temperature: divides the prototypes' cosines.
      sigma: standard deviation of the noise on a positive, before it is scaled to length 1.
      warmup_steps: steps without scattering, until clusters mean something.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    check_range("k", k, 2)
    check_range("scattering", scattering, 0)
    check_range("temperature", temperature, 0, open_low=True)
    check_range("sigma", sigma, 0)
    check_range("warmup_steps", warmup_steps, 0)

    def loss(seen: Seen) -> Loss:
        assert seen.outputs.prediction is not None and seen.outputs.projection is not None
        assert seen.target is not None and seen.target.projection is not None
        goals = seen.target.projection
        n = goals.shape[1]
        # By place in the whole batch: the same on any number of devices.
        places = first_row(n, seen.axis_name) + jnp.arange(n)
        keys = jax.vmap(lambda place: jax.random.fold_in(seen.key, place))(places)
        draw = jax.vmap(lambda key: jax.random.normal(key, (len(goals), goals.shape[2])))(keys)
        sampled = goals + sigma * draw.swapaxes(0, 1)
        aligned = 2 - 2 * predicted_cosines(seen.outputs.prediction, sampled)
        apart = prototype_scattering(
            seen.outputs.projection,
            goals,
            jnp.where(seen.batch.rows >= 0, seen.memory["clusters"][seen.batch.rows], -1),
            k,
            temperature=temperature,
            axis_name=seen.axis_name,
        )
        share = jnp.where(seen.step >= warmup_steps, scattering, 0.0)
        return mean_of(aligned + share * apart, seen.batch)

    def memory(shapes: Outputs) -> dict[str, Any]:
        return {"clusters": jnp.full(rows, -1, jnp.int32)}

    def refresh(before, key, embeddings, own, axis_name):
        found = _grouped(key, embeddings, own, k, axis_name, spherical=True)
        return {"clusters": _by_row(found.labels, own, rows, axis_name)}

    return Term(
        loss,
        weight,
        needs=("prediction",),
        needs_target=True,
        views=2,
        memory=memory,
        refresh=refresh,
    )


def dec(weight: float = 0.0, k: int = 10) -> Term:
    """DEC, Xie et al. 2016, arXiv:1511.06335: embeddings are drawn to the centroids they are near.

    Before each epoch k-means finds the centroids, and the clusters' sizes are those of all fit
    images; the paper moves the centroids by their gradient. A network that was never trained has
    little to sharpen: see `training.init_from`.

    Args:
      weight: of the divergence in nats.
      k: clusters.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    check_range("k", k, 2)

    def loss(seen: Seen) -> Loss:
        assignments = soft_assignments(seen.outputs.embedding, seen.memory["centroids"])
        return mean_of(sharpened_divergence(assignments, seen.memory["sizes"]), seen.batch)

    def memory(shapes: Outputs) -> dict[str, Any]:
        return {"centroids": jnp.zeros((k, shapes.embedding.shape[-1])), "sizes": jnp.ones(k)}

    def refresh(before, key, embeddings, own, axis_name):
        found = _grouped(key, embeddings, own, k, axis_name)
        assigned = jnp.where(own[:, None] >= 0, soft_assignments(embeddings, found.centroids), 0)
        sizes = jnp.maximum(total(assigned.sum(0), axis_name), 1e-6)
        return {"centroids": found.centroids, "sizes": sizes}

    return Term(loss, weight, needs=("embedding",), memory=memory, refresh=refresh)


def self_labelling(
    *,
    rows: int,
    weight: float = 0.0,
    k: int = 10,
    temperature: float = 0.1,
    confident: float = 0.5,
) -> Term:
    """The clusters' own labels, for the images nearest to their centroids.

    Before each epoch spherical k-means labels the fit images; every view has then to be nearest to
    its image's centroid. Pseudo-labels as in DeepCluster (Caron et al. 2018, arXiv:1807.05520), for
    the confident images alone, as SCAN (Van Gansbeke et al. 2020, arXiv:2005.12320, section 2.3)
    and SPICE (Niu et al. 2022, arXiv:2103.09382) end; the centroids are the classifier.

    Args:
      rows: how many fit images there are.
      weight: of the cross-entropy in nats.
      k: clusters.
      temperature: divides the cosines with the centroids.
      confident: share of the images whose label counts, those of the highest cosines.

    Raises:
      ValueError: names the parameter that is out of range.
    """
    check_range("k", k, 2)
    check_range("temperature", temperature, 0, open_low=True)
    check_range("confident", confident, 0, 1, open_low=True)

    def loss(seen: Seen) -> Loss:
        logits = unit(seen.outputs.embedding) @ seen.memory["centroids"].T / temperature
        clusters = seen.memory["clusters"][seen.batch.rows]
        goals = jnp.broadcast_to(jnp.maximum(clusters, 0), logits.shape[:2])
        values = optax.softmax_cross_entropy_with_integer_labels(logits, goals)
        return mean_of(values, seen.batch, clusters >= 0)

    def memory(shapes: Outputs) -> dict[str, Any]:
        width = shapes.embedding.shape[-1]
        return {"clusters": jnp.full(rows, -1, jnp.int32), "centroids": jnp.zeros((k, width))}

    def refresh(before, key, embeddings, own, axis_name):
        found = _grouped(key, embeddings, own, k, axis_name, spherical=True)
        cosines = (unit(embeddings) * found.centroids[found.labels]).sum(1)
        by_row = _by_row(cosines, own, rows, axis_name)
        least = jnp.sort(by_row)[-max(round(confident * rows), 1)]
        clusters = jnp.where(by_row >= least, _by_row(found.labels, own, rows, axis_name), -1)
        return {"clusters": clusters, "centroids": found.centroids}

    return Term(loss, weight, needs=("embedding",), memory=memory, refresh=refresh)


def _grouped(
    key: jax.Array,
    embeddings: jax.Array,
    own: jax.Array,
    k: int,
    axis_name: str,
    spherical: bool = False,
) -> KMeansResult:
    """k-means of this device's rows that are real, with everyone's."""
    return kmeans(
        key,
        embeddings,
        k,
        weights=(own >= 0).astype(jnp.float32),
        restarts=3,
        spherical=spherical,
        axis_name=axis_name,
    )


def _by_row(values: jax.Array, own: jax.Array, rows: int, axis_name: str) -> jax.Array:
    """[rows] of everyone's values, in the order of the fit set, of which each row is there once."""
    everywhere, values = everyone(own, axis_name), everyone(values, axis_name)
    place = jnp.where(everywhere >= 0, everywhere, rows)  # what pads has one of its own
    return jnp.zeros(rows + 1, values.dtype).at[place].set(values)[:rows]
