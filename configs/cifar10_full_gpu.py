"""CIFAR-10 with all labels on one GPU: ResNet-9.

Command:   retrieval-jax run --config=cifar10_full_gpu --workdir=runs/cifar10_full_gpu
Hardware:  1 NVIDIA H100
Time:      at most 3 min
Score:     not measured
"""

from ml_collections import ConfigDict

from retrieval_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.name = "CIFAR-10 all labels, GPU"
    c.data.source = "tfds"
    c.data.name = "cifar10"
    c.data.queries = 3000
    c.objective.reconstruction.weight = 0.0
    c.objective.classification.weight = 1.0
    c.objective.classification.label_smoothing = 0.1
    c.model.encoder.name = "resnet9"
    c.views.main.flip.probability = 0.5
    c.views.main.shift.pixels = 4
    c.views.main.cutout.side = 8
    c.training.precision = "bfloat16"
    c.training.batch_size = 512
    c.training.epochs = 30  # of 89 steps
    c.training.ema_decay = 0.99
    c.optimizer.name = "sgd"
    c.optimizer.learning_rate = 0.4
    c.optimizer.sgd.weight_decay = 5e-4
    c.optimizer.warmup_fraction = 0.2
    c.optimizer.decay = "linear"
    c.embedding.average = True
    c.embedding.normalize = True
    c.embedding.batch_size = 1024
    c.report.tsne_points = 10000
    return c
