"""What `results.json` says of a run besides its scores."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from typing import Any

import jax
import numpy as np

from retrieval_jax.data.images import ImageSet
from retrieval_jax.data.split import Split
from retrieval_jax.runtime import provenance
from retrieval_jax.training.loop import Trained


def of_training(trained: Trained) -> dict[str, Any]:
    """The budget, the model's size and a row an epoch."""
    state, history, _ = trained
    trainable, statistics = (
        sum(leaf.size for leaf in jax.tree.leaves(tree))
        for tree in (state.params, state.collections)
    )
    return {
        "epochs": len(history),
        "parameters": trainable + statistics,
        "trainable_parameters": trainable,
        "history": history,
    }


def of_clustering(k: int, clusters: dict[str, np.ndarray]) -> dict[str, Any]:
    """How k-means ended; `clusters` as in `clusters.npz`."""
    return {
        "k": k,
        "inertia": float(clusters["inertia"]),
        "iterations": int(clusters["iterations"]),
        "converged": bool(clusters["converged"]),
        "sizes": np.bincount(clusters["gallery"], minlength=k).tolist(),
    }


def left_out(experiment: Any, data: ImageSet, parts: Split) -> list[str]:
    """A sentence for each thing that the data or the config leaves no room for."""
    sentences = []
    if data.labels is None:
        sentences.append(
            "NMI, RI, ARI, precision and mAP, and the marks in the figures: the data has no labels."
        )
    if len(parts.validation) == 0:
        sentences.append("Validation losses: data.validation_fraction leaves no images for them.")
    if len(parts.gallery) > experiment.tsne_points:
        sentences.append(
            f"t-SNE shows {experiment.tsne_points:,} of the {len(parts.gallery):,} gallery "
            "embeddings, sampled by the seed (report.tsne_points)."
        )
    return sentences


def of_provenance(
    experiment: Any, data: ImageSet, parts: Split, arguments: list[str]
) -> dict[str, Any]:
    """Command, config, versions, device, seed and data: what another needs to repeat the run."""
    return {
        "command": shlex.join(["python", "-m", "retrieval_jax.main", *arguments]),
        "config": experiment.record,
        "versions": provenance.versions(),
        "device": provenance.device(),
        "peak_memory_mb": provenance.peak_memory_mb(),
        "seed": experiment.seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": {
            "description": data.description,
            "images": len(data.images),
            "gallery": len(parts.gallery),
            "fit": len(parts.fit),
            "validation": len(parts.validation),
            "queries": len(parts.queries),
            "image_shape": list(data.images.shape[1:]),
            "class_names": list(data.class_names),
            "skipped": list(data.skipped),
        },
    }
