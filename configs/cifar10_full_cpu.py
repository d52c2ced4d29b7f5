"""CIFAR-10 with all labels on two CPU cores: a small residual network, classified.

Command:   retrieval-jax run --config=cifar10_full_cpu --workdir=runs/cifar10_full_cpu
Hardware:  2 CPU cores
Time:      49 min of training beside other programs, 53 min in all
Score:     NMI 0.787, precision@5 0.821 in the cluster (experiments/full_labels)
"""

from ml_collections import ConfigDict

from retrieval_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.name = "CIFAR-10 all labels, CPU"
    c.data.source = "tfds"
    c.data.name = "cifar10"
    c.data.queries = 3000
    c.objective.reconstruction.weight = 0.0
    c.objective.classification.weight = 1.0
    c.objective.classification.label_smoothing = 0.1
    c.model.encoder.name = "small_resnet"
    c.model.encoder.small_resnet.blocks = (0, 1, 1)
    c.views.main.flip.probability = 0.5
    c.views.main.shift.pixels = 3
    c.views.main.cutout.side = 8
    c.training.batch_size = 128
    c.training.epochs = 20  # of 356 steps
    c.optimizer.learning_rate = 5e-3
    c.optimizer.adamw.weight_decay = 0.05
    c.optimizer.warmup_fraction = 0.1
    c.optimizer.decay = "cosine"
    c.embedding.normalize = True
    c.report.tsne_points = 10000
    return c
