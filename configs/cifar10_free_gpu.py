"""CIFAR-10 without labels on one GPU: ProPos with ResNet-18.

Command:   retrieval-jax run --config=cifar10_free_gpu --workdir=runs/cifar10_free_gpu
Hardware:  1 NVIDIA H100
Time:      at most 25 min
Score:     not measured
"""

from ml_collections import ConfigDict

from retrieval_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.name = "CIFAR-10 label-free, GPU"
    c.data.source = "tfds"
    c.data.name = "cifar10"
    c.data.queries = 3000
    c.objective.reconstruction.weight = 0.0
    c.objective.propos.weight = 1.0
    c.objective.propos.warmup_steps = 2000
    c.model.encoder.name = "resnet18"
    c.model.projector.widths = (4096, 256)
    c.model.predictor.widths = (4096, 256)
    crops = c.views.main
    crops.count = 2
    crops.crop.size, crops.crop.scale = 32, (0.2, 1.0)
    crops.flip.probability = 0.5
    crops.jitter.update(probability=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    crops.grayscale.probability = 0.2
    c.training.precision = "bfloat16"
    c.training.batch_size = 256
    c.training.epochs = 150  # of 178 steps
    c.training.ema_decay = 0.996
    c.training.ema_schedule = "cosine"
    c.optimizer.name = "sgd"
    c.optimizer.learning_rate = 0.05
    c.optimizer.sgd.weight_decay = 5e-4
    c.optimizer.warmup_fraction = 0.05
    c.optimizer.decay = "cosine"
    c.embedding.layer = "projection"  # what ProPos clusters
    c.embedding.average = True
    c.embedding.normalize = True
    c.embedding.batch_size = 1024
    c.report.tsne_points = 10000
    return c
