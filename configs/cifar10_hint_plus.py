"""System 2 on CIFAR-10 with a better recipe: the same encoder and epochs, 0.434 NMI to beat.

Command:   retrieval-jax run --config=cifar10_hint_plus --workdir=runs/cifar10_hint_plus
Hardware:  one core of a 2-core virtual Intel Xeon (2.3 GHz, AVX-512) shared with other work
Time:      52 min of training on the busy machine above, 1 min for the stages up to ranking
Score:     NMI 0.480, RI 0.894, ARI 0.415 on CIFAR-10 (JPEG mirror), seed 0
"""

from ml_collections import ConfigDict

from retrieval_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.name = "CIFAR-10 hint plus"
    c.data.source = "tfds"
    c.data.name = "cifar10"
    c.data.queries = 3000
    # Classes gather where the classifier is right, so the recipe is one for accuracy: a rate that
    # rises and falls, mirrored images, and smoothed labels, which also draw each class together.
    c.optimizer.learning_rate = 3e-3
    c.optimizer.warmup_fraction = 0.1
    c.optimizer.decay = "cosine"
    c.views.main.flip.probability = 0.5
    c.objective.classification.weight = 1.0
    c.objective.classification.label_smoothing = 0.1
    c.embedding.normalize = True
    # The decoder holds 90 % of the work and does little for the clusters: a narrow one will do.
    c.model.decoder.widths = (32, 16)
    c.report.tsne_points = 10000
    return c
