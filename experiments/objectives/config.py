"""Do the two objectives fight? A reconstruction of some weight beside another term.

    retrieval-jax run --config=experiments/objectives/config.py:TERM-WEIGHT --workdir=DIR

TERM is "classification", the report's hint with its networks and two epochs, or "emp_ssl", a
label-free term on a small encoder, 712 steps of 64 images in four crops. WEIGHT is the
reconstruction's. The networks of weight 0 have no decoder.
"""

from ml_collections import ConfigDict

from retrieval_jax import config


def get_config(argument: str) -> ConfigDict:
    """The config of a term and of the reconstruction's weight."""
    term, _, weight = argument.partition("-")
    c = config.default()
    c.name = f"{term}, reconstruction × {weight}"
    c.data.source = "tfds"
    c.data.name = "cifar10"
    c.data.queries = 3000
    c.objective.reconstruction.weight = float(weight)
    {"classification": classification, "emp_ssl": emp_ssl}[term](c)
    c.embedding.precise_batchnorm = True
    c.report.tsne_points = 0
    return c


def classification(c: ConfigDict) -> None:
    """The report's second system."""
    c.objective.classification.weight = 1.0
    c.training.epochs = 2


def emp_ssl(c: ConfigDict) -> None:
    """Four crops of each image, and the decoder's last layers as wide as the encoder's first."""
    c.objective.emp_ssl.weight = 1.0
    c.model.encoder.name = "small_resnet"
    c.model.encoder.small_resnet.blocks = (0, 0, 0)
    c.model.decoder.widths = (64, 32)
    crops = c.views.main
    crops.count = 4
    crops.crop.size, crops.crop.scale = 24, (0.2, 1.0)
    crops.flip.probability = 0.5
    crops.jitter.update(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    crops.grayscale.probability = 0.2
    c.training.batch_size = 64
    c.training.epochs = 1
    c.optimizer.learning_rate = 3e-3
    c.optimizer.decay = "cosine"
    c.embedding.layer = "projection"
    c.embedding.normalize = True
