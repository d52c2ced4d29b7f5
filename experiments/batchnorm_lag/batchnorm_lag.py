"""How much of a run's scores is the lag of BatchNorm's running statistics?

At a constant learning rate the weights move on while the running statistics (momentum 0.99) still
remember the last hundred steps or so. This takes a finished run, re-estimates the statistics on the
fit images with the weights as they are (Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm",
section 3, arXiv:2105.07576), embeds and clusters again, and prints both rows. The run keeps its own
scores.

    python experiments/batchnorm_lag/batchnorm_lag.py --config=FILE --workdir=DIR [overrides]

The arguments are those of the run.
"""

import sys

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from retrieval_jax import build, embedder, pipeline
from retrieval_jax.embedder import as_float
from retrieval_jax.evaluation import score_clusters
from retrieval_jax.main import parse
from retrieval_jax.runtime import devices
from retrieval_jax.runtime.model_file import read_tensors

BATCH = 500


def main(arguments: list[str]) -> None:
    """Prints scores with the running statistics and with re-estimated ones."""
    config, workdir = parse(arguments)
    experiment = build.experiment(config)
    data, parts, recipe = pipeline.load(experiment)
    variables = unflatten_dict(read_tensors(workdir), sep="/")

    # With momentum 0 the "running" statistics after a batch are those of the batch.
    model = recipe.model
    instant = model.clone(
        encoder=model.encoder.clone(momentum=0.0), decoder=model.decoder.clone(momentum=0.0)
    )

    def batch_statistics(variables, images):
        return instant.apply(variables, as_float(images), True, mutable=["batch_stats"])[1]

    step = devices.mapped(batch_statistics)
    placed = devices.on_every_device(variables)
    batch = devices.round_up(BATCH)
    batches = []
    for start in range(0, len(parts.fit) - batch + 1, batch):
        images = data.images[parts.fit[start : start + batch]]
        shared = images.reshape(devices.count(), -1, *images.shape[1:])
        batches.append(devices.from_first_device(step(placed, shared))["batch_stats"])
    # Batches are large: how their means differ adds next to nothing to the mean of variances.
    precise = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *batches)

    for name, statistics in (
        ("running", variables["batch_stats"]),
        ("re-estimated", precise),
    ):
        embed = embedder.Embedder.from_state(
            model,
            variables | {"batch_stats": statistics},
            normalize=experiment.normalize,
            batch=experiment.embedding_batch_size,
        )
        embeddings = pipeline.embed_all(embed, data, parts)
        clusters = pipeline.cluster(experiment, embeddings)
        for part, rows in (("gallery", parts.gallery), ("queries", parts.queries)):
            found = score_clusters(
                getattr(embeddings, part),
                getattr(clusters, part),
                data.labels[rows],
                experiment.clustering.k,
                experiment.seed,
            )
            print(f"{name}, {part}: NMI {found.nmi.value:.3f}, RI {found.ri.value:.3f}, ", end="")
            print(f"ARI {found.ari.value:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
