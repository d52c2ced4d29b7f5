"""System 2 of the protocol on CIFAR-10: the autoencoder with a hint of supervision.

Command:   retrieval-jax run --config=cifar10_hint --workdir=runs/cifar10_hint
Hardware:  one core of a 2-core virtual Intel Xeon (2.3 GHz, AVX-512) shared with other work
Time:      103 min of training on the busy machine above, 1 min for the stages up to ranking
Score:     NMI 0.374, RI 0.865, ARI 0.259 on CIFAR-10 (JPEG mirror), seed 0; NMI 0.394 ± 0.018 over
           three seeds, and experiments/batchnorm_lag/ says why it varies
"""

from ml_collections import ConfigDict

from retrieval_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.name = "CIFAR-10 hint"
    c.data.source = "tfds"
    c.data.name = "cifar10"
    c.data.queries = 3000
    c.objective.classification.weight = 1.0
    c.report.tsne_points = 10000
    return c
