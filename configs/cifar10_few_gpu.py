"""CIFAR-10 with 4 labels of each class on one GPU: FreeMatch with ResNet-18.

Command:   retrieval-jax run --config=cifar10_few_gpu --workdir=runs/cifar10_few_gpu
Hardware:  1 NVIDIA H100
Time:      at most 60 min
Score:     not measured
"""

from ml_collections import ConfigDict

from retrieval_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.name = "CIFAR-10 few labels, GPU"
    c.data.source = "tfds"
    c.data.name = "cifar10"
    c.data.queries = 3000
    c.data.labels_per_class = 4  # 25 for the row of 250 labels
    c.objective.reconstruction.weight = 0.0
    c.objective.classification.weight = 1.0
    c.objective.classification.views = 1  # the weak one
    c.objective.freematch.weight = 1.0
    c.model.encoder.name = "resnet18"
    c.views.main.flip.probability = 0.5  # weak
    c.views.main.shift.pixels = 4
    with c.unlocked():
        c.views.strong = config.view()
    strong = c.views.strong
    strong.flip.probability = 0.5
    strong.shift.pixels = 4
    strong.jitter.update(brightness=0.6, contrast=0.6, saturation=0.6, hue=0.2)
    strong.grayscale.probability = 0.2
    strong.solarize.probability = 0.2
    strong.cutout.side = 16
    c.training.precision = "bfloat16"
    c.training.batch_size = 512
    c.training.labelled_per_batch = 64
    c.training.epochs = 350  # of 89 steps
    c.training.ema_decay = 0.999
    c.optimizer.name = "sgd"
    c.optimizer.learning_rate = 0.03
    c.optimizer.sgd.weight_decay = 5e-4
    c.optimizer.decay = "cosine"
    c.embedding.average = True
    c.embedding.normalize = True
    c.embedding.batch_size = 1024
    c.report.tsne_points = 10000
    return c
