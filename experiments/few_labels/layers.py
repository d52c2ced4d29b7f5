"""Which layer of a run embeds best? Scored on the validation images alone.

    python experiments/few_labels/layers.py RUN... --directory TFDS

For finished runs of cifar10_few_cpu, and embeddings by backbone, projection and probabilities (unit
means over nine crops): NMI of k-means, and precision@5 of each image among the others. Prints
Markdown.
"""

import argparse
from pathlib import Path

import jax
from etils import epath
from flax.traverse_util import unflatten_dict

from retrieval_jax import Embedder, build, main, metrics, nearest, pipeline
from retrieval_jax.data.images import view
from retrieval_jax.kmeans import kmeans
from retrieval_jax.runtime.model_file import read_tensors

LAYERS = ("probabilities", "projection", "backbone")


def scores(images, labels, embed: Embedder) -> tuple[float, float]:
    """NMI and precision@5."""
    rows = embed(images)
    clusters = kmeans(jax.random.key(0), rows, k=10, restarts=10)
    table = metrics.contingency_table(labels, clusters.labels)
    found = nearest(rows, rows, k=5, exclude_self=True)
    hits, _ = metrics.relevance(found.indices, labels, labels, exclude_self=True)
    return (
        float(metrics.normalized_mutual_information(table)),
        float(metrics.precision_at_k(hits, 5)),
    )


def table() -> None:
    """Prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path)
    parser.add_argument("--directory", metavar="TFDS", required=True)
    options = parser.parse_args()
    settings = ["--config=cifar10_few_cpu", f"--config.data.directory={options.directory}"]
    c, _ = main.parse([*settings, f"--workdir={options.runs[0]}"])
    experiment = build.experiment(c)
    data, parts, recipe = pipeline.load(experiment)
    images = view(data.images, parts.validation)
    print("| run | layer | NMI | precision@5 |\n|---|---|---|---|")
    for run in options.runs:
        variables = unflatten_dict(read_tensors(epath.Path(run)), sep="/")
        for layer in LAYERS:
            model = recipe.model.clone(embeds=layer)
            embed = Embedder.from_state(model, variables, normalize=True, crops=experiment.crops)
            nmi, precision = scores(images, data.labels[parts.validation], embed)
            print(f"| {run.name} | {layer} | {nmi:.3f} | {precision:.3f} |")


if __name__ == "__main__":
    table()
