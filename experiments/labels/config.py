"""How much hint is enough? One system with a number of labels, in minutes on two CPU cores.

    retrieval-jax run --config=experiments/labels/config.py:SYSTEM-LABELS --workdir=DIR

SYSTEM is "autoencoder", the report's, with two epochs, or "emp_ssl", a label-free method on a small
encoder, with 712 steps. LABELS is how many the ten classes have together, or "all".
"""

from ml_collections import ConfigDict

from retrieval_jax.main import parse


def get_config(argument: str) -> ConfigDict:
    """The config of a system and its number of labels."""
    system, _, labels = argument.partition("-")
    c = {"autoencoder": autoencoder, "emp_ssl": emp_ssl}[system](hint=labels != "0")
    c.name = f"{system}, {labels} labels"
    few = labels not in ("0", "all")
    c.data.labels_per_class = int(labels) // 10 if few else 0
    c.training.labelled_per_batch = c.training.batch_size // 4 if few else 0
    c.embedding.precise_batchnorm = True
    c.report.tsne_points = 0
    return c


def autoencoder(hint: bool) -> ConfigDict:
    """The report's: reconstruction, and a classification head where there are labels."""
    c, _ = parse(["--config=cifar10_hint", "--workdir=unused"])
    c.objective.classification.weight = float(hint)
    c.training.epochs = 2
    return c


def emp_ssl(hint: bool) -> ConfigDict:
    """cifar10_few_cpu in one epoch; without labels, projections instead of probabilities."""
    c, _ = parse(["--config=cifar10_few_cpu", "--workdir=unused"])
    c.objective.classification.weight *= hint
    c.objective.freematch.weight *= hint
    c.training.epochs = 1
    c.embedding.layer = "probabilities" if hint else "projection"
    c.embedding.crops = 0
    return c
