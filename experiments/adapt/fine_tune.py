"""The whole pretrained network tuned without labels (EMP-SSL) on 3,150 small images, 2 CPU cores.

Command:   retrieval-jax run --config=experiments/adapt/fine_tune.py --workdir=DIR
               --config.data.directory=IMAGES (as adapt.py --images writes them)
"""

from ml_collections import ConfigDict

from retrieval_jax import config


def get_config() -> ConfigDict:
    """Three passes; with `--config.training.epochs=0` the network embeds as it is."""
    c = config.default()
    c.name = "EfficientNet-lite0, tuned without labels"
    c.data.source = "folder"
    c.data.queries = 500
    c.data.validation_fraction = 0.1
    c.model.encoder.name = "efficientnet_lite0"
    c.model.encoder.efficientnet_lite0.size = 96  # from 32
    c.objective.reconstruction.weight = 0.0
    c.objective.emp_ssl.weight = 1.0
    views = c.views.main
    views.count = 4
    views.crop.size, views.crop.scale = 32, (0.3, 1.0)
    views.flip.probability = 0.5
    views.jitter.update(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    views.grayscale.probability = 0.2
    c.training.batch_size = 64
    c.training.epochs = 3
    c.optimizer.learning_rate = 1e-4
    c.optimizer.decay = "cosine"
    c.embedding.normalize = True
    c.embedding.batch_size = 32
    c.report.tsne_points = 0
    return c
