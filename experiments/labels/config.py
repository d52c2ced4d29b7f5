"""How much hint is enough? One system with a number of labels, in minutes on two CPU cores.

    retrieval-jax run --config=experiments/labels/config.py:SYSTEM-LABELS --workdir=DIR

SYSTEM is "autoencoder", the report's, with two epochs, or "emp_ssl", a label-free method on a small
encoder, with 712 steps. LABELS is how many the ten classes have together, or "all".
"""

from ml_collections import ConfigDict

from retrieval_jax import config


def get_config(argument: str) -> ConfigDict:
    """The config of a system and its number of labels."""
    system, _, labels = argument.partition("-")
    c = config.default()
    c.name = f"{system}, {labels} labels"
    c.data.source = "tfds"
    c.data.name = "cifar10"
    c.data.queries = 3000
    {"autoencoder": autoencoder, "emp_ssl": emp_ssl}[system](c, hint=labels != "0")
    if labels not in ("0", "all"):
        c.data.labels_per_class = int(labels) // 10
        c.training.labelled_per_batch = c.training.batch_size // 4
    c.embedding.precise_batchnorm = True
    c.report.tsne_points = 0
    return c


def autoencoder(c: ConfigDict, hint: bool) -> None:
    """The report's: reconstruction, and a classification head where there are labels."""
    c.objective.classification.weight = float(hint)
    c.training.epochs = 2


def emp_ssl(c: ConfigDict, hint: bool) -> None:
    """configs/cifar10_few_cpu.py in one epoch; without labels, projections instead of classes."""
    c.objective.reconstruction.weight = 0.0
    c.objective.emp_ssl.weight = 1.0
    c.objective.classification.weight = 50.0 * hint
    c.objective.freematch.weight = 100.0 * hint
    c.model.encoder.name = "small_resnet"
    c.model.encoder.small_resnet.blocks = (0, 0, 0)
    weak = c.views.main
    weak.crop.size, weak.crop.scale = 24, (0.5, 1.0)
    weak.flip.probability = 0.5
    with c.unlocked():
        c.views.strong = config.view()
    crops = c.views.strong
    crops.count = 7
    crops.crop.size, crops.crop.scale = 24, (0.2, 1.0)
    crops.flip.probability = 0.5
    crops.jitter.update(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    crops.grayscale.probability = 0.2
    c.training.batch_size = 64
    c.training.epochs = 1
    c.optimizer.learning_rate = 3e-3
    c.optimizer.decay = "cosine"
    c.embedding.layer = "probabilities" if hint else "projection"
    c.embedding.normalize = True
