"""System 1 of the protocol on CIFAR-10: an autoencoder without labels.

Command:   retrieval-jax run --config=cifar10_vanilla --workdir=runs/cifar10_vanilla
Hardware:  one core of a 2-core virtual Intel Xeon (2.3 GHz, AVX-512) shared with other work
Time:      103 min of training on the busy machine above, 1 min for the stages up to ranking
Score:     NMI 0.074, RI 0.811, ARI 0.030 on CIFAR-10 (JPEG mirror), seed 0
"""

from ml_collections import ConfigDict

from retrieval_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.name = "CIFAR-10 vanilla"
    c.data.source = "tfds"
    c.data.name = "cifar10"
    c.data.queries = 3000
    c.report.tsne_points = 10000
    return c
