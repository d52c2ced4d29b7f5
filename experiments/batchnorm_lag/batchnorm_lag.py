"""How much of a run's scores is the lag of BatchNorm's running statistics?

At a constant learning rate the weights move on while the running statistics (momentum 0.99) still
remember the last hundred steps or so. This takes a finished run, re-estimates the statistics on the
fit images with the weights as they are (Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm",
section 3, arXiv:2105.07576), embeds and clusters again, and prints both rows. The run keeps its own
scores.

    python experiments/batchnorm_lag/batchnorm_lag.py WORKDIR
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from retrieval_jax import config as configuration
from retrieval_jax import stages
from retrieval_jax.runtime import devices
from retrieval_jax.training.step import as_float

BATCH = 500


def main(workdir: Path) -> None:
    """Prints scores with the running statistics and with re-estimated ones."""
    config = configuration.default()
    config.update(ConfigDict(json.loads((workdir / "config.json").read_text())))
    data, parts, classes = stages.load(config)
    model, state, history = stages.fit(config, workdir, data, parts, classes)
    print(f"after epoch {len(history)}; validation in training: {history[-1]['validation']}")

    # With momentum 0 the "running" statistics after a batch are those of the batch.
    instant = model.clone(
        encoder=model.encoder.clone(momentum=0.0), decoder=model.decoder.clone(momentum=0.0)
    )

    def batch_statistics(variables, images):
        return instant.apply(variables, as_float(images), True, mutable=["batch_stats"])[1]

    step = devices.mapped(batch_statistics)
    variables = devices.on_every_device(state.variables)
    batch = devices.round_up(BATCH)
    batches = []
    for start in range(0, len(parts.fit) - batch + 1, batch):
        images = data.images[parts.fit[start : start + batch]]
        shared = images.reshape(devices.count(), -1, *images.shape[1:])
        batches.append(devices.from_first_device(step(variables, shared))["batch_stats"])
    # Batches are large: how their means differ adds next to nothing to the mean of variances.
    precise = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *batches)

    for name, statistics in (
        ("running", state.variables["batch_stats"]),
        ("re-estimated", precise),
    ):
        changed = state._replace(average=state.variables | {"batch_stats": statistics})
        embeddings = stages.embed_all(config, model, changed, data, parts)
        clusters = stages.cluster(config, embeddings)
        print(name, stages.clustering_scores(data, parts, clusters))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
