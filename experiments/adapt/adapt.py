"""Does label-free adaptation in some minutes make a pretrained network's features better?

    python -m experiments.adapt.adapt --data DIR --photographs FOLDER --output results.json

DIR is a TFDS data directory with CIFAR-10; FOLDER holds the packages of benchmarks/photographs.py.
What is adapted are the features of EfficientNet-lite0, to the gallery alone, and what the queries
find is scored. Settings are chosen on two subsets of CIFAR-10 that are scored nowhere; on the
photographs the same settings are used. Features are kept beside the output, for a second call.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.photographs import COPIES, copy, jpeg, photographs
from retrieval_jax import metrics
from retrieval_jax.data.decode import decode
from retrieval_jax.data.lite0_weights import lite0_params
from retrieval_jax.data.tfds import from_tfds
from retrieval_jax.kmeans import kmeans
from retrieval_jax.models.lite0 import Resized, nested
from retrieval_jax.objectives.contrastive import nt_xent
from retrieval_jax.objectives.redundancy import many_crops, variance_invariance_covariance
from retrieval_jax.runtime import provenance
from retrieval_jax.training.views import crop, flip, grayscale, jitter, view

GALLERY, QUERIES = 3000, 500
VIEWS = 4  # augmented ones of each gallery image
CHOSEN_ON, SEEDS = 2, 3  # subsets
BATCH = 256  # images per step of a trained projection


class Task(NamedTuple):
    """Unit features and labels.

    Attributes:
      gallery: float32 [n, d].
      views: float32 [v, n, d], of the gallery's augmented images.
      labels: int [n].
      queries: float32 [q, d]; None if each image of the gallery asks for the others.
      query_labels: int [q].
    """

    gallery: np.ndarray
    views: np.ndarray
    labels: np.ndarray
    queries: np.ndarray | None
    query_labels: np.ndarray


Adapted = Callable[[np.ndarray], np.ndarray]  # features → unit features


def plain(task: Task, seed: int) -> Adapted:
    """As they are."""
    return _unit


def centred(task: Task, seed: int) -> Adapted:
    """Less the gallery's mean."""
    mean = task.gallery.mean(0)
    return lambda rows: _unit(rows - mean)


def whitened(task: Task, seed: int, shrinkage: float, width: int = 1280) -> Adapted:
    """By the gallery's covariance plus `shrinkage` of its mean eigenvalue (Jégou and Chum 2012)."""
    mean = task.gallery.mean(0)
    values, axes = np.linalg.eigh(np.cov(task.gallery - mean, rowvar=False))
    values, axes = np.maximum(values, 0)[::-1][:width], axes[:, ::-1][:, :width]
    scale = axes / np.sqrt(values + shrinkage * values.mean())
    return lambda rows: _unit((rows - mean) @ scale)


def whitened_within(task: Task, seed: int, shrinkage: float, views: int = VIEWS) -> Adapted:
    """By the covariance of an image's views around their mean: what views share stands out."""
    mean = task.gallery.mean(0)
    several = np.concatenate([task.gallery[None], task.views[:views]])
    apart = (several - several.mean(0)).reshape(-1, several.shape[2])
    values, axes = np.linalg.eigh(apart.T @ apart / len(apart))
    scale = axes / np.sqrt(np.maximum(values, 0) + shrinkage * values.mean())
    return lambda rows: _unit((rows - mean) @ scale)


OBJECTIVES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "NT-Xent": lambda z: nt_xent(z, temperature=0.2).mean(),
    "VICReg": variance_invariance_covariance,
    "EMP-SSL": many_crops,
}


def projected(
    task: Task, seed: int, objective: str, rate: float, steps: int, width: int = 256
) -> Adapted:
    """A linear projection, from the principal axes on, that makes an image's views agree."""
    mean = task.gallery.mean(0)
    several = jnp.asarray(np.concatenate([task.gallery[None], task.views]) - mean) * 30
    axes = np.linalg.svd(task.gallery - mean, full_matrices=False)[2]
    optimizer = optax.adamw(optax.cosine_decay_schedule(rate, steps), weight_decay=1e-4)

    @jax.jit
    def fit(matrix: jax.Array) -> jax.Array:
        def step(i: jax.Array, state: tuple[Any, Any]) -> tuple[Any, Any]:
            matrix, memory = state
            of_rows, of_views = jax.random.split(jax.random.fold_in(jax.random.key(seed), i + 100))
            size = min(BATCH, several.shape[1])
            rows = jax.random.choice(of_rows, several.shape[1], (size,), replace=False)
            pair = jax.random.choice(of_views, len(several), (2,), replace=False)
            batch = several[pair][:, rows]
            gradient = jax.grad(lambda m: OBJECTIVES[objective](batch @ m))(matrix)
            change, memory = optimizer.update(gradient, memory, matrix)
            return optax.apply_updates(matrix, change), memory

        return jax.lax.fori_loop(0, steps, step, (matrix, optimizer.init(matrix)))[0]

    fitted = np.asarray(fit(jnp.asarray(axes[:width].T)))
    return lambda rows: _unit((rows - mean) @ fitted)


