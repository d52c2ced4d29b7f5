"""Do the two objectives fight? A reconstruction of some weight beside another term.

    retrieval-jax run --config=experiments/objectives/config.py:TERM-WEIGHT --workdir=DIR

TERM is "classification", the report's hint with its networks and two epochs, or "emp_ssl", a
label-free term on a small encoder, 712 steps of 64 images in four crops. WEIGHT is the
reconstruction's. The networks of weight 0 have no decoder.
"""

from ml_collections import ConfigDict

from retrieval_jax.main import parse


def get_config(argument: str) -> ConfigDict:
    """The config of a term and of the reconstruction's weight."""
    term, _, weight = argument.partition("-")
    c = {"classification": classification, "emp_ssl": emp_ssl}[term]()
    c.name = f"{term}, reconstruction × {weight}"
    c.objective.reconstruction.weight = float(weight)
    c.embedding.precise_batchnorm = True
    c.report.tsne_points = 0
    return c


def classification() -> ConfigDict:
    """The report's second system in two epochs."""
    c, _ = parse(["--config=cifar10_hint", "--workdir=unused"])
    c.training.epochs = 2
    return c


def emp_ssl() -> ConfigDict:
    """cifar10_free_cpu in one epoch of four crops, with a decoder as wide as the encoder begins."""
    c, _ = parse(["--config=cifar10_free_cpu", "--workdir=unused"])
    c.model.decoder.widths = (64, 32)
    c.views.main.count = 4
    c.training.epochs = 1
    c.embedding.crops = 0
    return c
