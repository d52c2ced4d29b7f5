"""One label-free method for 712 steps on a small encoder, with the same kind of views for all.

retrieval-jax run --config=experiments/methods/config.py:vicreg --workdir=DIR

A step sees 512 crops of 24 × 24: two of 256 images, or eight of 64 for EMP-SSL.
"""

from ml_collections import ConfigDict

from retrieval_jax import config


def get_config(method: str) -> ConfigDict:
    """The config of one method, named as its objective is."""
    c = config.default()
    c.name = f"{method}, 712 steps"
    c.data.source = "tfds"
    c.data.name = "cifar10"
    c.data.queries = 3000
    c.objective.reconstruction.weight = 0.0
    c.objective[method].weight = 1.0
    c.model.encoder.name = "small_resnet"
    c.model.encoder.small_resnet.blocks = (0, 0, 0)  # 93 thousand parameters
    crops = c.views.main
    crops.count = 8 if method == "emp_ssl" else 2
    crops.crop.size, crops.crop.scale = 24, (0.2, 1.0)
    crops.flip.probability = 0.5
    crops.jitter.update(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    crops.grayscale.probability = 0.2
    c.training.batch_size = 512 // crops.count
    c.training.ema_decay = 0.99 if method == "byol" else 0.0
    c.training.epochs = 1 if method == "emp_ssl" else 4  # of 712 and 178 steps
    # The loss can't: BYOL's is least where it has collapsed.
    c.training.monitor = "nmi"
    c.optimizer.learning_rate = 3e-3
    c.optimizer.decay = "cosine"
    c.embedding.layer = "projection"
    c.embedding.normalize = True
    c.report.tsne_points = 2000
    return c