def settings() -> dict[str, list[dict[str, Any]]]:
    """What is tried of each family; the first of a list that is best on the choosing subsets."""
    shrunk = [{"shrinkage": s} for s in (0.1, 1.0, 10.0)]
    trained = [
        {"objective": objective, "rate": rate, "steps": 200}
        for objective in OBJECTIVES
        for rate in (1e-4, 1e-3)
    ]
    return {
        "plain": [{}],
        "centred": [{}],
        "whitened": shrunk + [{"shrinkage": s, "width": 256} for s in (0.1, 1.0)],
        "whitened within": shrunk,
        "projected": trained,
    }


FAMILIES: dict[str, Callable[..., Adapted]] = {
    "plain": plain,
    "centred": centred,
    "whitened": whitened,
    "whitened within": whitened_within,
    "projected": projected,
}


def scores(task: Task, adapted: Adapted, seed: int) -> dict[str, float]:
    """precision@5 and mAP of the queries, NMI of k-means on the gallery with as many clusters."""
    gallery = adapted(task.gallery)
    itself = task.queries is None
    queries = gallery if task.queries is None else adapted(task.queries)
    likeness = queries @ gallery.T
    if itself:
        np.fill_diagonal(likeness, -2)
    nearest = np.argsort(-likeness, axis=1, kind="stable")[:, :5]
    relevant, _ = metrics.relevance(nearest, task.query_labels, task.labels, exclude_self=itself)
    ranking = metrics.full_ranking(
        queries, task.query_labels, gallery, task.labels, exclude_self=itself
    )
    k = len(np.unique(task.labels))
    found = {
        "precision@5": float(metrics.precision_at_k(relevant, 5)),
        "mAP": float(np.mean(ranking.average_precision)),
    }
    if k <= 50:  # copies are no classes
        # Of few points k-means finds other clusters by another key.
        keys = range(seed, seed + (10 if len(gallery) < 1000 else 1))
        fits = (kmeans(jax.random.key(i), gallery, k, restarts=3).labels for i in keys)
        tables = [metrics.contingency_table(task.labels, np.asarray(fit)) for fit in fits]
        found["NMI"] = float(np.mean([metrics.normalized_mutual_information(t) for t in tables]))
    return found


def cifar10(directory: str) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Images, labels and how many of them are the gallery, of each subset; none overlap."""
    data = from_tfds("cifar10", directory)
    order = np.random.default_rng(0).permutation(len(data.images))
    for rows in order[: (CHOSEN_ON + SEEDS) * (GALLERY + QUERIES)].reshape(CHOSEN_ON + SEEDS, -1):
        rows = np.sort(rows)  # then shuffled again, as files lie by class
        rows = np.random.default_rng(1).permutation(rows)
        yield np.asarray(data.images[rows]), np.asarray(data.labels)[rows], GALLERY


def of_photographs(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray, int]]:
    """Tux Paint's stamps with their classes, and pictures that ask for copies of themselves."""
    every = photographs(folder)
    sized = partial(decode, size=224, crop=True)
    stamps = [p for p in every if p.label]
    names = sorted({p.label for p in stamps})
    images = np.stack([sized(jpeg(p.image)) for p in stamps])
    labels = np.array([names.index(p.label) for p in stamps])
    rng = np.random.default_rng(0)
    some = every[::3]
    copies = [sized(copy(p.image, kind, rng)) for kind in COPIES for p in some]
    originals = [sized(jpeg(p.image)) for p in some]
    number = np.arange(len(some))
    return {
        "stamps": (images, labels, len(images)),
        "copies": (
            np.stack(copies + originals),
            np.tile(number, len(COPIES) + 1),
            len(copies),
        ),
    }


