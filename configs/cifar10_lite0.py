"""CIFAR-10 by EfficientNet-lite0 with ImageNet's weights, not trained any further.

Command:   retrieval-jax run --config=cifar10_lite0 --workdir=runs/cifar10_lite0
Hardware:  2 CPU cores
Time:      at most 12 min of embedding, beside twenty other processes
Score:     NMI 0.357, precision@5 0.632 in the cluster (experiments/imagenet_features)
"""

from ml_collections import ConfigDict

from retrieval_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.name = "CIFAR-10 ImageNet features"
    c.data.source = "tfds"
    c.data.name = "cifar10"
    c.data.queries = 3000
    c.model.encoder.name = "efficientnet_lite0"
    c.model.encoder.efficientnet_lite0.size = 96  # from 32
    c.objective.reconstruction.weight = 0.0
    c.training.epochs = 0
    c.embedding.normalize = True
    c.embedding.batch_size = 32  # what fits into a CPU's caches
    return c
