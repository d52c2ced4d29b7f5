"""Both systems with seven numbers of labels:

retrieval-jax sweep experiments/labels/sweep.py --workdir=DIR
"""

from pathlib import Path

from retrieval_jax.sweep import Sweep

LABELS = ("0", "10", "40", "250", "570", "5700", "all")


def get_sweep() -> Sweep:
    """Fourteen runs."""
    config = Path(__file__).with_name("config.py")
    return Sweep(
        [
            f"{config}:{system}-{labels}"
            for system in ("emp_ssl", "autoencoder")
            for labels in LABELS
        ]
    )