def task_of(images: np.ndarray, labels: np.ndarray, gallery: int, size: int, seed: int) -> Task:
    """Embeds the images, and views of the first ones, the gallery."""
    model = Resized(size, pretrained=False)
    params = nested(lite0_params())["params"]
    params.pop("classifier")
    augment = view(
        [
            crop(size=images.shape[1], scale=(0.3, 1.0)),
            flip(probability=0.5),
            jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
            grayscale(probability=0.2),
        ]
    ).augment

    @partial(jax.jit, static_argnums=2)
    def embed(images: jax.Array, keys: jax.Array, augmented: bool) -> jax.Array:
        scaled = images.astype(jnp.float32) / 255
        if augmented:
            scaled = jax.vmap(augment)(keys, scaled)
        return model.apply({"params": {"network": params}}, scaled, method="embed")  # type: ignore[return-value]

    def rows(images: np.ndarray, number: int, augmented: bool) -> np.ndarray:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), number), len(images))
        parts = []
        for first in range(0, len(images), 32):
            part = images[first : first + 32]
            filled = np.concatenate([part, np.zeros((32 - len(part), *part.shape[1:]), np.uint8)])
            some = jnp.pad(jnp.arange(first, first + len(part)), (0, 32 - len(part)))
            parts.append(np.asarray(embed(filled, keys[some], augmented))[: len(part)])
        return _unit(np.concatenate(parts))

    features = rows(images, 0, False)
    views = np.stack([rows(images[:gallery], 1 + v, True) for v in range(VIEWS)])
    alone = gallery == len(images)
    return Task(
        features[:gallery],
        views,
        labels[:gallery],
        None if alone else features[gallery:],
        labels if alone else labels[gallery:],
    )


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)


def kept(path: Path, make: Callable[[], Task]) -> Task:
    """The task of a file, made if it isn't there."""
    if not path.exists():
        start = time.process_time()
        task = make()
        print(f"{path.stem}: {time.process_time() - start:.0f} s of CPU time", flush=True)
        arrays = {name: value for name, value in task._asdict().items() if value is not None}
        np.savez(path, **arrays)
    with np.load(path) as arrays:
        return Task(*(arrays.get(name) for name in Task._fields))  # type: ignore[arg-type]


def choose(tasks: list[Task], family: str, tried: list[dict[str, Any]]) -> dict[str, Any]:
    """The setting with the best precision@5 + NMI."""
    if len(tried) == 1:
        return tried[0]
    values = []
    for setting in tried:
        start = time.process_time()
        of_tasks = [scores(task, FAMILIES[family](task, 0, **setting), 0) for task in tasks]
        means = {name: float(np.mean([s[name] for s in of_tasks])) for name in of_tasks[0]}
        values.append(means["precision@5"] + means["NMI"])
        shown = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
        print(f"  {family} {setting}: {shown} ({time.process_time() - start:.0f} s)", flush=True)
    return tried[int(np.argmax(values))]


def main() -> None:
    """Chooses settings, scores them and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    beside = options.output.parent
    subsets = [
        kept(beside / f"cifar10-{i}.npz", partial(task_of, *subset, size=96, seed=i))
        for i, subset in enumerate(cifar10(options.data))
    ]
    chosen_on, judged = subsets[:CHOSEN_ON], {"CIFAR-10": subsets[CHOSEN_ON:]}
    if options.photographs:
        made = of_photographs(options.photographs)
        for name, parts in made.items():
            judged[name] = [
                kept(beside / f"{name}-{seed}.npz", partial(task_of, *parts, size=224, seed=seed))
                for seed in range(SEEDS if name == "stamps" else 1)
            ]
    result: dict[str, Any] = {"versions": provenance.versions(), "chosen": {}, "scores": {}}
    for family, tried in settings().items():
        setting = result["chosen"][family] = choose(chosen_on, family, tried)
        for name, tasks in judged.items():
            many = [
                scores(task, FAMILIES[family](task, seed, **setting), seed)
                for seed, task in enumerate(tasks)
            ]
            result["scores"].setdefault(name, {})[family] = many
            shown = ", ".join(
                f"{metric} {np.mean([s[metric] for s in many]):.3f} "
                f"± {np.std([s[metric] for s in many]):.3f}"
                for metric in many[0]
            )
            print(f"{name}, {family} {setting}: {shown}", flush=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
